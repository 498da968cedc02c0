package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// TestQuorumBouncer: leases behind PgBouncer, in modes and sizes. In session mode each
// connection of a program keeps one to the server, so that two processes, each with a
// pool of one and its lease's own, need four.
func TestQuorumBouncer(t *testing.T) {
	for _, mode := range []string{"session", "transaction"} {
		for _, size := range []int{1, 2, 10} {
			t.Run(fmt.Sprint(mode, size), func(t *testing.T) {
				dsn := pgtest.Bouncer(t, mode, fmt.Sprint("default_pool_size=", size))
				pool := func() *sql.DB {
					db := openPool(t, dsn)
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
				if mode == "session" && size == 1 {
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
				if mode == "session" && size < 4 {
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
	}
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
