package pgsession

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pgtest"
	"github.com/baldur-go/baldur/internal/pqconn"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// lostError and timeoutError stand for those of the package baldur.
type lostError struct{ ids []int64 }

func (e lostError) Error() string { return fmt.Sprint("lost: ", e.ids) }

type timeoutError struct{ error }

func (e timeoutError) Unwrap() error { return e.error }

var errClosed = errors.New("closed")

// newPool is a Pool of two connections of lib/pq, and another way to the database.
func newPool(t *testing.T) (p *Pool, aside *sql.DB, labels *[]string) {
	t.Helper()
	dsn := pgtest.DSN(t)
	open := func() *sql.DB {
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	db := open()
	db.SetMaxOpenConns(2)
	labels = new([]string)
	p = NewPool(Config{
		DB:     db,
		Beside: func(*sql.DB) (*sql.DB, bool) { return nil, false },
		Label:  func(_ *sql.Conn, name string) { *labels = append(*labels, name) },
		Errors: Errors{
			Closed:  errClosed,
			Pooler:  func(p Pooler) error { return fmt.Errorf("a pooler in mode %s", p) },
			Lost:    func(ids []int64, _ error) error { return lostError{ids} },
			IsLost:  func(err error) bool { return errors.As(err, new(lostError)) },
			Timeout: func(_ int64, _ time.Duration, err error) error { return timeoutError{err} },
		},
	})
	return p, open(), labels
}

func fine(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func one[T any](t *testing.T, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, query string) (v T) {
	t.Helper()
	fine(t, db.QueryRowContext(t.Context(), query).Scan(&v))
	return v
}

const locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"

// TestSessionGivesBack: locks, settings, an open transaction, and the program's own locks.
func TestSessionGivesBack(t *testing.T) {
	p, aside, labels := newPool(t)
	ctx := t.Context()
	if mode, err := p.Mode(ctx); mode != NoPooler || err != nil {
		t.Fatal(mode, err)
	}
	s, err := p.Open(ctx)
	fine(t, err)
	for _, l := range []pgsql.Lock{{ID: 7}, {ID: 7}, {ID: -8, Shared: true}} {
		if ok, err := s.Acquire(ctx, l, false); !ok || err != nil {
			t.Fatal(l, ok, err)
		}
	}
	if _, ok := s.Holds(pgsql.Lock{ID: 7}); !ok {
		t.Error("7 is not held")
	}
	if ok, err := s.Release(ctx, pgsql.Lock{ID: 7}); !ok || err != nil {
		t.Error(ok, err)
	}
	if ok, err := s.Release(ctx, pgsql.Lock{ID: 9}); ok || err != nil {
		t.Error("one that it does not hold:", ok, err)
	}
	if want := []string{"", "advisory lock 7", "advisory locks -8 (shared), 7"}; !slices.Equal(*labels, want) {
		t.Errorf("labels %q, want %q", *labels, want)
	}
	fine(t, s.SetTimeout(ctx, "statement_timeout", 42*time.Second))
	fine(t, s.SetTimeout(ctx, "statement_timeout", 43*time.Second))
	if got := one[string](t, s, "SHOW statement_timeout"); got != "43s" {
		t.Error(got)
	}
	_, err = s.ExecContext(ctx, "SELECT pg_advisory_lock(10)")
	fine(t, err)
	_, err = s.BeginTx(ctx, nil)
	fine(t, err)
	pid := s.BackendPID()
	if n := one[int](t, aside, locks); n != 3 {
		t.Error(n, "locks")
	}
	fine(t, s.Close())
	fine(t, s.Close())
	if n := one[int](t, aside, locks); n != 0 {
		t.Error(n, "locks are left")
	}
	if _, err := s.ExecContext(ctx, "SELECT 1"); !errors.Is(err, sql.ErrConnDone) {
		t.Error("a closed one:", err)
	}
	again, err := p.Open(ctx)
	fine(t, err)
	if again.BackendPID() != pid || one[string](t, again, "SHOW statement_timeout") != "0" {
		t.Error("the connection was not given back as it was")
	}
	fine(t, p.Close())
	if _, err := p.Open(ctx); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if n := p.DB().Stats().InUse; n != 0 {
		t.Error(n, "connections are in use")
	}
}

// TestSessionDoubts: a connection whose state is not known is not given back.
func TestSessionDoubts(t *testing.T) {
	p, aside, _ := newPool(t)
	ctx := t.Context()
	for what, leave := range map[string]func(s *Session) error{
		"a transaction by text": func(s *Session) error {
			_, err := s.ExecContext(ctx, "BEGIN; SET LOCAL lock_timeout = 1")
			return err
		},
		"a session that was ended": func(s *Session) error {
			_, err := aside.Exec(fmt.Sprintf("SELECT pg_terminate_backend(%d)", s.BackendPID()))
			return err
		},
	} {
		s, ok, _, err := p.TryLock(ctx, pgsql.Lock{ID: 3})
		if !ok || err != nil {
			t.Fatal(what, ok, err)
		}
		pid := s.BackendPID()
		fine(t, leave(s))
		err = s.Close()
		if lost := what == "a session that was ended"; p.Errors().IsLost(err) != lost {
			t.Errorf("%s: %v", what, err)
		}
		for gone := false; !gone; {
			gone = one[bool](t, aside, fmt.Sprintf("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %d)", pid))
		}
	}
	if n := one[int](t, aside, locks); n != 0 {
		t.Error(n, "locks are left")
	}
}

// TestAcquireWaits: in vain, for as long as the session's timeouts say, or until Close.
func TestAcquireWaits(t *testing.T) {
	p, aside, _ := newPool(t)
	ctx := t.Context()
	conn, err := aside.Conn(ctx)
	fine(t, err)
	defer conn.Close()
	_, err = conn.ExecContext(ctx, "SELECT pg_advisory_lock(5)")
	fine(t, err)
	for name, state := range map[string]string{"lock_timeout": "55P03", "statement_timeout": "57014"} {
		fine(t, p.WithTimeouts(ctx, 0, 0, func(ctx context.Context, s *Session) error {
			fine(t, s.SetTimeout(ctx, name, 50*time.Millisecond))
			ok, err := s.Acquire(ctx, pgsql.Lock{ID: 5}, true)
			if ok || !errors.As(err, new(timeoutError)) || !pqconn.HasState(err, state) {
				t.Error(name, ok, err)
			}
			return nil
		}))
	}
	s, err := p.Open(ctx)
	fine(t, err)
	time.AfterFunc(50*time.Millisecond, func() { _ = p.Close() })
	if ok, err := s.Acquire(ctx, pgsql.Lock{ID: 5}, true); ok || !errors.Is(err, errClosed) && !errors.Is(err, context.Canceled) && !errors.Is(err, sql.ErrConnDone) {
		t.Error(ok, err)
	}
}

// TestNilSession does nothing.
func TestNilSession(t *testing.T) {
	var s *Session
	ctx := t.Context()
	ok, err := s.Acquire(ctx, pgsql.Lock{}, true)
	ok2, err2 := s.Release(ctx, pgsql.Lock{})
	if ok || ok2 || s.BackendPID() != 0 {
		t.Error("it does something")
	}
	fine(t, errors.Join(err, err2, s.SetTimeout(ctx, "lock_timeout", 1), s.ResetTimeouts(ctx), s.Close()))
	if err := s.QueryRowContext(ctx, "SELECT 1").Scan(new(int)); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	if err := s.SetTimeout(ctx, "lock_timeout", -1); err == nil {
		t.Error("a negative timeout is taken")
	}
}
