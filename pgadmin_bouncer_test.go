package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
)

// refusesSession: where session locks do not work, or may not, the error tells what to do.
func refusesSession(t *testing.T, admin *baldur.PGAdmin, mode baldur.PoolerMode, advice string) {
	t.Helper()
	err := admin.WithAdvisoryLock(ctx, 4712, baldur.LockOptions{}, func(context.Context, *baldur.Session, bool) error {
		t.Error("called")
		return nil
	})
	var refused *baldur.PoolerError
	if !errors.As(err, &refused) || refused.Mode != mode {
		t.Errorf("WithAdvisoryLock: %v, want a PoolerError of mode %s", err, mode)
	}
	wantError(t, err, "pool_mode = session")
	wantError(t, err, advice)
}

// sessionAdmin is a PGAdmin that is told of session mode: to find it out takes two connections
// to the server at once, for each program. Its pool keeps no connection that it does not use.
func sessionAdmin(t *testing.T, dsn string) (*sql.DB, *baldur.PGAdmin) {
	t.Helper()
	db, _ := adminOn(t, dsn, 0)
	db.SetMaxIdleConns(-1)
	admin := baldur.NewPGAdmin(db, baldur.WithPooler(baldur.PoolerSession))
	t.Cleanup(func() { fine(t, admin.Close()) })
	return db, admin
}

// TestCase7Bouncer (lease.md, case 7): the holder of a lock makes an index CONCURRENTLY beside 20
// programs that wait for the lock. In session mode all of them come through PgBouncer, and wait
// for its connections too. In transaction mode session locks are refused; the lock of a
// transaction is waited for while the holder, which needs a session, is connected directly.
func TestCase7Bouncer(t *testing.T) {
	t.Parallel()
	bouncers(t, func(t *testing.T, via bouncer) {
		direct, holder := adminOn(t, via.direct, 0)
		if via.mode == "transaction" {
			_, admin := adminOn(t, via.dsn, 0)
			refusesSession(t, admin, baldur.PoolerTransaction, "use WithTxAdvisoryLock")
			testIndexConcurrently(t, direct, holder, 20, func() func() error {
				_, rival := adminOn(t, via.dsn, 0)
				return func() error {
					return rival.WithTxAdvisoryLock(ctx, 4712, baldur.LockOptions{}, func(context.Context, *sql.Tx, bool) error { return nil })
				}
			}, func() { tried(t, direct) })
			return
		}
		if via.size == 1 { // whose mode cannot be found out
			_, admin := adminOn(t, via.dsn, 0)
			refusesSession(t, admin, baldur.PoolerUnknown, "WithPooler(PoolerSession)")
		}
		_, holder = sessionAdmin(t, via.dsn)
		var pools []*sql.DB
		rival := func() func() error {
			pool, rival := sessionAdmin(t, via.dsn)
			pools = append(pools, pool)
			return func() error {
				return rival.WithAdvisoryLock(ctx, 4712, baldur.LockOptions{}, func(context.Context, *baldur.Session, bool) error { return nil })
			}
		}
		testIndexConcurrently(t, direct, holder, 20, rival, func() {
			if via.size > 1 {
				tried(t, direct)
				return
			}
			soon(t, "all wait for PgBouncer's only connection, which the holder has", 20*time.Second, func() bool {
				n := 0
				for _, pool := range pools {
					n += pool.Stats().InUse
				}
				return n == len(pools)
			})
		})
	})
}

