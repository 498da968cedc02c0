package baldur_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/stack"
)

// bubble runs a test on a pool of the fake driver, in virtual time, with a leak
// threshold of 10 s.
func bubble(t *testing.T, fake *fakeDB, f func(t *testing.T, db *sql.DB, tr *baldur.Tracker), opts ...baldur.Option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		db := baldur.OpenDB(fake, append([]baldur.Option{baldur.WithLeakThreshold(10 * time.Second)}, opts...)...)
		defer db.Close()
		db.SetMaxOpenConns(10)
		f(t, db, baldur.TrackerOf(db))
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var ctx = context.Background()

// TestStates: what a holder is said to do, before the threshold and after it.
func TestStates(t *testing.T) {
	cases := []struct {
		name    string
		take    func(db *sql.DB) (release func())
		kind    baldur.Kind
		state   baldur.State
		doing   string // 11 s later
		query   string
		accused bool
	}{
		{"rows", func(db *sql.DB) func() {
			rows := must(db.Query("SELECT a"))
			rows.Next()
			return func() { rows.Close() }
		}, baldur.KindQuery, baldur.StateRowsOpen, "idle for 11s, rows open", "SELECT a", true},
		{"row never scanned", func(db *sql.DB) func() {
			row := db.QueryRow("SELECT b")
			return func() { _ = row.Scan(new(int)) }
		}, baldur.KindQuery, baldur.StateRowsOpen, "idle for 11s, rows open", "SELECT b", true},
		{"tx", func(db *sql.DB) func() {
			tx := must(db.Begin())
			return func() { _ = tx.Rollback() }
		}, baldur.KindTx, baldur.StateIdleInTx, "idle in transaction for 11s", "", true},
		{"tx, used", func(db *sql.DB) func() {
			tx := must(db.Begin())
			must(tx.Exec("UPDATE c"))
			return func() { _ = tx.Commit() }
		}, baldur.KindTx, baldur.StateIdleInTx, "idle in transaction for 11s", "UPDATE c", true},
		{"tx with rows", func(db *sql.DB) func() {
			tx := must(db.Begin())
			rows := must(tx.Query("SELECT d"))
			return func() { rows.Close(); _ = tx.Rollback() }
		}, baldur.KindTx, baldur.StateIdleInTx, "idle in transaction for 11s, rows open", "SELECT d", true},
		{"conn", func(db *sql.DB) func() {
			c := must(db.Conn(ctx))
			return func() { _ = c.Close() }
		}, baldur.KindConn, baldur.StateNoCall, "no call yet", "", true},
		{"conn, used", func(db *sql.DB) func() {
			c := must(db.Conn(ctx))
			must(c.ExecContext(ctx, "SET e"))
			return func() { _ = c.Close() }
		}, baldur.KindConn, baldur.StateIdle, "idle for 11s", "SET e", true},
		{"statement's rows", func(db *sql.DB) func() {
			st := must(db.Prepare("SELECT f"))
			rows := must(st.Query())
			return func() { rows.Close(); st.Close() }
		}, baldur.KindStmt, baldur.StateRowsOpen, "idle for 11s, rows open", "SELECT f", true},
	}
	for _, c := range cases {
		for _, pooled := range []bool{false, true} {
			name := c.name + ", fresh connection"
			if pooled {
				name = c.name + ", pooled connection"
			}
			t.Run(name, func(t *testing.T) {
				bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
					if pooled {
						must(db.Exec("EARLIER"))
					}
					release := c.take(db)
					time.Sleep(9 * time.Second)
					if r := tr.Report(); r.LeakCount() != 0 || len(r.LongHeld) != 0 || r.Health != baldur.HealthHealthy {
						t.Errorf("before the threshold:\n%s", r)
					}
					time.Sleep(2 * time.Second)
					r := tr.Report()
					if r.LeakCount() != 1 || r.Health != baldur.HealthLeakSuspected {
						t.Fatalf("after the threshold:\n%s", r)
					}
					got := r.SuspectedLeaks[0]
					if got.Kind != c.kind || got.State != c.state || got.Doing() != c.doing || got.QueryInfo != c.query {
						t.Errorf("got %s, %s, %q, query %q; want %s, %s, %q, query %q", got.Kind, got.State, got.Doing(), got.QueryInfo, c.kind, c.state, c.doing, c.query)
					}
					if got.Held.Round(time.Second) != 11*time.Second {
						t.Errorf("held for %v", got.Held)
					}
					if f := got.CallSite(); !strings.Contains(f.Function, "TestStates") || !strings.HasSuffix(f.File, "leak_test.go") {
						t.Errorf("taken at %v", f)
					}
					release()
					if n := len(tr.Holders()); n != 0 {
						t.Errorf("%d holders after the release", n)
					}
				})
			})
		}
	}
}

