package baldurhttp

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurtest"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var ctx = context.Background()

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

const threshold = 100 * time.Millisecond

// leakRows and leakTx are a program's bugs. The holders they return are for the
// test's end.
func leakRows(db *sql.DB) *sql.Rows {
	rows := must(db.Query("SELECT id FROM generate_series(1, 1000) id"))
	rows.Next()
	return rows
}

func leakTx(db *sql.DB) *sql.Tx {
	tx := must(db.Begin())
	must(tx.Exec("SET LOCAL work_mem = '1MB'"))
	return tx
}

// leakingPool is a pool of 4 on a real server, all out: 2 by leakRows on a
// goroutine that has ended, 1 by leakTx, 1 labelled.
func leakingPool(t *testing.T) *sql.DB {
	db := must(baldur.Open(pgtest.DSN(t), baldur.WithPoolName("shop"), baldur.WithLeakThreshold(threshold)))
	t.Cleanup(func() { db.Close() })
	baldurtest.VerifyNone(t, db)
	db.SetMaxOpenConns(4)
	must(db.Exec("SELECT 1"))
	for range 2 {
		leaked := make(chan *sql.Rows)
		go func() { leaked <- leakRows(db) }()
		rows := <-leaked
		t.Cleanup(func() { rows.Close() })
	}
	tx := leakTx(db)
	t.Cleanup(func() { _ = tx.Rollback() })
	conn := must(db.Conn(ctx))
	t.Cleanup(func() { conn.Close() })
	if err := errors.Join(conn.PingContext(ctx), baldur.Label(conn, "listens for jobs")); err != nil {
		t.Fatal(err)
	}
	untilAccused(t, db, 3, 1)
	return db
}

// untilAccused waits until a report has so many suspected leaks and labelled holders.
func untilAccused(t *testing.T, db *sql.DB, suspected, long int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r := baldur.TrackerOf(db).Report()
		if len(r.SuspectedLeaks) == suspected && len(r.LongHeld) == long && r.LongHeld[0].Label != "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("want %d and %d:\n%s", suspected, long, r)
		}
	}
}

// serve mounts the handler as its documentation says, and returns its address.
func serve(t *testing.T, opts ...Option) string {
	mux := http.NewServeMux()
	mux.Handle("/debug/baldur/", Handler(opts...))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL + "/debug/baldur/"
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return res, string(must(io.ReadAll(res.Body)))
}

// fake is a driver for queries that no server would take.
type fake struct{}
type fakeConn struct{}
type fakeRows struct{}
type fakeTx struct{}

func (fake) Driver() driver.Driver                        { return nil }
func (fake) Connect(context.Context) (driver.Conn, error) { return &fakeConn{}, nil }

func (*fakeConn) Prepare(string) (driver.Stmt, error) { return nil, errors.New("unused") }
func (*fakeConn) Begin() (driver.Tx, error)           { return fakeTx{}, nil }
func (*fakeConn) Close() error                        { return nil }
func (*fakeConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return fakeRows{}, nil
}

func (fakeRows) Columns() []string         { return []string{"id"} }
func (fakeRows) Close() error              { return nil }
func (fakeRows) Next([]driver.Value) error { return io.EOF }

func (fakeTx) Commit() error   { return nil }
func (fakeTx) Rollback() error { return nil }
