package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// adminOn opens a pool of at most size connections and a PGAdmin on it. At the
// end all connections must be back.
func adminOn(t *testing.T, dsn string, size int) (*sql.DB, *baldur.PGAdmin) {
	t.Helper()
	db := must(sql.Open(baldur.DriverName, dsn))
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	admin := baldur.NewPGAdmin(db)
	t.Cleanup(func() {
		if err := admin.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		for end := time.Now().Add(10 * time.Second); db.Stats().InUse != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) { // what a ctx has ended comes back by itself
				t.Errorf("%d connections are still out:\n%v", db.Stats().InUse, baldur.TrackerOf(db).Report())
				break
			}
		}
		db.Close()
	})
	return db, admin
}

func newAdmin(t *testing.T) (*sql.DB, *baldur.PGAdmin) {
	t.Helper()
	return adminOn(t, pgtest.SocketDSN(t), 10)
}

// wantState checks that err is the server's, by the driver's own type.
func wantState(t *testing.T, err error, state string) {
	t.Helper()
	var e *pq.Error
	if !errors.As(err, &e) || string(e.Code) != state {
		t.Errorf("error is %v (%T), want SQLSTATE %s in a *pq.Error", err, err, state)
	}
}

func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error is %v, want one that says %q", err, text)
	}
}

// paths are the ways to a server; session tells whether session locks work there.
var paths = []struct {
	name    string
	dsn     func(t testing.TB) string
	session bool
}{
	{"direct", pgtest.DSN, true},
	{"PgBouncer, session", func(t testing.TB) string { return pgtest.Bouncer(t, "session") }, true},
	{"PgBouncer, transaction", func(t testing.TB) string { return pgtest.Bouncer(t, "transaction") }, false},
}

// TestPGAdminPlainCalls: the calls that need no session of their own.
func TestPGAdminPlainCalls(t *testing.T) {
	for _, path := range paths {
		t.Run(path.name, func(t *testing.T) {
			db, admin := adminOn(t, path.dsn(t), 3)
			if !admin.IsAvailable() {
				t.Error("not available")
			}
			if err := admin.Ping(ctx); err != nil {
				t.Error(err)
			}
			for what, call := range map[string]func(time.Duration) error{
				"Sleep":            func(d time.Duration) error { return admin.Sleep(ctx, d) },
				"ExecuteSlowQuery": func(d time.Duration) error { return admin.ExecuteSlowQuery(ctx, d) },
				"BackendPIDWithDelay": func(d time.Duration) error {
					pid, err := admin.BackendPIDWithDelay(ctx, d)
					if err == nil && pid <= 0 {
						t.Errorf("the pid is %d", pid)
					}
					return err
				},
			} {
				begin := time.Now()
				if err := call(20 * time.Millisecond); err != nil || time.Since(begin) < 20*time.Millisecond {
					t.Errorf("%s: %v after %v", what, err, time.Since(begin))
				}
				if err := call(0); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				wantError(t, call(-1), "must be from 0 to 1h0m0s")
				wantError(t, call(time.Hour+1), "must be from 0 to 1h0m0s")
			}
			wantState(t, admin.ExecuteNonexistentTableQuery(ctx), "42P01")
			wantState(t, admin.ExecuteTimeoutQuery(ctx, 30*time.Millisecond, 10*time.Second), "57014")
			if err := admin.ExecuteTimeoutQuery(ctx, 10*time.Second, time.Millisecond); err != nil {
				t.Error(err)
			}
			wantError(t, admin.ExecuteTimeoutQuery(ctx, 0, time.Second), "must be above 0")
			wantError(t, admin.ExecuteTimeoutQuery(ctx, -1, time.Second), "must be from 0")
			wantError(t, admin.ExecuteTimeoutQuery(ctx, time.Second, -1), "must be from 0")
			if got := must(admin.BackendPIDWithDelay(ctx, 0)); got == 0 {
				t.Error("no pid")
			}
			ended, cancel := context.WithCancel(ctx)
			cancel()
			if err := admin.Sleep(ended, time.Second); !errors.Is(err, context.Canceled) {
				t.Errorf("with an ended ctx: %v", err)
			}
			// The timeout of ExecuteTimeoutQuery is nowhere.
			for range 3 {
				var v string
				if err := db.QueryRow("SHOW statement_timeout").Scan(&v); err != nil || v != "0" {
					t.Errorf("statement_timeout is %q, %v", v, err)
				}
			}
		})
	}
}

