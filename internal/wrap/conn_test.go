package wrap_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/baldur-go/baldur/internal/checkout"
	"github.com/baldur-go/baldur/internal/clock"
	"github.com/baldur-go/baldur/internal/pgtest"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/wrap"
)

// bare is a driver's connection with the least that there is. It notes its calls.
type bare struct {
	calls  []string
	err    error        // of the calls
	during func(string) // called by each
}

func (b *bare) call(name string) error {
	b.calls = append(b.calls, name)
	if b.during != nil {
		b.during(name)
	}
	return b.err
}

func (b *bare) Prepare(string) (driver.Stmt, error) { return &stmt{b: b}, b.call("prepare") }
func (b *bare) Begin() (driver.Tx, error)           { return tx{b}, b.call("begin") }
func (b *bare) Close() error                        { return b.call("close") }

type stmt struct{ b *bare }

func (s *stmt) Close() error  { return s.b.call("stmt close") }
func (s *stmt) NumInput() int { return -1 }
func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return driver.RowsAffected(len(args)), s.b.call("stmt exec")
}
func (s *stmt) Query([]driver.Value) (driver.Rows, error) { return &rows{s.b}, s.b.call("stmt query") }

type tx struct{ b *bare }

func (t tx) Commit() error   { return t.b.call("commit") }
func (t tx) Rollback() error { return t.b.call("rollback") }

type rows struct{ b *bare }

func (r *rows) Columns() []string { return []string{"a"} }
func (r *rows) Close() error      { return r.b.call("rows close") }
func (r *rows) Next([]driver.Value) error {
	if err := r.b.call("next"); err != nil {
		return err
	}
	return io.EOF
}

type execs struct{ *bare }

func (e execs) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(1), e.call("exec")
}

type queries struct{ *bare }

func (q queries) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return &rows{q.bare}, q.call("query")
}

type oldExecs struct{ *bare } // as drivers of before Go 1.8

func (e oldExecs) Exec(_ string, args []driver.Value) (driver.Result, error) {
	return driver.RowsAffected(len(args)), e.call("old exec")
}

type full struct {
	*bare
	execs
	queries
	invalid bool
}

func (f *full) Prepare(q string) (driver.Stmt, error)    { return f.bare.Prepare(q) }
func (f *full) Begin() (driver.Tx, error)                { return f.bare.Begin() }
func (f *full) Close() error                             { return f.bare.Close() }
func (f *full) Ping(context.Context) error               { return f.bare.call("ping") }
func (f *full) ResetSession(context.Context) error       { return f.bare.call("reset") }
func (f *full) IsValid() bool                            { return !f.invalid }
func (f *full) CheckNamedValue(*driver.NamedValue) error { return f.bare.call("check") }
func (f *full) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return tx{f.bare}, f.bare.call("begin tx")
}

func newFull() *full { b := new(bare); return &full{bare: b, execs: execs{b}, queries: queries{b}} }

