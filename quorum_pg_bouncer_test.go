package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// bouncer is a PgBouncer with a pool of a size.
type bouncer struct {
	mode   string
	size   int
	dsn    string
	direct string // past it
}

// bouncers runs a test through PgBouncer in modes and sizes, before databases of its own or
// the one given.
func bouncers(t *testing.T, test func(t *testing.T, via bouncer), database ...string) {
	for _, mode := range []string{"session", "transaction"} {
		for _, size := range []int{1, 2, 10} {
			if size == 10 && os.Getenv("BALDUR_LONG_TABLES") == "" { // CI has the long tables once
				continue
			}
			t.Run(fmt.Sprint(mode, size), func(t *testing.T) {
				via := bouncer{mode: mode, size: size}
				if database == nil {
					via.direct = pgtest.SocketDSN(t)
				} else {
					via.direct = database[0]
				}
				via.dsn, _ = pgtest.BouncerTo(t, via.direct, mode, fmt.Sprint("default_pool_size=", size))
				test(t, via)
			})
		}
	}
}

// connections is how many connections to the server programs can keep at once.
func (via bouncer) connections() int {
	if via.mode == "transaction" {
		return math.MaxInt
	}
	return via.size
}

// refusesLease: where a lease would keep the only connection to the server that there is, or
// finds none, it says so.
func refusesLease(t *testing.T, q *baldur.PGQuorum) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*shortTTL)
	defer cancel()
	ok, err := q.TryAcquirePrimary(ctx)
	if ok || err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "pooler") {
		t.Errorf("TryAcquirePrimary: %v, %v, want the error that tells of the pooler", ok, err)
	}
}

// TestCase6Bouncer (lease.md, case 6): a queue of notifications that others have filled costs no
// lease. In session mode two that contend, each with a connection of its own, and a third for
// another look, need more than two.
func TestCase6Bouncer(t *testing.T) {
	server := smallQueue(t)
	fillQueue(t, openPool(t, server))
	bouncers(t, func(t *testing.T, via bouncer) {
		t.Parallel()
		quorum := func(region string) *baldur.PGQuorum {
			return newQuorum(t, openPool(t, via.dsn), region, baldur.WithLeaseTTL(3*shortTTL), baldur.WithLeaseName(t.Name()))
		}
		full := func() {
			if _, err := openPool(t, server).Exec("NOTIFY junk, 'x'"); err == nil || !strings.Contains(err.Error(), "54000") {
				t.Fatal("the queue is not full:", err)
			}
		}
		if via.connections() > 2 {
			testNotifyQueue(t, quorum, full)
			return
		}
		a := quorum("a")
		if via.connections() == 1 {
			refusesLease(t, a)
			return
		}
		ctx := testCtx(t)
		for turn := range int64(2) {
			a.StartAutoRenew()
			held, err := a.AwaitPrimary(ctx)
			if err != nil {
				t.Fatal(err)
			}
			full()
			for renewals := a.Stats().Renewals; a.Stats().Renewals < renewals+5 && held.Err() == nil && ctx.Err() == nil; { // more than a TTL
				runtime.Gosched()
			}
			refusesLease(t, quorum("b"))
			if s := a.Stats(); held.Err() != nil || s.Elections != turn+1 {
				t.Errorf("%v: %+v", context.Cause(held), s)
			}
			a.StopAutoRenew()
		}
	}, server)
}

// TestCase10Bouncer (lease.md, case 10): closed is closed, also for a lease that has found no
// connection.
func TestCase10Bouncer(t *testing.T) {
	bouncers(t, func(t *testing.T, via bouncer) {
		for name, end := range closings {
			t.Run(name, func(t *testing.T) {
				testClosed(t, openPool(t, via.direct), via.dsn, end, func(q *baldur.PGQuorum) {
					if via.connections() > 1 {
						sees(t, q, "holder")
						return
					}
					refusesLease(t, q)
				})
			})
		}
	})
}

// TestCase11Bouncer (lease.md, case 11): a table that was moved is found again.
func TestCase11Bouncer(t *testing.T) {
	bouncers(t, func(t *testing.T, via bouncer) {
		t.Parallel()
		if via.connections() > 1 {
			testMoved(t, openPool(t, via.direct), openPool(t, via.dsn))
			return
		}
		refusesLease(t, newQuorum(t, openPool(t, via.dsn), "a", baldur.WithLeaseTTL(shortTTL)))
	})
}

