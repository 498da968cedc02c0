package sqlpool_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/baldur-go/baldur/internal/sqlpool"
)

// connector makes connections that do nothing. dial, if set, is called before one is made,
// closing by the Close of a statement.
type connector struct {
	dial, closing  func()
	opened, closed int
}

func (c *connector) Connect(context.Context) (driver.Conn, error) {
	if c.dial != nil {
		c.dial()
	}
	c.opened++
	return &conn{c}, nil
}

func (c *connector) Driver() driver.Driver { return nil }

type conn struct{ of *connector }

func (c *conn) Prepare(string) (driver.Stmt, error) { return stmt{c}, nil }
func (*conn) Begin() (driver.Tx, error)             { return tx{}, nil }
func (c *conn) Close() error                        { c.of.closed++; return nil }

type stmt struct{ c *conn }

func (s stmt) Close() error                             { s.c.of.closing(); return nil }
func (stmt) NumInput() int                              { return 0 }
func (stmt) Exec([]driver.Value) (driver.Result, error) { return driver.ResultNoRows, nil }
func (stmt) Query([]driver.Value) (driver.Rows, error)  { return nil, errors.New("unused") }

type tx struct{}

func (tx) Commit() error   { return nil }
func (tx) Rollback() error { return nil }

func take(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestRead: at each step of a pool's life, with waiters.
func TestRead(t *testing.T) {
	db := sql.OpenDB(new(connector))
	defer db.Close()
	expect := func(when string, want sqlpool.State, inUse int) {
		t.Helper()
		if got, ok := sqlpool.Read(db); !ok || got != want || got.InUse() != inUse {
			t.Errorf("%s: %+v, %v, %d in use; want %+v, %d", when, got, ok, got.InUse(), want, inUse)
		}
	}
	expect("new", sqlpool.State{}, 0)
	db.SetMaxOpenConns(-1)
	expect("without limit", sqlpool.State{}, 0)
	db.SetMaxOpenConns(2)
	a, b := take(t, db), take(t, db)
	expect("full", sqlpool.State{Open: 2, MaxOpen: 2}, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waiters sync.WaitGroup
	for range 3 {
		waiters.Go(func() {
			if c, err := db.Conn(ctx); err == nil {
				c.Close()
			}
		})
	}
	for db.Stats().WaitCount < 3 { // raised in the step in which a waiter joins the queue
		runtime.Gosched()
	}
	expect("with waiters", sqlpool.State{Open: 2, MaxOpen: 2, Waiting: 3}, 2)
	cancel()
	waiters.Wait()
	expect("without them", sqlpool.State{Open: 2, MaxOpen: 2}, 2)
	a.Close()
	expect("one back", sqlpool.State{Open: 2, Idle: 1, MaxOpen: 2}, 1)
	sqlpool.Discard(b)
	expect("one discarded", sqlpool.State{Open: 1, Idle: 1, MaxOpen: 2}, 0)
	db.Close()
	expect("closed", sqlpool.State{MaxOpen: 2}, 0)
}

// TestPending: connections that database/sql's opener is yet to dial are told apart.
func TestPending(t *testing.T) {
	dialling, release := make(chan struct{}, 10), make(chan struct{})
	c := new(connector)
	db := sql.OpenDB(c)
	defer db.Close()
	db.SetMaxOpenConns(2)
	a, b := take(t, db), take(t, db)
	c.dial = func() { dialling <- struct{}{}; <-release }
	var waiters sync.WaitGroup
	defer waiters.Wait()
	defer close(release)
	for range 2 {
		waiters.Go(func() {
			if c, err := db.Conn(t.Context()); err == nil {
				c.Close()
			}
		})
	}
	for db.Stats().WaitCount < 2 {
		runtime.Gosched()
	}
	sqlpool.Discard(a) // the opener, one goroutine, is asked for two others
	<-dialling
	sqlpool.Discard(b)
	if s, ok := sqlpool.Read(db); !ok || s != (sqlpool.State{Open: 2, Pending: 1, MaxOpen: 2, Waiting: 2}) {
		t.Errorf("%+v, %v", s, ok)
	}
}

// TestDiscard: the connection is closed, and not pooled.
func TestDiscard(t *testing.T) {
	c := new(connector)
	db := sql.OpenDB(c)
	defer db.Close()
	for n := 1; n <= 2; n++ {
		sqlpool.Discard(take(t, db))
		if c.opened != n || c.closed != n {
			t.Errorf("%d opened, %d closed", c.opened, c.closed)
		}
	}
}

// TestHung: a pool whose lock is held by a driver's call is told as such, in time.
func TestHung(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	db := sql.OpenDB(&connector{closing: func() { close(entered); <-release }})
	st, err := db.Prepare("")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = tx.Stmt(st).Exec() // the statement's connection is the transaction's
	var calls sync.WaitGroup
	calls.Go(func() { st.Close() }) // the driver's is closed under the pool's lock, by now or when the connection comes back
	calls.Go(func() { _ = tx.Rollback() })
	<-entered
	before := runtime.NumGoroutine()
	for range 6 { // more than the goroutines that may be left behind
		began := time.Now()
		if s, ok := sqlpool.Read(db); ok {
			t.Fatalf("a pool that hangs has the state %+v", s)
		}
		if s, ok := sqlpool.Stats(db); ok {
			t.Fatalf("a pool that hangs has the statistics %+v", s)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("it took %v", took)
		}
	}
	if n := runtime.NumGoroutine() - before; n > 8 {
		t.Errorf("%d goroutines are left behind", n)
	}
	close(release)
	calls.Wait()
	if s, ok := sqlpool.Read(db); !ok || s != (sqlpool.State{Open: 1, Idle: 1}) {
		t.Errorf("after the hang: %+v, %v", s, ok)
	}
	for { // those left behind return
		if _, ok := sqlpool.Stats(db); ok {
			break
		}
		runtime.Gosched()
	}
	db.Close()
}
