package transparency

import (
	"context"
	"database/sql/driver"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"
	"sync"
)

// A spy is a driver that writes down every call, with its arguments and the
// state of its ctx, and can be told what a call is to do. What its connections,
// statements and rows are able to do is chosen from the tables in
// caps.go, so the methods for it are on types of their own.
type spy struct {
	caps caps

	mu     sync.Mutex // guards the fields below
	log    []string
	conns  int
	armed  map[string]string // what the next such call does: a name from faults, "panic" or "cancel"
	cancel func()            // for "cancel"
	skip   bool              // Exec and Query of a connection return ErrSkip
	loose  bool              // NumInput is -1
	noRows bool              // queries return nil and no error
}

var (
	errDriver  = &driverError{"the driver's own"}
	errBadWrap = fmt.Errorf("connection reset: %w", driver.ErrBadConn)
)

type driverError struct{ text string }

func (e *driverError) Error() string { return e.text }

// faults are the errors that a driver's call may return. database/sql gives
// many of them a meaning, in some places.
var faults = map[string]error{
	"error":    errDriver,
	"bad":      driver.ErrBadConn,
	"badwrap":  errBadWrap,
	"skip":     driver.ErrSkip,
	"remove":   driver.ErrRemoveArgument,
	"eof":      io.EOF,
	"canceled": context.Canceled,
}

func (s *spy) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf(format, args...))
}

// call notes a call and does what it was told for this kind of call.
func (s *spy) call(kind, format string, args ...any) error {
	s.note("    "+format, args...)
	s.mu.Lock()
	fault, cancel := s.armed[kind], s.cancel
	delete(s.armed, kind)
	s.mu.Unlock()
	switch fault {
	case "panic":
		panic("spy: panic in " + kind)
	case "cancel":
		cancel()
	}
	return faults[fault]
}

type ctxKey struct{}

// about tells which ctx it is and whether it has ended.
func about(ctx context.Context) string {
	_, deadline := ctx.Deadline()
	return fmt.Sprintf("ctx %v %v %v", ctx.Value(ctxKey{}), deadline, ctx.Err())
}

func named(args []driver.NamedValue) string {
	var b strings.Builder
	for _, a := range args {
		fmt.Fprintf(&b, " %d:%s=%#v", a.Ordinal, a.Name, a.Value)
	}
	return b.String()
}

// odd is an argument that database/sql cannot convert, and who can: "conn" or
// "stmt" (by their CheckNamedValue), "column" (ColumnConverter); "remove" is
// taken out by whoever sees it first.
type odd struct{ who string }

func (s *spy) check(who string, nv *driver.NamedValue) error {
	if err := s.call(who+" check", "%s.CheckNamedValue %d:%s=%#v", who, nv.Ordinal, nv.Name, nv.Value); err != nil {
		return err
	}
	switch v, _ := nv.Value.(odd); v.who {
	case who:
		nv.Value = "converted by " + who
		return nil
	case "remove":
		return driver.ErrRemoveArgument
	case "error":
		return errDriver
	}
	return driver.ErrSkip
}

// SpyConn, SpyStmt and SpyRows are what each connection, statement and rows can do.
type SpyConn struct {
	s       *spy
	id      int
	txs     int
	queries int
}

