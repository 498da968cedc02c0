package stack

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"net/http"
	"net/http/httptest"
	"testing"
)

// hookDriver is a driver whose connections run a function in the middle of a query, so that it is
// called by the frames by which a checkout is recorded.
type hookDriver struct{ hook func() }

type hookConn struct{ d *hookDriver }

func (d *hookDriver) Connect(context.Context) (driver.Conn, error) { return &hookConn{d}, nil }
func (d *hookDriver) Driver() driver.Driver                        { return nil }
func (c *hookConn) Prepare(string) (driver.Stmt, error)            { return nil, driver.ErrSkip }
func (c *hookConn) Begin() (driver.Tx, error)                      { return nil, driver.ErrSkip }
func (c *hookConn) Close() error                                   { return nil }
func (c *hookConn) ResetSession(context.Context) error             { c.d.hook(); return nil }
func (c *hookConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}

// inService runs f where a driver records a checkout: in ResetSession, below database/sql, a few
// functions of an application, and a handler of net/http. The stack has some 25 frames.
func inService(tb testing.TB, f func()) {
	d := &hookDriver{hook: f}
	db := sql.OpenDB(d)
	defer db.Close()
	db.SetMaxIdleConns(1)
	if err := db.Ping(); err != nil { // the first checkout does not reset the session
		tb.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/orders", logged(service{repository{db}}.serve))
	server := httptest.NewServer(mux)
	defer server.Close()
	resp, err := http.Get(server.URL + "/orders")
	if err != nil {
		tb.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		tb.Fatal(resp.Status)
	}
}

func logged(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) })
}

type service struct{ orders repository }

func (s service) serve(w http.ResponseWriter, r *http.Request) {
	if err := s.placeOrder(r.Context(), r.URL.Path); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

//go:noinline
func (s service) placeOrder(ctx context.Context, name string) error {
	return s.orders.insert(ctx, name)
}

type repository struct{ db *sql.DB }

//go:noinline
func (r repository) insert(ctx context.Context, name string) error {
	_, err := r.db.ExecContext(ctx, "INSERT INTO orders(name) VALUES (1)")
	return err
}
