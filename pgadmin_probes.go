package baldur

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
)

// The probes: queries that the reference's health page makes to see how a pool
// behaves under slow, failing and cancelled statements. Nothing in this module calls
// them, and only this file knows what they are made of.

// maxSleep bounds what a slip of a unit can do to a server.
const maxSleep = time.Hour

// seconds checks a duration of sleep and writes it for pg_sleep.
func seconds(what string, d time.Duration) (string, error) {
	if d < 0 || d > maxSleep {
		return "", fmt.Errorf("baldur: %s is %v; it must be from 0 to %v", what, d, maxSleep)
	}
	return "'" + strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "'::pg_catalog.float8", nil
}

// Sleep has the server sleep for d, from 0 to 1 h (the manual's 9.9.5, pg_sleep).
func (p *PGAdmin) Sleep(ctx context.Context, d time.Duration) error {
	s, err := seconds("Sleep: the duration", d)
	if err != nil {
		return err
	}
	return p.pool.Row(ctx, "SELECT pg_catalog.pg_sleep("+s+")::pg_catalog.text", new(string))
}

// ExecuteSlowQuery runs a query that takes d at least, from 0 to 1 h.
func (p *PGAdmin) ExecuteSlowQuery(ctx context.Context, d time.Duration) error {
	s, err := seconds("ExecuteSlowQuery: the duration", d)
	if err != nil {
		return err
	}
	return p.pool.Row(ctx, "SELECT pg_catalog.count(*) FROM pg_catalog.generate_series(1::pg_catalog.int4, 1000::pg_catalog.int4), pg_catalog.pg_sleep("+s+")", new(int))
}

// BackendPIDWithDelay returns the process id of the backend that has slept for
// delay, from 0 to 1 h: it is one statement.
func (p *PGAdmin) BackendPIDWithDelay(ctx context.Context, delay time.Duration) (int, error) {
	s, err := seconds("BackendPIDWithDelay: the delay", delay)
	if err != nil {
		return 0, err
	}
	var pid int
	err = p.pool.Row(ctx, "SELECT pg_catalog.pg_backend_pid() FROM pg_catalog.pg_sleep("+s+")", &pid)
	return pid, err
}

// Aggregate sums up a table's column price. Without rows, or where all prices
// are NULL, the prices are 0.
type Aggregate struct {
	TotalCount int64   `json:"total_count"`
	AvgPrice   float64 `json:"avg_price"`
	MaxPrice   float64 `json:"max_price"`
	MinPrice   float64 `json:"min_price"`
}

// ExecuteAggregateQuery sums up the column price of a table.
//
// table is the table's name as it is, with capitals and spaces: "orders",
// "shop.Orders". It is quoted, part by part. A part that contains a dot or a
// double quote is given as SQL has it: `shop."odd.name"`. A name that is empty,
// has more than two parts, a part of more than 63 bytes (which PostgreSQL would
// silently cut), a zero byte or invalid UTF-8 is an error.
func (p *PGAdmin) ExecuteAggregateQuery(ctx context.Context, table string) (Aggregate, error) {
	t, err := pgsql.QuoteTable(table)
	if err != nil {
		return Aggregate{}, err
	}
	var a Aggregate
	of := func(aggregate string) string {
		return "coalesce(pg_catalog." + aggregate + "(price)::pg_catalog.float8, '0'::pg_catalog.float8)"
	}
	err = p.pool.Row(ctx, "SELECT pg_catalog.count(*), "+of("avg")+", "+of("max")+", "+of("min")+" FROM "+t,
		&a.TotalCount, &a.AvgPrice, &a.MaxPrice, &a.MinPrice)
	if err != nil {
		return Aggregate{}, err
	}
	return a, nil
}

const nonexistentTable = "baldur_nonexistent_table"

// ExecuteNonexistentTableQuery returns the error of a query on a table that does
// not exist: SQLSTATE 42P01, undefined_table.
func (p *PGAdmin) ExecuteNonexistentTableQuery(ctx context.Context) error {
	err := p.pool.Row(ctx, "SELECT 1 FROM "+nonexistentTable, new(int))
	if err == nil || errors.Is(err, sql.ErrNoRows) {
		return errors.New("baldur: ExecuteNonexistentTableQuery: there is a table " + nonexistentTable)
	}
	return err
}

// ExecuteTimeoutQuery sleeps for sleep, from 0 to 1 h, under a statement_timeout
// of timeout, from above 0 to 24.8 days, and returns the error if that is over
// first: SQLSTATE 57014, query_canceled. It is a transaction of four round
// trips; the timeout ends with it.
func (p *PGAdmin) ExecuteTimeoutQuery(ctx context.Context, timeout, sleep time.Duration) error {
	s, err := seconds("ExecuteTimeoutQuery: sleep", sleep)
	if err != nil {
		return err
	}
	if timeout == 0 {
		return errors.New("baldur: ExecuteTimeoutQuery: timeout is 0, which PostgreSQL takes for none; it must be above 0")
	}
	t, err := pgsql.Milliseconds("ExecuteTimeoutQuery: timeout", timeout)
	if err != nil {
		return err
	}
	tx, err := p.pool.Begin(ctx, ctx, "")
	if err != nil {
		return err
	}
	defer tx.End()
	if err := tx.Ask(ctx, pgsession.Request{Before: []string{pgsession.Settle}, Query: "SELECT " + pgsql.SetConfig("statement_timeout", "'"+t+"'")}, new(string)); err != nil {
		return err
	}
	return tx.Ask(ctx, pgsession.Request{Query: "SELECT pg_catalog.pg_sleep(" + s + ")::pg_catalog.text"}, new(string))
}

func (NoopPGAdmin) Sleep(context.Context, time.Duration) error                      { return nil }
func (NoopPGAdmin) ExecuteSlowQuery(context.Context, time.Duration) error           { return nil }
func (NoopPGAdmin) BackendPIDWithDelay(context.Context, time.Duration) (int, error) { return 0, nil }
func (NoopPGAdmin) ExecuteAggregateQuery(context.Context, string) (Aggregate, error) {
	return Aggregate{}, nil
}
func (NoopPGAdmin) ExecuteNonexistentTableQuery(context.Context) error              { return nil }
func (NoopPGAdmin) ExecuteTimeoutQuery(_ context.Context, _, _ time.Duration) error { return nil }
