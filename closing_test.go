package baldur_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// TestClosingIsSeen: who is inside of a closing, on a driver of which we own no
// socket, is told as that, never accused; and what database/sql closes by itself
// was not taken by DB.Conn.
func TestClosingIsSeen(t *testing.T) {
	for name, run := range map[string]struct {
		call   func(db *sql.DB)
		holder bool
	}{
		"in a Tx": {func(db *sql.DB) {
			tx := must(db.Begin())
			defer tx.Rollback()
			must(tx.Prepare("SELECT 1")).Close()
		}, true},
		"Tx.closePrepared": {func(db *sql.DB) {
			tx := must(db.Begin())
			must(tx.Prepare("SELECT 1"))
			_ = tx.Commit()
		}, true},
		"expired": {func(db *sql.DB) {
			must(db.Prepare("SELECT 1"))
			db.SetConnMaxLifetime(1)
			_, _ = db.Exec("SELECT 1")
		}, false},
		"returned as bad": {func(db *sql.DB) {
			must(db.Prepare("SELECT 1"))
			c := must(db.Conn(ctx))
			_ = c.Raw(func(any) error { return driver.ErrBadConn })
		}, true},
		"no room": {func(db *sql.DB) {
			c := must(db.Conn(ctx))
			must(c.PrepareContext(ctx, "SELECT 1"))
			db.SetMaxIdleConns(-1)
			_ = c.Close()
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &fakeDB{}
			var closes atomic.Int32
			fake.closing = func() {
				if closes.Add(1) == 1 {
					time.Sleep(time.Hour)
				}
			}
			bubble(t, fake, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
				done := make(chan bool)
				go func() { run.call(db); close(done) }()
				pass(30 * time.Minute)
				r := tr.Report()
				if r.LeakCount() != 0 || r.Unattributed > 0 || strings.Contains(r.String(), "DB.Conn") {
					t.Errorf("somebody is accused:\n%s", r)
				}
				if run.holder && (len(r.LongHeld) != 1 || r.LongHeld[0].State != baldur.StateClosing || !strings.Contains(r.String(), "closing a statement for 30m")) {
					t.Errorf("the closing is not seen:\n%s", r)
				}
				<-done
				pass(2 * time.Hour) // the cleaner's, too
			})
		})
	}
}