// TestConnectionStats: every state is counted, a failed transaction too.
func TestConnectionStats(t *testing.T) {
	db, admin := newAdmin(t)
	tx := must(db.Begin())
	must(tx.Exec("SELECT 1"))
	failed := must(db.Begin())
	if _, err := failed.Exec("SELECT 1/0"); err == nil {
		t.Fatal("no error")
	}
	for range 2 {
		idle := must(db.Conn(ctx))
		defer idle.Close()
		must(idle.ExecContext(ctx, "SELECT 1"))
	}
	got := must(admin.ConnectionStats(ctx))
	want := baldur.ConnectionStats{TotalConnections: 5, Active: 1, Idle: 2, IdleInTransaction: 2}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if n := must(admin.ActiveConnectionCount(ctx)); n != 1 {
		t.Errorf("%d active", n)
	}
	_ = tx.Rollback()
	_ = failed.Rollback()
}

func TestAggregate(t *testing.T) {
	db, admin := newAdmin(t)
	long := strings.Repeat("ä", 31) // of 62 bytes
	must(db.Exec(`CREATE SCHEMA "S p"; CREATE TABLE y (price numeric); INSERT INTO y VALUES (1), (2.5), (NULL);
		CREATE TABLE "x; drop table y" (price int); INSERT INTO "x; drop table y" VALUES (7);
		CREATE TABLE "S p"."T.""q""" (price float8);
		CREATE TABLE "` + long + `" (price int);
		CREATE TABLE nulls (price int); INSERT INTO nulls VALUES (NULL), (NULL)`))
	for table, want := range map[string]baldur.Aggregate{
		"y":               {TotalCount: 3, AvgPrice: 1.75, MaxPrice: 2.5, MinPrice: 1},
		"public.y":        {TotalCount: 3, AvgPrice: 1.75, MaxPrice: 2.5, MinPrice: 1},
		`"public"."y"`:    {TotalCount: 3, AvgPrice: 1.75, MaxPrice: 2.5, MinPrice: 1},
		"x; drop table y": {TotalCount: 1, AvgPrice: 7, MaxPrice: 7, MinPrice: 7},
		`S p."T.""q"""`:   {},
		long:              {},
		"nulls":           {TotalCount: 2},
	} {
		if got, err := admin.ExecuteAggregateQuery(ctx, table); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", table, got, err, want)
		}
	}
	for table, want := range map[string]string{
		"":                              "it is empty",
		".":                             "a part of it is empty",
		"a.":                            "a part of it is empty",
		`""`:                            "a part of it is empty",
		"a.b.c":                         "3 parts",
		`"a`:                            "not closed",
		`"a"b`:                          "something after",
		`a"b`:                           "double quote within",
		"a\x00b":                        "zero byte",
		"a\xff":                         "not valid UTF-8",
		strings.Repeat("x", 200):        "200 bytes",
		strings.Repeat("ä", 32):         "64 bytes",
		"ok." + strings.Repeat("x", 64): "64 bytes",
	} {
		_, err := admin.ExecuteAggregateQuery(ctx, table)
		wantError(t, err, want)
	}
	for _, table := range []string{`"a"."b"`, "Y", "y--", "y; DROP TABLE y", "таблица", `y" WHERE false; --`[:1] + ".y"} {
		_, err := admin.ExecuteAggregateQuery(ctx, table)
		wantState(t, err, "42P01")
	}
	if must(admin.ExecuteAggregateQuery(ctx, "y")).TotalCount != 3 {
		t.Error("table y is not as it was")
	}
}

