package advisory

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pgtest"
	"github.com/baldur-go/baldur/internal/pqconn"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// lostError and timeoutError stand for those of the package baldur.
type lostError struct{ ids []int64 }

func (e lostError) Error() string { return fmt.Sprint("lost: ", e.ids) }

type timeoutError struct{ error }

var errClosed = errors.New("closed")

// newLocks is of a pool of two connections of lib/pq; aside is another way to the database.
func newLocks(t *testing.T) (l *Locks, aside *sql.DB) {
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
	pool := pgsession.NewPool(pgsession.Config{
		DB:     db,
		Beside: func(*sql.DB) (*sql.DB, bool) { return nil, false },
		Label:  func(*sql.Conn, string) {},
		Errors: pgsession.Errors{
			Closed:  errClosed,
			Pooler:  func(p pgsession.Pooler) error { return fmt.Errorf("a pooler in mode %s", p) },
			Lost:    func(ids []int64, _ error) error { return lostError{ids} },
			IsLost:  func(err error) bool { return errors.As(err, new(lostError)) },
			Timeout: func(_ int64, _ time.Duration, err error) error { return timeoutError{err} },
		},
	})
	return New(pool, func(*sql.Conn) *pqconn.Socket { return nil }), open()
}

// free tells whether nobody has the lock.
func free(t *testing.T, db *sql.DB, id int64) (ok bool) {
	t.Helper()
	tx, err := db.Begin()
	if err == nil {
		defer func() { _ = tx.Rollback() }()
		err = tx.QueryRow("SELECT pg_try_advisory_xact_lock($1)", id).Scan(&ok)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// TestKeep: each Keep is a hold of its own.
func TestKeep(t *testing.T) {
	l, aside := newLocks(t)
	ctx := t.Context()
	shared := pgsql.Lock{ID: 1, Shared: true}
	for range 2 {
		if ok, err := l.Keep(ctx, 1, Options{Shared: true}); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if ok, err := l.Keep(ctx, 1, Options{NoWait: true}); ok || err != nil {
		t.Error("alone beside two that share:", ok, err)
	}
	if ok, err := l.Keep(ctx, 1, Options{Timeout: 20 * time.Millisecond}); ok || !errors.As(err, new(timeoutError)) {
		t.Error("in vain:", ok, err)
	}
	if _, err := l.Keep(ctx, 1, Options{Timeout: -1}); err == nil {
		t.Error("a negative Timeout is taken")
	}
	held, cancel := l.Context(ctx, 1)
	defer cancel()
	for i, want := range []bool{true, true, false} {
		if free(t, aside, 1) == want {
			t.Errorf("after %d releases the lock is free: %v", i, !want)
		}
		if ok, err := l.Release(shared); ok != want || err != nil {
			t.Errorf("release %d: %v, %v", i, ok, err)
		}
	}
	<-held.Done()
	gone, cancel := l.Context(ctx, 1)
	defer cancel()
	if !l.errors.IsLost(context.Cause(gone)) || l.errors.IsLost(context.Cause(held)) {
		t.Error(context.Cause(gone), context.Cause(held))
	}
}

// TestWithEnds: the lock is released however f ends.
func TestWithEnds(t *testing.T) {
	l, aside := newLocks(t)
	own := errors.New("f's own")
	for name, end := range map[string]func() error{
		"nil": func() error { return nil }, "error": func() error { return own }, "panic": func() error { panic(own) }, "Goexit": func() error { runtime.Goexit(); return nil },
	} {
		for how, with := range map[string]func(func() error) error{
			"session": func(f func() error) error {
				return l.With(t.Context(), 2, Options{}, func(_ context.Context, _ *pgsession.Session, acquired bool) error {
					if !acquired || free(t, aside, 2) {
						t.Errorf("%s: f has no lock", name)
					}
					return f()
				})
			},
			"transaction": func(f func() error) error {
				return l.InTx(t.Context(), 2, Options{}, func(_ context.Context, _ *sql.Tx, acquired bool) error {
					if !acquired || free(t, aside, 2) {
						t.Errorf("%s: f has no lock", name)
					}
					return f()
				})
			},
		} {
			var err error
			var panicked any
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { panicked = recover() }()
				err = with(end)
			})
			wg.Wait()
			if (err == own) != (name == "error") || (panicked == own) != (name == "panic") {
				t.Errorf("%s, %s: %v, %v", how, name, err, panicked)
			}
			if !free(t, aside, 2) || l.pool.DB().Stats().InUse != 0 {
				t.Errorf("%s, %s: something is left", how, name)
			}
		}
	}
}

// TestLost: a holder is told.
func TestLost(t *testing.T) {
	l, aside := newLocks(t)
	err := l.With(t.Context(), 3, Options{}, func(ctx context.Context, s *pgsession.Session, _ bool) error {
		if _, err := aside.Exec("SELECT pg_terminate_backend($1)", s.BackendPID()); err != nil {
			t.Error(err)
		}
		<-ctx.Done()
		if !l.errors.IsLost(context.Cause(ctx)) {
			t.Error(context.Cause(ctx))
		}
		return nil
	})
	if !l.errors.IsLost(err) {
		t.Error(err)
	}
}

// TestClose ends waits, and releases what is kept.
func TestClose(t *testing.T) {
	l, aside := newLocks(t)
	if ok, err := l.Keep(t.Context(), 4, Options{}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	done := make(chan error)
	go func() {
		_, err := l.Keep(t.Context(), 4, Options{})
		done <- err
	}()
	l.pool.Shut()
	if err := errors.Join(l.Close(), l.pool.Close()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != errClosed {
		t.Error(err)
	}
	if !free(t, aside, 4) {
		t.Error("the lock is held on")
	}
}

// TestFarewell: of what the server has sent, only an error after which it hangs up is one.
func TestFarewell(t *testing.T) {
	message := func(kind byte, body string) []byte {
		b := append([]byte{kind}, binary.BigEndian.AppendUint32(nil, uint32(len(body)+4))...)
		return append(b, body...)
	}
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	fatal := message('E', "SFATAL\x00VFATAL\x00C57P01\x00Mterminating connection\x00\x00")
	for name, c := range map[string]struct {
		pending []byte
		want    bool
	}{
		"nothing":              {nil, false},
		"fatal":                {fatal, true},
		"panic":                {message('E', "SPANIK\x00VPANIC\x00\x00"), true},
		"an error":             {message('E', "SERROR\x00VERROR\x00C42P01\x00\x00"), false},
		"notice, then fatal":   {join(message('N', "SWARNING\x00VWARNING\x00MVFATAL\x00\x00"), message('A', "1234x\x00\x00"), fatal), true},
		"a notice that quotes": {message('N', "SWARNING\x00VFATAL\x00\x00"), false},
		"cut after its kind":   {fatal[:24], true},
		"cut before that":      {fatal[:9], false},
		"no length":            {[]byte{'E', 0, 0, 0, 0, 'V', 'F'}, false},
		"encrypted":            {[]byte("\x17\x03\x03\x00\x13VFATAL\x00 and more"), false},
	} {
		if got := farewell(c.pending); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestTxMode: the settings of a new session as modes of SET TRANSACTION.
func TestTxMode(t *testing.T) {
	for in, want := range map[[2]string]string{
		{"read committed", "off"}:  "ISOLATION LEVEL READ COMMITTED, READ WRITE",
		{"serializable", "on"}:     "ISOLATION LEVEL SERIALIZABLE",
		{"repeatable read", "off"}: "ISOLATION LEVEL REPEATABLE READ, READ WRITE",
		{"unheard of", "on"}:       "ISOLATION LEVEL READ COMMITTED",
	} {
		if got := txMode(in[0], in[1]); got != want {
			t.Errorf("%q: %s", in, got)
		}
	}
}