// TestCase13Bouncer (lease.md, case 13): Timeout bounds the wait for a connection of the pool, for
// one of PgBouncer's, and for the lock; a statement_timeout ends no wait.
func TestCase13Bouncer(t *testing.T) {
	t.Parallel()
	bouncers(t, func(t *testing.T, via bouncer) {
		t.Parallel()
		t.Run("the pool's", func(t *testing.T) {
			db, admin := adminOn(t, via.dsn, 1)
			conn := must(db.Conn(ctx))
			testBounds(t, admin)
			fine(t, conn.Close())
		})
		t.Run("PgBouncer's", func(t *testing.T) {
			for range via.size {
				defer other(t, via.dsn, "BEGIN").Close()
			}
			_, admin := adminOn(t, via.dsn, 0)
			testBounds(t, admin)
		})
		t.Run("the lock's", func(t *testing.T) {
			other(t, via.direct, "SELECT pg_advisory_lock(42)")
			db, admin := adminOn(t, via.dsn, 0)
			if via.mode == "session" {
				_, admin = sessionAdmin(t, via.dsn)
			}
			short := baldur.LockOptions{Timeout: 500 * time.Millisecond}
			waits := map[string]func(context.Context, baldur.LockOptions) error{
				"WithTxAdvisoryLock": func(ctx context.Context, o baldur.LockOptions) error {
					return admin.WithTxAdvisoryLock(ctx, 42, o, nil)
				},
				"WithAdvisoryLock": func(ctx context.Context, o baldur.LockOptions) error { return admin.WithAdvisoryLock(ctx, 42, o, nil) },
			}
			if via.mode == "transaction" {
				refusesSession(t, admin, baldur.PoolerTransaction, "use WithTxAdvisoryLock")
				delete(waits, "WithAdvisoryLock")
			}
			for what, wait := range waits {
				begin := time.Now()
				var late *baldur.LockTimeoutError
				if err := wait(ctx, short); !errors.As(err, &late) || late.LockID != 42 {
					t.Errorf("%s: %v", what, err)
				}
				if d := time.Since(begin); d < short.Timeout || d > 5*time.Second {
					t.Errorf("%s: ends after %v", what, d)
				}
			}
			var name string
			fine(t, db.QueryRow("SELECT current_database()").Scan(&name))
			direct := must(sql.Open("postgres", via.direct))
			defer direct.Close()
			must(direct.Exec("ALTER DATABASE " + name + " SET statement_timeout = '200ms'"))
			for what, wait := range waits {
				limited, cancel := context.WithTimeout(ctx, 600*time.Millisecond)
				if err := wait(limited, baldur.LockOptions{}); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s with a statement_timeout: %v", what, err)
				}
				cancel()
			}
		})
	})
}

// TestCase14Bouncer (lease.md, case 14): who holds a lock learns that the server has ended the
// session beneath PgBouncer's. In transaction mode there is no lock of a session to be lost, and
// what was done under that of a transaction is not committed when it is.
func TestCase14Bouncer(t *testing.T) {
	t.Parallel()
	bouncers(t, func(t *testing.T, via bouncer) {
		t.Parallel()
		killer := must(sql.Open("postgres", via.direct))
		t.Cleanup(func() { killer.Close() })
		if via.mode == "session" {
			for driver, open := range drivers {
				t.Run(driver, func(t *testing.T) {
					db := open(via.dsn)
					defer db.Close()
					testLost(t, baldur.NewPGAdmin(db, baldur.WithPooler(baldur.PoolerSession)), killer)
				})
			}
			return
		}
		db, admin := adminOn(t, via.dsn, 0)
		must(killer.Exec("CREATE TABLE work (n int)"))
		refusesSession(t, admin, baldur.PoolerTransaction, "use WithTxAdvisoryLock")
		_, err := admin.AcquireAdvisoryLock(ctx, 42, true)
		if !errors.As(err, new(*baldur.PoolerError)) {
			t.Errorf("AcquireAdvisoryLock: %v", err)
		}
		ended, cancel := admin.LockContext(ctx, 42)
		defer cancel()
		if !errors.As(context.Cause(ended), new(*baldur.LockLostError)) {
			t.Errorf("a lock that is not held: %v", context.Cause(ended))
		}
		err = admin.WithTxAdvisoryLock(ctx, 42, baldur.LockOptions{}, func(ctx context.Context, tx *sql.Tx, _ bool) error {
			must(tx.ExecContext(ctx, "INSERT INTO work VALUES (1)"))
			var pid int
			fine(t, tx.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid))
			var gone, free bool
			fine(t, killer.QueryRow("SELECT pg_terminate_backend($1, 5000)", pid).Scan(&gone))
			fine(t, killer.QueryRow("SELECT pg_try_advisory_xact_lock(42)").Scan(&free))
			if !gone || !free {
				t.Errorf("gone %v, the lock is free %v", gone, free)
			}
			return nil
		})
		if err == nil {
			t.Error("WithTxAdvisoryLock tells nothing of the loss")
		}
		var n int
		fine(t, db.QueryRow("SELECT count(*) FROM work").Scan(&n))
		if n != 0 {
			t.Error("committed after the loss")
		}
	})
}
