package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

type rowQueryer interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

func wantTimeouts(t *testing.T, q rowQueryer, lock, statement string) {
	t.Helper()
	var l, s string
	if err := q.QueryRowContext(ctx, "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')").Scan(&l, &s); err != nil {
		t.Fatal(err)
	}
	if l != lock || s != statement {
		t.Errorf("lock_timeout %s, statement_timeout %s, want %s and %s", l, s, lock, statement)
	}
}

func fine(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func TestSessionTimeouts(t *testing.T) {
	for _, path := range paths {
		if !path.session {
			continue
		}
		t.Run(path.name, func(t *testing.T) {
			db, admin := adminOn(t, path.dsn(t), 1)
			must(db.Exec("SET lock_timeout = '7s'")) // as a hook at connect would
			s := must(admin.Session(ctx))
			fine(t, s.SetLockTimeout(ctx, 1500*time.Microsecond)) // rounded up
			fine(t, s.SetStatementTimeout(ctx, 50*time.Second))
			wantTimeouts(t, s, "2ms", "50s")
			fine(t, s.SetLockTimeout(ctx, 0))
			wantTimeouts(t, s, "0", "50s")
			fine(t, s.ResetTimeouts(ctx))
			fine(t, s.ResetTimeouts(ctx))
			wantTimeouts(t, s, "7s", "0")
			for _, d := range []time.Duration{-1, -time.Hour, (1 << 31) * time.Millisecond} {
				wantError(t, s.SetLockTimeout(ctx, d), "must be from 0 to")
				wantError(t, s.SetStatementTimeout(ctx, d), "must be from 0 to")
			}
			fine(t, s.SetLockTimeout(ctx, (1<<31-1)*time.Millisecond))
			pid := s.BackendPID()
			fine(t, s.Close())
			wantTimeouts(t, db, "7s", "0")
			if got := must(admin.BackendPIDWithDelay(ctx, 0)); got != pid {
				t.Error("the connection was discarded")
			}
		})
	}
}

// TestWithTimeouts: the reference's cases, and that the settings are as before
// however it ends.
func TestWithTimeouts(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	db, admin := adminOn(t, dsn, 1)
	err := admin.WithTimeouts(ctx, 0, 50*time.Millisecond, func(ctx context.Context, s *baldur.Session) error {
		_, err := s.ExecContext(ctx, "SELECT pg_sleep(1)")
		return err
	})
	wantState(t, err, "57014")
	fine(t, admin.Sleep(ctx, 100*time.Millisecond))
	wantTimeouts(t, db, "0", "0")

	rival := other(t, dsn, "SELECT pg_advisory_lock(42)")
	err = admin.WithTimeouts(ctx, 20*time.Millisecond, 0, func(ctx context.Context, s *baldur.Session) error {
		_, err := s.AcquireAdvisoryLock(ctx, 42, true)
		return err
	})
	if !errors.As(err, new(*baldur.LockTimeoutError)) {
		t.Error(err)
	}
	wantState(t, err, "55P03")
	err = admin.WithTimeouts(ctx, 0, 20*time.Millisecond, func(ctx context.Context, s *baldur.Session) error {
		_, err := s.AcquireAdvisoryLock(ctx, 42, true)
		return err
	})
	wantState(t, err, "57014")
	rival.Close()

	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_ = admin.WithTimeouts(ctx, time.Second, time.Second, func(context.Context, *baldur.Session) error { panic(1) })
	}()
	wantTimeouts(t, db, "0", "0")

	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	fine(t, admin.WithTimeouts(limited, time.Hour, time.Second, func(ctx context.Context, s *baldur.Session) error {
		var lock, statement int
		err := s.QueryRowContext(ctx, "SELECT (SELECT setting FROM pg_settings WHERE name = 'lock_timeout'), (SELECT setting FROM pg_settings WHERE name = 'statement_timeout')").Scan(&lock, &statement)
		if lock > 10000 || lock < 1 || statement != 1000 {
			t.Errorf("lock_timeout %d, statement_timeout %d", lock, statement)
		}
		return err
	}))
	ended, cancel := context.WithCancel(ctx)
	fine(t, admin.WithTimeouts(ended, time.Second, time.Second, func(context.Context, *baldur.Session) error { cancel(); return nil }))
	wantTimeouts(t, db, "0", "0")
	never := func(context.Context, *baldur.Session) error { t.Error("called"); return nil }
	if err := admin.WithTimeouts(ended, time.Second, 0, never); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wantError(t, admin.WithTimeouts(ctx, -1, 0, never), "lock_timeout is -1ns")
	wantError(t, admin.WithTimeouts(ctx, 0, -1, never), "statement_timeout is -1ns")

	// A connection that dies in f, and one that a transaction would bring back.
	fine(t, admin.WithTimeouts(ctx, time.Second, 0, func(ctx context.Context, s *baldur.Session) error {
		must(s.ExecContext(ctx, "BEGIN"))
		return s.SetStatementTimeout(ctx, time.Second)
	}))
	wantTimeouts(t, db, "0", "0")
	killer := must(sql.Open("postgres", dsn))
	defer killer.Close()
	fine(t, admin.WithTimeouts(ctx, time.Second, 0, func(ctx context.Context, s *baldur.Session) error {
		must(killer.Exec("SELECT pg_terminate_backend($1)", s.BackendPID()))
		return nil
	}))
	wantTimeouts(t, db, "0", "0")
	must(killer.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"))
	fine(t, admin.WithTimeouts(ctx, time.Second, 0, func(context.Context, *baldur.Session) error { return nil }))
}

// TestCursor: a cursor outlives the call that made it, on every path.
func TestCursor(t *testing.T) {
	for _, path := range paths {
		t.Run(path.name, func(t *testing.T) {
			db, admin := adminOn(t, path.dsn(t), 2)
			made, cancel := context.WithCancel(ctx)
			c := must(admin.CreateCursor(made))
			cancel()
			var n int
			for i := range 3 {
				if err := c.QueryRow(ctx, "SELECT 1").Scan(&n); err != nil || n != 1 {
					t.Errorf("query %d: %d, %v", i, n, err)
				}
			}
			rows, err := c.Query(ctx, "SELECT generate_series(1, 3)")
			for n = 0; err == nil && rows.Next(); n++ {
			}
			if err != nil || n != 3 {
				t.Errorf("%d rows, %v", n, err)
			}
			if got := holders(db); got != "cursor\n" {
				t.Errorf("the tracker shows %q", got)
			}
			fine(t, c.QueryRow(ctx, "SELECT pg_try_advisory_lock(7)").Scan(new(bool)))
			fine(t, c.Close())
			fine(t, c.Close())
			if path.session && advisoryLocks(t, db) != 0 {
				t.Error("its lock went back into the pool")
			}
			if err := c.QueryRow(ctx, "SELECT 1").Scan(&n); !errors.Is(err, sql.ErrConnDone) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}
