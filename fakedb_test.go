package baldur_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
)

// fakeDB is a driver for what a server cannot be made to do on demand. before,
// if set, is called before each call of the driver and its error is returned
// by the call. A query returns rows of one column, the connection's id.
type fakeDB struct {
	before  func(c *fakeConn, call string) error
	rows    int    // of each query; 0: 3
	closing func() // called by the Close of a statement

	mu  sync.Mutex // guards the fields below
	ids int64
}

type fakeConn struct {
	db         *fakeDB
	id         int64
	byOpener   bool // made by database/sql's connectionOpener
	resets     atomic.Int32
	calls      atomic.Int32 // beside ResetSession, IsValid and Close
	invalid    atomic.Bool
	closed     atomic.Bool
	rollbacked atomic.Int32
}

func (db *fakeDB) Driver() driver.Driver { return nil }

func (db *fakeDB) Connect(context.Context) (driver.Conn, error) {
	var buf [4096]byte
	byOpener := strings.Contains(string(buf[:runtime.Stack(buf[:], false)]), "connectionOpener")
	db.mu.Lock()
	db.ids++
	c := &fakeConn{db: db, id: db.ids, byOpener: byOpener}
	db.mu.Unlock()
	if err := c.call("connect"); err != nil {
		return nil, err
	}
	c.calls.Store(0)
	return c, nil
}

func (c *fakeConn) call(name string) error {
	c.calls.Add(1)
	if c.db.before == nil {
		return nil
	}
	return c.db.before(c, name)
}

func (c *fakeConn) Prepare(string) (driver.Stmt, error) {
	if err := c.call("prepare"); err != nil {
		return nil, err
	}
	return &fakeStmt{c}, nil
}

func (c *fakeConn) Begin() (driver.Tx, error) { return nil, errors.New("fake: BeginTx is there") }

func (c *fakeConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	if err := c.call("begin"); err != nil {
		return nil, err
	}
	return fakeTx{c}, nil
}

func (c *fakeConn) ResetSession(context.Context) error {
	c.resets.Add(1)
	if c.invalid.Load() {
		return driver.ErrBadConn
	}
	if c.db.before == nil {
		return nil
	}
	return c.db.before(c, "reset")
}

func (c *fakeConn) IsValid() bool { return !c.invalid.Load() }
func (c *fakeConn) Close() error  { c.closed.Store(true); return nil }

func (c *fakeConn) Ping(context.Context) error { return c.call("ping") }

func (c *fakeConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	if err := c.call("exec"); err != nil {
		return nil, err
	}
	return driver.RowsAffected(1), nil
}

func (c *fakeConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	if err := c.call("query"); err != nil {
		return nil, err
	}
	return c.newRows(), nil
}

func (c *fakeConn) newRows() driver.Rows {
	n := c.db.rows
	if n == 0 {
		n = 3
	}
	return &fakeRows{c: c, left: n}
}

type fakeStmt struct{ c *fakeConn }

func (s *fakeStmt) Close() error {
	if s.c.db.closing != nil {
		s.c.db.closing()
	}
	return nil
}

func (s *fakeStmt) NumInput() int                              { return -1 }
func (s *fakeStmt) Exec([]driver.Value) (driver.Result, error) { return nil, errors.New("unused") }
func (s *fakeStmt) Query([]driver.Value) (driver.Rows, error)  { return nil, errors.New("unused") }

func (s *fakeStmt) ExecContext(context.Context, []driver.NamedValue) (driver.Result, error) {
	if err := s.c.call("stmt exec"); err != nil {
		return nil, err
	}
	return driver.RowsAffected(1), nil
}

func (s *fakeStmt) QueryContext(context.Context, []driver.NamedValue) (driver.Rows, error) {
	if err := s.c.call("stmt query"); err != nil {
		return nil, err
	}
	return s.c.newRows(), nil
}

type fakeTx struct{ c *fakeConn }

func (t fakeTx) Commit() error   { return t.c.call("commit") }
func (t fakeTx) Rollback() error { t.c.rollbacked.Add(1); return t.c.call("rollback") }

type fakeRows struct {
	c    *fakeConn
	left int
}

func (r *fakeRows) Columns() []string { return []string{"id"} }
func (r *fakeRows) Close() error      { return r.c.call("rows close") }
func (r *fakeRows) Next(dest []driver.Value) error {
	if err := r.c.call("next"); err != nil {
		return err
	}
	if r.left == 0 {
		return io.EOF
	}
	r.left--
	dest[0] = r.c.id
	return nil
}
