// Package wrap is a driver's connection, statements, rows and transactions with a
// record of their use. A program notices no difference.
package wrap

import (
	"context"
	"database/sql/driver"
	"errors"
	"reflect"
	"runtime"
	"time"

	"github.com/baldur-go/baldur/internal/checkout"
)

// The wrapped connection. database/sql finds out what a connection can do by
// asserting interfaces. Where an interface has an answer that means the same as
// lacking it (driver.ErrSkip, nil, true), conn implements it and gives that answer.
// Execer and Queryer have no such answer: database/sql converts the arguments by the
// connection's rules before it sees ErrSkip. So a connection is of one of four
// types, one for each combination of the two.
var (
	_ driver.Conn               = (*conn)(nil)
	_ driver.ConnPrepareContext = (*conn)(nil)
	_ driver.ConnBeginTx        = (*conn)(nil)
	_ driver.Pinger             = (*conn)(nil)
	_ driver.SessionResetter    = (*conn)(nil) // sees a checkout
	_ driver.Validator          = (*conn)(nil) // sees a checkin
	_ driver.NamedValueChecker  = (*conn)(nil)
	_ driver.ExecerContext      = execConn{}
	_ driver.QueryerContext     = queryConn{}
	_ driver.ExecerContext      = fullConn{}
	_ driver.QueryerContext     = fullConn{}

	// Absent: driver.Execer and driver.Queryer, which database/sql tries only
	// where the Context forms are missing; driver.ColumnConverter, which is a
	// statement's.
)

type conn struct {
	cfg     *Config
	rec     *checkout.Record
	inner   driver.Conn
	wrapped bool // inner is a wrapper itself

	// What inner can do, asserted once; nil where it cannot.
	execCtx   driver.ExecerContext
	execer    driver.Execer // deprecated, but drivers of before Go 1.8 have no other
	queryCtx  driver.QueryerContext
	queryer   driver.Queryer
	preparer  driver.ConnPrepareContext
	beginner  driver.ConnBeginTx
	pinger    driver.Pinger
	resetter  driver.SessionResetter
	validator driver.Validator
	checker   driver.NamedValueChecker

	bad bool // not to go back into the pool

	unclosed []driver.Stmt // closed by the program while the connection was not out: see stmt.Close

	free, used *rows // closed Rows: at hand, and of this checkout (see rows)
	tx         tx    // the first transaction of a checkout needs no allocation
	txUsed     bool
}

type (
	execConn  struct{ *conn }
	queryConn struct{ *conn }
	fullConn  struct{ *conn }
)

// A Config is what the connections of a pool have in common.
type Config struct {
	// Poisoned tells an error after which the connection is useless, and which the
	// driver gave before it sent anything. May be nil.
	Poisoned func(error) bool

	// Audit looks at a connection that is out and about to come back. May be nil.
	Audit func(rec *checkout.Record, query func(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error))
}

// New wraps inner, which is rec.Inner or a wrapper around it.
func New(cfg *Config, rec *checkout.Record, inner driver.Conn) driver.Conn {
	c := &conn{cfg: cfg, rec: rec, inner: inner}
	_, c.wrapped = inner.(interface{ Raw() driver.Conn })
	// A wrapper in between, as otelsql's, has every interface. So the driver
	// itself is asked what it can do, and the wrapper does it.
	c.execCtx = both[driver.ExecerContext](inner, rec.Inner)
	c.execer = both[driver.Execer](inner, rec.Inner)
	c.queryCtx = both[driver.QueryerContext](inner, rec.Inner)
	c.queryer = both[driver.Queryer](inner, rec.Inner)
	c.preparer = both[driver.ConnPrepareContext](inner, rec.Inner)
	c.beginner = both[driver.ConnBeginTx](inner, rec.Inner)
	c.pinger = both[driver.Pinger](inner, rec.Inner)
	c.resetter = both[driver.SessionResetter](inner, rec.Inner)
	c.validator = both[driver.Validator](inner, rec.Inner)
	c.checker = both[driver.NamedValueChecker](inner, rec.Inner)
	hasExec, hasQuery := c.execCtx != nil || c.execer != nil, c.queryCtx != nil || c.queryer != nil
	switch {
	case hasExec && hasQuery:
		return fullConn{c}
	case hasExec:
		return execConn{c}
	case hasQuery:
		return queryConn{c}
	}
	return c
}

// both returns wrapper as a T, or T's zero value unless it and the driver's own
// connection both are one.
func both[T any](wrapper, innermost driver.Conn) T {
	if _, ok := innermost.(T); !ok {
		var none T
		return none
	}
	t, _ := wrapper.(T)
	return t
}

// embedded returns the T at the bottom of a wrapper's v, which embeds it, for what
// the wrapper hides: otelsql's rows have no ColumnTypeScanType, and its statements
// no ColumnConverter. Where there is no wrapper it returns v.
func embedded[T any](c *conn, v T, name string) T {
	for c.wrapped {
		e := reflect.Indirect(reflect.ValueOf(v))
		if e.Kind() != reflect.Struct {
			break
		}
		f := e.FieldByName(name)
		if !f.IsValid() || f.Type() != reflect.TypeFor[T]() || !f.CanInterface() || f.IsNil() {
			break
		}
		v = f.Interface().(T)
	}
	return v
}

