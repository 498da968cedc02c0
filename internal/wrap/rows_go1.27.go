//go:build go1.27

package wrap

import (
	"database/sql/driver"
	"io"
)

var _ driver.RowsColumnScanner = columnScanner{}

// columnScanner is a rows whose driver scans columns by itself. database/sql
// calls NextRow instead of Next where it finds one.
type columnScanner struct{ *rows }

func scannerRows(r *rows) driver.Rows {
	if _, ok := r.inner.(driver.RowsColumnScanner); ok {
		return columnScanner{r}
	}
	return r
}

func (r columnScanner) NextRow() error {
	r.begin()
	r.rec.BeginRow()
	defer r.rec.EndRow()
	err := r.inner.(driver.RowsColumnScanner).NextRow()
	if err != nil && err != io.EOF {
		return r.c.fail(r.ctx, false, err)
	}
	return err
}

func (r columnScanner) ScanColumn(sc driver.ScanContext, i int, dest any) error {
	return r.inner.(driver.RowsColumnScanner).ScanColumn(sc, i, dest)
}
