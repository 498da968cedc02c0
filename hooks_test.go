package baldur_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/hook"
	"github.com/baldur-go/baldur/internal/pgtest"
	"github.com/baldur-go/baldur/internal/sqlpool"
)

// events collects what hooks are called with.
type events struct {
	mu   sync.Mutex // guards the field below
	list []string
}

func (e *events) add(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, fmt.Sprintf(format, args...))
}

func (e *events) want(t *testing.T, want ...string) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Equal(e.list, want) {
		t.Errorf("got %q, want %q", e.list, want)
	}
	e.list = nil
}

func (e *events) hooks(baldur.Target) baldur.Hooks {
	return baldur.Hooks{
		Opened:    func(t *baldur.Tracker) { e.add("opened %s", t.PoolName()) },
		Closed:    func() { e.add("closed") },
		Connected: func(_ context.Context, took time.Duration) { e.add("connected after %v", took) },
		Returned: func(r baldur.Return) {
			e.add("%d returned after %v, taken by %s", r.ConnectionID, r.Held, r.StackTrace()[0].Function)
		},
	}
}

// slowDB takes a second to connect; connecting, if set, is told when that begins.
type slowDB struct {
	nullDB
	connecting chan struct{}
}

func (s slowDB) Connect(ctx context.Context) (driver.Conn, error) {
	if s.connecting != nil {
		s.connecting <- struct{}{}
	}
	time.Sleep(time.Second)
	return s.nullDB.Connect(ctx)
}

func TestHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e events
		connector := baldur.Wrap(slowDB{}, baldur.WithPoolName("shop"), baldur.WithHooks("test", e.hooks))
		for range 2 { // the connector may be used again
			db := sql.OpenDB(connector)
			e.want(t)
			c := must(db.Conn(t.Context()))
			e.want(t, "opened shop", "connected after 1s")
			time.Sleep(90 * time.Second)
			_ = c.Close()
			must(db.Exec("x"))
			e.mu.Lock()
			if len(e.list) != 2 || !strings.Contains(e.list[0], "returned after 1m30s, taken by github.com/baldur-go/baldur_test.TestHooks") ||
				!strings.Contains(e.list[1], "returned after 0s") {
				t.Errorf("got %q", e.list)
			}
			e.list = nil
			e.mu.Unlock()
			c = must(db.Conn(t.Context()))
			_ = db.Close()
			e.want(t) // a connection is still out
			_ = c.Close()
			e.mu.Lock()
			if len(e.list) != 2 || e.list[1] != "closed" {
				t.Errorf("got %q", e.list)
			}
			e.list = nil
			e.mu.Unlock()
		}
	})
}

// TestHooksCloseWhileConnecting: a pool that is closed while it connects has
// ended when that connection has.
func TestHooksCloseWhileConnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e events
		slow := slowDB{connecting: make(chan struct{})}
		db := baldur.OpenDB(slow, baldur.WithPoolName("shop"), baldur.WithHooks("test", func(target baldur.Target) baldur.Hooks {
			h := e.hooks(target)
			h.Returned = nil
			return h
		}))
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := db.Conn(t.Context()); err == nil {
				_ = c.Close()
			}
		}()
		<-slow.connecting
		_ = db.Close()
		<-done
		synctest.Wait()
		e.want(t, "opened shop", "closed", "opened shop", "connected after 1s", "closed")
	})
}

// TestHooksPanic: a hook that panics changes nothing.
func TestHooksPanic(t *testing.T) {
	db := baldur.OpenDB(nullDB{}, baldur.WithHooks("test", func(baldur.Target) baldur.Hooks {
		return baldur.Hooks{
			Opened:    func(*baldur.Tracker) { panic("opened") },
			Closed:    func() { panic("closed") },
			Connected: func(context.Context, time.Duration) { panic("connected") },
			Returned:  func(baldur.Return) { panic("returned") },
		}
	}))
	defer db.Close()
	db.SetMaxOpenConns(1)
	for range 3 {
		must(db.Exec("x"))
	}
	if s := db.Stats(); s.OpenConnections != 1 || s.InUse != 0 {
		t.Errorf("got %+v", s)
	}
	if h := baldur.TrackerOf(db).Holders(); len(h) != 0 {
		t.Errorf("holders: %v", h)
	}
}

