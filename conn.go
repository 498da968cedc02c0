package baldur

import (
	"context"
	"database/sql/driver"
	"errors"
	"reflect"
	"runtime"
	"time"
)

// The wrapped connection. database/sql finds out what a connection can do by
// asserting interfaces. Where having one has an answer that means the same as
// lacking it (driver.ErrSkip, nil, true), conn has it and gives that answer.
// Execer and Queryer have none: database/sql converts the arguments by the
// connection's rules before it hears ErrSkip. So a connection is of one of four
// types, a type for each combination of the two.
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
	rec     *record
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

	poisoned func(error) bool // see pqconn.Poisoned; may be nil
	bad      bool             // not to go back into the pool

	unclosed []driver.Stmt // closed by the program while the connection was not out; see stmt.Close

	free, used *rows // closed Rows: at hand, and of this checkout (see rows.go)
	tx         tx    // the first transaction of a checkout needs no allocation
	txUsed     bool
}

type (
	execConn  struct{ *conn }
	queryConn struct{ *conn }
	fullConn  struct{ *conn }
)

func newConn(rec *record, inner driver.Conn, poisoned func(error) bool) driver.Conn {
	c := &conn{rec: rec, inner: inner, poisoned: poisoned}
	_, c.wrapped = inner.(interface{ Raw() driver.Conn })
	// A wrapper in between, as otelsql's, has every interface. So the driver
	// itself is asked what it can do, and the wrapper does it.
	c.execCtx = both[driver.ExecerContext](inner, rec.inner)
	c.execer = both[driver.Execer](inner, rec.inner)
	c.queryCtx = both[driver.QueryerContext](inner, rec.inner)
	c.queryer = both[driver.Queryer](inner, rec.inner)
	c.preparer = both[driver.ConnPrepareContext](inner, rec.inner)
	c.beginner = both[driver.ConnBeginTx](inner, rec.inner)
	c.pinger = both[driver.Pinger](inner, rec.inner)
	c.resetter = both[driver.SessionResetter](inner, rec.inner)
	c.validator = both[driver.Validator](inner, rec.inner)
	c.checker = both[driver.NamedValueChecker](inner, rec.inner)
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

// both returns wrapper as a T, or T's zero value if it or the driver's own
// connection is none.
func both[T any](wrapper, innermost driver.Conn) T {
	if _, ok := innermost.(T); !ok {
		var none T
		return none
	}
	t, _ := wrapper.(T)
	return t
}

// embedded returns the T at the bottom of a wrapper's, which embeds it, for what
// the wrapper hides: otelsql's rows have no ColumnTypeScanType, and its statements
// no ColumnConverter. Without a wrapper between it returns v.
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

// Raw returns the connection that is wrapped. See [Unwrap].
func (c *conn) Raw() driver.Conn {
	c.rec.unwrapped()
	return c.inner
}

func (c *conn) record() *record { return c.rec }

// fail returns err as the caller is to see it, which is the driver's own value
// but for two cures.
func (c *conn) fail(ctx context.Context, first bool, err error) error {
	if c.rec.cut.Load() { // by the sweep: ctx had ended and the network was silent
		c.bad = true
		if e := ctx.Err(); e != nil {
			return e
		}
		return err
	}
	if first && c.poisoned != nil && c.poisoned(err) {
		// The driver refused before it wrote a byte, so that a retry is safe.
		c.bad = true
		return driver.ErrBadConn
	}
	return err
}

// ResetSession is where a pooled connection is seen to go out: on the holder's
// goroutine, with its ctx. Before the driver's own, in which the connection is
// out already, and stays so for ever if that panics. After ErrBadConn
// database/sql closes the connection at once; other errors it ignores.
func (c *conn) ResetSession(ctx context.Context) error {
	c.rec.take(ctx)
	if c.unclosed != nil && !c.closeStatements(ctx) {
		return driver.ErrBadConn
	}
	if c.resetter == nil {
		return nil
	}
	return c.resetter.ResetSession(ctx)
}

// closeStatements closes the statements that were closed while the connection
// was not out, and tells whether it has survived that.
func (c *conn) closeStatements(ctx context.Context) bool {
	c.rec.watch(ctx)
	c.rec.beginClose(flagClosing)
	defer c.rec.endClose()
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
	if valid && c.auditDue() {
		c.audit()
		valid = c.valid()
	}
	c.rec.give() // not before: it stays out for ever if the driver's panics
	if !valid {
		c.rec.closing() // which database/sql does next
	}
	c.recycleRows()
	if c.txUsed {
		c.txUsed, c.tx.ctx = false, context.Background() // an idle connection keeps no ctx alive
	}
	return valid
}

func (c *conn) valid() bool {
	return !c.bad && !c.rec.cut.Load() && (c.validator == nil || c.validator.IsValid())
}

// Close ends the connection. It is seen as a return where IsValid was skipped,
// as database/sql does after ErrBadConn.
func (c *conn) Close() error {
	c.rec.give()
	defer c.rec.t.remove(c.rec) // not before: until then database/sql counts it as in use
	c.rec.closing()
	c.unclosed = nil // the server forgets them with the connection
	if s := c.rec.sock; s != nil {
		// pq writes a Terminate message, which must not wait for ever on a
		// peer that has stopped reading.
		s.EndBy(time.Now().Add(c.rec.t.cfg.cancelGrace))
	}
	return c.inner.Close()
}

func (c *conn) Ping(ctx context.Context) error {
	if c.pinger == nil {
		return nil
	}
	first := c.rec.begin(ctx, kindPing, "")
	defer c.rec.end()
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
	first := c.rec.begin(ctx, kindExec, query)
	defer c.rec.end() // also when the driver panics: a stuck "in a call" would hide the leak that follows
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
	first := c.rec.begin(ctx, kindQuery, query)
	defer c.rec.end()
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
	first := c.rec.begin(ctx, kindStmt, query)
	defer c.rec.end()
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
	first := c.rec.begin(ctx, kindTx, "")
	defer c.rec.end()
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
	// A question of a microsecond, for drivers that lack one of the two only.
	t.onConn = !c.keepOnRollback() && ctx.Done() != nil && calledBy("database/sql.(*Conn).BeginTx")
	c.rec.flags |= flagInTx
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
	t.c.rec.begin(t.ctx, kindTx, "COMMIT")
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
	t.c.rec.begin(t.ctx, kindTx, "ROLLBACK")
	t.c.rec.beginClose(flagRollback)
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
	t.c.rec.flags &^= flagInTx
	t.c.rec.end()
}
