package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// thisDatabase is the condition of pg_locks that leaves out the locks of tests beside this one.
const thisDatabase = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"

// advisoryLocks counts the advisory locks in the current database.
func advisoryLocks(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRow("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND " + thisDatabase).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// other returns a connection of another program that has taken a lock.
func other(t *testing.T, dsn, query string) *sql.Conn {
	t.Helper()
	db := must(sql.Open("postgres", dsn))
	t.Cleanup(func() { db.Close() })
	conn := must(db.Conn(ctx))
	must(conn.ExecContext(ctx, query))
	return conn
}

// tried waits until a session of another pool has tried to get an advisory lock.
func tried(t *testing.T, db *sql.DB) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		var n int
		if err := db.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
			AND (query LIKE '%.pg_try_advisory_%' OR query = 'ROLLBACK')`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			return
		}
	}
	t.Fatal("nobody tries")
}

func TestLockID(t *testing.T) {
	if id := baldur.LockID("nightly report"); id != 1451769646762480301 {
		t.Errorf("LockID is %d: it has changed", id)
	}
	db, admin := newAdmin(t)
	for _, name := range []string{"", "a", "nightly report", "über"} {
		var want int64
		if err := db.QueryRow(`SELECT ('x' || left(encode(sha256(convert_to($1, 'UTF8')), 'hex'), 16))::bit(64)::bigint`, name).Scan(&want); err != nil {
			t.Fatal(err)
		}
		if got := baldur.LockID(name); got != want {
			t.Errorf("LockID(%q) is %d, in SQL %d", name, got, want)
		}
	}
	for _, id := range []int64{0, -1, 1 << 32, math.MinInt64, math.MaxInt64} {
		if r := admin.AdvisoryLock(ctx, id, true); !r.Acquired || r.Err != nil || r.LockID != id {
			t.Errorf("%+v", r)
		}
		holders := must(admin.LockHolders(ctx, id))
		if len(holders) != 1 || !holders[0].SinceExact || holders[0].PID == 0 || holders[0].Shared {
			t.Errorf("holders of %d: %+v", id, holders)
		}
		if ok, err := admin.ReleaseAdvisoryLock(ctx, id); !ok || err != nil {
			t.Errorf("release of %d: %v, %v", id, ok, err)
		}
	}
}

// TestAdvisoryLock: the rows of the reference, directly and through PgBouncer.
func TestAdvisoryLock(t *testing.T) {
	for _, path := range paths {
		t.Run(path.name, func(t *testing.T) {
			dsn := path.dsn(t)
			db, admin := adminOn(t, dsn, 5)
			if !path.session {
				refusesSessions(t, admin, baldur.PoolerTransaction)
				return
			}
			get := func(ok bool, err error) bool {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				return ok
			}
			if get(admin.ReleaseAdvisoryLock(ctx, 42)) {
				t.Error("released what nobody holds")
			}
			if !get(admin.AcquireAdvisoryLock(ctx, 42, true)) {
				t.Error("not acquired")
			}
			if get(admin.TryAdvisoryLock(ctx, 42)) || get(admin.AcquireAdvisoryLock(ctx, 42, false)) || get(admin.AcquireAdvisoryLockShared(ctx, 42, false)) {
				t.Error("acquired twice")
			}
			if get(admin.ReleaseAdvisoryLockShared(ctx, 42)) {
				t.Error("released as shared what is held alone")
			}
			if !strings.Contains(holders(db), "advisory lock 42") {
				t.Errorf("the tracker does not name it:\n%s", holders(db))
			}
			if !get(admin.ReleaseAdvisoryLock(ctx, 42)) || get(admin.ReleaseAdvisoryLock(ctx, 42)) {
				t.Error("release is not true, then false")
			}
			if !get(admin.AcquireAdvisoryLockShared(ctx, 42, true)) || !get(admin.AcquireAdvisoryLockShared(ctx, 42, false)) {
				t.Error("not shared")
			}
			if get(admin.TryAdvisoryLock(ctx, 42)) {
				t.Error("alone beside others")
			}
			if !get(admin.ReleaseAdvisoryLockShared(ctx, 42)) || get(admin.TryAdvisoryLock(ctx, 42)) {
				t.Error("one of two shared holds is all of them")
			}
			if !get(admin.ReleaseAdvisoryLockShared(ctx, 42)) || !get(admin.TryAdvisoryLock(ctx, 42)) {
				t.Error("not free after the last shared hold")
			}
			get(admin.AcquireAdvisoryLock(ctx, 43, true))
			must(admin.Session(ctx))
			if err := admin.Close(); err != nil {
				t.Fatal(err)
			}
			if n, out := advisoryLocks(t, db), db.Stats().InUse; n != 0 || out != 0 {
				t.Errorf("after Close: %d locks, %d connections out", n, out)
			}
			if _, err := admin.AcquireAdvisoryLock(ctx, 42, true); !errors.Is(err, baldur.ErrPGAdminClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

func holders(db *sql.DB) string {
	var b strings.Builder
	for _, h := range baldur.TrackerOf(db).Holders() {
		b.WriteString(h.Label + "\n")
	}
	return b.String()
}

// refusesSessions: every call that needs a session is refused, with an advice,
// and leaves nothing; the lock of a transaction works.
func refusesSessions(t *testing.T, admin *baldur.PGAdmin, mode baldur.PoolerMode) {
	t.Helper()
	nothing := func(context.Context, *baldur.Session) error { t.Error("called"); return nil }
	for what, call := range map[string]func() error{
		"AcquireAdvisoryLock": func() error { _, err := admin.AcquireAdvisoryLock(ctx, 1, true); return err },
		"TryAdvisoryLock":     func() error { _, err := admin.TryAdvisoryLock(ctx, 1); return err },
		"Session":             func() error { _, err := admin.Session(ctx); return err },
		"WithTimeouts":        func() error { return admin.WithTimeouts(ctx, time.Second, 0, nothing) },
		"WithAdvisoryLock": func() error {
			return admin.WithAdvisoryLock(ctx, 1, baldur.LockOptions{}, func(ctx context.Context, s *baldur.Session, _ bool) error { return nothing(ctx, s) })
		},
	} {
		err := call()
		var refused *baldur.PoolerError
		if !errors.As(err, &refused) || refused.Mode != mode || !strings.Contains(err.Error(), "onnect to PostgreSQL directly") {
			t.Errorf("%s: %v", what, err)
		}
	}
	err := admin.WithTxAdvisoryLock(ctx, 1, baldur.LockOptions{}, func(ctx context.Context, tx *sql.Tx, acquired bool) error {
		if !acquired {
			t.Error("not acquired")
		}
		return tx.QueryRowContext(ctx, "SELECT 1").Scan(new(int))
	})
	var refused *baldur.PoolerError
	switch {
	case mode == baldur.PoolerTransaction && err != nil:
		t.Error(err)
	case mode == baldur.PoolerStatement && (!errors.As(err, &refused) || refused.Mode != mode):
		t.Errorf("WithTxAdvisoryLock: %v", err)
	}
}

func TestPoolerMode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		dsn  func(testing.TB) string
		size int
		want baldur.PoolerMode
	}{
		{"none", pgtest.DSN, 1, baldur.PoolerNone},
		{"session", func(t testing.TB) string { return pgtest.Bouncer(t, "session") }, 1, baldur.PoolerSession},
		{"session, full", func(t testing.TB) string { return pgtest.Bouncer(t, "session", "default_pool_size=1") }, 1, baldur.PoolerUnknown},
		{"transaction", func(t testing.TB) string { return pgtest.Bouncer(t, "transaction") }, 1, baldur.PoolerTransaction},
		{"statement", func(t testing.TB) string { return pgtest.Bouncer(t, "statement") }, 1, baldur.PoolerStatement},
	} {
		t.Run(c.name, func(t *testing.T) {
			db, admin := adminOn(t, c.dsn(t), c.size)
			if got, err := admin.PoolerMode(ctx); got != c.want || err != nil {
				t.Errorf("%s, %v, want %s", got, err, c.want)
			}
			switch c.want {
			case baldur.PoolerStatement:
				refusesSessions(t, admin, c.want)
			case baldur.PoolerUnknown:
				wantError(t, &baldur.PoolerError{Mode: c.want}, "WithPooler(PoolerSession)")
				said := baldur.NewPGAdmin(db, baldur.WithPooler(baldur.PoolerSession))
				if s, err := said.Session(ctx); err != nil {
					t.Error(err)
				} else {
					s.Close()
				}
			}
		})
	}
}

// TestSessionNests: a session's locks are counted as PostgreSQL counts them.
func TestSessionNests(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	db, admin := adminOn(t, dsn, 5)
	s, rival := must(admin.Session(ctx)), must(admin.Session(ctx))
	defer rival.Close()
	for range 2 {
		if !must(s.AcquireAdvisoryLock(ctx, 5, true)) {
			t.Error("not acquired")
		}
	}
	if !must(s.AcquireAdvisoryLockShared(ctx, 5, true)) || !must(s.TryAdvisoryLock(ctx, 6)) {
		t.Error("not acquired")
	}
	if got := holders(db); !strings.Contains(got, "advisory locks 5, 5 (shared), 6") {
		t.Errorf("labels:\n%s", got)
	}
	if must(rival.TryAdvisoryLock(ctx, 5)) || must(admin.TryAdvisoryLock(ctx, 5)) {
		t.Error("two hold it")
	}
	must(s.ReleaseAdvisoryLock(ctx, 5))
	if must(rival.AcquireAdvisoryLockShared(ctx, 5, false)) {
		t.Error("one release of two is enough")
	}
	if !must(s.ReleaseAdvisoryLock(ctx, 5)) || must(s.ReleaseAdvisoryLock(ctx, 5)) {
		t.Error("the second release is not true, then false")
	}
	if !must(rival.AcquireAdvisoryLockShared(ctx, 5, false)) || must(rival.TryAdvisoryLock(ctx, 5)) {
		t.Error("the shared hold is not what is left")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.TryAdvisoryLock(ctx, 5); !errors.Is(err, sql.ErrConnDone) {
		t.Errorf("a closed session: %v", err)
	}
	if n := advisoryLocks(t, db); n != 1 {
		t.Errorf("%d locks", n)
	}
}

// TestWithAdvisoryLockEnds: however f ends, the lock is free and the connection
// is back, or gone.
func TestWithAdvisoryLockEnds(t *testing.T) {
	db, admin := newAdmin(t)
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		f    func(ctx context.Context, cancel func(), s *baldur.Session) error
		want error
		gone bool // the connection
	}{
		"returns":   {func(context.Context, func(), *baldur.Session) error { return nil }, nil, false},
		"error":     {func(context.Context, func(), *baldur.Session) error { return boom }, boom, false},
		"panic":     {func(context.Context, func(), *baldur.Session) error { panic(boom) }, boom, false},
		"cancelled": {func(_ context.Context, cancel func(), _ *baldur.Session) error { cancel(); return nil }, nil, false},
		"cancelled in a query": {func(ctx context.Context, cancel func(), s *baldur.Session) error {
			time.AfterFunc(20*time.Millisecond, cancel)
			if _, err := s.ExecContext(ctx, "SELECT pg_sleep(60)"); err == nil {
				t.Error("no error")
			}
			return boom
		}, boom, true},
		"failed query": {func(ctx context.Context, _ func(), s *baldur.Session) error {
			_, err := s.ExecContext(ctx, "SELECT 1/0")
			wantState(t, err, "22012")
			return boom
		}, boom, false},
		"tx left open": {func(ctx context.Context, _ func(), s *baldur.Session) error {
			tx := must(s.BeginTx(ctx, nil))
			must(tx.Exec("SELECT pg_advisory_lock(99)"))
			return nil
		}, nil, true},
		"tx left open, its ctx lives": {func(_ context.Context, _ func(), s *baldur.Session) error {
			tx := must(s.BeginTx(ctx, nil))
			must(tx.Exec("SELECT pg_advisory_lock(99)"))
			return nil
		}, nil, false},
		"BEGIN by text": {func(ctx context.Context, _ func(), s *baldur.Session) error {
			must(s.ExecContext(ctx, "BEGIN"))
			return nil
		}, nil, true},
		"rows left open": {func(_ context.Context, _ func(), s *baldur.Session) error {
			must(s.QueryContext(ctx, "SELECT generate_series(1, 100000)")).Next()
			return nil
		}, nil, true},
		"row not scanned": {func(_ context.Context, _ func(), s *baldur.Session) error {
			s.QueryRowContext(ctx, "SELECT generate_series(1, 100000)")
			return nil
		}, nil, true},
		"a lock of its own": {func(ctx context.Context, _ func(), s *baldur.Session) error {
			return s.QueryRowContext(ctx, "SELECT pg_advisory_lock(98)::text").Scan(new(string))
		}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			var pid int
			run := func() (err error) {
				defer func() {
					if p := recover(); p != nil {
						err = p.(error)
					}
				}()
				return admin.WithAdvisoryLock(ctx, 42, baldur.LockOptions{}, func(ctx context.Context, s *baldur.Session, acquired bool) error {
					pid = s.BackendPID()
					if n := len(must(admin.LockHolders(ctx, 42))); !acquired || n != 1 {
						t.Errorf("acquired %v, %d holders", acquired, n)
					}
					return c.f(ctx, cancel, s)
				})
			}
			err := run()
			var lost *baldur.LockLostError
			switch {
			case name == "tx left open" || name == "rows left open" || name == "row not scanned" || name == "BEGIN by text":
				// The connection is discarded, and it depends on how far it had come
				// whether the lock is known to have been held until then.
				if err != nil && !errors.As(err, &lost) {
					t.Errorf("error is %v", err)
				}
			case !errors.Is(err, c.want):
				t.Errorf("error is %v, want %v", err, c.want)
			}
			if n := db.Stats().InUse; n != 0 {
				t.Errorf("%d connections are out", n)
			}
			// The end of a discarded session takes the server a moment.
			for range 1000 {
				if advisoryLocks(t, db) == 0 {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if n := advisoryLocks(t, db); n != 0 {
				t.Errorf("%d locks are left", n)
			}
			// So does that of its process, with or without locks.
			alive := true
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				if err := db.QueryRow("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid).Scan(&alive); err != nil {
					t.Fatal(err)
				}
				if !c.gone || !alive || time.Now().After(end) {
					break
				}
			}
			if c.gone == alive && name != "tx left open" {
				t.Errorf("the backend lives: %v", alive)
			}
		})
	}
}

// TestLockLost: who held a lock on a connection that has died is told.
func TestLockLost(t *testing.T) {
	db, admin := newAdmin(t)
	var lost *baldur.LockLostError
	err := admin.WithAdvisoryLock(ctx, 42, baldur.LockOptions{}, func(_ context.Context, s *baldur.Session, _ bool) error {
		must(admin.Terminate(ctx, s.BackendPID())) // not with the lock's ctx, which ends by it
		return nil
	})
	if !errors.As(err, &lost) || lost.LockIDs[0] != 42 {
		t.Errorf("WithAdvisoryLock: %v", err)
	}
	must(admin.AcquireAdvisoryLock(ctx, 42, true))
	must(admin.Terminate(ctx, must(admin.LockHolders(ctx, 42))[0].PID))
	if ok, err := admin.ReleaseAdvisoryLock(ctx, 42); ok || !errors.As(err, &lost) {
		t.Errorf("ReleaseAdvisoryLock: %v, %v", ok, err)
	}
	if ok, err := admin.ReleaseAdvisoryLock(ctx, 42); ok || err != nil {
		t.Errorf("the second time: %v, %v", ok, err)
	}
	// Connections that died in the pool are replaced.
	for range 20 {
		must(db.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"))
		if ok, err := admin.TryAdvisoryLock(ctx, 42); !ok || err != nil {
			t.Fatalf("after all have died: %v, %v", ok, err)
		}
		must(admin.ReleaseAdvisoryLock(ctx, 42))
	}
}

// TestLockWaits: waiting ends with the lock, with ctx, or with a timeout.
func TestLockWaits(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	for _, where := range []string{"another program", "this PGAdmin"} {
		t.Run(where, func(t *testing.T) {
			db, admin := adminOn(t, dsn, 4)
			watch := must(sql.Open("postgres", dsn))
			defer watch.Close()
			var release func()
			if where == "this PGAdmin" {
				must(admin.AcquireAdvisoryLock(ctx, 42, true))
				release = func() { must(admin.ReleaseAdvisoryLock(ctx, 42)) }
			} else {
				rival := other(t, dsn, "SELECT pg_advisory_lock(42)")
				release = func() { must(rival.ExecContext(ctx, "SELECT pg_advisory_unlock(42)")) }
			}
			if must(admin.TryAdvisoryLock(ctx, 42)) {
				t.Error("two hold it")
			}
			called := false
			if err := admin.WithAdvisoryLock(ctx, 42, baldur.LockOptions{NoWait: true}, func(ctx context.Context, s *baldur.Session, acquired bool) error {
				called = true
				if acquired {
					t.Error("two hold it")
				}
				return s.QueryRowContext(ctx, "SELECT 1").Scan(new(int))
			}); err != nil || !called {
				t.Errorf("NoWait: %v, called %v", err, called)
			}
			short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			if ok, err := admin.AcquireAdvisoryLock(short, 42, true); ok || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("ctx: %v, %v", ok, err)
			}
			for _, timeout := range []time.Duration{50 * time.Millisecond, 700 * time.Millisecond} { // in one slice, and in two
				begin := time.Now()
				never := func(context.Context, *baldur.Session, bool) error { t.Error("called"); return nil }
				err := admin.WithAdvisoryLock(ctx, 42, baldur.LockOptions{Timeout: timeout}, never)
				var late *baldur.LockTimeoutError
				if !errors.As(err, &late) || late.LockID != 42 || time.Since(begin) < timeout || late.Waited < timeout {
					t.Errorf("Timeout: %v after %v", err, time.Since(begin))
				}
				wantState(t, err, "55P03")
			}
			err := admin.WithTxAdvisoryLock(ctx, 42, baldur.LockOptions{Timeout: 50 * time.Millisecond}, func(context.Context, *sql.Tx, bool) error { return nil })
			wantState(t, err, "55P03")
			wantError(t, admin.WithAdvisoryLock(ctx, 42, baldur.LockOptions{Timeout: -1}, nil), "negative")
			wantError(t, admin.WithTxAdvisoryLock(ctx, 42, baldur.LockOptions{Timeout: -1}, nil), "negative")

			// All that have waited get it in the end, one after the other.
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					if err := admin.WithAdvisoryLock(ctx, 42, baldur.LockOptions{}, func(context.Context, *baldur.Session, bool) error { return nil }); err != nil {
						t.Error(err)
					}
				})
			}
			if where == "another program" {
				tried(t, watch)
			}
			release()
			all.Wait()

			// The server's lock_timeout.
			must(db.Exec("DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET lock_timeout = 60'; END $$"))
			late, lateAdmin := adminOn(t, dsn, 2)
			rival := other(t, dsn, "SELECT pg_advisory_lock(42)")
			if _, err := lateAdmin.AcquireAdvisoryLock(ctx, 42, true); !errors.As(err, new(*baldur.LockTimeoutError)) {
				t.Errorf("lock_timeout: %v", err)
			}
			must(rival.ExecContext(ctx, "SELECT pg_advisory_unlock(42)"))
			must(lateAdmin.AcquireAdvisoryLock(ctx, 42, true))
			_, err = lateAdmin.AcquireAdvisoryLock(ctx, 42, true) // within the process
			wantState(t, err, "55P03")
			var v string
			if err := late.QueryRow("SHOW lock_timeout").Scan(&v); err != nil || v != "60ms" {
				t.Errorf("lock_timeout is %s, %v", v, err)
			}
			must(lateAdmin.ReleaseAdvisoryLock(ctx, 42))
			must(db.Exec("DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' RESET lock_timeout'; END $$"))
		})
	}
}

// TestCloseEndsWaiting: who waits, here or at the server, is sent away.
func TestCloseEndsWaiting(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	_, admin := adminOn(t, dsn, 4)
	watch := must(sql.Open("postgres", dsn))
	defer watch.Close()
	other(t, dsn, "SELECT pg_advisory_lock(42)")
	errs := make(chan error, 3)
	for range 2 {
		go func() { _, err := admin.AcquireAdvisoryLock(ctx, 42, true); errs <- err }()
	}
	go func() {
		errs <- admin.WithTxAdvisoryLock(ctx, 42, baldur.LockOptions{}, func(context.Context, *sql.Tx, bool) error { return nil })
	}()
	tried(t, watch)
	if err := admin.Close(); err != nil {
		t.Error(err)
	}
	for range 3 {
		if err := <-errs; !errors.Is(err, baldur.ErrPGAdminClosed) {
			t.Error(err)
		}
	}
}

// TestWaitersLeaveRoom: in a pool of 3, one holds a lock and needs a second
// connection while others wait for more locks than the pool has connections. All
// are held by another program that goes on only when the holder has.
func TestWaitersLeaveRoom(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	db, admin := adminOn(t, dsn, 3)
	rival := other(t, dsn, "SELECT pg_advisory_lock(id) FROM generate_series(1, 6) id")
	must(admin.AcquireAdvisoryLock(ctx, 42, true))
	var all sync.WaitGroup
	for id := range int64(6) {
		all.Go(func() {
			if ok, err := admin.AcquireAdvisoryLock(ctx, id+1, true); !ok || err != nil {
				t.Errorf("lock %d: %v, %v", id+1, ok, err)
			}
			must(admin.ReleaseAdvisoryLock(ctx, id+1))
		})
	}
	watch := must(sql.Open("postgres", dsn))
	defer watch.Close()
	tried(t, watch)
	for range 5 {
		limited, cancel := context.WithTimeout(ctx, 20*time.Second)
		if _, err := db.ExecContext(limited, "SELECT 1"); err != nil {
			t.Errorf("the holder has no second connection: %v", err)
		}
		cancel()
	}
	must(rival.ExecContext(ctx, "SELECT pg_advisory_unlock_all()"))
	all.Wait()
	must(admin.ReleaseAdvisoryLock(ctx, 42))
}
