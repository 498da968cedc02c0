package compat

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurtest"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const (
	maxOpen       = 4           // connections of a test's pool
	leakThreshold = time.Second // above what a library may need between two calls on a busy machine
	patience      = 30 * time.Second

	createItems = "CREATE TABLE items (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, quantity integer NOT NULL DEFAULT 0)"
)

// Item is a row of items.
type Item struct {
	ID       int64
	Name     string
	Quantity int
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// trackedDSN is the DSN of a new database, with parameters of baldur's.
func trackedDSN(t *testing.T) string {
	t.Helper()
	dsn := pgtest.DSN(t)
	sep := " "
	if strings.Contains(dsn, "://") {
		sep = "&"
	}
	return dsn + sep + "baldur_return_audit=1" + sep + "baldur_leak_threshold=" + leakThreshold.String()
}

// open opens a pool on a new database as the README says, and watches it.
func open(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("baldur-pq", trackedDSN(t))
	check(t, err)
	watch(t, db)
	return db
}

// watch makes the test fail if somebody is accused while it runs, or if at its
// end, which is when what it does after watch is cleaned up, the pool is not as
// it was. It closes db. The tests' calls are on a ctx that does not end, as
// t.Context does before the clean-up: database/sql takes back what is on that.
func watch(t *testing.T, db *sql.DB) {
	t.Helper()
	db.SetMaxOpenConns(maxOpen)
	db.SetMaxIdleConns(maxOpen)
	tracker := baldur.TrackerOf(db)
	if tracker == nil {
		t.Fatal("the pool is not tracked")
	}
	ctx, cancel := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tracker.Watch(ctx, leakThreshold/10, func(r baldur.LeakReport) { t.Errorf("accused:\n%v", r) })
	}()
	t.Cleanup(func() {
		t.Helper()
		cancel()
		<-watched
		verifyPool(t, db)
		verifySites(t)
		check(t, db.Close())
	})
	baldurtest.VerifyNone(t, db)
}

// verifyPool checks that nothing is out of the pool, that nothing came back to it
// dirty, and that all its connections work.
func verifyPool(t *testing.T, db *sql.DB) {
	t.Helper()
	tracker := baldur.TrackerOf(db)
	if r := tracker.Report(); r.LeakCount() != 0 || r.Tracked != 0 || r.Unattributed != 0 || db.Stats().InUse != 0 {
		t.Errorf("%d are in use\n%v", db.Stats().InUse, r)
	}
	dirty, _ := tracker.DirtyReturns()
	for _, d := range dirty {
		t.Error(d)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var conns []*sql.Conn
	for range maxOpen {
		conn, err := db.Conn(ctx)
		check(t, err)
		defer conn.Close()
		check(t, conn.PingContext(ctx))
		conns = append(conns, conn)
	}
	for _, conn := range conns { // each sees the others
		var inTx int
		check(t, conn.QueryRowContext(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'").Scan(&inTx))
		if inTx != 0 {
			t.Errorf("%d connections of the pool are in a transaction", inTx)
		}
	}
	if n := len(tracker.Holders()); n != maxOpen {
		t.Errorf("%d are out, and %d are known", maxOpen, n)
	}
}

// verifySites checks all call paths of this process so far: where the application,
// which is this directory, is on a path, the path must begin there; else, as in a
// goroutine of a library's own, in the library.
func verifySites(t *testing.T) {
	t.Helper()
	for _, s := range baldur.CallSites() {
		first := s.StackTrace[0]
		if told[first] {
			continue
		}
		if strings.HasPrefix(first.Function, "database/sql.") || strings.HasPrefix(first.Function, "github.com/baldur-go/baldur.") {
			t.Errorf("named %v", first)
			told[first] = true
		}
		i := slices.IndexFunc(s.StackTrace, func(f baldur.Frame) bool { return strings.HasPrefix(f.File, here) })
		if i > 0 {
			t.Errorf("taken by %v, named %v", s.StackTrace[i], first)
			told[first] = true
		}
	}
}

var told = map[baldur.Frame]bool{} // what verifySites has found

// here is this directory, with a slash.
var here = func() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file) + "/"
}()

// nextLine is the line after the one that calls it: "sqlx_test.go:40".
func nextLine() string {
	_, file, line, _ := runtime.Caller(1)
	return fmt.Sprintf("%s:%d", filepath.Base(file), line+1)
}

// lineOf is the line of a frame, as nextLine gives it.
func lineOf(f baldur.Frame) string { return fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line) }

// wantHolder checks that one connection is out, taken at that line.
func wantHolder(t *testing.T, db *sql.DB, line string) {
	t.Helper()
	holders := baldur.TrackerOf(db).Holders()
	if len(holders) != 1 {
		t.Fatalf("%d holders, want 1: %v", len(holders), holders)
	}
	if site := holders[0].CallSite(); lineOf(site) != line {
		t.Errorf("taken at %s, named %v", line, site)
	}
}

// wantConflict checks that err is, below what a library wraps around it, lib/pq's
// error of a value that is there already.
func wantConflict(t *testing.T, err error) {
	t.Helper()
	var e *pq.Error
	if !errors.As(err, &e) || e.Code != "23505" || e.Constraint == "" {
		t.Errorf("want a conflict of lib/pq's, got %T: %v", err, err)
	}
}

// wantBareConflict is wantConflict where a library does not wrap errors: the type
// must be seen without errors.As.
func wantBareConflict(t *testing.T, err error) {
	t.Helper()
	if _, ok := err.(*pq.Error); !ok {
		t.Errorf("want a bare *pq.Error, got %T: %v", err, err)
	}
	wantConflict(t, err)
}

// wantCancel checks that sleep, which is to call pg_sleep(60), returns as soon as
// its ctx has ended, with an error that says so. It returns the sleeper.
func wantCancel(t *testing.T, db *sql.DB, sleep func(ctx context.Context) error) (sleeper baldur.ConnectionInfo) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- sleep(ctx) }()
	sleeper = untilSleeping(t, db)
	cancel()
	select {
	case err := <-done:
		var e *pq.Error
		if !errors.Is(err, context.Canceled) && !(errors.As(err, &e) && e.Code == "57014") {
			t.Errorf("want the ctx's error, got %T: %v", err, err)
		}
	case <-time.After(patience):
		t.Fatal("the call has not returned")
	}
	return sleeper
}

// untilSleeping waits until a holder is in a call of pg_sleep.
func untilSleeping(t *testing.T, db *sql.DB) (sleeper baldur.ConnectionInfo) {
	t.Helper()
	eventually(t, "a query sleeps", func() bool {
		for _, h := range baldur.TrackerOf(db).Holders() {
			if h.State == baldur.StateInCall && strings.Contains(h.QueryInfo, "pg_sleep") {
				sleeper = h
				return true
			}
		}
		return false
	})
	return sleeper
}

// eventually waits until ok, for what gives no event.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v: not so: %s", patience, what)
		}
	}
}

// wantNames checks the names in items, by the pool itself.
func wantNames(t *testing.T, db *sql.DB, want string) {
	t.Helper()
	var got string
	check(t, db.QueryRow("SELECT coalesce(string_agg(name, ' ' ORDER BY name), '') FROM items").Scan(&got))
	if got != want {
		t.Errorf("items are %q, want %q", got, want)
	}
}
