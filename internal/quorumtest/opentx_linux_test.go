package quorumtest

import (
	"context"
	"database/sql/driver"
	"io"
)

// openTxConnector is lib/pq as a driver without autocommit: each statement is
// committed, and the next transaction begun at once, so that now() is as old as
// the statement before.
type openTxConnector struct{ driver.Connector }

func (c openTxConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return openTxConn{conn}, nil
}

type openTxConn struct{ driver.Conn }

func (c openTxConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
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
	return all, c.next(ctx)
}

func (c openTxConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	result, err := c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
	if err != nil {
		return nil, err
	}
	return result, c.next(ctx)
}

// next commits, and begins the next transaction. The first COMMIT of a
// connection finds none, which is a warning.
func (c openTxConn) next(ctx context.Context) error {
	for _, query := range []string{"COMMIT", "BEGIN"} {
		if _, err := c.Conn.(driver.ExecerContext).ExecContext(ctx, query, nil); err != nil {
			return err
		}
	}
	return nil
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
