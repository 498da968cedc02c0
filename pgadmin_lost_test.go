package baldur_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// TestCase7IndexConcurrently (lease.md, case 7): the holder of a lock makes an
// index CONCURRENTLY beside 20 that wait for the lock, in every way to wait: no
// wait is a statement at the server.
func TestCase7IndexConcurrently(t *testing.T) {
	t.Parallel()
	for _, path := range paths {
		for _, size := range []int{0, 5} {
			waits := map[string]func(p *baldur.PGAdmin) error{
				"WithTxAdvisoryLock": func(p *baldur.PGAdmin) error {
					return p.WithTxAdvisoryLock(ctx, 4712, baldur.LockOptions{}, func(context.Context, *sql.Tx, bool) error { return nil })
				},
			}
			if path.session {
				waits["WithAdvisoryLock"] = func(p *baldur.PGAdmin) error {
					return p.WithAdvisoryLock(ctx, 4712, baldur.LockOptions{}, func(context.Context, *baldur.Session, bool) error { return nil })
				}
				waits["Session"] = func(p *baldur.PGAdmin) error {
					s, err := p.Session(ctx)
					if err != nil {
						return err
					}
					_, err = s.AcquireAdvisoryLockShared(ctx, 4712, true)
					return errors.Join(err, s.Close())
				}
			}
			for how, wait := range waits {
				t.Run(path.name+"/"+how, func(t *testing.T) {
					dsn := path.dsn(t)
					waiters := 20
					if path.name != "direct" {
						waiters = 5 // PgBouncer has 20 connections to the server
					}
					direct := must(url.Parse(pgtest.SocketDSN(t)))
					direct.Path = "/" + must(pq.NewConfig(dsn)).Database
					db, admin := adminOn(t, direct.String(), 0)
					testIndexConcurrently(t, db, admin, waiters, func() func() error {
						pool, rival := adminOn(t, dsn, size) // a program
						pool.SetMaxIdleConns(2)
						return func() error { return wait(rival) }
					}, func() { tried(t, db) })
				})
			}
		}
	}
}

