// Package sqlpool reads what database/sql knows of a pool, the number of waiting
// goroutines included.
package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// State is what database/sql knows of a pool at one instant.
type State struct {
	Open    int // connections, including those that are yet to be dialled
	Pending int // of those, not being dialled yet
	Idle    int // of those, in the pool
	MaxOpen int // 0: unlimited
	Waiting int // goroutines in the queue; −1: unknown
}

// InUse is the number of connections out of the pool, or being dialled.
func (s State) InUse() int { return s.Open - s.Idle }

// Read returns the state of db. ok is false if it does not answer in time, as when
// a driver call blocks under database/sql's lock, which hangs db.Stats as well.
//
// db.Stats does not tell how many goroutines wait. The queue is read by
// reflection, with db's own lock held, and only after a self-test has shown that
// the fields are what they are thought to be. Otherwise Waiting is −1, and the
// rest comes from db.Stats.
func Read(db *sql.DB) (s State, ok bool) {
	if s, ok, can := readFields(db, true); can {
		return s, ok
	}
	return byStats(db)
}

// readFields reads the private fields. If it must not wait, ok is false while anybody
// has db's lock.
func readFields(db *sql.DB, wait bool) (s State, ok, can bool) {
	if !enabled(Fields) {
		return s, false, false
	}
	peek := peek()
	if peek == nil {
		return s, false, false
	}
	s, ok = peek(db, wait)
	return s, ok, true
}

type peeker func(db *sql.DB, wait bool) (State, bool)

// peek returns the reader of the private fields, or nil.
var peek = sync.OnceValue(func() peeker {
	peek := findPoolFields()
	if peek == nil || !testPeek(peek) {
		return nil
	}
	return peek
})

// findPoolFields returns a reader of sql.DB's fields by their names and types in
// Go 1.23 to 1.27, or nil if they are not those.
func findPoolFields() peeker {
	t := reflect.TypeFor[sql.DB]()
	offset := func(t reflect.Type, name string, is func(reflect.Type) bool) (uintptr, reflect.Type, bool) {
		f, ok := t.FieldByName(name)
		return f.Offset, f.Type, ok && is(f.Type)
	}
	isInt := func(t reflect.Type) bool { return t.Kind() == reflect.Int }
	isChan := func(t reflect.Type) bool { return t == reflect.TypeFor[chan struct{}]() }
	isSlice := func(t reflect.Type) bool { return t.Kind() == reflect.Slice }
	mu, _, ok1 := offset(t, "mu", func(t reflect.Type) bool { return t == reflect.TypeFor[sync.Mutex]() })
	free, _, ok2 := offset(t, "freeConn", isSlice)
	open, _, ok3 := offset(t, "numOpen", isInt)
	maxOpen, _, ok4 := offset(t, "maxOpen", isInt)
	set, setType, ok5 := offset(t, "connRequests", func(t reflect.Type) bool { return t.Kind() == reflect.Struct })
	opener, _, ok6 := offset(t, "openerCh", isChan)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 {
		return nil
	}
	queue, _, ok := offset(setType, "s", isSlice)
	if !ok {
		return nil
	}
	length := func(p unsafe.Pointer) int { return len(*(*[]struct{})(p)) } // len of any slice: the header's second word
	return func(db *sql.DB, wait bool) (State, bool) {
		p := unsafe.Pointer(db)
		lock := (*sync.Mutex)(unsafe.Add(p, mu))
		read := func() State {
			defer lock.Unlock()
			return State{
				Open:    *(*int)(unsafe.Add(p, open)),
				Pending: len(*(*chan struct{})(unsafe.Add(p, opener))),
				Idle:    length(unsafe.Add(p, free)),
				MaxOpen: max(0, *(*int)(unsafe.Add(p, maxOpen))),
				Waiting: length(unsafe.Add(p, set+queue)),
			}
		}
		if lock.TryLock() {
			return read(), true
		}
		if !wait {
			return State{}, false
		}
		return aside(func() State { lock.Lock(); return read() })
	}
}

// testPeek compares peek with the truth on a pool of its own: one connection
// out, one waiter; one idle, no waiter.
func testPeek(peek peeker) bool {
	c, err := newCanary(nullConnector{})
	if err != nil {
		return false
	}
	defer c.close()
	s, ok := peek(c.db, true)
	good := ok && s == State{Open: 1, Idle: 0, MaxOpen: 1, Waiting: 1}
	_ = c.held.Close()
	<-c.waiter
	s, ok = peek(c.db, true)
	return good && ok && s == State{Open: 1, Idle: 1, MaxOpen: 1, Waiting: 0}
}

type nullConnector struct{}
type nullConn struct{}

var errNull = errors.New("baldur: connection of a self-test")

func (nullConnector) Connect(context.Context) (driver.Conn, error) { return nullConn{}, nil }
func (nullConnector) Driver() driver.Driver                        { return nil }
func (nullConn) Prepare(string) (driver.Stmt, error)               { return nil, errNull }
func (nullConn) Begin() (driver.Tx, error)                         { return nil, errNull }
func (nullConn) Close() error                                      { return nil }

// Stats is db.Stats, but gives up after 100 ms.
func Stats(db *sql.DB) (sql.DBStats, bool) { return aside(db.Stats) }

// byStats is Read without the private fields.
func byStats(db *sql.DB) (State, bool) {
	return aside(func() State {
		st := db.Stats()
		return State{Open: st.OpenConnections, Idle: st.Idle, MaxOpen: st.MaxOpenConnections, Waiting: -1}
	})
}

var asides atomic.Int32 // goroutines that have not returned

// aside calls read, which waits for db's lock, on a goroutine of its own, and gives
// up after 100 ms. At most 8 goroutines that hang are left behind in a program.
func aside[T any](read func() T) (s T, ok bool) {
	if asides.Add(1) > 8 {
		asides.Add(-1)
		return s, false
	}
	ch := make(chan T, 1)
	go func() {
		defer asides.Add(-1)
		ch <- read()
	}()
	timer := time.NewTimer(100 * time.Millisecond)
	defer timer.Stop()
	select {
	case s := <-ch:
		return s, true
	case <-timer.C:
		return s, false
	}
}

// Discard closes a connection, instead of giving it back to its pool.
func Discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = conn.Close()
}