// Raw returns the connection that is wrapped. See baldur.Unwrap.
func (c *conn) Raw() driver.Conn {
	c.rec.HandOut()
	return c.inner
}

func (c *conn) self() *conn { return c }

// RecordOf returns the record of a connection that New has made, else nil.
func RecordOf(c driver.Conn) *checkout.Record {
	if own, ok := c.(interface{ self() *conn }); ok {
		return own.self().rec
	}
	return nil
}

// Inner returns what such a connection wraps, without a record of it.
func Inner(c driver.Conn) driver.Conn { return c.(interface{ self() *conn }).self().inner }

// fail returns err as the caller gets it: the driver's own value, except in two
// cases that are mended.
func (c *conn) fail(ctx context.Context, first bool, err error) error {
	if c.rec.WasCut() { // its ctx had ended and the network was silent
		c.bad = true
		if e := ctx.Err(); e != nil {
			return e
		}
		return err
	}
	if first && c.cfg.Poisoned != nil && c.cfg.Poisoned(err) {
		// The driver refused before it wrote a byte, so that a retry is safe.
		c.bad = true
		return driver.ErrBadConn
	}
	return err
}

// ResetSession is where a pooled connection is seen to go out: on the holder's
// goroutine, with its ctx. That is noted before the driver's own ResetSession runs,
// since the connection is out already, and stays out for ever if that panics. After
// ErrBadConn database/sql closes the connection at once; it ignores other errors.
func (c *conn) ResetSession(ctx context.Context) error {
	c.rec.Take(ctx)
	if c.unclosed != nil && !c.closeStatements() {
		return driver.ErrBadConn
	}
	if c.resetter == nil {
		return nil
	}
	return c.resetter.ResetSession(ctx)
}

// closeStatements closes the statements that the program has closed while the
// connection was not out, and tells whether the connection survived that.
func (c *conn) closeStatements() bool {
	c.rec.BeginClose(checkout.Closing)
	defer c.rec.EndClose()
	for _, st := range c.unclosed {
		_ = st.Close() // an error that matters is the connection's
	}
	c.unclosed = nil
	return c.valid()
}

// IsValid is where a connection is seen to come back. database/sql may call it
// twice for one return.
func (c *conn) IsValid() bool {
	valid := c.valid()
	if valid && c.cfg.Audit != nil && c.rec.IsOut() { // it is not in the second IsValid of a return
		c.cfg.Audit(c.rec, c.queryContext)
		valid = c.valid()
	}
	c.rec.Give() // not before: it stays out for ever if the driver's IsValid panics
	if !valid {
		c.rec.Discard() // which database/sql does next
	}
	c.recycleRows()
	if c.txUsed {
		c.txUsed, c.tx.ctx = false, context.Background() // an idle connection keeps no ctx alive
	}
	return valid
}

func (c *conn) valid() bool {
	return !c.bad && !c.rec.WasCut() && (c.validator == nil || c.validator.IsValid())
}

// Close ends the connection. It is seen as a return where IsValid was skipped,
// as database/sql does after ErrBadConn.
func (c *conn) Close() error {
	c.rec.Give()
	defer c.rec.Closed() // not before: until then database/sql counts it as in use
	c.rec.Discard()
	c.unclosed = nil // the server forgets them with the connection
	if s := c.rec.Sock; s != nil {
		// pq writes a Terminate message, which must not wait for ever on a
		// peer that has stopped reading.
		s.EndBy(time.Now().Add(c.rec.Grace()))
	}
	return c.inner.Close()
}

func (c *conn) Ping(ctx context.Context) error {
	if c.pinger == nil {
		return nil
	}
	first := c.rec.Begin(ctx, checkout.KindPing, "")
	defer c.rec.End()
	if err := c.pinger.Ping(ctx); err != nil {
		return c.fail(ctx, first, err)
	}
	return nil
}

func (c *conn) CheckNamedValue(nv *driver.NamedValue) error {
	if c.checker == nil {
		return driver.ErrSkip // database/sql goes on with its default
	}
	return c.checker.CheckNamedValue(nv)
}

func (c execConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.execContext(ctx, query, args)
}

func (c fullConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.execContext(ctx, query, args)
}

func (c queryConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.queryContext(ctx, query, args)
}

func (c fullConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.queryContext(ctx, query, args)
}

func (c *conn) execContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	first := c.rec.Begin(ctx, checkout.KindExec, query)
	defer c.rec.End() // also when the driver panics: a stuck "in a call" would hide the leak that follows
	if c.execCtx != nil {
		res, err = c.execCtx.ExecContext(ctx, query, args)
	} else if values, e := plainValues(ctx, args); e != nil {
		return nil, e
	} else {
		res, err = c.execer.Exec(query, values)
	}
	if err != nil {
		return res, c.fail(ctx, first, err)
	}
	return res, nil
}

