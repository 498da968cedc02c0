package baldurtest

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/stack"
)

// recorder is a TestingT that keeps what it is told.
type recorder struct {
	errors   []string
	cleanups []func()
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func (r *recorder) end() string {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	return strings.Join(r.errors, "\n")
}

// mock opens a tracked pool on go-sqlmock that allows a transaction.
func mock(t *testing.T) *sql.DB {
	dsn := strings.ReplaceAll(t.Name(), "/", "_")
	inner, m, err := sqlmock.NewWithDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inner.Close() })
	m.MatchExpectationsInOrder(false)
	m.ExpectBegin()
	m.ExpectRollback()
	m.ExpectClose()
	return baldur.OpenDB(connector{inner, dsn})
}

func here() int { _, _, line, _ := runtime.Caller(1); return line }

func TestVerifyNone(t *testing.T) {
	t.Run("leak", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			db := mock(t)
			defer db.Close()
			r := new(recorder)
			VerifyNone(r, db)
			line := here() + 1
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			start := time.Now()
			got := r.end()
			if want := fmt.Sprintf("baldurtest_test.go:%d: ", line); !strings.Contains(got, want) || !strings.Contains(got, "idle in transaction") {
				t.Errorf("got %q, want %q", got, want)
			}
			for _, want := range []string{"out of the pool: 1\n", "likely missing: Tx.Commit or Tx.Rollback", "baldurtest.TestVerifyNone.func"} {
				if !strings.Contains(got, want) {
					t.Errorf("got %s, want %s", got, want)
				}
			}
			if waited := time.Since(start); waited != grace {
				t.Errorf("accused after %v", waited)
			}
		})
	})
	t.Run("leaked before", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			db := mock(t)
			defer db.Close()
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			r := new(recorder)
			VerifyNone(r, db)
			start := time.Now()
			if got := r.end(); got != "" || time.Since(start) != 0 {
				t.Errorf("another test's leak, after %v: %s", time.Since(start), got)
			}
		})
	})
	t.Run("given back late", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			db := mock(t)
			defer db.Close()
			r := new(recorder)
			VerifyNone(r, db)
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(grace/2, func() { _ = tx.Rollback() })
			if got := r.end(); got != "" {
				t.Errorf("accused: %s", got)
			}
		})
	})
	t.Run("on t.Context()", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			name  string
			of    func(context.Context) context.Context
			found bool
		}{
			{"its own", func(ctx context.Context) context.Context { return ctx }, false},
			{"without cancel", context.WithoutCancel, true},
		} {
			synctest.Test(t, func(t *testing.T) {
				db := mock(t)
				defer db.Close()
				r := new(recorder)
				VerifyNone(r, db)
				testCtx, end := context.WithCancel(context.Background()) // as t.Context() ends
				tx, err := db.BeginTx(c.of(testCtx), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback()
				end()
				if got := r.end(); (got != "") != c.found {
					t.Errorf("%s: got %q", c.name, got)
				}
			})
		}
	})
	t.Run("clean", func(t *testing.T) {
		t.Parallel()
		db := mock(t)
		defer db.Close()
		VerifyNone(t, db)
	})
	t.Run("not tracked", func(t *testing.T) {
		db, _, err := sqlmock.New()
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		r := new(recorder)
		VerifyNone(r, db)
		if got := r.end(); !strings.Contains(got, "not tracked") {
			t.Errorf("got %q", got)
		}
	})
}

type runner struct {
	status int
	run    func()
}

func (r runner) Run() int { r.run(); return r.status }

func TestVerifyTestMain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := mock(t)
		defer db.Close()
		var b strings.Builder
		if status := verify(runner{0, func() { _ = db.PingContext(context.Background()) }}, &b); status != 0 || b.Len() != 0 {
			t.Errorf("without a leak: status %d, %s", status, b.String())
		}
		var tx *sql.Tx
		status := verify(runner{0, func() { tx, _ = db.Begin() }}, &b)
		if status != 1 || !strings.Contains(b.String(), "baldurtest_test.go:") {
			t.Errorf("with a leak: status %d, %s", status, b.String())
		}
		if status := verify(runner{3, func() {}}, &b); status != 3 {
			t.Errorf("the tests' own status is lost: %d", status)
		}
		db.Close()
		if status := verify(runner{0, func() {}}, io.Discard); status != 1 {
			t.Errorf("a leak of a closed pool is not found: status %d", status)
		}
		_ = tx.Rollback()
		if status := verify(runner{0, func() {}}, io.Discard); status != 0 {
			t.Errorf("after its return: status %d", status)
		}
	})
}

// TestVerifyNoneProves: what is lost fails at once, also with the ctx that has ended.
func TestVerifyNoneProves(t *testing.T) {
	open := func(t *testing.T) *sql.DB {
		inner, m, err := sqlmock.NewWithDSN(t.Name())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = inner.Close() })
		m.MatchExpectationsInOrder(false)
		m.ExpectQuery("x").WillReturnRows(sqlmock.NewRows([]string{"a"}).AddRow(1))
		m.ExpectClose()
		db := baldur.OpenDB(connector{inner, t.Name()})
		db.SetMaxOpenConns(1)
		return db
	}
	t.Run("lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			db := open(t)
			defer db.Close()
			r := new(recorder)
			VerifyNone(r, db)
			if _, err := db.Query("x"); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			got := r.end()
			if !strings.Contains(got, "proof: nothing refers to its Rows") || time.Since(start) > grace/4 {
				t.Errorf("after %v: %s", time.Since(start), got)
			}
		})
	})
	for _, allow := range []bool{false, true} {
		if !stack.Self().Liveness {
			break
		}
		t.Run(fmt.Sprintf("not closed, allowed %v", allow), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := open(t)
				defer db.Close()
				r := new(recorder)
				var opts []Option
				if allow {
					opts = append(opts, AllowNotClosed())
				}
				VerifyNone(r, db, opts...)
				ctx, cancel := context.WithCancel(context.Background())
				go func() { _, _ = db.QueryContext(ctx, "x") }()
				synctest.Wait()
				cancel()
				synctest.Wait()
				got := r.end()
				if allow && got != "" || !allow && !strings.Contains(got, "not closed before the ctx ended, in the pool:\n") {
					t.Errorf("got %q", got)
				}
			})
		})
	}
}
