package main

import (
	"context"
	"database/sql/driver"
	"io"
	"runtime"
	"time"
)

// The null driver does nothing. Its connections have the optional interfaces
// that lib/pq's have.
type (
	nullConnector struct{}
	nullConn      struct{}
	nullStmt      struct{}
	nullTx        struct{}
	nullRows      struct{ read bool }
)

var (
	nullColumns              = []string{"n"}
	seven       driver.Value = int64(7)
)

func (nullConnector) Connect(context.Context) (driver.Conn, error) { return &nullConn{}, nil }
func (nullConnector) Driver() driver.Driver                        { return connectorDriver{nullConnector{}} }

func (*nullConn) Close() error                                                 { return nil }
func (*nullConn) Ping(context.Context) error                                   { return nil }
func (*nullConn) ResetSession(context.Context) error                           { return nil }
func (*nullConn) IsValid() bool                                                { return true }
func (*nullConn) Begin() (driver.Tx, error)                                    { return nullTx{}, nil }
func (*nullConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return nullTx{}, nil }
func (*nullConn) Prepare(string) (driver.Stmt, error)                          { return nullStmt{}, nil }
func (*nullConn) PrepareContext(context.Context, string) (driver.Stmt, error)  { return nullStmt{}, nil }
func (*nullConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}
func (*nullConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return &nullRows{}, nil
}

func (nullStmt) Close() error                               { return nil }
func (nullStmt) NumInput() int                              { return -1 }
func (nullStmt) Exec([]driver.Value) (driver.Result, error) { return driver.ResultNoRows, nil }
func (nullStmt) Query([]driver.Value) (driver.Rows, error)  { return &nullRows{}, nil }
func (nullStmt) ExecContext(context.Context, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}
func (nullStmt) QueryContext(context.Context, []driver.NamedValue) (driver.Rows, error) {
	return &nullRows{}, nil
}

func (nullTx) Commit() error   { return nil }
func (nullTx) Rollback() error { return nil }

func (*nullRows) Columns() []string { return nullColumns }
func (*nullRows) Close() error      { return nil }
func (r *nullRows) Next(dest []driver.Value) error {
	if r.read {
		return io.EOF
	}
	r.read = true
	dest[0] = seven
	return nil
}

// connectorDriver makes a driver of a connector, for wrappers that take no
// connector.
type connectorDriver struct{ c driver.Connector }

func (d connectorDriver) Open(string) (driver.Conn, error) { return d.c.Connect(context.Background()) }
func (d connectorDriver) OpenConnector(string) (driver.Connector, error) {
	return d.c, nil
}

// noting calls note at each checkout of a pooled connection: the simplest
// wrapper that one would write. Whatever else the connection does is inherited.
type noting struct {
	driver.Connector
	note func(*notingConn)
}

type fullConn interface {
	driver.Conn
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

type notingConn struct {
	fullConn
	note func(*notingConn)

	at    time.Time
	pcs   [32]uintptr
	n     int
	text  []byte
	timer *time.Timer
}

func (c noting) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &notingConn{fullConn: inner.(fullConn), note: c.note}, nil
}

func (c *notingConn) ResetSession(ctx context.Context) error {
	c.note(c)
	return c.fullConn.ResetSession(ctx)
}

func (c *notingConn) IsValid() bool {
	if c.timer != nil {
		c.timer.Stop()
	}
	return c.fullConn.IsValid()
}

// noteCallers keeps the program counters and the time.
func noteCallers(c *notingConn) {
	c.at = time.Now()
	c.n = runtime.Callers(2, c.pcs[:])
}

// noteText keeps the text of the stack and sets a timer that would print it, as
// leak checkers for tests do (saiko-tech/sqleak, for rows, statements and
// transactions; its buffer has the same size).
func noteText(c *notingConn) {
	if c.text == nil {
		c.text = make([]byte, 8<<10)
	}
	c.n = runtime.Stack(c.text[:8<<10], false)
	c.timer = time.AfterFunc(30*time.Second, func() {})
}