// TestStatementsAreClosed: a statement that was closed while its connection was
// idle is closed on the server with the next use of that.
func TestStatementsAreClosed(t *testing.T) {
	db := must(baldur.Open(pgtest.DSN(t)))
	defer db.Close()
	db.SetMaxOpenConns(1)
	prepared := func() (n int) {
		if err := db.QueryRow("SELECT count(*) FROM pg_prepared_statements").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	var sts []*sql.Stmt
	for range 3 {
		sts = append(sts, must(db.Prepare("SELECT 1")))
	}
	if n := prepared(); n != 3 {
		t.Errorf("%d are prepared", n)
	}
	for _, st := range sts {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := prepared(); n != 0 {
		t.Errorf("%d are left", n)
	}
	if h := baldur.TrackerOf(db).Holders(); len(h) != 0 {
		t.Errorf("held: %v", h)
	}
}

// TestDrainingGoesOn: Rows.Close of a result that takes longer than the grace to
// read is no silence.
func TestDrainingGoesOn(t *testing.T) {
	dsn, proxy := pgtest.Proxy(t)
	db := must(baldur.Open(dsn, baldur.WithCancelGrace(100*time.Millisecond)))
	defer db.Close()
	db.SetMaxOpenConns(1)
	opened := openedBy(t, db)
	rows := must(db.Query("SELECT repeat('x', 1000) FROM generate_series(1, 30000)"))
	rows.Next()
	proxy.Delay(faultproxy.ToClient, 2*time.Millisecond)
	start := time.Now()
	if err := rows.Close(); err != nil {
		t.Error(err)
	}
	proxy.Delay(faultproxy.ToClient, 0)
	if took := time.Since(start); took < 400*time.Millisecond {
		t.Skipf("the rest has come within %v", took)
	}
	if openedBy(t, db) != opened {
		t.Error("the connection was cut")
	}
}

// TestConnectingEnds: with its ctx, and without one after a pass over the hosts.
func TestConnectingEnds(t *testing.T) {
	for _, attrs := range []string{"any", "read-write", "read-only", "primary", "standby", "prefer-standby"} {
		t.Run(attrs, func(t *testing.T) {
			nobody := "postgres://u@127.0.0.1:1,127.0.0.1:2/d?sslmode=disable&target_session_attrs=" + attrs
			for _, timeout := range []time.Duration{0, time.Second} {
				ctx, cancel := context.WithCancel(t.Context())
				if timeout > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), timeout)
				}
				db := must(baldur.Open(nobody))
				returned := make(chan error, 1)
				go func() { returned <- db.PingContext(ctx) }()
				select {
				case err := <-returned:
					if err == nil {
						t.Error("connected to nobody")
					}
				case <-time.After(room):
					t.Errorf("still connecting after %v", room)
				}
				cancel()
				_ = db.Close()
			}
		})
	}
	t.Run("to a primary", func(t *testing.T) { // there is no standby
		dsn := pgtest.DSN(t) + "&target_session_attrs=prefer-standby"
		db := must(baldur.Open(dsn))
		defer db.Close()
		if err := db.PingContext(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestCancelLivesOn: a cancel request that the network holds up for longer than
// the call waits arrives all the same.
func TestCancelLivesOn(t *testing.T) {
	for name, call := range map[string]func(ctx context.Context, db *sql.DB, st *sql.Stmt) error{
		"exec": func(ctx context.Context, db *sql.DB, _ *sql.Stmt) error {
			return second(db.ExecContext(ctx, "SELECT pg_sleep(60)"))
		},
		"prepared": func(ctx context.Context, _ *sql.DB, st *sql.Stmt) error { return second(st.ExecContext(ctx)) },
		"query":    func(ctx context.Context, _ *sql.DB, st *sql.Stmt) error { return drain(st.QueryContext(ctx)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct := pgtest.DSN(t)
			dsn, proxy := proxyOf(t, direct)
			look := must(sql.Open("postgres", direct))
			defer look.Close()
			const grace = 200 * time.Millisecond
			db := must(baldur.Open(dsn, baldur.WithCancelGrace(grace)))
			defer db.Close()
			db.SetMaxOpenConns(1)
			st := must(db.Prepare("SELECT pg_sleep(60)"))
			pid := openedBy(t, db)
			ctx, cancel := context.WithCancel(t.Context())
			active := func() (n int) {
				if err := look.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state = 'active'", pid).Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n
			}
			returned := make(chan error, 1)
			go func() { returned <- call(ctx, db, st) }()
			await(t, "the query runs", func() bool { return active() == 1 })
			proxy.Freeze(faultproxy.Both)
			cancel()
			ended := time.Now()
			if err := <-returned; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(ended); took > grace+room {
				t.Errorf("took %v", took)
			}
			proxy.Unfreeze(faultproxy.Both)
			await(t, "the query is cancelled", func() bool { return active() == 0 })
		})
	}
}

// await waits until ok, for what gives no event.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(room); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not so after %v: %s", room, what)
		}
	}
}

// TestUnwrapped: what is done round the wrapper is never idleness.
func TestUnwrapped(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		unseen := must(db.Conn(ctx))
		defer unseen.Close()
		_ = unseen.Raw(func(dc any) error {
			baldur.Unwrap(dc.(driver.Conn))
			pass(time.Hour)
			r := tr.Report()
			if r.LeakCount() != 0 || len(r.LongHeld) != 1 || r.LongHeld[0].State != baldur.StateUnseen || !strings.Contains(r.String(), "unwrapped since 1h0m0s: use not seen") {
				t.Errorf("in Raw, unwrapped:\n%s", r)
			}
			return nil
		})
		_ = baldur.Raw(unseen, func(c driver.Conn) error {
			if _, own := c.(*fakeConn); !own {
				t.Errorf("got a %T", c)
			}
			pass(time.Hour)
			if h := tr.Holders(); len(h) != 1 || h[0].State != baldur.StateInCall || h[0].InCall < time.Hour || tr.Report().LeakCount() != 0 {
				t.Errorf("in baldur.Raw: %v", h)
			}
			return nil
		})
		if h := tr.Holders(); h[0].State != baldur.StateIdle {
			t.Errorf("after baldur.Raw: %v", h)
		}
		pass(time.Hour)
		if n := tr.Report().LeakCount(); n != 1 {
			t.Errorf("long after the last use %d are suspected", n)
		}
		_ = unseen.Raw(func(dc any) error { baldur.Unwrap(dc.(driver.Conn)); return nil })
		must(unseen.ExecContext(ctx, "x"))
		pass(time.Hour)
		if n := tr.Report().LeakCount(); n != 1 {
			t.Errorf("unwrapped before the last use: %d are suspected", n)
		}
	})
	t.Run("errors", func(t *testing.T) {
		db := baldur.OpenDB(&fakeDB{})
		defer db.Close()
		c := must(db.Conn(ctx))
		if err := baldur.Raw(c, func(driver.Conn) error { return driver.ErrSkip }); err != driver.ErrSkip {
			t.Error(err)
		}
		c.Close()
		if err := baldur.Raw(c, func(driver.Conn) error { return nil }); err != sql.ErrConnDone {
			t.Error(err)
		}
		bare := sql.OpenDB(&fakeDB{})
		defer bare.Close()
		c = must(bare.Conn(ctx))
		defer c.Close()
		called := false
		if err := baldur.Raw(c, func(c driver.Conn) error { _, called = c.(*fakeConn); return nil }); err != nil || !called {
			t.Error(err, called)
		}
	})
}

