package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

var isolations = []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable}

// fences are the two ways to guard a transaction, as one: nil if it is let in.
var fences = map[string]func(context.Context, *baldur.PGQuorum, *sql.Tx) error{
	"RequirePrimary": func(ctx context.Context, q *baldur.PGQuorum, tx *sql.Tx) error {
		_, err := q.RequirePrimary(ctx, tx)
		return err
	},
	"FenceCTE": func(ctx context.Context, q *baldur.PGQuorum, tx *sql.Tx) error {
		cte, err := q.FenceCTE()
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, "WITH "+cte+" INSERT INTO payload (epoch) SELECT epoch FROM baldur_fence")
		if err != nil {
			return err
		}
		if n, _ := res.RowsAffected(); n == 0 {
			return baldur.ErrFenced
		}
		return nil
	},
}

// frozenClock is a clock that a test sets: a holder by it believes for ever.
func frozenClock() time.Duration { return time.Hour }

// stale returns two processes of a lease: old is convinced that it is primary, but
// the lease has expired, and next may take it.
func stale(t *testing.T, dsn string, opts ...baldur.QuorumOption) (old, next *baldur.PGQuorum) {
	t.Helper()
	opts = append(opts, baldur.WithLeaseTTL(shortTTL))
	old = newQuorum(t, openPool(t, dsn), "old", append(opts, baldur.WithQuorumClock(frozenClock))...)
	next = newQuorum(t, openPool(t, dsn), "next", opts...)
	mustAcquire(t, old)
	return old, next
}

// takeOver has q try until it is primary.
func takeOver(t *testing.T, q *baldur.PGQuorum) {
	t.Helper()
	q.StartAutoRenew()
	if _, err := q.AwaitPrimary(testCtx(t)); err != nil {
		t.Fatal(err)
	}
}

// TestFence: in each isolation level a guarded transaction keeps a successor
// waiting, renewals pass, and once there is a successor no transaction is let in.
func TestFence(t *testing.T) {
	t.Parallel()
	for name, fence := range fences {
		for _, level := range isolations {
			t.Run(fmt.Sprint(name, " ", level), func(t *testing.T) {
				ctx := testCtx(t)
				dsn := pgtest.DSN(t)
				db := openPool(t, dsn)
				mustExec(t, db, "CREATE TABLE payload (epoch bigint)")
				begin := func() *sql.Tx {
					tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: level})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = tx.Rollback() })
					if _, err := tx.ExecContext(ctx, "SELECT count(*) FROM payload"); err != nil { // it has its snapshot
						t.Fatal(err)
					}
					return tx
				}
				old, next := stale(t, dsn, baldur.WithFenceIdleTimeout(0))
				guarded, late := begin(), begin()
				if ok, err := old.RenewLease(ctx); !ok || err != nil { // after the snapshots
					t.Fatal(ok, err)
				}
				if err := fence(ctx, old, guarded); err != nil {
					t.Fatal("the primary is not let in:", err)
				}
				if ok, err := old.RenewLease(ctx); !ok || err != nil {
					t.Fatal("a renewal does not pass:", ok, err)
				}
				next.StartAutoRenew()
				for next.Stats().Refused == 0 { // by its lock_timeout
					if next.IsPrimary() {
						t.Fatal("a takeover has passed the guard")
					}
					if ctx.Err() != nil {
						t.Fatal(ctx.Err())
					}
					time.Sleep(time.Millisecond)
				}
				if s := next.Stats().LastError; !strings.Contains(s, "RequirePrimary") {
					t.Error(s)
				}
				if err := guarded.Commit(); err != nil {
					t.Fatal(err)
				}
				takeOver(t, next)
				if err := fence(ctx, old, late); !isFenced(err, level) {
					t.Error("a transaction that began before the takeover:", err)
				}
				if err := fence(ctx, old, begin()); !errors.Is(err, baldur.ErrFenced) && !errors.Is(err, baldur.ErrNotPrimary) {
					t.Error("a transaction that began after the takeover:", err)
				}
				if name == "RequirePrimary" {
					if old.IsPrimary() {
						t.Error("it still believes")
					}
					if n := old.Stats().GuardRejections; n != 2 {
						t.Errorf("%d rejections", n)
					}
				}
				if err := fence(ctx, next, begin()); err != nil {
					t.Error("the successor is not let in:", err)
				}
			})
		}
	}
}

