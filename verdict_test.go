package baldur_test

import (
	"context"
	"database/sql"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/stack"
)

// TestVerdicts: at every moment each holder has one verdict, which Holders and the
// lists of a report agree on.
func TestVerdicts(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		seen := map[baldur.Verdict]int{}
		check := func() {
			r := tr.Report()
			of := map[int64]baldur.Verdict{}
			for _, c := range r.SuspectedLeaks {
				of[c.ConnectionID] = baldur.VerdictSuspected
			}
			for _, c := range r.LongHeld {
				of[c.ConnectionID] = baldur.VerdictLongHeld
			}
			for _, c := range append(append(tr.Holders(), r.SuspectedLeaks...), r.LongHeld...) {
				want, ok := of[c.ConnectionID]
				if !ok {
					want = baldur.VerdictInUse
				}
				if c.Verdict != want {
					t.Errorf("connection %d, held for %v, is %q, and listed as %q", c.ConnectionID, c.Held, c.Verdict, want)
				}
				seen[c.Verdict]++
			}
		}
		leaked, used, labelled := must(db.Conn(ctx)), must(db.Conn(ctx)), must(db.Conn(ctx))
		defer leaked.Close()
		defer used.Close()
		defer labelled.Close()
		if err := baldur.Label(labelled, "listener"); err != nil {
			t.Fatal(err)
		}
		for range 40 {
			check()
			pass(500 * time.Millisecond)
			must(used.ExecContext(ctx, "x"))
		}
		check()
		for _, v := range []baldur.Verdict{baldur.VerdictInUse, baldur.VerdictLongHeld, baldur.VerdictSuspected} {
			if seen[v] == 0 {
				t.Errorf("none is %q", v)
			}
		}
	})
}

// TestLost: a holder is accused once nothing refers to the Rows or Row that it took its
// connection for, at the second look, and at no time before.
func TestLost(t *testing.T) {
	var kept []any
	keep := func(v any) { kept = append(kept, v) }
	var endless context.Context
	for name, c := range map[string]struct {
		take func(db *sql.DB)
		lost bool
	}{
		"rows":              {func(db *sql.DB) { must(db.Query("x")) }, true},
		"rows, read":        {func(db *sql.DB) { must(db.Query("x")).Next() }, true},
		"row":               {func(db *sql.DB) { db.QueryRow("x") }, true},
		"ctx with values":   {func(db *sql.DB) { must(db.QueryContext(context.WithoutCancel(endless), "x")) }, true},
		"in a goroutine":    {func(db *sql.DB) { done := make(chan bool); go func() { must(db.Query("x")); close(done) }(); <-done }, true},
		"rows, kept":        {func(db *sql.DB) { keep(must(db.Query("x"))) }, false},
		"row, kept":         {func(db *sql.DB) { keep(db.QueryRow("x")) }, false},
		"kept by a closure": {func(db *sql.DB) { rows := must(db.Query("x")); keep(func() { rows.Close() }) }, false},
		"ctx that can end":  {func(db *sql.DB) { must(db.QueryContext(endless, "x")) }, false},
		"conn":              {func(db *sql.DB) { must(must(db.Conn(ctx)).QueryContext(ctx, "x")) }, false},
		"rows of a kept conn": {func(db *sql.DB) {
			conn := must(db.Conn(ctx))
			keep(conn)
			must(conn.QueryContext(ctx, "x"))
		}, false},
		"rows of a kept tx": {func(db *sql.DB) {
			tx := must(db.BeginTx(endless, nil))
			keep(tx)
			must(tx.Query("x"))
		}, false},
		"rows of a kept statement": {func(db *sql.DB) {
			st := must(db.Prepare("x"))
			keep(st)
			must(st.Query())
		}, false}, // database/sql keeps the Rows
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
				var cancel func()
				endless, cancel = context.WithCancel(ctx)
				defer func() { cancel(); synctest.Wait(); clear(kept) }()
				must(db.Query("first")).Close() // the wrapper's Rows is used again
				c.take(db)
				runtime.GC()
				if r := tr.Report(); len(r.Accused()) != 0 {
					t.Errorf("accused at the first look:\n%s", r)
				}
				pass(150 * time.Millisecond)
				r := tr.Report()
				if got := len(r.Accused()) == 1; got != c.lost {
					t.Fatalf("accused: %v, want %v\n%s", got, c.lost, r)
				}
				if !c.lost {
					return
				}
				if r.LeakCount() != 0 || r.Health != baldur.HealthLeakSuspected || r.Proven[0].Verdict != baldur.VerdictLost {
					t.Errorf("not proven, but %+v", r)
				}
				inOrder(t, r.String(), "leak_suspected, 1 leak\n", "1 leaked", "LEAK: 1 connection taken at", "verdict_test.go", "proof: nothing refers to its Rows", "missing: Rows.Close")
				pass(10 * time.Second)
				if r := tr.Report(); r.LeakCount() != 1 || len(r.Proven) != 0 || len(r.Accused()) != 1 || strings.Contains(r.String(), "LEAK?") {
					t.Errorf("past the threshold:\n%s", r)
				}
			})
		})
	}
}