// TestHonestHolders: who uses a connection is never accused, however long.
func TestHonestHolders(t *testing.T) {
	const second = time.Second
	accused := func(t *testing.T, tr *baldur.Tracker, when string) {
		t.Helper()
		r := tr.Report()
		if r.LeakCount() != 0 {
			t.Fatalf("accused %s:\n%s", when, r)
		}
		if len(r.LongHeld) != 1 {
			t.Fatalf("not listed %s:\n%s", when, r)
		}
	}
	t.Run("slow export, a row every 9 s", func(t *testing.T) {
		bubble(t, &fakeDB{rows: 100}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
			rows := must(db.Query("SELECT"))
			defer rows.Close()
			for n := 0; rows.Next(); n++ {
				time.Sleep(9 * second)
				if n > 0 {
					accused(t, tr, "between rows")
				}
			}
		})
	})
	t.Run("a transaction that works now and then", func(t *testing.T) {
		bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
			tx := must(db.Begin())
			defer tx.Rollback()
			for n := range 20 {
				time.Sleep(9 * second)
				must(tx.Exec("UPDATE"))
				if n > 0 {
					accused(t, tr, "between statements")
				}
			}
		})
	})
	for _, call := range []string{"exec", "query", "next", "begin", "commit", "stmt exec", "rows close"} {
		t.Run("a slow "+call, func(t *testing.T) {
			fake := &fakeDB{before: func(_ *fakeConn, c string) error {
				if c == call {
					time.Sleep(60 * second)
				}
				return nil
			}}
			bubble(t, fake, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
				go func() {
					switch call {
					case "exec":
						must(db.Exec("SLOW"))
					case "query", "next", "rows close":
						_ = db.QueryRow("SLOW").Scan(new(int))
					case "begin", "commit":
						_ = must(db.Begin()).Commit()
					case "stmt exec":
						must(must(db.Prepare("SLOW")).Exec())
					}
				}()
				time.Sleep(50 * second)
				accused(t, tr, "in the call")
				c := tr.Report().LongHeld[0]
				if c.State != baldur.StateInCall || c.Doing() != "in a call for 50s" {
					t.Errorf("got %s, %q", c.State, c.Doing())
				}
				time.Sleep(60 * second)
			})
		})
	}
}

// TestPanickingDriver: a call that ended by a panic is not one in flight. (That
// database/sql leaks the connection of such a query is its own bug, and found.)
func TestPanickingDriver(t *testing.T) {
	fake := &fakeDB{before: func(_ *fakeConn, c string) error {
		if c == "query" {
			panic("driver")
		}
		return nil
	}}
	bubble(t, fake, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		func() {
			defer func() { _ = recover() }()
			_, _ = db.Query("SELECT")
		}()
		time.Sleep(20 * time.Second)
		if r := tr.Report(); r.LeakCount() != 1 {
			t.Errorf("not found:\n%s", r)
		}
	})
}

// A counter that goes wrong (within a tick, for which it is believed) makes no
// verdict come early, and none more than a tick later than the others.
func TestWrongCounter(t *testing.T) {
	const threshold, tick = 10 * time.Second, 100 * time.Millisecond
	errs := []time.Duration{-tick, -tick / 2, 0, tick / 2, tick}
	for _, taking := range errs {
		for _, reporting := range errs {
			bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
				must(db.Exec("x"))
				pass(37 * time.Millisecond) // past a tick, before the next
				tr.WrongCounter(taking)
				conn := must(db.Conn(ctx))
				defer conn.Close()
				held := time.Duration(0)
				for ; held < threshold+3*tick; held += tick / 4 {
					tr.WrongCounter(reporting)
					if tr.Report().LeakCount() > 0 {
						break
					}
					pass(tick / 4)
				}
				if held < threshold || held > threshold+2*tick {
					t.Errorf("%v wrong at the checkout and %v at reports: suspected after %v", taking, reporting, held)
				}
			})
		}
	}
}