// isFenced: with a snapshot of before the takeover the folded form can only fail
// to serialize.
func isFenced(err error, level sql.IsolationLevel) bool {
	var e *pq.Error
	return errors.Is(err, baldur.ErrFenced) || level != sql.LevelReadCommitted && errors.As(err, &e) && e.Code == "40001"
}

func TestFenceBadInput(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	db := openPool(t, dsn)
	q := newQuorum(t, db, "a")
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := q.RequirePrimary(ctx, nil); err == nil || errors.Is(err, baldur.ErrNotPrimary) {
		t.Error(err)
	}
	if _, err := q.RequirePrimary(ctx, tx); !errors.Is(err, baldur.ErrNotPrimary) {
		t.Error(err)
	}
	if _, err := q.FenceCTE(); !errors.Is(err, baldur.ErrNotPrimary) {
		t.Error(err)
	}
	if _, err := q.SealEpoch(ctx, db); !errors.Is(err, baldur.ErrNotPrimary) {
		t.Error(err)
	}
	mustAcquire(t, q)
	readOnly, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Rollback()
	var e *pq.Error
	if _, err := q.RequirePrimary(ctx, readOnly); !errors.As(err, &e) || e.Code != "25006" {
		t.Error(err)
	}
}

// TestFenceKill: a takeover ends the sessions that keep it waiting.
func TestFenceKill(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	db := openPool(t, dsn)
	mustExec(t, db, "CREATE TABLE payload (epoch bigint)")
	old, next := stale(t, dsn, baldur.WithFenceKill(20*time.Millisecond))
	var guarded []*sql.Tx
	for range 3 {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if err := fences["FenceCTE"](ctx, old, tx); err != nil {
			t.Fatal(err)
		}
		guarded = append(guarded, tx)
	}
	takeOver(t, next)
	for _, tx := range guarded {
		if tx.Commit() == nil {
			t.Error("a guarded transaction has committed after the takeover")
		}
	}
	var n int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM payload").Scan(&n); n != 0 || err != nil {
		t.Error(n, err)
	}
}

