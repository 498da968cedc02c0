package leasepg

import (
	"context"
	"database/sql"
	"time"

	"github.com/lib/pq"
)

// An Entry is a row of a lease table, for people.
type Entry struct {
	Name     string
	Epoch    int64
	Held     bool   // though it may have expired
	Region   string // of the holder, or the last one
	TTL      time.Duration
	Acquired sql.NullTime // by the server's clock; NULL: it was never held
	Expires  time.Time
	Now      time.Time
}

// Entries reads a lease table, or, with only, the row of that lease. It changes nothing,
// and works on a standby.
func Entries(ctx context.Context, tx *sql.Tx, table, only string) (all []Entry, err error) {
	query := "SELECT l.name, l.epoch, l.lease_id IS NOT NULL, coalesce(l.region, ''::pg_catalog.text), l.ttl_ms, l.acquired_at, l.expires_at, pg_catalog.clock_timestamp() FROM " + table + " l"
	if only != "" {
		query += " WHERE l.name OPERATOR(pg_catalog.=) " + pq.QuoteLiteral(only) + "::pg_catalog.text"
	}
	err = eachRow(ctx, tx, query+" ORDER BY l.name", func(rows *sql.Rows) error {
		var e Entry
		var ttl int64
		err := rows.Scan(&e.Name, &e.Epoch, &e.Held, &e.Region, &ttl, &e.Acquired, &e.Expires, &e.Now)
		e.TTL = time.Duration(ttl) * time.Millisecond
		all = append(all, e)
		return err
	})
	return all, err
}