// TestHooksOptions: hooks of one name replace each other, others add up; the
// nearest span context wins.
func TestHooksOptions(t *testing.T) {
	var e events
	named := func(name string) func(baldur.Target) baldur.Hooks {
		return func(target baldur.Target) baldur.Hooks {
			e.add("%s made", name)
			return baldur.Hooks{
				Returned:    func(baldur.Return) { e.add("%s returned", name) },
				SpanContext: func(context.Context) baldur.SpanContext { e.add("%s span", name); return baldur.SpanContext{} },
			}
		}
	}
	db := baldur.OpenDB(nullDB{}, baldur.WithHooks("a", named("first")), baldur.WithHooks("b", named("b")), baldur.WithHooks("a", named("second")))
	defer db.Close()
	e.want(t, "second made", "b made")
	must(db.Exec("x"))
	e.want(t, "second span", "second returned", "b returned")

	own := func(context.Context) baldur.SpanContext { e.add("own span"); return baldur.SpanContext{} }
	db2 := baldur.OpenDB(nullDB{}, baldur.WithHooks("a", named("a")), baldur.WithSpanContext(own))
	defer db2.Close()
	must(db2.Exec("x"))
	e.want(t, "a made", "own span", "a returned")
}

func TestHooksTarget(t *testing.T) {
	for dsn, want := range map[string]baldur.Target{
		"postgres://u:secret@db.example:6000/shop":              {Address: "db.example", Port: 6000, Database: "shop", QueryText: true},
		"host=/run/pg port=5433 user=u search_path=sales,x":     {Address: "/run/pg/.s.PGSQL.5433", Database: "u", Schema: "sales", QueryText: true},
		"host=a,b port=1,2 dbname=d user=u":                     {Database: "d", QueryText: true},
		"host=a hostaddr=::1 dbname=d user=u search_path=$user": {Address: "::1", Port: 5432, Database: "d", QueryText: true},
		"host=a user=u baldur_query_text=off":                   {Address: "a", Port: 5432, Database: "u"},
	} {
		var got baldur.Target
		db, err := baldur.Open(dsn, baldur.WithHooks("", func(t baldur.Target) baldur.Hooks { got = t; return baldur.Hooks{} }))
		if err != nil {
			t.Errorf("%s: %v", dsn, err)
			continue
		}
		_ = db.Close()
		if got != want {
			t.Errorf("%s: got %+v, want %+v", dsn, got, want)
		}
	}
}

// middle is a connector and connection between ours and the driver's, as a
// tracing library's are.
type middle struct{ driver.Connector }
type middleConn struct{ driver.Conn }

func (m middle) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := m.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return middleConn{c}, nil
}
func (c middleConn) Raw() driver.Conn { return c.Conn }

