package baldur_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"
	"go.uber.org/goleak"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// closings are the ways in which a quorum ends.
var closings = map[string]func(*baldur.PGQuorum, *sql.DB){
	"quorum": func(q *baldur.PGQuorum, _ *sql.DB) { _ = q.Close() },
	"pool":   func(_ *baldur.PGQuorum, db *sql.DB) { _ = db.Close() },
}

// TestCase10Closed: what waits for the lease, and what asks for it, ends when the quorum or its
// pool is closed, and nothing comes back to life.
func TestCase10Closed(t *testing.T) {
	for name, end := range closings {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			testClosed(t, openPool(t, dsn), dsn, end, func(q *baldur.PGQuorum) { sees(t, q, "holder") })
		})
	}
}

// testClosed ends, once it waits, a quorum on a pool of dsn, while another has the lease.
func testClosed(t *testing.T, others *sql.DB, dsn string, end func(*baldur.PGQuorum, *sql.DB), waits func(*baldur.PGQuorum)) {
	ctx := testCtx(t)
	holder := newQuorum(t, others, "holder", baldur.WithLeaseTTL(shortTTL))
	before := goleak.IgnoreCurrent()
	mustAcquire(t, holder)
	holder.StartAutoRenew()
	db := openPool(t, dsn)
	q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
	q.StartAutoRenew()
	calls := map[string]func() error{
		"AwaitPrimary": func() error { _, err := q.AwaitPrimary(context.Background()); return err },
		"Run":          func() error { return q.Run(context.Background(), func(context.Context) error { return nil }) },
	}
	results := make(chan error, len(calls))
	for _, call := range calls {
		go func() { results <- call() }()
	}
	waits(q)
	end(q, db)
	for range calls {
		select {
		case err := <-results:
			if !errors.Is(err, baldur.ErrQuorumClosed) {
				t.Error(err)
			}
		case <-ctx.Done():
			t.Fatal("it still waits")
		}
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	q.StartAutoRenew()
	for what, call := range map[string]func() error{
		"TryAcquirePrimary": func() error { _, err := q.TryAcquirePrimary(ctx); return err },
		"RenewLease":        func() error { _, err := q.RenewLease(ctx); return err },
		"CurrentPrimary":    func() error { _, _, err := q.CurrentPrimary(ctx); return err },
		"IsPrimaryVerified": func() error { _, err := q.IsPrimaryVerified(ctx); return err },
		"AwaitPrimary":      calls["AwaitPrimary"],
		"Run":               calls["Run"],
	} {
		if err := call(); !errors.Is(err, baldur.ErrQuorumClosed) {
			t.Error(what, err)
		}
	}
	if q.IsPrimary() {
		t.Error("primary after its end")
	}
	for e, ok := q.Watch(ctx), true; ok; {
		_, ok = <-e
	}
	if ctx.Err() != nil {
		t.Error("Watch goes on")
	}
	_ = q.Close()
	_ = db.Close()
	goleak.VerifyNone(t, before)
}

// TestCase9SmallPool: a lease leaves a pool of one connection to the program.
func TestCase9SmallPool(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	db := openPool(t, dsn)
	db.SetMaxOpenConns(1)
	for i := range 5 {
		q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL), baldur.WithLeaseName(fmt.Sprint(i)))
		takeOver(t, q)
		if err := q.InTx(ctx, nil, func(tx *sql.Tx, _ int64) error {
			_, err := tx.ExecContext(ctx, "SELECT 1")
			return err
		}); err != nil {
			t.Fatal(i, err)
		}
	}
	held, err := db.Conn(ctx) // and needs none of it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	takeOver(t, newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL), baldur.WithLeaseName("exhausted")))
}