// wrapped is a wrapped connection, its record, and its ledger.
func wrapped(t *testing.T, cfg wrap.Config, inner driver.Conn) (driver.Conn, *checkout.Record, *checkout.Ledger) {
	clk := clock.New(10*time.Millisecond, func() bool { return false })
	t.Cleanup(clk.Stop)
	var ledger *checkout.Ledger
	ledger = checkout.NewLedger(clk, checkout.Config{Closed: func(r *checkout.Record) { ledger.Remove(r) }})
	rec := ledger.Add(inner, 0, nil)
	return wrap.New(&cfg, rec, inner), rec, ledger
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestCapabilities: a connection has Exec and Query if the driver's has, and the rest always,
// with the answer that means the same as lacking it.
func TestCapabilities(t *testing.T) {
	ctx := t.Context()
	for name, inner := range map[string]driver.Conn{
		"none": new(bare), "exec": execs{new(bare)}, "query": queries{new(bare)}, "old exec": oldExecs{new(bare)}, "both": newFull(),
	} {
		c, rec, _ := wrapped(t, wrap.Config{}, inner)
		_, hasExec := c.(driver.ExecerContext)
		_, hasQuery := c.(driver.QueryerContext)
		if wantExec, wantQuery := name != "none" && name != "query", name == "query" || name == "both"; hasExec != wantExec || hasQuery != wantQuery {
			t.Errorf("%s: Exec %v, Query %v", name, hasExec, hasQuery)
		}
		if wrap.RecordOf(c) != rec || wrap.Inner(c) != inner {
			t.Errorf("%s: the record or the inner connection is another", name)
		}
		if wrap.RecordOf(inner) != nil {
			t.Errorf("%s: the driver's connection has a record", name)
		}
		if name == "both" {
			continue
		}
		if err := c.(driver.NamedValueChecker).CheckNamedValue(nil); err != driver.ErrSkip {
			t.Errorf("%s: CheckNamedValue: %v", name, err)
		}
		if err := errors.Join(c.(driver.Pinger).Ping(ctx), c.(driver.SessionResetter).ResetSession(ctx)); err != nil || !c.(driver.Validator).IsValid() {
			t.Errorf("%s: %v", name, err)
		}
		begin := c.(driver.ConnBeginTx).BeginTx
		if _, err := begin(ctx, driver.TxOptions{ReadOnly: true}); err == nil {
			t.Errorf("%s: a read-only transaction is begun", name)
		}
		if _, err := begin(ctx, driver.TxOptions{Isolation: 1}); err == nil {
			t.Errorf("%s: an isolation level is taken", name)
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := begin(ended, driver.TxOptions{}); err != context.Canceled {
			t.Errorf("%s: begun after the end: %v", name, err)
		}
	}
	old, _, _ := wrapped(t, wrap.Config{}, oldExecs{new(bare)})
	exec := old.(driver.ExecerContext).ExecContext
	if n := must(must(exec(ctx, "", []driver.NamedValue{{Ordinal: 1}})).RowsAffected()); n != 1 {
		t.Errorf("%d arguments", n)
	}
	if _, err := exec(ctx, "", []driver.NamedValue{{Name: "n"}}); err == nil {
		t.Error("a named argument is taken")
	}
}

// TestErrors: the driver's own value is returned, by each call, except for a connection that
// is of no use since it was in the pool.
func TestErrors(t *testing.T) {
	ctx := t.Context()
	f := newFull()
	useless, plain := errors.New("useless"), errors.New("plain")
	c, rec, _ := wrapped(t, wrap.Config{Poisoned: func(err error) bool { return err == useless }}, f)
	exec := func() error { _, err := c.(driver.ExecerContext).ExecContext(ctx, "", nil); return err }
	for name, call := range map[string]func() error{
		"exec":    exec,
		"query":   func() error { _, err := c.(driver.QueryerContext).QueryContext(ctx, "", nil); return err },
		"prepare": func() error { _, err := c.(driver.ConnPrepareContext).PrepareContext(ctx, ""); return err },
		"begin":   func() error { _, err := c.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{}); return err },
		"ping":    func() error { return c.(driver.Pinger).Ping(ctx) },
	} {
		rec.Take(ctx)
		f.bare.err = plain
		if err := call(); err != plain {
			t.Errorf("%s: %v", name, err)
		}
		if f.bare.err = useless; call() != useless || !c.(driver.Validator).IsValid() {
			t.Errorf("%s: the second call of a checkout is taken for the first", name)
		}
		if flags, _ := rec.Usage(); flags != 0 {
			t.Errorf("%s: in the pool, and flags are %b", name, flags)
		}
		rec.Take(ctx)
		if err := call(); err != driver.ErrBadConn {
			t.Errorf("%s on a useless connection: %v", name, err)
		}
		if c.(driver.Validator).IsValid() {
			t.Errorf("%s: a useless connection is valid", name)
		}
		f = newFull()
		c, rec, _ = wrapped(t, wrap.Config{Poisoned: func(err error) bool { return err == useless }}, f)
	}
}

// TestLife: what the record says in each call of the driver, and the order of a connection's end.
func TestLife(t *testing.T) {
	ctx := t.Context()
	f := newFull()
	audits := 0
	c, rec, ledger := wrapped(t, wrap.Config{Audit: func(r *checkout.Record, query func(context.Context, string, []driver.NamedValue) (driver.Rows, error)) {
		audits++
		if !r.IsOut() {
			t.Error("audited in the pool")
		}
		rs := must(query(ctx, "audit", nil))
		_ = rs.Close()
	}}, f)
	const in = checkout.Out | checkout.InCall
	var want uint64
	f.during = func(call string) {
		if flags, _ := rec.Usage(); flags&^checkout.Called != want {
			t.Errorf("in %s: flags %b, want %b", call, flags, want)
		}
	}
	step := func(flags uint64, do func() error) {
		t.Helper()
		want = flags
		if err := do(); err != nil {
			t.Error(err)
		}
	}
	step(checkout.Out, func() error { return c.(driver.SessionResetter).ResetSession(ctx) })
	step(in, func() error { return c.(driver.Pinger).Ping(ctx) })
	var rs driver.Rows
	step(in, func() (err error) { rs, err = c.(driver.QueryerContext).QueryContext(ctx, "q", nil); return err })
	step(in|checkout.RowsOpen, func() error { _ = rs.Next(nil); return nil })
	step(in|checkout.RowsOpen|checkout.Draining, rs.Close)
	step(checkout.Out, rs.Close) // again: it is not a use
	var st driver.Stmt
	step(in, func() (err error) { st, err = c.(driver.ConnPrepareContext).PrepareContext(ctx, "s"); return err })
	if n := rec.Statements.Load(); n != 1 {
		t.Errorf("%d statements are open", n)
	}
	step(in, func() error { _, err := st.(driver.StmtExecContext).ExecContext(ctx, nil); return err })
	var trans driver.Tx
	step(in, func() (err error) { trans, err = c.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{}); return err })
	step(in|checkout.InTx|checkout.Closing|checkout.Draining, trans.Rollback)
	step(in, func() (err error) { trans, err = c.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{}); return err })
	step(in|checkout.InTx, trans.Commit)
	if s, _, _ := rec.Snapshot(math.MaxInt64); s.Kind != checkout.KindTx || s.First != checkout.KindPing || s.Query != "COMMIT" {
		t.Errorf("%+v", s)
	}
	f.during = nil
	for range 2 {
		if !c.(driver.Validator).IsValid() || rec.IsOut() || audits != 1 {
			t.Errorf("back: out %v, %d audits", rec.IsOut(), audits)
		}
	}
	f.during, want = func(call string) {
		if flags, _ := rec.Usage(); call == "stmt close" && flags != checkout.InCall|checkout.Closing {
			t.Errorf("a statement's closing in the pool: flags %b", flags)
		}
		if call == "close" && ledger.Len() != 1 {
			t.Error("the record is gone before the connection is closed, which database/sql counts")
		}
	}, 0
	if err := errors.Join(st.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if n := rec.Statements.Load(); n != 0 || ledger.Len() != 0 || f.bare.calls[len(f.bare.calls)-1] != "close" {
		t.Errorf("%d statements, %d records, calls %q", n, ledger.Len(), f.bare.calls)
	}
}