// TestHooksConnector: the backend's pid, the driver's own Driver and Unwrap are
// to be had through a connector in the middle.
func TestHooksConnector(t *testing.T) {
	db := must(baldur.Open(pgtest.SocketDSN(t), baldur.WithHooks("test", func(baldur.Target) baldur.Hooks {
		return baldur.Hooks{Connector: func(c driver.Connector) driver.Connector { return middle{c} }}
	})))
	defer db.Close()
	c := must(db.Conn(t.Context()))
	defer c.Close()
	var pid int
	if err := c.QueryRowContext(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if h := baldur.TrackerOf(db).Holders(); len(h) != 1 || h[0].BackendPID != pid {
		t.Errorf("got %+v, want one with pid %d", h, pid)
	}
	_ = c.Raw(func(dc any) error {
		_, between := baldur.RecordOf(dc)
		if _, ok := between.(middleConn); !ok {
			t.Errorf("wrapped is a %T", between)
		}
		inner := baldur.Unwrap(dc.(driver.Conn))
		pq.SetNoticeHandler(inner, nil) // panics on any but pq's
		return nil
	})
}

func TestOTelNeedsImport(t *testing.T) {
	defer func(f any) { hook.OTel = f }(hook.OTel) // another test has imported it
	hook.OTel = nil
	_, err := sql.Open(baldur.DriverName, "host=a user=u baldur_otel=on")
	const want = `baldur: DSN: parameter baldur_otel: it needs import _ "github.com/baldur-go/baldur/baldurotel" in the program`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	db, err := sql.Open(baldur.DriverName, "host=a user=u baldur_otel=off")
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	if _, err := sql.Open(baldur.DriverName, "host=a user=u baldur_otel=perhaps"); err == nil || !strings.Contains(err.Error(), "want on or off") {
		t.Errorf("got %v", err)
	}
}

// TestConnections compares with the truth, on a pool that its tracker knows and
// on one that it does not.
func TestConnections(t *testing.T) {
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("known=%v", known), func(t *testing.T) {
			var tr *baldur.Tracker
			connector := baldur.Wrap(nullDB{}, baldur.WithHooks("", func(baldur.Target) baldur.Hooks {
				return baldur.Hooks{Opened: func(t *baldur.Tracker) { tr = t }}
			}))
			db := sql.OpenDB(connector)
			defer db.Close()
			if known {
				tr = baldur.TrackerOf(db)
			} else { // nor is it found by the first connect
				defer sqlpool.Disable(sqlpool.OwnStack)()
			}
			want := func(idle, used int) {
				t.Helper()
				if i, u, ok := tr.Connections(); !ok || i != idle || u != used {
					t.Errorf("got %d idle, %d used, %v; want %d, %d", i, u, ok, idle, used)
				}
			}
			a, b := must(db.Conn(t.Context())), must(db.Conn(t.Context()))
			want(0, 2)
			_ = a.Close()
			want(1, 1)
			_ = b.Close()
			want(2, 0)
			// A connection from the connectionOpener, unused: database/sql alone knows.
			db.SetMaxOpenConns(1)
			c := must(db.Conn(t.Context()))
			got := make(chan *sql.Conn)
			go func() { got <- must(db.Conn(t.Context())) }()
			for db.Stats().WaitCount == 0 {
				time.Sleep(time.Millisecond)
			}
			_ = c.Raw(func(any) error { return driver.ErrBadConn }) // it is replaced for the waiter
			d := <-got
			if known {
				want(0, 1)
			} else if _, _, ok := tr.Connections(); ok {
				t.Error("it claims to know")
			}
			must(d.ExecContext(t.Context(), "x"))
			want(0, 1)
			_ = d.Close()
			want(1, 0)
		})
	}
}

// TestHooksOff: hooks that are not there cost no allocation.
func TestHooksOff(t *testing.T) {
	needLiveness(t) // else it costs more to tell goroutines apart
	raw, off := sql.OpenDB(nullDB{}), baldur.OpenDB(nullDB{})
	defer raw.Close()
	defer off.Close()
	exec := func(db *sql.DB) float64 {
		return testing.AllocsPerRun(1000, func() { _, _ = db.Exec("SELECT 1") })
	}
	if r, o := exec(raw), exec(off); o != r {
		t.Errorf("%v allocations, the bare driver has %v", o, r)
	}
}

// BenchmarkHooks shows what they cost, beside a pool that has none.
func BenchmarkHooks(b *testing.B) {
	for _, kind := range []string{"off", "on"} {
		b.Run("hooks="+kind, func(b *testing.B) {
			var opts []baldur.Option
			if kind == "on" {
				opts = append(opts, baldur.WithHooks("bench", func(baldur.Target) baldur.Hooks {
					return baldur.Hooks{Returned: func(baldur.Return) {}}
				}))
			}
			db := baldur.OpenDB(nullDB{}, opts...)
			defer db.Close()
			b.ReportAllocs()
			deep(15, func() {
				for b.Loop() {
					if err := execOnce(db); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