// pass lets virtual time pass, and all that happens in it.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestWatch(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		var news []baldur.LeakReport
		var released []baldur.ConnectionInfo
		tr.OnConnectionReleased(func(c baldur.ConnectionInfo) { released = append(released, c) })
		ctx, cancel := context.WithCancelCause(ctx)
		ended := make(chan error)
		go func() {
			ended <- tr.Watch(ctx, time.Second, func(r baldur.LeakReport) { news = append(news, r) })
		}()
		tx := must(db.Begin())
		pass(time.Minute)
		if len(news) != 1 || news[0].LeakCount() != 1 || len(news[0].Returned) != 0 {
			t.Fatalf("after a minute of one leak: %v", news)
		}
		rows := must(db.Query("SELECT"))
		pass(30*time.Second + 400*time.Millisecond)
		if len(news) != 2 || news[1].LeakCount() != 1 || news[1].SuspectedLeaks[0].Kind != baldur.KindQuery {
			t.Fatalf("a second leak: %v", news)
		}
		_ = tx.Rollback()
		pass(time.Second)
		if len(news) != 3 || news[2].LeakCount() != 0 || len(news[2].Returned) != 1 {
			t.Fatalf("after the return: %v", news)
		}
		if text := news[2].String(); !strings.Contains(text, "returned after 1m30s") {
			t.Errorf("the return reads:\n%s", text)
		}
		if len(released) != 1 || released[0].Kind != baldur.KindTx || released[0].Held.Truncate(time.Second) != 90*time.Second {
			t.Errorf("released: %v", released)
		}
		// The same connection, leaked again, is told again.
		rows.Close()
		pass(time.Second)
		tx = must(db.Begin())
		pass(time.Minute)
		if len(news) != 5 || news[4].LeakCount() != 1 {
			t.Fatalf("%d reports, want 5: %v", len(news), news)
		}
		_ = tx.Rollback()
		cause := errors.New("enough")
		cancel(cause)
		if err := <-ended; err != cause {
			t.Errorf("Watch returned %v", err)
		}
	})
}

func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := baldur.OpenDB(&fakeDB{})
		tr := baldur.TrackerOf(db)
		ended := make(chan error)
		go func() { ended <- tr.Watch(ctx, time.Second, func(baldur.LeakReport) {}) }()
		must(db.Exec("SELECT"))
		time.Sleep(time.Minute)
		db.Close()
		if err := <-ended; err != nil {
			t.Errorf("after Close: %v", err)
		}
		if err := tr.Watch(ctx, 0, func(baldur.LeakReport) {}); err == nil || !strings.Contains(err.Error(), "interval") {
			t.Errorf("no interval: %v", err)
		}
		if err := tr.Watch(ctx, time.Second, nil); err == nil || !strings.Contains(err.Error(), "nil") {
			t.Errorf("no function: %v", err)
		}
	})
}

// TestGroups: holders are grouped by the application's line, whatever way the
// connection came.
func TestGroups(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		must(db.Exec("so that one connection is a pooled one"))
		var held []*sql.Rows
		for range 3 {
			held = append(held, must(db.Query("SELECT x")))
		}
		tx := must(db.Begin())
		time.Sleep(20 * time.Second)
		r := tr.Report()
		g := r.Groups()
		if len(g) != 2 || len(g[0].Connections) != 3 || len(g[1].Connections) != 1 {
			t.Errorf("groups: %+v", g)
		}
		if !slices.IsSortedFunc(r.SuspectedLeaks, func(a, b baldur.ConnectionInfo) int { return int(b.Held - a.Held) }) {
			t.Error("not the longest held first")
		}
		for _, rows := range held {
			rows.Close()
		}
		_ = tx.Rollback()
	})
}

// needLiveness skips a test where goroutines cannot be told apart by design, as
// on 32 bits.
func needLiveness(t *testing.T) {
	t.Helper()
	if !stack.Self().Liveness {
		t.Skip("no liveness in this build: ", stack.Self().Reason)
	}
}

// TestGoroutines: who took a connection and who used it last.
func TestGoroutines(t *testing.T) {
	needLiveness(t)
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		tx := must(db.Begin())
		defer tx.Rollback()
		h := tr.Holders()[0]
		if h.GoroutineID <= 0 || h.GoroutineID != h.LastGoroutineID {
			t.Errorf("taken by %d, last used by %d", h.GoroutineID, h.LastGoroutineID)
		}
		if h.Goroutine != baldur.GoroutineAlive {
			t.Errorf("this goroutine is %s", h.Goroutine)
		}
		done := make(chan bool)
		go func() { must(tx.Exec("elsewhere")); close(done) }()
		<-done
		if l := tr.Holders()[0]; l.GoroutineID != h.GoroutineID || l.LastGoroutineID == h.GoroutineID {
			t.Errorf("taken by %d (was %d), last used by %d", l.GoroutineID, h.GoroutineID, l.LastGoroutineID)
		}
	})
}

// TestExitedHolder: a connection whose taker has ended is told as such.
func TestExitedHolder(t *testing.T) {
	needLiveness(t)
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		var tx *sql.Tx
		go func() { tx = must(db.Begin()) }()
		pass(20 * time.Second)
		r := tr.Report()
		if r.LeakCount() != 1 || r.SuspectedLeaks[0].Goroutine != baldur.GoroutineExited || !strings.Contains(r.String(), " has exited") {
			t.Errorf("the taker has ended:\n%s", r)
		}
		_ = tx.Rollback()
	})
}

