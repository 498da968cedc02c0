//go:build go1.27

package transparency

import (
	"database/sql"
	"database/sql/driver"
)

// HasColumnScanner has its rows scan for themselves.
type HasColumnScanner SpyRows

func (p *HasColumnScanner) NextRow() error {
	if err := p.c.call("next row", "rows.NextRow"); err != nil {
		return err
	}
	r := (*SpyRows)(p)
	return r.Next(make([]driver.Value, 2))
}

func (p *HasColumnScanner) ScanColumn(sc driver.ScanContext, i int, dest any) error {
	if err := p.c.call("scan column", "rows.ScanColumn %d", i); err != nil {
		return err
	}
	return sql.ConvertAssign(sc, dest, int64(10*p.sets+i))
}

func init() {
	rowsTypes = append(rowsTypes,
		struct {
			*SpyRows
			*HasColumnScanner
		}{},
		struct {
			*SpyRows
			*HasColumnScanner
			*HasNextSet
			*HasTypeName
		}{})
}