func (s *spy) connect(ctx context.Context) (driver.Conn, error) {
	if err := s.call("connect", "Connect %s", about(ctx)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.conns++
	c := &SpyConn{s: s, id: s.conns}
	s.mu.Unlock()
	return build(connTypes[s.caps.conn], c).(driver.Conn), nil
}

func (c *SpyConn) ID() int { return c.id }

func (c *SpyConn) call(kind, format string, args ...any) error {
	return c.s.call(kind, fmt.Sprintf("conn%d.", c.id)+format, args...)
}

func (c *SpyConn) Close() error { return c.call("close", "Close") }

func (c *SpyConn) Prepare(query string) (driver.Stmt, error) {
	return c.prepared(query, c.call("prepare", "Prepare %s", query))
}

func (c *SpyConn) prepared(query string, err error) (driver.Stmt, error) {
	if err != nil {
		return nil, err
	}
	return build(stmtTypes[c.s.caps.stmt], &SpyStmt{c, query}).(driver.Stmt), nil
}

func (c *SpyConn) Begin() (driver.Tx, error) { return c.begun(c.call("begin", "Begin")) }

func (c *SpyConn) begun(err error) (driver.Tx, error) {
	if err != nil {
		return nil, err
	}
	c.txs++
	return spyTx{c, c.txs}, nil
}

func (c *SpyConn) result(skip bool, err error) (driver.Result, error) {
	if err == nil && skip && c.s.skip {
		err = driver.ErrSkip
	}
	if err != nil {
		return nil, err
	}
	return spyResult{c}, nil
}

func (c *SpyConn) rows(skip bool, err error) (driver.Rows, error) {
	if err == nil && skip && c.s.skip {
		err = driver.ErrSkip
	}
	if err != nil {
		return nil, err
	}
	if c.s.noRows {
		return nil, nil
	}
	c.queries++
	return build(rowsTypes[c.s.caps.rows], &SpyRows{c: c, id: c.queries, left: 2}).(driver.Rows), nil
}

type spyTx struct {
	c  *SpyConn
	id int
}

func (t spyTx) Commit() error   { return t.c.call("commit", "tx%d.Commit", t.id) }
func (t spyTx) Rollback() error { return t.c.call("rollback", "tx%d.Rollback", t.id) }

type spyResult struct{ c *SpyConn }

func (r spyResult) LastInsertId() (int64, error) { return 7, r.c.call("last id", "LastInsertId") }
func (r spyResult) RowsAffected() (int64, error) { return 3, r.c.call("affected", "RowsAffected") }

// What only some connections can do.
type (
	HasExec       SpyConn
	HasExecCtx    SpyConn
	HasQuery      SpyConn
	HasQueryCtx   SpyConn
	HasPrepareCtx SpyConn
	HasBeginTx    SpyConn
	HasPing       SpyConn
	HasReset      SpyConn
	HasValid      SpyConn
	HasCheck      SpyConn
)

func (p *HasExec) Exec(query string, args []driver.Value) (driver.Result, error) {
	c := (*SpyConn)(p)
	return c.result(true, c.call("exec", "Exec %s %#v", query, args))
}

func (p *HasExecCtx) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c := (*SpyConn)(p)
	return c.result(true, c.call("exec", "ExecContext %s %s%s", about(ctx), query, named(args)))
}

func (p *HasQuery) Query(query string, args []driver.Value) (driver.Rows, error) {
	c := (*SpyConn)(p)
	return c.rows(true, c.call("query", "Query %s %#v", query, args))
}

func (p *HasQueryCtx) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c := (*SpyConn)(p)
	return c.rows(true, c.call("query", "QueryContext %s %s%s", about(ctx), query, named(args)))
}

func (p *HasPrepareCtx) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	c := (*SpyConn)(p)
	return c.prepared(query, c.call("prepare", "PrepareContext %s %s", about(ctx), query))
}

func (p *HasBeginTx) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	c := (*SpyConn)(p)
	return c.begun(c.call("begin", "BeginTx %s %+v", about(ctx), opts))
}

func (p *HasPing) Ping(ctx context.Context) error {
	return (*SpyConn)(p).call("ping", "Ping %s", about(ctx))
}

func (p *HasReset) ResetSession(ctx context.Context) error {
	return (*SpyConn)(p).call("reset", "ResetSession %s", about(ctx))
}

func (p *HasValid) IsValid() bool { return (*SpyConn)(p).call("valid", "IsValid") == nil }

func (p *HasCheck) CheckNamedValue(nv *driver.NamedValue) error { return p.s.check("conn", nv) }