// TestLostUnderLoad: nobody is accused who closes, while garbage is collected all the time.
func TestLostUnderLoad(t *testing.T) {
	db := baldur.OpenDB(&fakeDB{}, baldur.WithLeakThreshold(time.Minute))
	defer db.Close()
	db.SetMaxOpenConns(8)
	tr := baldur.TrackerOf(db)
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				rows := must(db.Query("x"))
				for rows.Next() {
					runtime.Gosched()
				}
				rows.Close()
				_ = db.QueryRow("x").Scan(new(int64))
			}
		})
	}
	for range 200 {
		runtime.GC()
		if r := tr.Report(); len(r.Accused()) > 0 {
			t.Errorf("accused:\n%s", r)
			break
		}
	}
	close(stop)
	all.Wait()
}

// TestContextEnded: a connection that database/sql takes back because the ctx has ended is
// counted at the line that took it; that it was not closed is said only where whoever took
// it has gone.
func TestContextEnded(t *testing.T) {
	needLiveness(t)
	type take func(ctx context.Context, db *sql.DB) (done func())
	rows := func(ctx context.Context, db *sql.DB) func() { return ended(must(db.QueryContext(ctx, "x")).Close) }
	tx := func(ctx context.Context, db *sql.DB) func() { return ended(must(db.BeginTx(ctx, nil)).Rollback) }
	for name, take := range map[string]take{"rows": rows, "tx": tx} {
		for _, c := range []struct {
			name             string
			closed, stays    bool
			count, notClosed int
		}{
			{"closed in time", true, true, 0, 0},
			{"the holder is still there", false, true, 1, 0},
			{"the holder has exited", false, false, 1, 1},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
					for range 3 {
						limited, cancel := context.WithCancel(ctx)
						taken, end := make(chan func()), make(chan struct{})
						go func() {
							taken <- take(limited, db)
							if c.stays {
								<-end
							}
						}()
						done := <-taken
						if c.closed {
							done()
						}
						synctest.Wait()
						pass(time.Second)
						cancel()
						synctest.Wait()
						close(end)
						done() // too late, or again
						synctest.Wait()
					}
					r := tr.Report()
					if c.count == 0 {
						if len(r.ContextEnded) != 0 {
							t.Errorf("%+v", r.ContextEnded)
						}
						return
					}
					if len(r.ContextEnded) != 1 || r.ContextEnded[0].Count != 3*c.count || r.ContextEnded[0].NotClosed != 3*c.notClosed || r.ContextEnded[0].Held != time.Second {
						t.Fatalf("%+v", r.ContextEnded)
					}
					inOrder(t, r.String(), "ended by the ctx", "verdict_test.go:", "3 checkouts ended by the ctx after 1s on average")
				})
			})
		}
	}
}

// TestContextEndedInCall: a transaction whose ctx ends while a call is in flight may be rolled
// back by the program before database/sql does it. It is never said not to be closed.
func TestContextEndedInCall(t *testing.T) { // in real time: database/sql waits for a lock, which stops a bubble's
	needLiveness(t)
	fake := &fakeDB{before: func(_ *fakeConn, call string) error {
		if call == "exec" {
			time.Sleep(8 * time.Millisecond)
		}
		return nil
	}}
	db := baldur.OpenDB(fake)
	defer db.Close()
	db.SetMaxOpenConns(10)
	var all sync.WaitGroup
	for range 300 {
		all.Go(func() {
			tx, err := db.Begin()
			if err != nil {
				return
			}
			_ = tx.Rollback()
			limited, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
			defer cancel()
			if tx, err = db.BeginTx(limited, nil); err != nil {
				return
			}
			defer tx.Rollback()
			_, _ = tx.ExecContext(limited, "x")
		})
	}
	all.Wait()
	tr := baldur.TrackerOf(db)
	for end := time.Now().Add(10 * time.Second); db.Stats().InUse > 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	n := 0
	for _, e := range tr.ContextEnded() {
		n += e.Count
		if e.NotClosed != 0 {
			t.Errorf("%v", e)
		}
	}
	if n == 0 {
		t.Error("the end of no ctx has ended anything")
	}
}

func ended(f func() error) func() { return func() { _ = f() } }