// TestLateClose: on a connection of ours, a statement that is closed in the pool is closed on
// the server when the connection is next taken, and a connection that did not survive that is
// replaced.
func TestLateClose(t *testing.T) {
	ctx := t.Context()
	cfg, _, err := pqconn.ParseDSN(pgtest.Erring(t))
	if err != nil {
		t.Fatal(err)
	}
	real, sock, err := pqconn.Connect(ctx, must(pqconn.NewConnector(cfg, time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	defer real.Close()
	for _, survives := range []bool{true, false} {
		f := newFull()
		clk := clock.New(10*time.Millisecond, func() bool { return false })
		defer clk.Stop()
		rec := checkout.NewLedger(clk, checkout.Config{}).Add(f, 0, sock)
		c := wrap.New(&wrap.Config{}, rec, f)
		rec.Take(ctx)
		st := must(c.Prepare(""))
		c.(driver.Validator).IsValid()
		if err := st.Close(); err != nil || slices.Contains(f.bare.calls, "stmt close") {
			t.Errorf("closed in the pool: %v, %q", err, f.bare.calls)
		}
		f.invalid = !survives
		err := c.(driver.SessionResetter).ResetSession(ctx)
		if !slices.Contains(f.bare.calls, "stmt close") || (err == nil) != survives || err != nil && err != driver.ErrBadConn {
			t.Errorf("taken again: %v, %q", err, f.bare.calls)
		}
	}
}

// TestRowsAgain: a wrapper of rows is used again once its connection has been in the pool,
// and not before; late calls on a closed one touch nobody else's rows.
func TestRowsAgain(t *testing.T) {
	ctx := t.Context()
	f := newFull()
	c, rec, _ := wrapped(t, wrap.Config{}, f)
	query := func() driver.Rows { return must(c.(driver.QueryerContext).QueryContext(ctx, "", nil)) }
	rec.Take(ctx)
	a := query()
	_ = a.Close()
	b := query()
	if a == b {
		t.Error("used again in the same checkout")
	}
	_ = a.Close()
	if flags, _ := rec.Usage(); flags&checkout.RowsOpen == 0 {
		t.Error("a second Close has closed other rows")
	}
	_ = b.Close()
	c.(driver.Validator).IsValid()
	n := len(f.bare.calls)
	if err := a.Close(); err != nil || a.Next(nil) != io.EOF || a.Columns() != nil || len(f.bare.calls) != n {
		t.Errorf("rows from before reach the driver: %q", f.bare.calls[n:])
	}
	rec.Take(ctx)
	if d := query(); d != a && d != b {
		t.Error("not used again")
	}
}

// TestPanic: a call that ended by a panic is not one in flight.
func TestPanic(t *testing.T) {
	f := newFull()
	c, rec, _ := wrapped(t, wrap.Config{}, f)
	rec.Take(t.Context())
	f.during = func(string) { panic("driver") }
	for name, call := range map[string]func(){
		"exec":  func() { _, _ = c.(driver.ExecerContext).ExecContext(t.Context(), "", nil) },
		"query": func() { _, _ = c.(driver.QueryerContext).QueryContext(t.Context(), "", nil) },
		"ping":  func() { _ = c.(driver.Pinger).Ping(t.Context()) },
		"begin": func() { _, _ = c.(driver.ConnBeginTx).BeginTx(t.Context(), driver.TxOptions{}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: the panic is gone", name)
				}
			}()
			call()
		}()
		if flags, _ := rec.Usage(); flags&checkout.InCall != 0 {
			t.Errorf("%s is still in flight", name)
		}
	}
}
