package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// What a call may take beyond the deadline of its ctx: the grace, a tick of the
// clock, and room for a busy machine.
const (
	deadline = 500 * time.Millisecond
	grace    = 500 * time.Millisecond
	room     = 5 * time.Second
)

// TestSilentNetwork freezes the network in each kind of call. The call must
// return with the ctx's error, its connection be discarded, and its slot be free.
func TestSilentNetwork(t *testing.T) {
	calls := []struct {
		name string
		call func(ctx context.Context, db *sql.DB, freeze func()) error
	}{
		{"exec", func(ctx context.Context, db *sql.DB, freeze func()) error {
			freeze()
			_, err := db.ExecContext(ctx, "SELECT 1")
			return err
		}},
		{"query", func(ctx context.Context, db *sql.DB, freeze func()) error {
			freeze()
			_, err := db.QueryContext(ctx, "SELECT $1::int", 1)
			return err
		}},
		{"reading rows", func(ctx context.Context, db *sql.DB, freeze func()) error {
			rows, err := db.QueryContext(ctx, "SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
			if err != nil {
				return err
			}
			defer rows.Close()
			freeze()
			for rows.Next() {
			}
			return rows.Err()
		}},
		{"prepared statement", func(ctx context.Context, db *sql.DB, freeze func()) error {
			st, err := db.PrepareContext(ctx, "SELECT 1")
			if err != nil {
				return err
			}
			freeze()
			_, err = st.ExecContext(ctx)
			return err
		}},
		{"prepare", func(ctx context.Context, db *sql.DB, freeze func()) error {
			freeze()
			_, err := db.PrepareContext(ctx, "SELECT 1")
			return err
		}},
		{"commit", func(ctx context.Context, db *sql.DB, freeze func()) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			freeze()
			return tx.Commit()
		}},
		{"connect", func(ctx context.Context, db *sql.DB, freeze func()) error {
			db.SetMaxIdleConns(0)
			freeze()
			_, err := db.ExecContext(ctx, "SELECT 1")
			return err
		}},
	}
	for _, c := range calls {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dsn, proxy := pgtest.Proxy(t)
			db, err := baldur.Open(dsn, baldur.WithCancelGrace(grace))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			db.SetMaxOpenConns(1)
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			opened := openedBy(t, db)
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			start := time.Now()
			err = c.call(ctx, db, func() { proxy.Freeze(faultproxy.Both) })
			took := time.Since(start)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the ctx's error", err)
			}
			if took > deadline+grace+room {
				t.Errorf("took %v", took)
			}
			t.Logf("%v after %v", err, took.Round(time.Millisecond))

			proxy.Unfreeze(faultproxy.Both)
			if again := openedBy(t, db); again == opened {
				t.Error("the connection was not discarded")
			}
			if n := db.Stats().InUse; n != 0 {
				t.Errorf("%d in use", n)
			}
		})
	}
}

// openedBy returns the backend that serves the pool, which has one connection.
func openedBy(t *testing.T, db *sql.DB) (pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), room)
	defer cancel()
	if err := db.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatalf("the slot is not free: %v", err)
	}
	return pid
}

// TestSilentNetworkBare shows what the above cures: lib/pq alone is still in the
// call when twice the time has passed in which the tracked pool returns.
func TestSilentNetworkBare(t *testing.T) {
	t.Parallel()
	dsn, proxy := pgtest.Proxy(t)
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ping(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	proxy.Freeze(faultproxy.Both)
	returned := make(chan error, 1)
	go func() {
		_, err := db.ExecContext(ctx, "SELECT 1")
		returned <- err
	}()
	select {
	case err := <-returned:
		t.Errorf("lib/pq returned (%v): has lib/pq#620 been mended? Then pqconn.Socket can go", err)
	case <-time.After(2 * (deadline + grace)):
	}
	proxy.Cut() // ends the call
	<-returned
}

// TestCancelByServer: a server that answers is left to cancel by itself, and
// the error is its own.
func TestCancelByServer(t *testing.T) {
	db, err := baldur.Open(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = db.ExecContext(ctx, "SELECT pg_sleep(60)")
	var pqErr *pq.Error
	if !errors.As(err, &pqErr) || pqErr.Code != "57014" {
		t.Errorf("got %v, want SQLSTATE 57014", err)
	}
	if strings.Contains(err.Error(), "deadline") {
		t.Errorf("got %v", err)
	}
}
