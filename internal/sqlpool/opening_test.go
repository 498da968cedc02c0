package sqlpool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"runtime"
	"sync"
	"testing"
	"unsafe"
	"weak"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A seeing connector notes what Opening says in Connect.
type seeing struct {
	nullConnector
	found   chan *sql.DB
	connect func() // called before
}

func newSeeing() *seeing { return &seeing{found: make(chan *sql.DB, 1000)} }

func (s *seeing) Connect(context.Context) (driver.Conn, error) {
	if s.connect != nil {
		s.connect()
	}
	s.found <- Opening(s)
	return nullConn{}, nil
}

func (s *seeing) expect(t *testing.T, want *sql.DB) {
	t.Helper()
	select {
	case got := <-s.found:
		if got != want {
			t.Errorf("opening %p, want %p", got, want)
		}
	default:
		t.Error("Connect was not called")
	}
}

func open(t *testing.T, c driver.Connector) *sql.DB {
	t.Helper()
	db := sql.OpenDB(c)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func take(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// mayBeInlined is set in builds in which the answer may be nil: see TestOpening.
var mayBeInlined bool

func TestOpening(t *testing.T) {
	if n := len(connectFrames().places); n < 2 && !mayBeInlined {
		t.Fatalf("the self-test has found %d places", n)
	}
	t.Run("each method", func(t *testing.T) {
		for name, f := range map[string]func(db *sql.DB){
			"Conn":    func(db *sql.DB) { take(t, db) },
			"Ping":    func(db *sql.DB) { _ = db.Ping() },
			"Query":   func(db *sql.DB) { _, _ = db.Query("") },
			"Exec":    func(db *sql.DB) { _, _ = db.Exec("") },
			"Begin":   func(db *sql.DB) { _, _ = db.Begin() },
			"Prepare": func(db *sql.DB) { _, _ = db.Prepare("") },
		} {
			t.Run(name, func(t *testing.T) {
				s := newSeeing()
				db := open(t, s)
				f(db)
				s.expect(t, db)
			})
		}
	})
	t.Run("opener", func(t *testing.T) {
		s := newSeeing()
		c, err := newCanary(s)
		if err != nil {
			t.Fatal(err)
		}
		s.expect(t, c.db)
		Discard(c.held)
		<-c.waiter
		s.expect(t, c.db)
		c.close()
	})
	t.Run("two pools", func(t *testing.T) {
		s := newSeeing()
		for range 2 {
			db := open(t, s)
			take(t, db)
			s.expect(t, db)
		}
	})
	t.Run("pool within", func(t *testing.T) { // its frames are gone when the outer connector asks
		inner, outer := newSeeing(), newSeeing()
		in := open(t, inner)
		outer.connect = func() { take(t, in) }
		out := open(t, outer)
		take(t, out)
		inner.expect(t, in)
		outer.expect(t, out)
	})
	t.Run("wrapped", func(t *testing.T) {
		s := newSeeing()
		take(t, open(t, &wrapping{s}))
		s.expect(t, nil)
	})
	t.Run("no pool", func(t *testing.T) {
		s := newSeeing()
		_, _ = s.Connect(context.Background())
		s.expect(t, nil)
		s.connect = func() {
			var wg sync.WaitGroup
			wg.Go(func() { s.found <- Opening(s) })
			wg.Wait()
		}
		db := open(t, s)
		take(t, db)
		s.expect(t, nil) // another goroutine than the pool's
		s.expect(t, db)
	})
	t.Run("no pointer", func(t *testing.T) {
		if db := Opening(nil); db != nil {
			t.Error(db)
		}
		if db := Opening(nullConnector{}); db != nil {
			t.Error(db)
		}
	})
	t.Run("off", func(t *testing.T) {
		for _, l := range []Layout{OwnStack, Fields, Layouts} {
			s := newSeeing()
			restore := Disable(l)
			take(t, open(t, s))
			restore()
			s.expect(t, nil)
		}
		s := newSeeing()
		db := open(t, s)
		take(t, db)
		s.expect(t, db)
	})
}

type wrapping struct{ driver.Connector }

// TestOpeningMany opens pools deep in stacks that grow, while the collector runs.
func TestOpeningMany(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				s := newSeeing()
				db := open(t, s)
				at(g*i, func() { take(t, db) })
				s.expect(t, db)
				if i%10 == 0 {
					runtime.GC()
				}
			}
		})
	}
	wg.Wait()
}

//go:noinline
func at(depth int, f func()) {
	var room [64]byte
	if depth > 0 {
		at(depth-1, f)
	} else {
		f()
	}
	runtime.KeepAlive(room)
}

// TestOpeningWeakly: what is kept weakly goes with the pool.
func TestOpeningWeakly(t *testing.T) {
	p := func() weak.Pointer[sql.DB] {
		s := newSeeing()
		db := sql.OpenDB(s)
		_ = db.Ping()
		p := weak.Make(<-s.found)
		if p.Value() != db {
			t.Error("another pool")
		}
		_ = db.Close()
		return p
	}()
	for range 1000 {
		if runtime.GC(); p.Value() == nil {
			return
		}
		runtime.Gosched()
	}
	t.Error("the pool is kept")
}

// TestHolds: no address is too wrong.
func TestHolds(t *testing.T) {
	s := newSeeing()
	var value driver.Connector = s
	right := uintptr(unsafe.Pointer(&value))
	if !holds(right, s) || holds(right, newSeeing()) {
		t.Error("the right address is judged wrongly")
	}
	for _, addr := range []uint64{0, 8, 4096, uint64(right) + 1, uint64(right) + 8, ^uint64(0), ^uint64(7), ^uint64(0xfff), 1 << 47, 1<<47 - 16, 0xc000000000 - 16, 0xdeadbee8} {
		if holds(uintptr(addr), s) {
			t.Errorf("%#x", addr)
		}
	}
	runtime.KeepAlive(&value)
}

func TestFirstArg(t *testing.T) {
	for line, want := range map[string]uintptr{
		"database/sql.(*DB).conn(0xc0148000, {0x7d5f20, 0xaec3e0}, 0x1)":  0xc0148000,
		"database/sql.(*DB).conn(0xc0148000?, {0x7d5f20, 0xaec3e0}, 0x1)": 0,
		"database/sql.(*DB).openNewConnection(0xc01480d0, {0x1, 0x2})":    0xc01480d0,
		"database/sql.(*DB).conn(...)":                                    0,
		"database/sql.(*DB).conn()":                                       0,
		"database/sql.(*DB).conn(_, 0x1)":                                 0,
		"database/sql.(*DB).conn({0xc0148000, 0x1})":                      0,
		"database/sql.(*DB).conn(0x10000000000000000)":                    0,
		"database/sql.(*DB).conn(0xc0148000":                              0,
		"database/sql.(*DB).conn":                                         0,
	} {
		_, args := cutArgs(line)
		if got := firstArg(args); got != want {
			t.Errorf("%s: %#x", line, got)
		}
	}
}

func BenchmarkOpening(b *testing.B) {
	s := newSeeing()
	s.connect = func() {
		for b.Loop() {
			Opening(s)
		}
	}
	db := sql.OpenDB(s)
	_ = db.Ping()
	_ = db.Close()
}

func BenchmarkOpeningSelfTest(b *testing.B) {
	for b.Loop() {
		probe := &probeConnector{frames: make(chan poolFrame, 8)}
		c, err := newCanary(probe)
		if err != nil {
			b.Fatal(err)
		}
		Discard(c.held)
		<-c.waiter
		c.close()
	}
}