type SpyStmt struct {
	c     *SpyConn
	query string
}

func (st *SpyStmt) Close() error { return st.c.call("stmt close", "stmt.Close %s", st.query) }

func (st *SpyStmt) NumInput() int {
	_ = st.c.call("inputs", "stmt.NumInput %s", st.query)
	if st.c.s.loose {
		return -1
	}
	return strings.Count(st.query, "?")
}

func (st *SpyStmt) Exec(args []driver.Value) (driver.Result, error) {
	return st.c.result(false, st.c.call("stmt exec", "stmt.Exec %#v", args))
}

func (st *SpyStmt) Query(args []driver.Value) (driver.Rows, error) {
	return st.c.rows(false, st.c.call("stmt query", "stmt.Query %#v", args))
}

// What only some statements can do.
type (
	HasStmtExecCtx  SpyStmt
	HasStmtQueryCtx SpyStmt
	HasStmtCheck    SpyStmt
	HasColumn       SpyStmt
)

func (p *HasStmtExecCtx) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return p.c.result(false, p.c.call("stmt exec", "stmt.ExecContext %s%s", about(ctx), named(args)))
}

func (p *HasStmtQueryCtx) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return p.c.rows(false, p.c.call("stmt query", "stmt.QueryContext %s%s", about(ctx), named(args)))
}

func (p *HasStmtCheck) CheckNamedValue(nv *driver.NamedValue) error { return p.c.s.check("stmt", nv) }

func (p *HasColumn) ColumnConverter(i int) driver.ValueConverter {
	_ = p.c.call("column", "stmt.ColumnConverter %d", i)
	return columnConverter{}
}

type columnConverter struct{}

func (columnConverter) ConvertValue(v any) (driver.Value, error) {
	if v == (odd{"column"}) {
		return "converted by column", nil
	}
	return driver.DefaultParameterConverter.ConvertValue(v)
}

type SpyRows struct {
	c    *SpyConn
	id   int
	left int // rows in this set
	sets int // read before this one
}

func (r *SpyRows) Columns() []string {
	_ = r.c.call("columns", "rows.Columns")
	return []string{"id", "set"}
}

func (r *SpyRows) Close() error { return r.c.call("rows close", "rows%d.Close", r.id) }

func (r *SpyRows) Next(dest []driver.Value) error {
	if err := r.c.call("next", "rows%d.Next", r.id); err != nil {
		return err
	}
	if r.left == 0 {
		return io.EOF
	}
	r.left--
	dest[0], dest[1] = int64(r.c.id), []byte{byte(r.sets)}
	return nil
}

// What only some rows can do.
type (
	HasNextSet   SpyRows
	HasScanType  SpyRows
	HasTypeName  SpyRows
	HasLength    SpyRows
	HasNullable  SpyRows
	HasPrecision SpyRows
)

func (p *HasNextSet) HasNextResultSet() bool {
	_ = p.c.call("has next set", "rows.HasNextResultSet")
	return p.sets < 2
}

func (p *HasNextSet) NextResultSet() error {
	if err := p.c.call("next set", "rows.NextResultSet"); err != nil {
		return err
	}
	if p.sets == 2 {
		return io.EOF
	}
	p.sets++
	p.left = 1
	return nil
}

func (p *HasScanType) ColumnTypeScanType(i int) reflect.Type   { return reflect.TypeFor[error]() }
func (p *HasTypeName) ColumnTypeDatabaseTypeName(i int) string { return fmt.Sprint("TYPE", i) }
func (p *HasLength) ColumnTypeLength(i int) (int64, bool)      { return math.MaxInt64, i == 0 }
func (p *HasNullable) ColumnTypeNullable(i int) (bool, bool)   { return i == 0, true }
func (p *HasPrecision) ColumnTypePrecisionScale(i int) (int64, int64, bool) {
	_ = p.c.call("types", "rows.ColumnTypePrecisionScale")
	return 9, 2, true
}