// TestDeadlock: holders that all wait for a connection themselves are accused within a second,
// with the pool they wait for; not while one of them thinks.
func TestDeadlock(t *testing.T) {
	if !stack.Self().Looks {
		t.Skip("goroutines cannot be looked at: ", stack.Self().Reason)
	}
	nested := func(a, b *sql.DB) func(context.Context) {
		return func(ctx context.Context) {
			tx, err := a.Begin()
			if err != nil {
				return
			}
			defer tx.Rollback()
			time.Sleep(time.Second) // until all have one
			_, _ = b.ExecContext(ctx, "inner")
		}
	}
	for name, c := range map[string]struct {
		pools, size   int
		holders       []func(a, b *sql.DB) func(context.Context)
		thinks        bool
		want, victims int
	}{
		"nested": {1, 2, []func(a, b *sql.DB) func(context.Context){
			func(a, b *sql.DB) func(context.Context) { return nested(a, a) }, func(a, b *sql.DB) func(context.Context) { return nested(a, a) }}, false, 2, 0},
		"crossed": {2, 1, []func(a, b *sql.DB) func(context.Context){
			func(a, b *sql.DB) func(context.Context) { return nested(a, b) }, func(a, b *sql.DB) func(context.Context) { return nested(b, a) }}, false, 1, 0},
		"one thinks": {1, 2, []func(a, b *sql.DB) func(context.Context){
			func(a, b *sql.DB) func(context.Context) { return nested(a, a) },
			func(a, b *sql.DB) func(context.Context) {
				return func(ctx context.Context) {
					tx := must(a.Begin())
					defer tx.Rollback()
					<-ctx.Done()
				}
			}}, false, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var dbs [2]*sql.DB
				for i := range dbs {
					dbs[i] = baldur.OpenDB(&fakeDB{}, baldur.WithPoolName([]string{"orders", "stock"}[i]))
					defer dbs[i].Close()
					dbs[i].SetMaxOpenConns(c.size)
				}
				tr := baldur.TrackerOf(dbs[0])
				work, cancel := context.WithCancel(ctx)
				var all sync.WaitGroup
				for _, h := range c.holders {
					f := h(dbs[0], dbs[1])
					all.Go(func() { f(work) })
				}
				watching, stop := context.WithCancel(ctx)
				told := make(chan baldur.LeakReport, 100)
				all.Go(func() { _ = tr.Watch(watching, time.Minute, func(r baldur.LeakReport) { told <- r }) })
				pass(2 * time.Second) // a second after they have formed
				for range 3 {
					all.Go(func() { _, _ = dbs[0].ExecContext(work, "victim") })
				}
				pass(time.Second)
				r, holders := tr.Report(), tr.Holders()
				if len(r.Accused()) != c.want || (r.Deadlock != nil) != (c.want > 0) {
					t.Errorf("accused %d, want %d:\n%s", len(r.Accused()), c.want, r)
				}
				stop()
				cancel()
				all.Wait()
				close(told)
				if c.want > 0 {
					for _, h := range holders {
						if h.Verdict != baldur.VerdictDeadlock {
							t.Errorf("Holders has it as %s", h.Verdict)
						}
					}
					inOrder(t, r.String(), "Deadlock: all 2 connections of", "orders", "LEAK: ", "verdict_test.go", "proof: goroutine ", "waits for a connection of pool "+map[int]string{1: "orders", 2: "stock"}[c.pools])
					deadlocks := 0
					for r := range told {
						if len(r.Proven) > 0 {
							deadlocks++
						}
					}
					if deadlocks != 1 {
						t.Errorf("told %d times", deadlocks)
					}
				}
				if r := tr.Report(); r.Deadlock != nil {
					t.Errorf("afterwards:\n%s", r)
				}
			})
		})
	}
}

// TestWaiters: who waits is told by line.
func TestWaiters(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		db.SetMaxOpenConns(1)
		conn := must(db.Conn(ctx))
		must(conn.ExecContext(ctx, "x"))
		var all sync.WaitGroup
		for range 15 {
			all.Go(func() { must(db.Exec("x")) })
		}
		for range 2 {
			all.Go(func() { must(db.Begin()).Rollback() })
		}
		synctest.Wait()
		r := tr.Report()
		if len(r.Waiters) != 2 || r.Waiters[0].Count != 15 || r.Waiters[1].Count != 2 || !r.Waiters[0].OfPool {
			t.Errorf("%+v", r.Waiters)
		}
		inOrder(t, r.String(), "1 of 1 in use; 17 waiting", "who waits:", "15 wait at", "verdict_test.go:", "in baldur_test.TestWaiters", "2 wait at")
		conn.Close()
		all.Wait()
		if r := tr.Report(); len(r.Waiters) != 0 {
			t.Errorf("afterwards: %+v", r.Waiters)
		}
	})
}

// TestWaitsAgain: who has leaked in a loop and waits at the line that leaks is told what is
// missing.
func TestWaitsAgain(t *testing.T) {
	if !stack.Self().Looks {
		t.Skip("goroutines cannot be looked at: ", stack.Self().Reason)
	}
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		db.SetMaxOpenConns(2)
		loop, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		var kept []*sql.Rows
		go func() {
			defer close(done)
			for {
				rows, err := db.QueryContext(loop, "x")
				if err != nil {
					return
				}
				kept = append(kept, rows)
			}
		}()
		pass(20 * time.Second)
		r := tr.Report()
		if r.LeakCount() != 2 || r.SuspectedLeaks[0].LikelyMissing() != "Rows.Close, or Row.Scan" {
			t.Errorf("%s", r)
		}
		inOrder(t, r.String(), "likely missing: Rows.Close", "waits for a connection itself")
		cancel()
		<-done
		synctest.Wait()
		runtime.KeepAlive(kept)
	})
}