func (c *conn) queryContext(ctx context.Context, query string, args []driver.NamedValue) (rs driver.Rows, err error) {
	first := c.rec.Begin(ctx, checkout.KindQuery, query)
	defer c.rec.End()
	if c.queryCtx != nil {
		rs, err = c.queryCtx.QueryContext(ctx, query, args)
	} else if values, e := plainValues(ctx, args); e != nil {
		return nil, e
	} else {
		rs, err = c.queryer.Query(query, values)
	}
	if err != nil {
		return rs, c.fail(ctx, first, err)
	}
	return c.wrapRows(ctx, rs, false), nil
}

// Prepare is driver.Conn's; database/sql calls PrepareContext.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) PrepareContext(ctx context.Context, query string) (st driver.Stmt, err error) {
	first := c.rec.Begin(ctx, checkout.KindStmt, query)
	defer c.rec.End()
	if c.preparer != nil {
		st, err = c.preparer.PrepareContext(ctx, query)
	} else if st, err = c.inner.Prepare(query); err == nil && ctx.Err() != nil {
		_ = st.Close() // as database/sql does
		return nil, ctx.Err()
	}
	if err != nil {
		return st, c.fail(ctx, first, err)
	}
	return c.wrapStmt(st, query), nil
}

// Begin is driver.Conn's; database/sql calls BeginTx.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	first := c.rec.Begin(ctx, checkout.KindTx, "")
	defer c.rec.End()
	inner, err := c.begin(ctx, opts)
	if err != nil {
		return nil, c.fail(ctx, first, err)
	}
	t := &c.tx
	if c.txUsed {
		t = new(tx)
	}
	c.txUsed = true
	*t = tx{c: c, inner: inner, ctx: ctx}
	// This costs a microsecond, only for drivers that lack one of the two.
	t.onConn = !c.keepOnRollback() && ctx.Done() != nil && calledBy("database/sql.(*Conn).BeginTx")
	c.rec.SetTx(true)
	return t, nil
}

// begin does for a driver without BeginTx what database/sql does for one
// (ctxDriverBegin in ctxutil.go): it refuses what Begin cannot ask for.
func (c *conn) begin(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.beginner != nil {
		return c.beginner.BeginTx(ctx, opts)
	}
	if opts.Isolation != 0 {
		return nil, errors.New("sql: driver does not support non-default isolation level")
	}
	if opts.ReadOnly {
		return nil, errors.New("sql: driver does not support read-only transactions")
	}
	t, err := c.inner.Begin() // the driver has no other
	if err == nil && ctx.Err() != nil {
		_ = t.Rollback()
		return nil, ctx.Err()
	}
	return t, err
}

// plainValues does for a driver without the Context form what database/sql
// does for one (namedValueToValue and its callers in ctxutil.go).
func plainValues(ctx context.Context, named []driver.NamedValue) ([]driver.Value, error) {
	values := make([]driver.Value, len(named))
	for i, nv := range named {
		if nv.Name != "" {
			return nil, errors.New("sql: driver does not support the use of Named Parameters")
		}
		values[i] = nv.Value
	}
	return values, ctx.Err()
}

type tx struct {
	c      *conn
	inner  driver.Tx
	ctx    context.Context // of BeginTx
	onConn bool            // begun on a sql.Conn; noted only where it matters: see Rollback
}

func (t *tx) Commit() error {
	t.c.rec.Begin(t.ctx, checkout.KindTx, "COMMIT")
	defer t.ended()
	if err := t.inner.Commit(); err != nil {
		return t.c.fail(t.ctx, false, err)
	}
	return nil
}

// Rollback also does what database/sql does to the connection of a transaction
// whose ctx has ended, unless that has both a SessionResetter and a Validator
// (keepConnOnRollback in sql.go): it discards it, and closes the sql.Conn that
// it belongs to. We always have both; inner may not. One thing is not as there:
// on a sql.Conn, the transaction's own statements are not closed before the
// connection is.
func (t *tx) Rollback() error {
	t.c.rec.Begin(t.ctx, checkout.KindTx, "ROLLBACK")
	t.c.rec.BeginClose(checkout.Rollback)
	defer t.ended()
	discard := !t.c.keepOnRollback() && t.ctx.Err() != nil && !calledBy("database/sql.(*Tx).Rollback")
	if discard {
		t.c.bad = true
	}
	err := t.inner.Rollback()
	if discard && t.onConn {
		return driver.ErrBadConn // seen by database/sql only
	}
	if err != nil {
		return t.c.fail(t.ctx, false, err)
	}
	return nil
}

func (c *conn) keepOnRollback() bool { return c.resetter != nil && c.validator != nil }

// CalledByPool tells whether Connect was called for the goroutine that it runs on.
// Where the pool was full, database/sql's connectionOpener calls it, for whoever has
// waited longest: the holder is not known before the first use.
func CalledByPool() bool { return calledBy("database/sql.(*DB).conn") }

// calledBy tells whether a function is on the stack.
func calledBy(function string) bool {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if f.Function == function {
			return true
		}
		if !more {
			return false
		}
	}
}

func (t *tx) ended() {
	t.c.rec.SetTx(false)
	t.c.rec.End()
}