// TestQuorumBouncer: leases behind PgBouncer, in modes and sizes. In session mode each
// connection of a program keeps one to the server, so that two processes, each with a
// pool of one and its lease's own, need four.
func TestQuorumBouncer(t *testing.T) {
	t.Parallel()
	bouncers(t, func(t *testing.T, via bouncer) {
		pool := func() *sql.DB {
			db := openPool(t, via.dsn)
			db.SetMaxOpenConns(1)
			return db
		}
		// in bounds each step: what is optional in it leaves it time for the rest.
		in := func(what string, step func(context.Context) error) error {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 8*shortTTL)
			defer cancel()
			began := time.Now()
			err := step(ctx)
			if ctx.Err() != nil {
				t.Errorf("%s has used its time up: %v", what, err)
			}
			t.Logf("%s: %v, %v", what, time.Since(began).Round(time.Millisecond), err)
			return err
		}
		must := func(what string, step func(context.Context) error) {
			t.Helper()
			if err := in(what, step); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		db := pool()
		ping := func(ctx context.Context) error { return db.PingContext(ctx) }
		must("the program", ping) // and its pool keeps the connection
		must("MigrateQuorum", func(ctx context.Context) error { return baldur.MigrateQuorum(ctx, db) })
		a := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
		if via.connections() == 1 {
			for _, first := range []string{"the pool", "the lease"} {
				if first == "the lease" {
					db.SetMaxIdleConns(-1)
				}
				err := in("TryAcquirePrimary after "+first, func(ctx context.Context) error {
					ok, err := a.TryAcquirePrimary(ctx)
					if ok {
						t.Error("primary")
					}
					return err
				})
				if err == nil || !strings.Contains(err.Error(), "pooler") {
					t.Error(err)
				}
				must("the program goes on", ping)
			}
			return
		}
		must("AwaitPrimary", func(ctx context.Context) error {
			a.StartAutoRenew()
			_, err := a.AwaitPrimary(ctx)
			return err
		})
		guarded := func(q *baldur.PGQuorum) func(ctx context.Context) error {
			return func(ctx context.Context) error {
				return q.InTx(ctx, nil, func(tx *sql.Tx, _ int64) error {
					_, err := tx.ExecContext(ctx, "SELECT 1")
					return err
				})
			}
		}
		must("InTx", guarded(a))
		must("SealEpoch", func(ctx context.Context) error {
			seal, err := a.SealEpoch(ctx, db)
			if err != nil {
				return err
			}
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			_, err = seal.Require(ctx, tx)
			return errors.Join(err, tx.Rollback())
		})
		if !a.IsPrimary() || a.Stats().Elections != 1 {
			t.Errorf("the lease was lost meanwhile: %+v", a.Stats())
		}
		must("the program", ping)
		a.StopAutoRenew()
		must("Run", func(ctx context.Context) error { return a.Run(ctx, guarded(a)) })
		if via.connections() < 4 {
			return
		}
		must("AwaitPrimary", func(ctx context.Context) error {
			a.StartAutoRenew()
			_, err := a.AwaitPrimary(ctx)
			return err
		})
		b := newQuorum(t, pool(), "b", baldur.WithLeaseTTL(shortTTL))
		done := make(chan error, 1)
		go func() { done <- b.Run(t.Context(), guarded(b)) }()
		sees(t, b, "a")
		must("hand-over", func(ctx context.Context) error {
			a.StopAutoRenew()
			select {
			case err := <-done:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
}

// TestSealEpochLong: the time for a connection of its own is not the time that SealEpoch has.
func TestSealEpochLong(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	db := openPool(t, dsn)
	old, next := stale(t, dsn)
	seal, err := old.SealEpoch(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seal.Require(ctx, tx); err != nil {
		t.Fatal(err)
	}
	takeOver(t, next)
	done := make(chan error, 1)
	go func() {
		_, err := tx.Exec("SELECT pg_sleep(2)")
		done <- errors.Join(err, tx.Commit())
	}()
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := next.SealEpoch(short, db); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNotifyKeepsConnection: a notification that fails does not cost the lease its connection, for
// which others wait.
func TestNotifyKeepsConnection(t *testing.T) {
	server := smallQueue(t)
	fillQueue(t, openPool(t, server))
	dsn, _ := pgtest.BouncerTo(t, server, "session", "default_pool_size=2")
	ctx := testCtx(t)
	if err := baldur.MigrateQuorum(ctx, openPool(t, server)); err != nil {
		t.Fatal(err)
	}
	q := newQuorum(t, openPool(t, dsn), "a", baldur.WithLeaseTTL(shortTTL))
	if _, _, err := q.CurrentPrimary(ctx); err != nil { // it is connected
		t.Fatal(err)
	}
	for range 3 { // the second and the third wait
		program := openPool(t, dsn)
		wait, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() { _ = program.PingContext(wait); close(ended) }()
		t.Cleanup(func() { cancel(); <-ended })
		soon(t, "it asks", 5*time.Second, func() bool { return program.Stats().OpenConnections == 1 })
	}
	q.StartAutoRenew()
	held, err := q.AwaitPrimary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	soon(t, "renewals", 10*time.Second, func() bool { return q.Stats().Renewals >= 5 || held.Err() != nil })
	if held.Err() != nil {
		t.Errorf("%v: %s", context.Cause(held), q.Stats().LastError)
	}
}
