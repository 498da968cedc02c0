package quorumtest

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"sync/atomic"
)

// openTxConnector is lib/pq as a driver without autocommit: each query is
// committed, and the next transaction begun at once, so that now() is as old as
// the statement before.
type openTxConnector struct{ driver.Connector }

func (c openTxConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inTx := &openTxConn{Conn: conn}
	if err := inTx.exec(ctx, "BEGIN"); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return inTx, nil
}

type openTxConn struct {
	driver.Conn
	inTx bool // in one of the program's own
}

// BeginTx takes the transaction that has begun already.
func (c *openTxConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	c.inTx = true
	return openTx{c}, nil
}

type openTx struct{ conn *openTxConn }

func (t openTx) Commit() error {
	t.conn.inTx = false
	return t.conn.next(context.Background())
}

func (t openTx) Rollback() error {
	t.conn.inTx = false
	return errors.Join(t.conn.exec(context.Background(), "ROLLBACK"), t.conn.exec(context.Background(), "BEGIN"))
}

func (c *openTxConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
	if err != nil {
		return nil, err
	}
	all := &storedRows{columns: rows.Columns()}
	for {
		row := make([]driver.Value, len(all.columns))
		if err = rows.Next(row); err != nil {
			break
		}
		all.rows = append(all.rows, row)
	}
	_ = rows.Close()
	if err != io.EOF {
		return nil, err
	}
	if c.inTx {
		return all, nil
	}
	return all, c.next(ctx)
}

func (c *openTxConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
}

func (c *openTxConn) exec(ctx context.Context, query string) error {
	_, err := c.ExecContext(ctx, query, nil)
	return err
}

// next commits, and begins the next transaction.
func (c *openTxConn) next(ctx context.Context) error {
	return errors.Join(c.exec(ctx, "COMMIT"), c.exec(ctx, "BEGIN"))
}

// begunConnector is lib/pq as a program's hook that leaves a transaction open on
// each connection that it makes, from when it is told to.
type begunConnector struct {
	driver.Connector
	begun *atomic.Bool
}

func (c begunConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil || !c.begun.Load() {
		return conn, err
	}
	if _, err := conn.(driver.ExecerContext).ExecContext(ctx, "BEGIN", nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

type storedRows struct {
	columns []string
	rows    [][]driver.Value
}

func (r *storedRows) Columns() []string { return r.columns }
func (r *storedRows) Close() error      { return nil }
func (r *storedRows) Next(dest []driver.Value) error {
	if len(r.rows) == 0 {
		return io.EOF
	}
	copy(dest, r.rows[0])
	r.rows = r.rows[1:]
	return nil
}
