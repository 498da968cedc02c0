package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// openPool opens a pool of baldur's, which is closed when the test ends.
func openPool(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := baldur.Open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// newQuorum makes a quorum that logs to the test, and is closed when it ends.
func newQuorum(t testing.TB, db *sql.DB, region string, opts ...baldur.QuorumOption) *baldur.PGQuorum {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	q, err := baldur.NewPGQuorum(db, region, append([]baldur.QuorumOption{baldur.WithQuorumLogger(logger)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestQuorumLife(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	a, b := newQuorum(t, openPool(t, dsn), "eu-west"), newQuorum(t, openPool(t, dsn), "eu-west")
	if ok, err := a.TryAcquirePrimary(ctx); !ok || err != nil {
		t.Fatal(ok, err)
	}
	first, _ := a.Lease()
	if ok, err := a.TryAcquirePrimary(ctx); !ok || err != nil {
		t.Fatal("again:", ok, err)
	}
	if l, ok := a.Lease(); !ok || l.Epoch != first.Epoch || l.Region != "eu-west" || !l.IsValid() {
		t.Fatalf("lease %+v", l)
	}
	if ok, err := b.TryAcquirePrimary(ctx); ok || err != nil {
		t.Fatal("a second process of the region:", ok, err)
	}
	if ok, err := b.RenewLease(ctx); ok || err != nil {
		t.Fatal("renewed another's lease:", ok, err)
	}
	if err := b.ReleaseLease(ctx); err != nil {
		t.Fatal(err)
	}
	if ok, err := a.IsPrimaryVerified(ctx); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if region, ok, err := b.CurrentPrimary(ctx); region != "eu-west" || !ok || err != nil {
		t.Fatal(region, ok, err)
	}
	held, err := a.PrimaryContext(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.ReleaseLease(ctx); err != nil {
		t.Fatal(err)
	}
	<-held.Done()
	var lost *baldur.LeaseLostError
	if !errors.As(context.Cause(held), &lost) || lost.Reason != baldur.LossReleased || lost.Epoch != first.Epoch {
		t.Fatal(context.Cause(held))
	}
	if _, ok, err := b.CurrentPrimary(ctx); ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := b.TryAcquirePrimary(ctx); !ok || err != nil {
		t.Fatal("after the release:", ok, err)
	}
	if l, _ := b.Lease(); l.Epoch <= first.Epoch {
		t.Fatalf("epoch %d after %d", l.Epoch, first.Epoch)
	}
}

func TestQuorumHandOver(t *testing.T) {
	t.Parallel()
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	a, b := newQuorum(t, openPool(t, dsn), "a"), newQuorum(t, openPool(t, dsn), "b")
	a.StartAutoRenew()
	if _, err := a.AwaitPrimary(ctx); err != nil {
		t.Fatal(err)
	}
	b.StartAutoRenew()
	for e := range b.Watch(ctx) {
		if e.State == baldur.LeaseHeld {
			break
		}
	}
	for range 10 {
		began := time.Now()
		a.StopAutoRenew()
		if _, err := b.AwaitPrimary(ctx); err != nil {
			t.Fatal(err)
		}
		t.Log(time.Since(began))
		a, b = b, a
		b.StartAutoRenew()
		for range 5 { // until it listens
			if _, _, err := b.CurrentPrimary(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestQuorumWatch: a follower sees who holds the lease, that it is not renewed any
// more, and the next one.
func TestQuorumWatch(t *testing.T) {
	t.Parallel()
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	old, next := stale(t, dsn)
	follower := newQuorum(t, openPool(t, dsn), "f", baldur.WithLeaseTTL(shortTTL))
	events := follower.Watch(ctx)
	wait := func(state baldur.LeaseState, region string) {
		t.Helper()
		for e := range events {
			if e.State == state && e.Lease.Region == region {
				if e.Local {
					t.Errorf("not its own: %+v", e)
				}
				return
			}
		}
		t.Fatal("no event ", state)
	}
	wait(baldur.LeaseHeld, "old")
	wait(baldur.LeaseExpired, "old")
	if follower.IsPrimary() {
		t.Error("a follower is primary")
	}
	takeOver(t, next)
	wait(baldur.LeaseHeld, "next")
	if !old.IsPrimary() {
		t.Fatal("its clock stands still")
	}
	held, err := old.PrimaryContext(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := old.IsPrimaryVerified(ctx); ok || err != nil {
		t.Error(ok, err)
	}
	<-held.Done()
	if err := context.Cause(held); !errors.Is(err, baldur.ErrFenced) || !errors.Is(err, baldur.ErrNotPrimary) {
		t.Error(err)
	}
	next.StopAutoRenew()
	wait(baldur.LeaseFree, "next")
	if err := follower.Close(); err != nil {
		t.Error(err)
	}
	for range events { // it is closed
	}
}

// TestQuorumContexts: a caller's ctx ends what waits, and what was derived.
func TestQuorumContexts(t *testing.T) {
	dsn := pgtest.DSN(t)
	a, b := newQuorum(t, openPool(t, dsn), "a"), newQuorum(t, openPool(t, dsn), "b")
	mustAcquire(t, a)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	held, err := a.PrimaryContext(ctx)
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan error)
	go func() {
		_, err := b.AwaitPrimary(ctx)
		waited <- err
	}()
	cancel(cause)
	if err := <-waited; err != cause {
		t.Error(err)
	}
	<-held.Done()
	if context.Cause(held) != cause || !a.IsPrimary() {
		t.Error(context.Cause(held), a.IsPrimary())
	}
	for name, call := range map[string]func() error{
		"TryAcquirePrimary": func() error { _, err := b.TryAcquirePrimary(ctx); return err },
		"RenewLease":        func() error { _, err := a.RenewLease(ctx); return err },
		"CurrentPrimary":    func() error { _, _, err := a.CurrentPrimary(ctx); return err },
		"IsPrimaryVerified": func() error { _, err := a.IsPrimaryVerified(ctx); return err },
	} {
		if err := call(); !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
			t.Error(name, err)
		}
	}
	if _, err := a.AwaitPrimary(ctx); err != cause {
		t.Error(err)
	}
	if !a.IsPrimary() {
		t.Error("a call that was cancelled has cost the lease")
	}
}

// TestMoveLeaseTable: it moves when no lease is live, what runs goes on with the table where
// it is, and what starts finds it there.
func TestMoveLeaseTable(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	db := openPool(t, dsn)
	mustExec(t, db, `CREATE SCHEMA "Zürich ops"`)
	const moved = `"Zürich ops".leases`
	q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
	mustAcquire(t, q)
	if err := baldur.MoveLeaseTable(ctx, db, moved); err == nil || !strings.Contains(err.Error(), `live, or were until a moment ago: ["primary"]`) {
		t.Fatal(err)
	}
	if err := q.ReleaseLease(ctx); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "leases", "a.b.c", "a.", `a."b`} {
		if err := baldur.MoveLeaseTable(ctx, db, bad); err == nil || !strings.Contains(err.Error(), "lease table") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	first, _, _ := q.CurrentPrimary(ctx)
	if err := baldur.MoveLeaseTable(ctx, db, moved); err != nil {
		t.Fatal(err)
	}
	takeOver(t, q) // it looks again
	if name, err := baldur.LeaseTable(ctx, db, baldur.WithLeaseTable(moved)); err != nil || name != `U&"Z\+0000fcrich ops"."leases"` {
		t.Error(name, err)
	}
	next := newQuorum(t, openPool(t, dsn), "b", baldur.WithLeaseTTL(shortTTL))
	if ok, err := next.TryAcquirePrimary(ctx); ok || err == nil || !strings.Contains(err.Error(), "WithLeaseTable") {
		t.Error("a table of another name:", ok, err, first)
	}
	next = newQuorum(t, openPool(t, dsn), "b", baldur.WithLeaseTTL(shortTTL), baldur.WithLeaseTable(moved))
	if region, ok, err := next.CurrentPrimary(ctx); region != "a" || !ok || err != nil {
		t.Error(region, ok, err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	mustExecTx(t, tx, "SET LOCAL client_encoding = 'LATIN1'")
	if _, err := q.RequirePrimary(ctx, tx); err != nil {
		t.Error("in another encoding:", err)
	}
}

func mustExecTx(t testing.TB, tx *sql.Tx, statement string) {
	t.Helper()
	if _, err := tx.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

// TestQuorumNames: the lease and the fences mean pg_catalog's functions, operators and types,
// and their own tables, whatever stands in the search_path, before it or after.
func TestQuorumNames(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"trap, pg_catalog", "pg_catalog, trap", `"$user", public, trap`} {
		for _, driver := range []string{"baldur-pq", "other"} {
			t.Run(path+" "+driver, func(t *testing.T) {
				ctx := testCtx(t)
				dsn, _ := pgtest.Trap(t, path)
				dsn, recording := pgtest.Record(t, dsn)
				open := func() *sql.DB {
					if driver == "baldur-pq" {
						return openPool(t, dsn)
					}
					db := baldur.OpenDB(otherDriver(dsn))
					t.Cleanup(func() { _ = db.Close() })
					return db
				}
				do := func(what string, err error) {
					t.Helper()
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
				}
				db := open()
				do("MigrateQuorum", baldur.MigrateQuorum(ctx, db))
				a := newQuorum(t, db, "Zürich's", baldur.WithLeaseName("Zürich's"), baldur.WithLeaseTTL(3*shortTTL), baldur.WithFenceKill(shortTTL/10))
				b := newQuorum(t, open(), "b", baldur.WithLeaseName("Zürich's"), baldur.WithLeaseTTL(3*shortTTL), baldur.WithFenceKill(shortTTL/10))
				takeOver(t, a)
				_, err := a.RenewLease(ctx)
				do("RenewLease", err)
				if region, _, err := b.CurrentPrimary(ctx); region != "Zürich's" {
					t.Errorf("%q %v", region, err)
				}
				seal, err := a.SealEpoch(ctx, db)
				do("SealEpoch", err)
				for _, level := range isolations {
					do("InTx", a.InTx(ctx, &sql.TxOptions{Isolation: level}, func(tx *sql.Tx, epoch int64) error {
						if seal != nil {
							_, err := seal.Require(ctx, tx)
							do("Seal.Require", err)
						}
						cte, err := a.FenceCTE()
						do("FenceCTE", err)
						var n int64
						err = tx.QueryRowContext(ctx, "WITH "+cte+" SELECT epoch FROM baldur_fence").Scan(&n)
						if n != epoch {
							t.Errorf("FenceCTE: epoch %d, not %d", n, epoch)
						}
						return err
					}))
				}
				// A guard that is left open, which b's takeover ends.
				tx, err := db.BeginTx(ctx, nil)
				do("BeginTx", err)
				defer func() { _ = tx.Rollback() }()
				_, err = a.RequirePrimary(ctx, tx)
				do("RequirePrimary", err)
				b.StartAutoRenew()
				do("ReleaseLease", a.ReleaseLease(ctx))
				_, err = b.AwaitPrimary(ctx)
				do("AwaitPrimary", err)
				do("Close", a.Close()) // or it would be a candidate again
				do("Close", b.Close())
				do("MoveLeaseTable", baldur.MoveLeaseTable(ctx, db, "public.leases"))
				if name, err := baldur.LeaseTable(ctx, db, baldur.WithLeaseTable("public.leases")); name != "public.leases" {
					t.Error(name, err)
				}
				for _, statement := range recording.Statements() {
					statement = strings.ReplaceAll(statement, "WITH (fillfactor = 50)", "") // it is no operator
					for _, fault := range pgtest.LintSQL(statement) {
						t.Errorf("%s in %.200s", fault, statement)
					}
				}
			})
		}
	}
}

// TestQuorumCause: of a ctx that has ended, a call returns the cause.
func TestQuorumCause(t *testing.T) {
	q := newQuorum(t, openPool(t, pgtest.DSN(t)), "a")
	mustAcquire(t, q)
	cause := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	for range 20 { // which of two ready channels is taken is chance
		for name, call := range map[string]func() error{
			"TryAcquirePrimary": func() error { _, err := q.TryAcquirePrimary(ctx); return err },
			"RenewLease":        func() error { _, err := q.RenewLease(ctx); return err },
			"CurrentPrimary":    func() error { _, _, err := q.CurrentPrimary(ctx); return err },
			"IsPrimaryVerified": func() error { _, err := q.IsPrimaryVerified(ctx); return err },
		} {
			if err := call(); !errors.Is(err, cause) {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	if s := q.Stats(); s.Unanswered != 0 {
		t.Errorf("%d requests are of unknown result, and none was sent", s.Unanswered)
	}
}
