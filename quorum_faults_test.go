package baldur_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

const shortTTL = time.Second

func mustExec(t testing.TB, db *sql.DB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := db.ExecContext(context.Background(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func mustAcquire(t testing.TB, q *baldur.PGQuorum) {
	t.Helper()
	ctx := testCtx(t)
	for {
		ok, err := q.TryAcquirePrimary(ctx)
		if ok {
			return
		}
		// A busy machine may need more than one attempt.
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "WithAttemptTimeout") {
			t.Fatal("not primary:", ok, err)
		}
	}
}

func TestQuorumOptions(t *testing.T) {
	db := openPool(t, "host=nowhere")
	long := strings.Repeat("x", 201)
	for _, c := range []struct {
		region string
		opts   []baldur.QuorumOption
		want   string
	}{
		{"", nil, "region is empty"},
		{long, nil, "region has 201 bytes"},
		{"a\x00b", nil, "region"},
		{"a\xff", nil, "region"},
		{"a", []baldur.QuorumOption{nil}, "nil QuorumOption"},
		{"a", []baldur.QuorumOption{baldur.WithLeaseName("")}, "WithLeaseName"},
		{"a", []baldur.QuorumOption{baldur.WithLeaseTTL(0)}, "TTL (WithLeaseTTL) is 0s"},
		{"a", []baldur.QuorumOption{baldur.WithLeaseTTL(499 * time.Millisecond)}, "from 500ms to 5m0s"},
		{"a", []baldur.QuorumOption{baldur.WithLeaseTTL(301 * time.Second)}, "from 500ms to 5m0s"},
		{"a", []baldur.QuorumOption{baldur.WithLeaseTTL(time.Second + time.Microsecond)}, "whole milliseconds"},
		{"a", []baldur.QuorumOption{baldur.WithSafetyMargin(time.Millisecond)}, "margin >= TTL*2ρ/(1+ρ)"},
		{"a", []baldur.QuorumOption{baldur.WithSafetyMargin(5 * time.Second)}, "margin < TTL/2"},
		{"a", []baldur.QuorumOption{baldur.WithRenewInterval(3001 * time.Millisecond)}, "renew <= (TTL-margin)/3"},
		{"a", []baldur.QuorumOption{baldur.WithRenewInterval(0)}, "renew"},
		{"a", []baldur.QuorumOption{baldur.WithAttemptTimeout(2251 * time.Millisecond)}, "attempt <= (TTL-margin)/4"},
		{"a", []baldur.QuorumOption{baldur.WithFenceKill(2 * time.Second)}, "less than the attempt timeout"},
		{"a", []baldur.QuorumOption{baldur.WithFenceIdleTimeout(-2)}, "idle"},
		{"a", []baldur.QuorumOption{baldur.WithFenceIdleTimeout(30 * 24 * time.Hour)}, "idle"},
	} {
		q, err := baldur.NewPGQuorum(db, c.region, c.opts...)
		if err == nil || !strings.Contains(err.Error(), c.want) || q != nil {
			t.Errorf("region %.10q: %v; want %q", c.region, err, c.want)
		}
	}
	if _, err := baldur.NewPGQuorum(nil, "a"); err == nil || !strings.Contains(err.Error(), "not baldur's") {
		t.Error(err)
	}
	if _, err := baldur.NewPGQuorum(db, "a", baldur.WithLeaseTTL(500*time.Millisecond)); err != nil {
		t.Error(err)
	}
}

// TestQuorumRefuses: where a promise cannot be kept nobody becomes primary, and
// the error says why.
func TestQuorumRefuses(t *testing.T) {
	refused := func(t *testing.T, dsn, want string, opts ...baldur.QuorumOption) {
		t.Helper()
		q := newQuorum(t, openPool(t, dsn), "a", opts...)
		ok, err := q.TryAcquirePrimary(testCtx(t))
		if ok || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("TryAcquirePrimary = %v, %v; want %q", ok, err, want)
		}
		if q.IsPrimary() {
			t.Error("primary by accident")
		}
	}
	t.Run("unlogged", func(t *testing.T) {
		dsn := pgtest.DSN(t)
		db := openPool(t, dsn)
		if err := baldur.MigrateQuorum(testCtx(t), db); err != nil {
			t.Fatal(err)
		}
		mustExec(t, db, "ALTER TABLE baldur_lease SET UNLOGGED")
		refused(t, dsn, "UNLOGGED")
	})
	t.Run("older table", func(t *testing.T) {
		dsn := pgtest.DSN(t)
		mustExec(t, openPool(t, dsn), "CREATE TABLE baldur_lease (name text)")
		refused(t, dsn, "lacks columns: acquired_at")
	})
	t.Run("newer table", func(t *testing.T) {
		dsn := pgtest.DSN(t)
		db := openPool(t, dsn)
		mustExec(t, db, "CREATE TABLE baldur_lease (name text)", "COMMENT ON TABLE baldur_lease IS 'baldur quorum, version 99'")
		refused(t, dsn, "older than the table")
		if err := baldur.MigrateQuorum(testCtx(t), db); err == nil || !strings.Contains(err.Error(), "older than the table") {
			t.Error(err)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		server := pgtest.Server(t)
		dsn := server.DSN("postgres")
		mustAcquire(t, newQuorum(t, openPool(t, dsn+"&default_transaction_read_only=on"), "a", baldur.WithLeaseName("of a session")))
		mustExec(t, openPool(t, dsn), "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
		for { // the postmaster has heard of it when a new session has
			var on string
			db := openPool(t, dsn)
			if err := db.QueryRow("SHOW default_transaction_read_only").Scan(&on); err != nil {
				t.Fatal(err)
			}
			_ = db.Close()
			if on == "on" {
				break
			}
		}
		refused(t, dsn, "read-only")
	})
	t.Run("no rights", func(t *testing.T) {
		dsn := pgtest.DSN(t)
		db := openPool(t, dsn)
		role := fmt.Sprintf("baldur_test_%d", os.Getpid())
		mustExec(t, db, "CREATE ROLE "+role)
		t.Cleanup(func() { mustExec(t, db, "DROP OWNED BY "+role, "DROP ROLE "+role) })
		as := dsn + "&options=-crole%3D" + role
		refused(t, as, "MigrateQuorum makes it")
		if err := baldur.MigrateQuorum(testCtx(t), db); err != nil {
			t.Fatal(err)
		}
		refused(t, as, "the role lacks SELECT on the table, INSERT on the table, UPDATE on the table")
		mustExec(t, db, "GRANT SELECT ON baldur_lease TO "+role)
		refused(t, as, "the role lacks INSERT on the table, UPDATE on the table")
		mustExec(t, db, "GRANT INSERT, UPDATE ON baldur_lease TO "+role)
		mustAcquire(t, newQuorum(t, openPool(t, as), "a"))
	})
	t.Run("TTL below four round trips", func(t *testing.T) {
		dsn, proxy := pgtest.Proxy(t)
		proxy.Delay(faultproxy.ToServer, 110*time.Millisecond)
		refused(t, dsn, "TTL >= 4*", baldur.WithLeaseTTL(shortTTL/2))
	})
	t.Run("nobody there", func(t *testing.T) {
		refused(t, "postgres://u:secret@127.0.0.1:1/x?sslmode=disable", "connect")
	})
	t.Run("deleted row", func(t *testing.T) {
		dsn := pgtest.DSN(t)
		db := openPool(t, dsn)
		q := newQuorum(t, db, "a")
		mustAcquire(t, q)
		mustExec(t, db, "DELETE FROM baldur_lease")
		if _, err := q.RenewLease(testCtx(t)); err == nil || !strings.Contains(err.Error(), "no row") {
			t.Error(err)
		}
		if err := q.ReleaseLease(testCtx(t)); err != nil {
			t.Error(err)
		}
		// The row is made again; but the witness has forgotten.
		if ok, err := q.TryAcquirePrimary(testCtx(t)); ok || err != nil {
			t.Error(ok, err)
		}
	})
}

func TestMigrateQuorumAtOnce(t *testing.T) {
	db := openPool(t, pgtest.DSN(t))
	errs := make(chan error)
	for range 8 {
		go func() { errs <- baldur.MigrateQuorum(context.Background(), db) }()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestMigrateNameTaken: what else has the name of the table, or of its index, is told at once, or gone round.
func TestMigrateNameTaken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ taken, want string }{
		{"CREATE DOMAIN public.baldur_lease AS int", "already exists"},
		{"CREATE TYPE public.baldur_lease AS ENUM ('a')", "already exists"},
		{"CREATE SEQUENCE public.baldur_lease", "not a table"},
		{"CREATE TYPE public.baldur_lease AS (a int)", "not a table"},
		{"CREATE TABLE public.baldur_lease_fence (a int)", ""},
		{"CREATE TABLE public.baldur_lease_pkey (a int)", ""},
		{"CREATE VIEW public.baldur_lease_fence AS SELECT 1", ""},
	} {
		for name, do := range map[string]func(context.Context, *sql.DB) error{
			"MigrateQuorum": func(ctx context.Context, db *sql.DB) error { return baldur.MigrateQuorum(ctx, db) },
			"TryAcquirePrimary": func(ctx context.Context, db *sql.DB) error {
				_, err := newQuorum(t, db, "a").TryAcquirePrimary(ctx)
				return err
			},
		} {
			dsn := pgtest.SocketDSN(t)
			mustExec(t, plainPool(t, dsn), c.taken)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			err := do(ctx, openPool(t, dsn))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) || ctx.Err() != nil {
				t.Errorf("%s: %s: %v; want %q", c.taken, name, err, c.want)
			}
			cancel()
		}
	}
}

// TestQuorumSilentNetwork: the network falls silent. The holder stops believing
// in time although its renewal has not returned, and another one takes over.
func TestQuorumSilentNetwork(t *testing.T) {
	for _, d := range []faultproxy.Direction{faultproxy.ToServer, faultproxy.ToClient} {
		t.Run(fmt.Sprint(d), func(t *testing.T) {
			ctx := testCtx(t)
			dsn, proxy := pgtest.Proxy(t)
			lost := make(chan baldur.LossReason, 1)
			a := newQuorum(t, openPool(t, dsn), "a", baldur.WithLeaseTTL(shortTTL), baldur.WithOnLost(func(_ baldur.QuorumLease, r baldur.LossReason) { lost <- r }))
			a.StartAutoRenew()
			held, err := a.AwaitPrimary(ctx)
			if err != nil {
				t.Fatal(err)
			}
			l, _ := a.Lease()
			proxy.Freeze(d)
			frozen := time.Now()
			<-held.Done()
			if a.IsPrimary() {
				t.Error("still primary when its context has ended")
			}
			if r := <-lost; r != baldur.LossExpired {
				t.Error(r)
			}
			t.Logf("context ended %v after the freeze, epoch %d", time.Since(frozen), l.Epoch)
			if time.Since(frozen) > shortTTL+room {
				t.Error("too late")
			}
			if err := context.Cause(held); !errors.Is(err, baldur.ErrNotPrimary) {
				t.Error(err)
			}
			if _, err := a.PrimaryContext(ctx); !errors.Is(err, baldur.ErrNotPrimary) {
				t.Error(err)
			}
			proxy.Unfreeze(d)
			if _, err := a.AwaitPrimary(ctx); err != nil {
				t.Fatal("again:", err)
			}
			if again, _ := a.Lease(); again.Epoch <= l.Epoch {
				t.Errorf("epoch %d after %d", again.Epoch, l.Epoch)
			}
		})
	}
}

// TestQuorumReplyLost: the reply to the acquisition is lost after the commit. The
// candidate is not primary then, and is soon.
func TestQuorumReplyLost(t *testing.T) {
	dsn, proxy := pgtest.Proxy(t)
	q := newQuorum(t, openPool(t, dsn), "a", baldur.WithLeaseTTL(shortTTL))
	var once atomic.Bool
	proxy.OnData(func(d faultproxy.Direction, data []byte) {
		if d == faultproxy.ToServer && bytes.Contains(data, []byte("acquired_at = ")) && once.CompareAndSwap(false, true) {
			proxy.Freeze(faultproxy.ToClient)
		}
	})
	if ok, err := q.TryAcquirePrimary(testCtx(t)); ok || err == nil || q.IsPrimary() {
		t.Fatal(ok, err)
	}
	proxy.Unfreeze(faultproxy.ToClient)
	mustAcquire(t, q) // at once: the row is its own
	if l, _ := q.Lease(); l.Epoch != 1<<32+2 {
		t.Errorf("epoch %x", l.Epoch)
	}
	if s := q.Stats(); s.Unanswered != 1 || s.Elections != 1 {
		t.Errorf("%+v", s)
	}
}

// TestQuorumFullPool: neither a full pool nor one of dead connections costs a
// lease.
func TestQuorumFullPool(t *testing.T) {
	ctx := testCtx(t)
	server := pgtest.Server(t)
	db := openPool(t, server.DSN("postgres"))
	db.SetMaxOpenConns(3)
	db.SetMaxIdleConns(3)
	full := func() (free func()) {
		var conns []*sql.Conn
		for db.Stats().InUse < 3 {
			c, err := db.Conn(ctx)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		return func() {
			for _, c := range conns {
				_ = c.Close()
			}
		}
	}
	free := full()
	q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
	mustAcquire(t, q)
	free()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q = newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
	mustAcquire(t, q)
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("%d connections in use: the lease's own is none of the pool's", n)
	}
	if report := baldur.TrackerOf(db).Report().String(); !strings.Contains(report, fmt.Sprintf("pg pid %d", q.Stats().BackendPID)) || q.Stats().BackendPID == 0 {
		t.Errorf("its connection is not in the report:\n%s", report)
	}
	epoch := func() int64 { l, _ := q.Lease(); return l.Epoch }
	first := epoch()
	q.StartAutoRenew()
	full()() // idle connections of a server that is about to crash
	if err := server.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := q.AwaitPrimary(ctx); err != nil {
			t.Fatal(err)
		}
		if ok, err := q.IsPrimaryVerified(ctx); ok && err == nil {
			break
		}
	}
	t.Logf("epoch %d before the crash, %d after", first, epoch())
}

// TestQuorumStop: it leaves nothing behind, may be called twice, and by the
// callbacks.
func TestQuorumStop(t *testing.T) {
	ctx := testCtx(t)
	db := openPool(t, pgtest.DSN(t))
	mustExec(t, db, "SELECT 1")
	before := goleak.IgnoreCurrent()
	var q *baldur.PGQuorum
	calls := make(chan string, 10)
	q, err := baldur.NewPGQuorum(db, "a", baldur.WithLeaseTTL(shortTTL),
		baldur.WithOnAcquired(func(baldur.QuorumLease) { q.StopAutoRenew(); calls <- "acquired" }),
		baldur.WithOnLost(func(_ baldur.QuorumLease, r baldur.LossReason) { q.StopAutoRenew(); calls <- string(r) }))
	if err != nil {
		t.Fatal(err)
	}
	q.StopAutoRenew() // it has not started
	for range 3 {
		q.StartAutoRenew()
		q.StartAutoRenew()
		for _, want := range []string{"acquired", "released"} {
			select {
			case got := <-calls:
				if got != want {
					t.Fatalf("%s; want %s", got, want)
				}
			case <-ctx.Done():
				t.Fatal("no call")
			}
		}
		q.StopAutoRenew()
		if n := db.Stats().InUse; n != 0 {
			t.Fatalf("%d connections in use", n)
		}
	}
	watch, end := context.WithCancel(ctx)
	events := q.Watch(watch)
	if e := <-events; e.State != baldur.LeaseFree || !e.Local {
		t.Errorf("%+v", e)
	}
	end()
	for range events {
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("%d connections in use", n)
	}
	goleak.VerifyNone(t, before)
}

// TestQuorumPoolClosed: a pool that is closed under it ends it, and the lease.
func TestQuorumPoolClosed(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	db := openPool(t, dsn)
	a, b := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL)), newQuorum(t, openPool(t, dsn), "b", baldur.WithLeaseTTL(shortTTL))
	a.StartAutoRenew()
	held, err := a.AwaitPrimary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	<-held.Done()
	var lost *baldur.LeaseLostError
	if !errors.As(context.Cause(held), &lost) || lost.Reason != baldur.LossReleased {
		t.Error(context.Cause(held))
	}
	b.StartAutoRenew()
	if _, err := b.AwaitPrimary(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestQuorumSuspended: a machine that wakes up is primary no more.
func TestQuorumSuspended(t *testing.T) {
	ctx := testCtx(t)
	var gap atomic.Int64
	q := newQuorum(t, openPool(t, pgtest.DSN(t)), "a", baldur.WithSuspendGap(func() time.Duration { return time.Duration(gap.Load()) }))
	mustAcquire(t, q)
	held, err := q.PrimaryContext(ctx)
	if err != nil {
		t.Fatal(err)
	}
	gap.Store(int64(time.Hour))
	<-held.Done()
	var lost *baldur.LeaseLostError
	if !errors.As(context.Cause(held), &lost) || lost.Reason != baldur.LossSuspended {
		t.Error(context.Cause(held))
	}
	if d := baldur.BootTime(); d <= 0 {
		t.Error("BootTime is", d)
	}
	mustAcquire(t, q) // the machine goes on
}

// TestQuorumSuspendedTaking: the machine is suspended between the acquisition and
// its reply, which no clock that stops meanwhile can tell.
func TestQuorumSuspendedTaking(t *testing.T) {
	dsn, proxy := pgtest.Proxy(t)
	var gap atomic.Int64
	q := newQuorum(t, openPool(t, dsn), "a", baldur.WithSuspendGap(func() time.Duration { return time.Duration(gap.Load()) }))
	proxy.OnData(func(d faultproxy.Direction, data []byte) {
		if d == faultproxy.ToServer && bytes.Contains(data, []byte("acquired_at = ")) {
			gap.Store(int64(time.Hour))
		}
	})
	ok, err := q.TryAcquirePrimary(testCtx(t))
	if ok || err != nil || q.IsPrimary() {
		t.Error(ok, err)
	}
	mustAcquire(t, q)
}

// TestQuorumRenewal: a renewal is one round trip and a HOT update.
func TestQuorumRenewal(t *testing.T) {
	ctx := testCtx(t)
	dsn, proxy := pgtest.Proxy(t)
	db := openPool(t, dsn)
	q := newQuorum(t, db, "a")
	mustAcquire(t, q)
	var sent atomic.Int32
	proxy.OnData(func(d faultproxy.Direction, data []byte) {
		if d == faultproxy.ToServer {
			sent.Add(1)
		}
	})
	const renewals = 20
	for range renewals {
		if ok, err := q.RenewLease(ctx); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if n := sent.Load(); n != renewals {
		t.Errorf("%d messages for %d renewals", n, renewals)
	}
	var updates, hot int
	for updates < renewals && ctx.Err() == nil { // the statistics come late
		if err := db.QueryRowContext(ctx, "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname='baldur_lease'").Scan(&updates, &hot); err != nil {
			t.Fatal(err)
		}
		if updates < renewals {
			_, _ = q.RenewLease(ctx) // has the session report again
		}
	}
	if hot < updates-1 { // the acquisition changes a key
		t.Errorf("%d of %d updates are HOT", hot, updates)
	}
}

// TestQuorumOtherDriver: with another driver below, which dials by itself, it polls.
func TestQuorumOtherDriver(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	pool := func() *sql.DB {
		db := baldur.OpenDB(otherDriver(dsn))
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	db := pool()
	a, b := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL)), newQuorum(t, pool(), "b", baldur.WithLeaseTTL(shortTTL))
	a.StartAutoRenew()
	if _, err := a.AwaitPrimary(ctx); err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.RequirePrimary(ctx, tx); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	a.StopAutoRenew()
	b.StartAutoRenew()
	if _, err := b.AwaitPrimary(ctx); err != nil {
		t.Fatal(err)
	}
	if s := b.Stats(); s.Unanswered != 0 || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// oddHandler is a slog handler that blocks, panics, or calls the quorum back.
type oddHandler struct {
	slog.Handler
	handle func()
}

func (h oddHandler) Handle(context.Context, slog.Record) error { h.handle(); return nil }

// TestQuorumLoggers: whatever a logger does, the lease is renewed, and Close returns.
func TestQuorumLoggers(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	var q *baldur.PGQuorum
	for name, handle := range map[string]func(){
		"blocks":             func() { <-release },
		"panics":             func() { panic("logger") },
		"asks":               func() { _, _, _ = q.CurrentPrimary(context.Background()) },
		"releases":           func() { _ = q.ReleaseLease(context.Background()) },
		"closes":             func() { _ = q.Close() },
		"stops, and reports": func() { q.StopAutoRenew(); _ = q.Stats().String() },
	} {
		t.Run(name, func(t *testing.T) {
			db := openPool(t, pgtest.DSN(t))
			var err error
			q, err = baldur.NewPGQuorum(db, "a", baldur.WithLeaseTTL(shortTTL),
				baldur.WithQuorumLogger(slog.New(oddHandler{slog.NewTextHandler(t.Output(), nil), handle})))
			if err != nil {
				t.Fatal(err)
			}
			mustAcquire(t, q) // which is logged
			if name == "blocks" || name == "panics" {
				for range 3 {
					if ok, err := q.RenewLease(testCtx(t)); !ok || err != nil {
						t.Error(ok, err)
					}
				}
			}
			closed := make(chan error, 1)
			go func() { closed <- q.Close() }()
			select {
			case <-closed:
			case <-testCtx(t).Done():
				t.Fatal("Close does not return")
			}
		})
	}
}

// TestTableSwapped: a table that takes the place of the one that is used, with its rows, is not taken
// for it; and one whose renewals would wait for guarded transactions is refused.
func TestTableSwapped(t *testing.T) {
	ctx := testCtx(t)
	db := openPool(t, pgtest.DSN(t))
	q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
	mustAcquire(t, q)
	mustExec(t, db, `BEGIN; CREATE TABLE other (LIKE baldur_lease INCLUDING ALL); INSERT INTO other SELECT * FROM baldur_lease;
		ALTER TABLE baldur_lease RENAME TO old; ALTER TABLE other RENAME TO baldur_lease; COMMIT`)
	if ok, err := q.RenewLease(ctx); err == nil {
		t.Error("renewed in another table:", ok)
	}
	if ok, err := q.RenewLease(ctx); err == nil || !strings.Contains(err.Error(), "the table that was used is now public.old") {
		t.Error(ok, err)
	}
	mustExec(t, db, "DROP TABLE old", "CREATE UNIQUE INDEX odd ON baldur_lease (name, renew_seq)")
	fresh := newQuorum(t, db, "b", baldur.WithLeaseTTL(shortTTL))
	if ok, err := fresh.TryAcquirePrimary(ctx); ok || err == nil || !strings.Contains(err.Error(), "unique index odd") {
		t.Error(ok, err)
	}
}