// testIndexConcurrently has admin make indexes under the lock 4712 when others wait for it.
func testIndexConcurrently(t *testing.T, db *sql.DB, admin *baldur.PGAdmin, waiters int, rival func() (wait func() error), waiting func()) {
	must(db.Exec("CREATE TABLE cic (a int)"))
	var all sync.WaitGroup
	err := admin.WithAdvisoryLock(ctx, 4712, baldur.LockOptions{}, func(ctx context.Context, s *baldur.Session, _ bool) error {
		must(s.ExecContext(ctx, "SET deadlock_timeout = '10ms'"))
		for range waiters {
			wait := rival()
			all.Go(func() { fine(t, wait()) })
		}
		waiting()
		for i := range 5 {
			if _, err := s.ExecContext(ctx, "CREATE INDEX CONCURRENTLY cic_"+string(rune('a'+i))+" ON cic (a)"); err != nil {
				return err
			}
			var n int
			fine(t, s.QueryRowContext(ctx, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND "+thisDatabase).Scan(&n))
			if n != 0 {
				t.Errorf("%d wait at the server", n)
			}
		}
		return nil
	})
	fine(t, err)
	all.Wait()
	var invalid int
	fine(t, db.QueryRow("SELECT count(*) FROM pg_index WHERE NOT indisvalid").Scan(&invalid))
	if invalid != 0 {
		t.Errorf("%d indexes are invalid", invalid)
	}
}

// TestHandOver logs how long a lock takes from one program to another.
func TestHandOver(t *testing.T) {
	t.Parallel()
	dsn := pgtest.SocketDSN(t)
	_, a := adminOn(t, dsn, 2)
	_, b := adminOn(t, dsn, 2)
	var took []time.Duration
	for range 20 {
		must(a.AcquireAdvisoryLock(ctx, 1, true))
		begun, got := make(chan struct{}), make(chan time.Time)
		go func() {
			close(begun)
			must(b.AcquireAdvisoryLock(ctx, 1, true))
			got <- time.Now()
		}()
		<-begun
		must(0, a.Sleep(ctx, 150*time.Millisecond)) // until it tries at its slowest
		released := time.Now()
		must(a.ReleaseAdvisoryLock(ctx, 1))
		took = append(took, (<-got).Sub(released))
		must(b.ReleaseAdvisoryLock(ctx, 1))
	}
	slices.Sort(took)
	t.Logf("median %v, 95 %% %v, most %v", took[10], took[18], took[19])
	if took[10] > time.Second {
		t.Errorf("a hand-over takes %v", took[10])
	}
}

// TestCase13Bounds (lease.md, case 13): Timeout bounds the wait for a connection
// too, and a statement_timeout ends no wait, in any pool.
func TestCase13Bounds(t *testing.T) {
	for _, path := range paths {
		t.Run(path.name, func(t *testing.T) {
			db, admin := adminOn(t, path.dsn(t), 1)
			must(admin.PoolerMode(ctx))
			conn := must(db.Conn(ctx)) // the pool's only one
			testBounds(t, admin)
			conn.Close()
		})
	}
	dsn := pgtest.SocketDSN(t)
	other(t, dsn, "SELECT pg_advisory_lock(42)")
	for _, size := range []int{0, 2} {
		_, admin := adminOn(t, dsn+"&statement_timeout=50", size)
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if ok, err := admin.AcquireAdvisoryLock(short, 42, true); ok || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("AcquireAdvisoryLock, pool of %d: %v, %v", size, ok, err)
		}
		short, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if err := admin.WithTxAdvisoryLock(short, 42, baldur.LockOptions{}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WithTxAdvisoryLock, pool of %d: %v", size, err)
		}
	}
}

// testBounds: while no connection is to be had each way to take a lock ends by its Timeout.
func testBounds(t *testing.T, admin *baldur.PGAdmin) {
	t.Helper()
	var all sync.WaitGroup
	defer all.Wait()
	for id, noWait := range map[int64]bool{1: false, 3: true} { // a lock each: who waits for a connection keeps others of the process out
		o := baldur.LockOptions{NoWait: noWait, Timeout: 100 * time.Millisecond}
		for what, call := range map[string]func() error{
			"WithTxAdvisoryLock": func() error { return admin.WithTxAdvisoryLock(ctx, id, o, nil) },
			"WithAdvisoryLock":   func() error { return admin.WithAdvisoryLock(ctx, id+1, o, nil) },
		} {
			all.Go(func() {
				begin := time.Now()
				err := call()
				var late *baldur.LockTimeoutError
				if !errors.As(err, &late) || time.Since(begin) > 5*time.Second {
					t.Errorf("%s, NoWait %v: %v after %v", what, noWait, err, time.Since(begin))
				}
			})
		}
	}
}

// TestCase14Lost (lease.md, case 14): who holds a lock learns of its loss while it
// works, by the socket or by asking.
func TestCase14Lost(t *testing.T) {
	t.Parallel()
	for name, open := range drivers {
		for _, path := range paths {
			if !path.session {
				continue
			}
			t.Run(name+"/"+path.name, func(t *testing.T) {
				t.Parallel()
				dsn := path.dsn(t)
				killer := must(sql.Open("postgres", dsn))
				defer killer.Close()
				db := open(dsn)
				defer db.Close()
				testLost(t, baldur.NewPGAdmin(db), killer)
			})
		}
	}
}

// testLost: who holds a lock learns that killer has ended its session.
func testLost(t *testing.T, admin *baldur.PGAdmin, killer *sql.DB) {
	wait := func(ctx context.Context, pid int) {
		begin := time.Now()
		must(killer.Exec("SELECT pg_terminate_backend($1)", pid))
		var lost *baldur.LockLostError
		select {
		case <-ctx.Done():
			if !errors.As(context.Cause(ctx), &lost) || !slices.Equal(lost.LockIDs, []int64{42}) {
				t.Errorf("the cause is %v", context.Cause(ctx))
			}
			t.Logf("told after %v: %v", time.Since(begin).Round(time.Millisecond), context.Cause(ctx))
		case <-time.After(20 * time.Second):
			t.Error("not told")
		}
	}
	err := admin.WithAdvisoryLock(ctx, 42, baldur.LockOptions{}, func(ctx context.Context, s *baldur.Session, _ bool) error {
		rows := must(s.QueryContext(ctx, "SELECT 1")) // which a look must not disturb
		rows.Next()
		fine(t, rows.Close())
		wait(ctx, s.BackendPID())
		return ctx.Err()
	})
	if !errors.As(err, new(*baldur.LockLostError)) || !errors.Is(err, context.Canceled) {
		t.Errorf("WithAdvisoryLock: %v", err)
	}
	ended, cancel := admin.LockContext(ctx, 42)
	cancel()
	if !errors.As(context.Cause(ended), new(*baldur.LockLostError)) {
		t.Errorf("a lock that is not held: %v", context.Cause(ended))
	}

	must(admin.AcquireAdvisoryLock(ctx, 42, true))
	held, cancel := admin.LockContext(ctx, 42)
	defer cancel()
	var pid int
	fine(t, killer.QueryRow("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND "+thisDatabase).Scan(&pid))
	wait(held, pid)
	if ok, err := admin.ReleaseAdvisoryLock(ctx, 42); ok || !errors.As(err, new(*baldur.LockLostError)) {
		t.Errorf("release: %v, %v", ok, err)
	}

	must(admin.AcquireAdvisoryLockShared(ctx, 42, true))
	held, cancel = admin.LockContext(ctx, 42)
	defer cancel()
	must(admin.ReleaseAdvisoryLockShared(ctx, 42))
	<-held.Done()
	if err := context.Cause(held); err != context.Canceled {
		t.Errorf("released: %v", err)
	}
	fine(t, admin.Close())
}

// TestLookIsQualified: so is what is asked about a lock that is held.
func TestLookIsQualified(t *testing.T) {
	dsn, _ := pgtest.Trap(t, "trap, pg_catalog")
	dsn, recording := pgtest.Record(t, dsn)
	_, admin := adminOn(t, dsn, 3) // one for the lock, one for Sleep, one to ask on
	must(admin.AcquireAdvisoryLock(ctx, -42, true))
	held, cancel := admin.LockContext(ctx, -42)
	defer cancel()
	for asked := false; !asked; {
		fine(t, admin.Sleep(ctx, 50*time.Millisecond))
		for _, query := range recording.Statements() {
			asked = asked || strings.Contains(query, "SELECT EXISTS (")
			for _, fault := range pgtest.LintSQL(query) {
				t.Errorf("%s: %s", query, fault)
			}
		}
	}
	fine(t, held.Err())
	must(admin.ReleaseAdvisoryLock(ctx, -42))
}

// lateDialer dials until the deadline of its ctx, and tells so by the network's error, as net.Dialer
// does, perhaps before the ctx's timer has fired.
type lateDialer struct{}

func (lateDialer) Driver() driver.Driver { return nil }
func (lateDialer) Connect(ctx context.Context) (driver.Conn, error) {
	end, _ := ctx.Deadline()
	for time.Now().Before(end) {
	}
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
}

// TestTimeoutWhileDialling: a Timeout that the network has noticed first is a LockTimeoutError too.
func TestTimeoutWhileDialling(t *testing.T) {
	admin := baldur.NewPGAdmin(sql.OpenDB(lateDialer{}))
	for range 200 {
		err := admin.WithTxAdvisoryLock(ctx, 1, baldur.LockOptions{Timeout: time.Millisecond}, nil)
		if !errors.As(err, new(*baldur.LockTimeoutError)) {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		if err := admin.WithTxAdvisoryLock(short, 1, baldur.LockOptions{}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		cancel()
	}
}
