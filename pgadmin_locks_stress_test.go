package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// TestAdvisoryLockStress: goroutines fight for a few locks through a pool that is
// smaller than they are many, while calls are cancelled and backends are killed.
// There are never two holders, no lock is left behind, and the pool is as before.
func TestAdvisoryLockStress(t *testing.T) {
	rounds := 300
	switch {
	case os.Getenv("BALDUR_LONG_TABLES") != "": // CI has the long tables once
		rounds = 1000
	case testing.Short():
		rounds = 50
	}
	stress(t, 1, 64, rounds, true)
}

// TestAdvisoryLockStressTwoPools: the same for two programs, which only
// PostgreSQL keeps apart.
func TestAdvisoryLockStressTwoPools(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	stress(t, 2, 64, rounds, false)
}

func stress(t *testing.T, pools, goroutines, rounds int, kill bool) {
	const ids, poolSize = 8, 10
	dsn := pgtest.SocketDSN(t)
	killer := must(sql.Open("postgres", dsn+"&application_name=killer"))
	defer killer.Close()
	killer.SetMaxOpenConns(1)
	var dbs []*sql.DB
	var admins []*baldur.PGAdmin
	for range pools {
		db, admin := adminOn(t, dsn, poolSize)
		dbs, admins = append(dbs, db), append(admins, admin)
	}
	var in [ids]atomic.Int32 // −1: one alone; else how many share it
	var held, cancelled, lost, kills atomic.Int64

	enter := func(id int64, shared bool) {
		if shared {
			if in[id].Add(1) <= 0 {
				t.Error("shared beside one alone")
			}
		} else if !in[id].CompareAndSwap(0, -1<<20) {
			t.Error("two hold it alone")
		}
		held.Add(1)
	}
	leave := func(id int64, shared bool) {
		if shared {
			in[id].Add(-1)
		} else {
			in[id].Store(0)
		}
	}
	begin := time.Now()
	var all sync.WaitGroup
	for g := range goroutines {
		admin, db := admins[g%pools], dbs[g%pools]
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range rounds {
				id, shared := int64(r.IntN(ids)), r.IntN(10) == 0
				ctx, cancel := context.WithCancel(ctx)
				if r.IntN(20) == 0 {
					time.AfterFunc(time.Duration(r.IntN(3000))*time.Microsecond, cancel)
				}
				acquired := false
				err := func() error {
					f := func(ctx context.Context, s *baldur.Session, ok bool) error {
						acquired = true
						enter(id, shared)
						defer leave(id, shared)
						switch {
						case kill && r.IntN(200) == 0:
							must(killer.Exec("SELECT pg_terminate_backend($1)", s.BackendPID()))
							kills.Add(1)
						case r.IntN(20) == 0: // work that needs a second connection
							if _, err := db.ExecContext(ctx, "SELECT 1"); err != nil {
								return err
							}
						}
						return nil
					}
					if r.IntN(2) == 0 {
						return admin.WithAdvisoryLock(ctx, id, baldur.LockOptions{Shared: shared}, f)
					}
					take, release := admin.AcquireAdvisoryLock, admin.ReleaseAdvisoryLock
					if shared {
						take, release = admin.AcquireAdvisoryLockShared, admin.ReleaseAdvisoryLockShared
					}
					ok, err := take(ctx, id, true)
					if !ok {
						return err
					}
					acquired = true
					enter(id, shared)
					leave(id, shared)
					if ok, err := release(ctx, id); !ok {
						return errors.Join(errors.New("not released"), err)
					}
					return nil
				}()
				var e *pq.Error
				switch {
				case err == nil:
				case errors.As(err, new(*baldur.LockLostError)):
					lost.Add(1)
				case ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.As(err, &e) && e.Code == "57014"):
					cancelled.Add(1)
				default:
					t.Errorf("acquired %v: %v", acquired, err)
				}
				cancel()
			}
		})
	}
	all.Wait()
	t.Logf("%d goroutines × %d rounds in %v: %d holds, %d cancelled, %d backends killed, %d told lost",
		goroutines, rounds, time.Since(begin).Round(time.Millisecond), held.Load(), cancelled.Load(), kills.Load(), lost.Load())
	if kill && lost.Load() < kills.Load()/2 {
		t.Errorf("%d backends were killed and %d holders told", kills.Load(), lost.Load())
	}
	for _, db := range dbs {
		// The pool is whole: as many connections as it may have can be taken.
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		for range poolSize {
			conn, err := db.Conn(limited)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.ExecContext(limited, "SELECT 1"); err != nil && !isBad(err) {
				t.Error(err)
			}
		}
	}
	for range 1000 { // the end of a discarded session takes the server a moment
		if advisoryLocks(t, killer) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d locks are left", advisoryLocks(t, killer))
}

func isBad(err error) bool { return err.Error() == "driver: bad connection" }