// TestRun: f runs while its process is primary, and in no two of them at once.
func TestRun(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	adm := openPool(t, dsn)
	var working atomic.Int32
	var turns [2]atomic.Int32
	run, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	results := make(chan error, 2)
	both := make(chan struct{})
	for i := range turns {
		q := newQuorum(t, openPool(t, dsn+"&application_name=run"), fmt.Sprint(i), baldur.WithLeaseTTL(shortTTL))
		wg.Go(func() {
			results <- q.Run(run, func(ctx context.Context) error {
				if n := working.Add(1); n > 1 {
					t.Error(n, "at work")
				}
				defer working.Add(-1)
				if turns[i].Add(1) == 3 && turns[1-i].Load() >= 3 {
					close(both)
				}
				_ = q.ReleaseLease(ctx)
				<-ctx.Done()
				if q.IsPrimary() {
					t.Error("primary while f of the hold before still runs")
				}
				return errors.New("the work has ended with its ctx")
			})
		})
	}
	select {
	case <-both:
	case <-ctx.Done():
		t.Fatal("no turn for", turns[0].Load(), turns[1].Load())
	}
	stop()
	wg.Wait()
	for range turns {
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	q := newQuorum(t, adm, "last", baldur.WithLeaseTTL(shortTTL))
	mustAcquire(t, q) // they have released it
	own := errors.New("f's own")
	if err := q.Run(ctx, func(context.Context) error { return own }); err != own {
		t.Error(err)
	}
	if q.IsPrimary() {
		t.Error("not released")
	}
	func() {
		defer func() {
			if recover() != "f" || q.IsPrimary() {
				t.Error("a panic of f's")
			}
		}()
		_ = q.Run(ctx, func(context.Context) error { panic("f") })
	}()
}

// TestRunClock: f is called again if it has returned when the lease was over by the clock, but
// no timer had yet told so.
func TestRunClock(t *testing.T) {
	var jump atomic.Int64
	began := time.Now()
	q := newQuorum(t, openPool(t, pgtest.DSN(t)), "a", baldur.WithQuorumClock(func() time.Duration {
		return time.Since(began) + time.Duration(jump.Load())
	}))
	var turns int
	err := q.Run(testCtx(t), func(ctx context.Context) error {
		if turns++; turns == 1 {
			jump.Add(int64(time.Hour))
			return q.InTx(ctx, nil, func(*sql.Tx, int64) error { return errors.New("f was called") })
		}
		return nil
	})
	if err != nil || turns != 2 {
		t.Error(err, turns)
	}
	if n := q.Stats().Losses[baldur.LossExpired]; n != 1 {
		t.Error("losses:", n)
	}
}

// TestInTx: what it returns tells what has happened.
func TestInTx(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	db := openPool(t, dsn)
	mustExec(t, db, "CREATE TABLE work (epoch bigint PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
	q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
	write := func(tx *sql.Tx, epoch int64) error {
		_, err := tx.Exec("INSERT INTO work VALUES ($1)", epoch)
		return err
	}
	if err := q.InTx(ctx, nil, write); !errors.Is(err, baldur.ErrNotPrimary) {
		t.Error(err)
	}
	takeOver(t, q)
	for _, level := range isolations {
		mustExec(t, db, "TRUNCATE work")
		if err := q.InTx(ctx, &sql.TxOptions{Isolation: level}, write); err != nil {
			t.Error(level, err)
		}
	}
	var e *pq.Error
	if err := q.InTx(ctx, nil, write); errors.Is(err, baldur.ErrCommitUnknown) || !errors.As(err, &e) || e.Code != "23505" {
		t.Error("refused at the commit:", err)
	}
	own := errors.New("f's own")
	if err := q.InTx(ctx, nil, func(*sql.Tx, int64) error { return own }); err != own {
		t.Error(err)
	}
	for name, f := range map[string]func(*sql.Tx, int64) error{
		"an error that f has dropped": func(tx *sql.Tx, _ int64) error { _, _ = tx.Exec("SELECT 1/0"); return nil },
		"rolled back by f":            func(tx *sql.Tx, _ int64) error { return tx.Rollback() },
	} {
		if err := q.InTx(ctx, nil, f); err == nil || errors.Is(err, baldur.ErrCommitUnknown) {
			t.Error(name, err)
		}
	}
	short, cancel := context.WithCancel(ctx)
	if err := q.InTx(short, nil, func(*sql.Tx, int64) error { cancel(); return nil }); !errors.Is(err, context.Canceled) || errors.Is(err, baldur.ErrCommitUnknown) {
		t.Error("ctx ended before the commit:", err)
	}
	for range 3 { // connections left in a transaction
		mustExec(t, db, "BEGIN")
	}
	if err := q.InTx(ctx, nil, func(*sql.Tx, int64) error { return nil }); err != nil {
		t.Error("on a dirty pool:", err)
	}
	old, next := stale(t, pgtest.DSN(t))
	takeOver(t, next)
	if err := old.InTx(ctx, nil, func(*sql.Tx, int64) error { t.Error("f was called"); return nil }); !errors.Is(err, baldur.ErrFenced) {
		t.Error(err)
	}
}

// TestInTxCut: the network is cut after each message, on its way there and back. What InTx
// returns agrees with what the server has.
func TestInTxCut(t *testing.T) {
	ctx := testCtx(t)
	dsn, proxy := pgtest.Proxy(t)
	plain := openPool(t, strings.Replace(dsn, proxy.Addr(), proxy.Target(), 1))
	mustExec(t, plain, "CREATE TABLE work (n int)")
	db := openPool(t, dsn)
	q := newQuorum(t, db, "a")
	takeOver(t, q)
	unknown, done := 0, false
	for n := 0; !done; n++ {
		mustExec(t, db, "SELECT 1") // a connection, to be cut
		var at atomic.Int32
		at.Store(-1)
		begun, acted := false, int32(n)
		proxy.OnData(func(d faultproxy.Direction, data []byte) {
			if d == faultproxy.ToServer && bytes.HasPrefix(data, []byte("Q")) && bytes.Contains(data, []byte("BEGIN READ WRITE\x00")) && at.Load() < 0 {
				at.Store(0)
			}
			if at.Load() >= 0 && !bytes.Contains(data, []byte("renew_seq")) {
				if at.Add(1) == acted+1 {
					proxy.Cut()
				}
			}
		})
		err := q.InTx(ctx, nil, func(tx *sql.Tx, _ int64) error {
			begun = true
			_, err := tx.Exec(fmt.Sprintf("INSERT INTO work VALUES (%d)", n))
			return err
		})
		proxy.OnData(func(faultproxy.Direction, []byte) {})
		done = at.Load() <= acted // it was over before
		var there bool
		for { // until the server has ended what was cut
			var open int
			if err := plain.QueryRow("SELECT count(*) FROM pg_locks WHERE relation = 'work'::regclass AND pid <> pg_backend_pid()").Scan(&open); err != nil {
				t.Fatal(err)
			}
			if open == 0 {
				break
			}
		}
		if err := plain.QueryRow("SELECT EXISTS (SELECT FROM work WHERE n = $1)", n).Scan(&there); err != nil {
			t.Fatal(err)
		}
		switch {
		case errors.Is(err, baldur.ErrCommitUnknown):
			unknown++
		case there != (err == nil):
			t.Errorf("cut after %d: %v, and it is there: %v (begun: %v)", n, err, there, begun)
		}
		if n > 100 {
			t.Fatal("it does not end:", err)
		}
		for ctx.Err() == nil { // the lease's connection was cut too
			if ok, err := q.IsPrimaryVerified(ctx); ok && err == nil {
				break
			} else if err == nil {
				takeOver(t, q)
			}
		}
	}
	if unknown == 0 {
		t.Error("no commit was cut")
	}
	t.Logf("%d commits of unknown result", unknown)
}

// TestCase11Moved: a table that was moved is found again.
func TestCase11Moved(t *testing.T) {
	db := openPool(t, pgtest.DSN(t))
	testMoved(t, db, db)
}

// testMoved moves, by adm, the table of a lease that is held by a quorum on db.
func testMoved(t *testing.T, adm, db *sql.DB) {
	ctx := testCtx(t)
	q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
	takeOver(t, q)
	mustExec(t, adm, "CREATE SCHEMA ops", "ALTER TABLE public.baldur_lease SET SCHEMA ops")
	began, refused := time.Now(), q.Stats().Refused
	for q.Stats().Refused == refused && ctx.Err() == nil {
		_, _ = q.RenewLease(ctx)
	}
	for ok := false; !ok && ctx.Err() == nil; {
		ok, _ = q.RenewLease(ctx)
	}
	t.Log("found after", time.Since(began))
	if !q.IsPrimary() {
		t.Error("the lease was lost")
	}
	if name, err := baldur.LeaseTable(ctx, db); name != "ops.baldur_lease" || err != nil {
		t.Error(name, err)
	}
}

// TestCase6NotifyQueue: a queue of notifications that others have filled costs no lease.
func TestCase6NotifyQueue(t *testing.T) {
	dsn := smallQueue(t)
	quorum := func(region string) *baldur.PGQuorum {
		return newQuorum(t, openPool(t, dsn), region, baldur.WithLeaseTTL(shortTTL))
	}
	testNotifyQueue(t, quorum, func() { fillQueue(t, openPool(t, dsn)) })
}

// smallQueue is the DSN of a server whose queue of notifications is soon full.
func smallQueue(t *testing.T) string {
	var version int
	if err := openPool(t, pgtest.DSN(t)).QueryRow("SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < 170000 {
		t.Skip("the queue has 8 GB before PostgreSQL 17, which has max_notify_queue_pages")
	}
	return pgtest.Server(t, "max_notify_queue_pages=64").DSN("postgres")
}

// fillQueue fills it, for as long as the test lasts.
func fillQueue(t *testing.T, db *sql.DB) {
	ctx := testCtx(t)
	slow, err := db.Conn(ctx) // who listens, and reads nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slow.Close() })
	for _, s := range []string{"LISTEN other_app", "BEGIN", "SELECT 1"} {
		if _, err := slow.ExecContext(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	for err = nil; err == nil; {
		_, err = db.ExecContext(ctx, "SELECT pg_notify('junk', repeat('x', 7900) || g) FROM generate_series(1, 10) g")
	}
	if !strings.Contains(err.Error(), "54000") {
		t.Fatal(err)
	}
}

// testNotifyQueue hands a lease over, again and again, when the queue has been filled.
func testNotifyQueue(t *testing.T, quorum func(region string) *baldur.PGQuorum, fill func()) {
	ctx := testCtx(t)
	a, b := quorum("a"), quorum("b")
	a.StartAutoRenew()
	if _, err := a.AwaitPrimary(ctx); err != nil {
		t.Fatal(err)
	}
	sees(t, b, "a")
	fill()
	b.StartAutoRenew()
	fresh := quorum("fresh")
	for range 3 {
		if err := a.ReleaseLease(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := b.AwaitPrimary(ctx); err != nil {
			t.Fatal(err)
		}
		a, b = b, a
		sees(t, fresh, map[bool]string{true: "a", false: "b"}[a.IsPrimary() && a.Stats().Region == "a"])
	}
	for _, q := range []*baldur.PGQuorum{a, b} {
		if s := q.Stats(); s.Losses[baldur.LossExpired] > 0 {
			t.Errorf("%+v", s)
		}
	}
}

// TestStopOnSilentNetwork: to stop cuts the request that the loop is in. The loop goes on for
// Watch, and is a candidate again when it is started again.
func TestStopOnSilentNetwork(t *testing.T) {
	ctx := testCtx(t)
	dsn, proxy := pgtest.Proxy(t)
	q := newQuorum(t, openPool(t, dsn), "a", baldur.WithLeaseTTL(shortTTL))
	q.Watch(ctx)
	q.StartAutoRenew()
	held, err := q.AwaitPrimary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	proxy.Freeze(faultproxy.ToClient)
	<-held.Done()
	for q.Stats().BackendPID != 0 { // then it connects, for two TTLs
		if ctx.Err() != nil {
			t.Fatal("it does not hang up")
		}
	}
	q.StopAutoRenew()
	proxy.Unfreeze(faultproxy.ToClient)
	q.StartAutoRenew()
	soon, cancel := context.WithTimeout(ctx, 10*shortTTL)
	defer cancel()
	if _, err := q.AwaitPrimary(soon); err != nil {
		t.Error("never primary again:", err, q.Stats().LastError)
	}
}

// TestConnectors: a connector that panics, blocks or returns nothing costs the lease, and no more.
func TestConnectors(t *testing.T) {
	end := make(chan struct{})
	for name, connect := range map[string]func() (driver.Conn, error){
		"blocks":          func() (driver.Conn, error) { <-end; return nil, errors.New("at last") },
		"connects late":   nil,
		"panics":          func() (driver.Conn, error) { panic("the connector") },
		"ends goroutine":  func() (driver.Conn, error) { runtime.Goexit(); return nil, nil },
		"returns nothing": func() (driver.Conn, error) { return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			before := goleak.IgnoreCurrent()
			inner := otherDriver(dsn)
			var bad atomic.Bool
			late := make(chan struct{})
			db := baldur.OpenDB(connectorFunc{inner, func(ctx context.Context) (driver.Conn, error) {
				switch {
				case !bad.Load():
					return inner.Connect(ctx)
				case connect != nil:
					return connect()
				}
				<-late
				return inner.Connect(context.Background())
			}})
			q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
			q.StartAutoRenew()
			held, err := q.AwaitPrimary(testCtx(t))
			if err != nil {
				t.Fatal(err)
			}
			adm := plainPool(t, dsn)
			bad.Store(true)
			mustExec(t, adm, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
			<-held.Done()
			ctx, cancel := context.WithTimeout(context.Background(), shortTTL)
			defer cancel()
			if ok, err := q.TryAcquirePrimary(ctx); ok || err == nil {
				t.Error(ok, err)
			}
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				_ = q.Close() // whose error is of the release
			}()
			select {
			case <-closed:
			case <-time.After(10 * shortTTL):
				t.Error("Close waits for the connector")
			}
			close(late)
			if name == "blocks" {
				close(end)
			}
			<-closed
			_ = db.Close()
			soon(t, "no connection is left", 10*time.Second, func() bool {
				return scan[int](t, adm, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()") == 0
			})
			_ = adm.Close()
			goleak.VerifyNone(t, before)
		})
	}
}

type connectorFunc struct {
	driver.Connector
	connect func(context.Context) (driver.Conn, error)
}

func (c connectorFunc) Connect(ctx context.Context) (driver.Conn, error) { return c.connect(ctx) }