func TestSpanContext(t *testing.T) {
	type key struct{}
	sc := baldur.SpanContext{TraceID: [16]byte{1}, SpanID: [8]byte{2}}
	hook := func(ctx context.Context) baldur.SpanContext {
		s, _ := ctx.Value(key{}).(baldur.SpanContext)
		return s
	}
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		for range 2 { // fresh, pooled
			tx := must(db.BeginTx(context.WithValue(ctx, key{}, sc), nil))
			if got := tr.Holders()[0].Span; got != sc || got.String() != "01000000000000000000000000000000" {
				t.Errorf("got %v", got)
			}
			_ = tx.Rollback()
		}
		tx := must(db.Begin())
		defer tx.Rollback()
		if got := tr.Holders()[0].Span; got.IsValid() || got.String() != "" {
			t.Errorf("without a span: %v", got)
		}
	}, baldur.WithSpanContext(hook))
}

// TestQueryText: arguments are never told, and the text not where it is not wanted.
func TestQueryText(t *testing.T) {
	for _, on := range []bool{true, false} {
		bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
			rows := must(db.Query("SELECT $1", "hunter2"))
			defer rows.Close()
			time.Sleep(20 * time.Second)
			r := tr.Report()
			json := string(must(r.MarshalJSON()))
			if strings.Contains(json+r.String(), "hunter2") {
				t.Error("an argument is told")
			}
			if strings.Contains(json, "SELECT $1") != on || strings.Contains(r.String(), "SELECT $1") != on {
				t.Errorf("query text %v: %s", on, json)
			}
		}, baldur.WithQueryText(on))
	}
}

// TestHolding: in the first minutes of an outage, when nobody has had a connection for
// the threshold, the report says who has them, and accuses nobody.
func TestHolding(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		var forgotten []*sql.Tx
		for range 8 {
			tx := must(db.Begin())
			must(tx.Exec("UPDATE orders"))
			forgotten = append(forgotten, tx)
		}
		time.Sleep(time.Second)
		rows := must(db.Query("SELECT stock"))
		if r := tr.Report(); len(r.Holding) != 0 || strings.Contains(r.String(), "held by") {
			t.Errorf("a pool with a free connection:\n%s", r)
		}
		last := must(db.Conn(ctx))
		must(last.ExecContext(ctx, "SET x"))
		if r := tr.Report(); len(r.Holding) != 10 || !strings.Contains(r.String(), "\nthe pool is full; held by, ") {
			t.Errorf("a full pool:\n%s", r)
		}
		waiters, stop := context.WithCancel(ctx)
		var all sync.WaitGroup
		for range 25 {
			all.Go(func() { _, _ = db.ExecContext(waiters, "SELECT 1") })
		}
		time.Sleep(2 * time.Second)
		r := tr.Report()
		if r.LeakCount() != 0 || len(r.LongHeld) != 0 || len(r.Holding) != 10 || len(r.HoldingGroups()) != 3 {
			t.Errorf("%d accused, %d long held, %d holding", r.LeakCount(), len(r.LongHeld), len(r.Holding))
		}
		inOrder(t, r.String(), "10 of 10 in use; 25 waiting", "25 requests wait; held by, the longest unused first, which accuses nobody:",
			"8 connections taken at", "leak_test.go", "still to come: Tx.Commit or Tx.Rollback", "last: UPDATE orders", "idle in transaction for 3s", "and 3 more",
			"1 connection taken at", "still to come: Rows.Close, or Row.Scan", "last: SELECT stock", "unused for 2s", "1 connection taken at", "last: SET x")
		var doc struct {
			Holding []struct{ Doing string }
		}
		if err := json.Unmarshal(must(json.Marshal(r)), &doc); err != nil || len(doc.Holding) != 10 {
			t.Errorf("JSON: %v, %+v", err, doc)
		}
		if log := r.LogValue().String(); !strings.Contains(log, "leak_test.go:") || !strings.Contains(log, " ×8, unused for 3s") {
			t.Errorf("log: %s", log)
		}
		time.Sleep(7500 * time.Millisecond) // 8 are past the threshold, the others are not
		if r := tr.Report(); r.LeakCount() != 8 || len(r.Holding) != 2 || !strings.Contains(r.Figures(), "8 suspected, 2 other") || !strings.Contains(r.String(), "25 requests wait; also held by, ") {
			t.Errorf("past the threshold:\n%s", r)
		}
		stop()
		all.Wait()
		for _, tx := range forgotten {
			_ = tx.Rollback()
		}
		rows.Close()
		last.Close()
		if r := tr.Report(); len(r.Holding) != 0 {
			t.Errorf("afterwards:\n%s", r)
		}
	})
}

// inOrder checks that a text has the parts, one after the other.
func inOrder(t *testing.T, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, part := range parts {
		_, after, found := strings.Cut(rest, part)
		if !found {
			t.Errorf("%q is not in its place in\n%s", part, text)
			return
		}
		rest = after
	}
}