// TestPGAdminOneRoundTrip: a plain call, and a lock that is free, are one message
// to the server and one back.
func TestPGAdminOneRoundTrip(t *testing.T) {
	counter := &countingDriver{dsn: pgtest.DSN(t)}
	db := baldur.OpenDB(counter)
	defer db.Close()
	db.SetMaxOpenConns(1)
	admin := baldur.NewPGAdmin(db)
	must(db.Exec("CREATE TABLE t (price int)"))
	must(admin.PoolerMode(ctx)) // once
	s := must(admin.Session(ctx))
	session := map[string]func() error{
		"s.AcquireAdvisoryLock": func() error { _, err := s.AcquireAdvisoryLock(ctx, 1, true); return err },
		"s.TryAdvisoryLock":     func() error { _, err := s.TryAdvisoryLock(ctx, 1); return err },
		"s.ReleaseAdvisoryLock": func() error { _, err := s.ReleaseAdvisoryLock(ctx, 1); return err },
		"s.SetLockTimeout":      func() error { return s.SetLockTimeout(ctx, time.Second) },
		"s.SetStatementTimeout": func() error { return s.SetStatementTimeout(ctx, time.Second) },
		"s.Close":               func() error { return s.Close() },
	}
	pool := map[string]func() error{
		"Ping":                  func() error { return admin.Ping(ctx) },
		"ConnectionStats":       func() error { _, err := admin.ConnectionStats(ctx); return err },
		"Sleep":                 func() error { return admin.Sleep(ctx, time.Millisecond) },
		"ExecuteSlowQuery":      func() error { return admin.ExecuteSlowQuery(ctx, time.Millisecond) },
		"BackendPIDWithDelay":   func() error { _, err := admin.BackendPIDWithDelay(ctx, 0); return err },
		"ExecuteAggregateQuery": func() error { _, err := admin.ExecuteAggregateQuery(ctx, "t"); return err },
		"AcquireAdvisoryLock":   func() error { _, err := admin.AcquireAdvisoryLock(ctx, 7, true); return err },
		"ReleaseAdvisoryLock":   func() error { _, err := admin.ReleaseAdvisoryLock(ctx, 7); return err },
		"LockHolders":           func() error { _, err := admin.LockHolders(ctx, 7); return err },
		"BlockingTree":          func() error { _, err := admin.BlockingTree(ctx); return err },
		"Cancel":                func() error { _, err := admin.Cancel(ctx, 1<<30); return err },
		"Session":               func() (err error) { s, err = admin.Session(ctx); return err },
	}
	once := func(name string, call func() error) {
		t.Helper()
		before := counter.writes.Load()
		if err := call(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := counter.writes.Load() - before; n != 1 {
			t.Errorf("%s: %d messages to the server", name, n)
		}
	}
	for _, name := range []string{"s.AcquireAdvisoryLock", "s.TryAdvisoryLock", "s.ReleaseAdvisoryLock", "s.SetLockTimeout", "s.SetStatementTimeout", "s.Close"} {
		once(name, session[name])
	}
	for _, name := range []string{"Ping", "ConnectionStats", "Sleep", "ExecuteSlowQuery", "BackendPIDWithDelay", "ExecuteAggregateQuery",
		"AcquireAdvisoryLock", "ReleaseAdvisoryLock", "LockHolders", "BlockingTree", "Cancel", "Session"} {
		once(name, pool[name])
	}
	s.Close()
}

func TestNoopPGAdmin(t *testing.T) {
	var admin baldur.PGAdminProvider = baldur.NoopPGAdmin{}
	// Every method by reflection: none fails, all results are zero.
	v := reflect.ValueOf(admin)
	for i := range v.NumMethod() {
		m, name := v.Method(i), v.Type().Method(i).Name
		if strings.HasPrefix(name, "With") || name == "Session" || name == "CreateCursor" {
			continue
		}
		var args []reflect.Value
		for j := range m.Type().NumIn() {
			if in := m.Type().In(j); in == reflect.TypeFor[context.Context]() {
				args = append(args, reflect.ValueOf(ctx))
			} else {
				args = append(args, reflect.Zero(in))
			}
		}
		for _, out := range m.Call(args) {
			if !out.IsZero() {
				t.Errorf("%s returns %v", name, out)
			}
		}
	}
	calls := 0
	nothing := func(_ context.Context, s *baldur.Session, acquired bool) error {
		calls++
		if ok, err := s.AcquireAdvisoryLock(ctx, 1, true); acquired || ok || err != nil {
			t.Errorf("acquired %v, %v, %v", acquired, ok, err)
		}
		if _, err := s.ReleaseAdvisoryLock(ctx, 1); err != nil {
			t.Error(err)
		}
		if err := errors.Join(s.SetLockTimeout(ctx, 1), s.SetStatementTimeout(ctx, 1), s.ResetTimeouts(ctx), s.Close()); err != nil {
			t.Error(err)
		}
		_, err := s.ExecContext(ctx, "SELECT 1")
		wantError(t, err, "no PostgreSQL")
		wantError(t, s.QueryRowContext(ctx, "SELECT 1").Scan(new(int)), "no PostgreSQL")
		return nil
	}
	if err := admin.WithAdvisoryLock(ctx, 1, baldur.LockOptions{}, nothing); err != nil {
		t.Error(err)
	}
	_ = admin.WithTimeouts(ctx, 1, 1, func(_ context.Context, s *baldur.Session) error { return nothing(ctx, s, false) })
	_ = admin.WithTxAdvisoryLock(ctx, 1, baldur.LockOptions{}, func(context.Context, *sql.Tx, bool) error { calls++; return nil })
	s := must(admin.Session(ctx))
	_ = nothing(ctx, s, false)
	c := must(admin.CreateCursor(ctx))
	wantError(t, c.QueryRow(ctx, "SELECT 1").Scan(new(int)), "no PostgreSQL")
	if err := c.Close(); err != nil || calls != 4 {
		t.Errorf("%v, %d calls", err, calls)
	}
	none := baldur.NewPGAdmin(nil)
	if none.IsAvailable() {
		t.Error("available without a pool")
	}
	wantError(t, none.Ping(ctx), "no PostgreSQL")
	_, err := none.AcquireAdvisoryLock(ctx, 1, true)
	wantError(t, err, "no PostgreSQL")
}