// TestFenceIdleTimeout: the server ends a guarded transaction that is idle for the
// TTL, but never raises a timeout that is lower.
func TestFenceIdleTimeout(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	db := openPool(t, dsn)
	old, next := stale(t, dsn)
	for _, c := range []struct{ set, want string }{{"0", "1s"}, {"10min", "1s"}, {"1s", "1s"}, {"300ms", "300ms"}, {"1d", "1s"}} {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if _, err := tx.ExecContext(ctx, "SET LOCAL idle_in_transaction_session_timeout = '"+c.set+"'"); err != nil {
			t.Fatal(err)
		}
		if _, err := old.RequirePrimary(ctx, tx); err != nil {
			t.Fatal(err)
		}
		if err := tx.QueryRowContext(ctx, "SELECT current_setting('idle_in_transaction_session_timeout')").Scan(&got); got != c.want || err != nil {
			t.Errorf("from %s: %s, %v; want %s", c.set, got, err, c.want)
		}
		_ = tx.Rollback()
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := old.RequirePrimary(ctx, tx); err != nil {
		t.Fatal(err)
	}
	takeOver(t, next) // nobody ends tx but the server
	if tx.Commit() == nil {
		t.Error("the idle transaction has committed")
	}
}

// TestSealWaits: a seal waits for the row for longer than it may take to connect.
func TestSealWaits(t *testing.T) {
	t.Parallel()
	ctx := testCtx(t)
	data := openPool(t, pgtest.DSN(t))
	q := newQuorum(t, openPool(t, pgtest.DSN(t)), "a")
	mustAcquire(t, q)
	q.StartAutoRenew()
	if _, err := q.SealEpoch(ctx, nil); err == nil {
		t.Error("a nil pool")
	}
	if _, err := q.SealEpoch(ctx, data); err != nil {
		t.Fatal(err)
	}
	tx, err := data.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, "LOCK TABLE baldur_fence"); err != nil {
		t.Fatal(err)
	}
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	sealed := make(chan error, 1)
	go func() { _, err := q.SealEpoch(limit, data); sealed <- err }()
	const waits = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
	AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > '3 s')`
	for waiting := false; !waiting && len(sealed) == 0; {
		if err := data.QueryRowContext(ctx, waits).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-sealed; err != nil {
		t.Error(err)
	}
}

// TestSeal: the epoch guards data in another database.
func TestSeal(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	data := openPool(t, pgtest.DSN(t))
	begin := func() *sql.Tx {
		tx, err := data.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tx.Rollback() })
		return tx
	}
	old, next := stale(t, dsn)
	if _, err := old.SealEpoch(ctx, data); err != nil {
		t.Fatal(err)
	}
	seal, err := old.SealEpoch(ctx, data) // again
	if err != nil {
		t.Fatal(err)
	}
	guarded := begin()
	epoch, err := seal.Require(ctx, guarded)
	if l, _ := old.Lease(); epoch != l.Epoch || err != nil {
		t.Fatal(epoch, err)
	}
	takeOver(t, next)
	sealed := make(chan *baldur.Seal)
	go func() {
		s, err := next.SealEpoch(ctx, data)
		if err != nil {
			t.Error(err)
		}
		sealed <- s
	}()
	for waiting := false; !waiting; {
		if err := data.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname=current_database() AND wait_event_type='Lock')").Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	if err := guarded.Commit(); err != nil {
		t.Fatal(err)
	}
	s := <-sealed
	if _, err := seal.Require(ctx, begin()); !errors.Is(err, baldur.ErrFenced) {
		t.Error(err)
	}
	if _, err := old.SealEpoch(ctx, data); !errors.Is(err, baldur.ErrFenced) {
		t.Error(err)
	}
	if _, err := s.Require(ctx, begin()); err != nil {
		t.Error(err)
	}
	if _, err := s.Require(ctx, nil); err == nil {
		t.Error("a nil transaction")
	}
	next.StopAutoRenew()
	if _, err := s.Require(ctx, begin()); !errors.Is(err, baldur.ErrNotPrimary) {
		t.Error(err)
	}
}

// TestFenceElsewhere: a transaction that does not see the lease, since it is of another database, deposes nobody.
func TestFenceElsewhere(t *testing.T) {
	ctx := testCtx(t)
	elsewhere := pgtest.DSN(t)
	mustAcquire(t, newQuorum(t, openPool(t, elsewhere), "another")) // of the same name, and epoch
	q := newQuorum(t, openPool(t, pgtest.DSN(t)), "a")
	mustAcquire(t, q)
	tx, err := openPool(t, elsewhere).BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := q.RequirePrimary(ctx, tx); err == nil || errors.Is(err, baldur.ErrFenced) || !strings.Contains(err.Error(), "another database") {
		t.Error(err)
	}
	if !q.IsPrimary() {
		t.Error("deposed")
	}
}

// TestSealDurable: a seal outlives a crash of the server of the data, whatever that makes of commits.
func TestSealDurable(t *testing.T) {
	ctx := testCtx(t)
	server := pgtest.Server(t, "wal_writer_delay=10s")
	data := openPool(t, server.DSN("postgres"))
	mustExec(t, data, "ALTER ROLE CURRENT_USER SET synchronous_commit = off")
	old, next := stale(t, pgtest.DSN(t))
	seal, err := old.SealEpoch(ctx, data)
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, data, "CHECKPOINT")
	takeOver(t, next)
	if _, err := next.SealEpoch(ctx, data); err != nil {
		t.Fatal(err)
	}
	if err := server.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	tx, err := openPool(t, server.DSN("postgres")).BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if epoch, err := seal.Require(ctx, tx); !errors.Is(err, baldur.ErrFenced) {
		t.Errorf("epoch %d, %v after a later one was sealed", epoch, err)
	}
}

// TestFenceIndexDropped: a candidate that was connected before does not take over when a takeover
// would not wait for guarded transactions, and says why.
func TestFenceIndexDropped(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	_, next := stale(t, dsn)
	if ok, err := next.TryAcquirePrimary(ctx); ok || err != nil {
		t.Fatal(ok, err)
	}
	adm := plainPool(t, dsn)
	mustExec(t, adm, "DROP INDEX "+onlyTable(t, adm)+"_fence")
	var err error
	soon(t, "a refusal", 4*shortTTL, func() bool {
		var ok bool
		if ok, err = next.TryAcquirePrimary(ctx); ok {
			t.Fatal("took over without the index")
		}
		return err != nil
	})
	if !strings.Contains(err.Error(), "no unique index of (name, epoch)") {
		t.Error(err)
	}
	if err := baldur.MigrateQuorum(ctx, openPool(t, dsn)); err != nil {
		t.Fatal(err)
	}
	takeOver(t, next)
}