// TestLabelWaitsForNobody: neither inside of Raw, nor while a call is in flight.
// (A bubble's clock does not go on while a goroutine waits for a mutex.)
func TestLabelWaitsForNobody(t *testing.T) {
	release := make(chan bool)
	fake := &fakeDB{before: func(_ *fakeConn, call string) error {
		if call == "exec" {
			<-release
		}
		return nil
	}}
	db := baldur.OpenDB(fake)
	defer db.Close()
	tr := baldur.TrackerOf(db)
	labelled := func(want string) bool {
		h := tr.Holders()
		return len(h) == 1 && h[0].Label == want
	}
	c := must(db.Conn(ctx))
	defer c.Close()
	if err := c.Raw(func(dc any) error { return baldur.LabelConn(dc.(driver.Conn), "ours") }); err != nil || !labelled("ours") {
		t.Error(err, tr.Holders())
	}
	if err := c.Raw(func(dc any) error {
		return baldur.LabelConn(baldur.Unwrap(dc.(driver.Conn)), "the driver's")
	}); err != nil || !labelled("the driver's") {
		t.Error(err, tr.Holders())
	}
	if err := baldur.Raw(c, func(dc driver.Conn) error {
		if err := baldur.LabelConn(dc, "in a call"); err != nil || !labelled("in a call") {
			t.Error(err, tr.Holders())
		}
		return baldur.Label(c, "later") // a deadlock, if it waited
	}); err != nil {
		t.Error(err)
	}
	await(t, "it is labelled after the call", func() bool { return labelled("later") })
	if err := baldur.LabelConn(&fakeConn{}, "x"); err == nil {
		t.Error("a foreign connection was labelled")
	}

	done := make(chan bool)
	go func() { _, _ = c.ExecContext(ctx, "x"); close(done) }()
	await(t, "a call is in flight", func() bool { return tr.Holders()[0].State == baldur.StateInCall })
	if err := baldur.Label(c, "busy"); err != nil {
		t.Error(err)
	}
	close(release)
	<-done
	await(t, "it is labelled after the call", func() bool { return labelled("busy") })
}

// TestPanickingHooks: whatever panics in a hook, no connection is lost.
func TestPanickingHooks(t *testing.T) {
	boom := func() { panic("boom") }
	for name, hooks := range map[string]baldur.Hooks{
		"SpanContext":      {SpanContext: func(context.Context) baldur.SpanContext { boom(); return baldur.SpanContext{} }},
		"Connector, nil":   {Connector: func(driver.Connector) driver.Connector { return nil }},
		"Connector, panic": {Connector: func(driver.Connector) driver.Connector { boom(); return nil }},
		"Opened":           {Opened: func(*baldur.Tracker) { boom() }},
		"Closed":           {Closed: boom},
		"Connected":        {Connected: func(context.Context, time.Duration) { boom() }},
		"Returned":         {Returned: func(baldur.Return) { boom() }},
	} {
		t.Run(name, func(t *testing.T) {
			db := baldur.OpenDB(&fakeDB{}, baldur.WithHooks("test", func(baldur.Target) baldur.Hooks { return hooks }))
			db.SetMaxOpenConns(1)
			for range 3 {
				short, cancel := context.WithTimeout(ctx, room)
				if _, err := db.ExecContext(short, "x"); err != nil {
					t.Error(err)
				}
				cancel()
			}
			if n := db.Stats().InUse; n != 0 {
				t.Errorf("%d are lost", n)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("OnConnectionReleased", func(t *testing.T) {
		bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
			tr.OnConnectionReleased(func(baldur.ConnectionInfo) { boom() })
			tx := must(db.Begin())
			pass(time.Minute)
			tr.Report()
			_ = tx.Rollback()
			tr.Report()
		})
	})
	t.Run("no connection", func(t *testing.T) {
		db := baldur.OpenDB(noConnection{})
		defer db.Close()
		db.SetMaxOpenConns(1)
		for range 2 {
			if _, err := db.Exec("x"); err == nil || !strings.Contains(err.Error(), "neither a connection nor an error") {
				t.Error(err)
			}
		}
	})
}

type noConnection struct{}

func (noConnection) Connect(context.Context) (driver.Conn, error) { return nil, nil }
func (noConnection) Driver() driver.Driver                        { return &pq.Driver{} }
