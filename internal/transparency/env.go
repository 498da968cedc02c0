package transparency

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/baldur-go/baldur"
)

// An env runs a script of operations on a pool and writes down what each
// returns, in one log with what the driver is called for.
type env struct {
	*spy
	db      *sql.DB
	tracker *baldur.Tracker // nil: bare
	bubble  bool            // runs in a synctest bubble

	ctx      context.Context
	last     opCtx   // of the last operation
	live     []opCtx // not ended by cancelAll
	args     []any
	query    string
	opts     *sql.TxOptions
	ctxs     int
	stats    sql.DBStats
	cleanups []func()
	busy     []func() // closes what is open on conn
	broken   []string // of the tracker's accounting

	// The newest of each kind.
	conn *sql.Conn
	tx   *sql.Tx
	stmt *sql.Stmt
	rows *sql.Rows

	rowsCtx, txCtx opCtx
	outer          *sql.Tx // the one before tx
	stmtOn         target  // stmt's
	txRows         func()  // closes those of tx
	lost           int
	txOnConn       bool // tx is on conn and its ctx can end: its own statements are known to differ, see tx.Rollback in internal/wrap
}

type spyConnector struct{ s *spy }

func (c spyConnector) Connect(ctx context.Context) (driver.Conn, error) { return c.s.connect(ctx) }
func (c spyConnector) Driver() driver.Driver                            { return spyDriver{} }

type closingConnector struct{ spyConnector }

func (c closingConnector) Close() error { return c.s.call("connector close", "connector.Close") }

type spyDriver struct{}

func (spyDriver) Open(string) (driver.Conn, error) { return nil, errDriver }

// play runs a script against a pool of a driver and returns the log, and what is
// wrong with the tracker's accounting, if there is one.
func play(c caps, open func(driver.Connector) *sql.DB, bubble bool, script []string) (log, broken []string) {
	e := &env{spy: &spy{caps: c, armed: map[string]string{}}, bubble: bubble, ctx: context.Background(), query: "q"}
	var inner driver.Connector = spyConnector{e.spy}
	if c.closer {
		inner = closingConnector{spyConnector{e.spy}}
	}
	e.db = open(inner)
	e.tracker = baldur.TrackerOf(e.db)
	e.spy.cancel = func() {}
	for _, op := range script {
		e.do(op)
	}
	e.note("> end")
	maps.DeleteFunc(e.armed, func(call, _ string) bool { return call != "connector close" })
	for _, f := range slices.Backward(e.cleanups) {
		f()
		e.wait()
	}
	e.note("db.Close: %s, %s", errText(e.db.Close()), errText(e.db.Close()))
	e.wait()
	return e.log, e.broken
}

// wait waits until database/sql's goroutines have done what they can.
func (e *env) wait() {
	if e.bubble {
		synctest.Wait()
	}
}

// rowsErr tells Rows.Err. Without wait there is a race for it in database/sql,
// between the closing of rows and the end of their transaction.
func (e *env) rowsErr() string {
	if !e.bubble {
		return "unknown"
	}
	return errText(e.rows.Err())
}

func (e *env) do(op string) {
	e.note("> %s", op)
	word, rest, _ := strings.Cut(op, " ")
	f := ops[word]
	if f == nil {
		panic("no such operation: " + op)
	}
	func() {
		defer func() {
			if p := recover(); p != nil {
				e.note("panic: %v", p)
				if p == "spy: panic in connect" {
					e.lost++ // database/sql counts it as open, for ever
				}
				// database/sql may have left a lock behind: only the pool is used from now on.
				e.conn, e.tx, e.stmt, e.rows, e.cleanups, e.busy = nil, nil, nil, nil, nil, nil
			}
		}()
		f(e, rest)
	}()
	e.wait()
	stats := e.db.Stats()
	stats.WaitDuration = 0
	if stats != e.stats {
		e.stats = stats
		e.note("%+v", stats)
	}
	if e.tracker != nil {
		holders := e.tracker.Holders()
		if n := len(holders) + e.lost; n != stats.InUse {
			e.broken = append(e.broken, fmt.Sprintf("after %q: %d are in use, tracked are %d", op, stats.InUse, n))
		}
		for _, h := range holders {
			if h.State == baldur.StateInCall {
				e.broken = append(e.broken, fmt.Sprintf("after %q: there is no call in flight, but one is seen: %s", op, h.QueryInfo))
			}
		}
	}
}

type knownError struct {
	name string
	err  error
}

var knownErrors = func() (known []knownError) {
	for name, err := range faults {
		known = append(known, knownError{name, err})
	}
	slices.SortFunc(known, func(a, b knownError) int { return strings.Compare(a.name, b.name) })
	return append(known, knownError{"ErrNoRows", sql.ErrNoRows}, knownError{"ErrTxDone", sql.ErrTxDone},
		knownError{"ErrConnDone", sql.ErrConnDone}, knownError{"the valuer's", errValuer})
}()

// errText tells an error by identity where it is a known one, else by type and
// text, and what errors.Is makes of it.
func errText(err error) string {
	if err == nil {
		return "ok"
	}
	var is []string
	for _, k := range knownErrors {
		if err == k.err {
			return k.name
		}
		if errors.Is(err, k.err) {
			is = append(is, k.name)
		}
	}
	return fmt.Sprintf("%T %q %q", err, err, is)
}

type valuer struct {
	v   driver.Value
	err error
}

func (v valuer) Value() (driver.Value, error) { return v.v, v.err }

var errValuer = errors.New("the valuer's own")

// argSets are arguments, by name.
var argSets = map[string][]any{
	"none":      nil,
	"plain":     {1, "a", nil, 2.5, true, []byte{1}},
	"time":      {time.Unix(0, 0).UTC()},
	"conn":      {1, odd{"conn"}},
	"stmt":      {odd{"stmt"}, 2},
	"column":    {odd{"column"}},
	"nobody":    {odd{"nobody"}},
	"error":     {odd{"error"}},
	"all":       {odd{"conn"}, odd{"stmt"}, odd{"column"}},
	"remove":    {odd{"remove"}},
	"removed":   {1, odd{"remove"}, "x"},
	"named":     {sql.Named("n", 1), 2},
	"namedodd":  {sql.Named("n", odd{"conn"}), sql.Named("m", odd{"stmt"})},
	"badname":   {sql.Named("1", 1)},
	"valuer":    {valuer{v: int64(5)}},
	"valuererr": {valuer{err: errValuer}},
	"valuerodd": {valuer{v: odd{"column"}}},
	"uint64":    {uint64(math.MaxUint64)},
	"slice":     {[]string{"a"}},
}

// target is what can be queried.
type target interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
	PrepareContext(context.Context, string) (*sql.Stmt, error)
}

// on returns the target that is asked for if it is open, else the pool.
func (e *env) on(name string) target {
	switch {
	case name == "tx" && e.tx != nil:
		return e.tx
	case name == "conn" && e.conn != nil:
		e.free()
		return e.conn
	}
	return e.db
}

// free closes what is open on the connection: sql.Conn closes itself after
// ErrBadConn and waits for that first, so the script would wait for itself.
func (e *env) free() {
	for _, f := range e.busy {
		f()
		e.wait() // a call may have ended the ctx of another transaction
	}
	e.busy = nil
}

// freeTx closes the open rows of the transaction if it is the target: two of
// them would race to close themselves at its end.
func (e *env) freeTx(t target) {
	if e.tx != nil && t == e.tx && e.txRows != nil {
		e.txRows()
		e.wait()
		e.txRows = nil
	}
}

func (e *env) cleanup(f func()) { e.cleanups = append(e.cleanups, f) }

// says notes what an operation returned, once nothing goes on beside the script.
func (e *env) says(err error) {
	e.wait()
	e.note("%s", errText(err))
}

func (e *env) result(r sql.Result, err error) {
	e.says(err)
	if err == nil {
		id, err := r.LastInsertId()
		n, err2 := r.RowsAffected()
		e.note("%d %s, %d %s", id, errText(err), n, errText(err2))
	}
}

func (e *env) opened(on target, rows *sql.Rows, err error) {
	e.says(err)
	if err == nil {
		e.rows, e.rowsCtx = rows, e.last
		end := func() { e.note("rows.Close: %s", errText(rows.Close())) }
		e.cleanup(end)
		if _, ok := on.(*sql.Conn); ok {
			e.busy = append(e.busy, end)
		}
		if on == e.tx {
			e.txRows = end
		}
	}
}

func (e *env) scanned(row *sql.Row) {
	e.wait()
	var id, set any
	err := row.Scan(&id, &set)
	e.note("%v %v %s, Err %s", id, set, errText(err), errText(row.Err()))
}

func (e *env) prepared(on target, stmt *sql.Stmt, err error) {
	e.says(err)
	if err == nil {
		e.stmt, e.stmtOn = stmt, on
		e.cleanup(func() { e.note("stmt.Close: %s", errText(stmt.Close())) })
	}
}

func (e *env) next() bool {
	ok := e.rows.Next()
	e.wait()
	e.note("Next %v, Err %s", ok, e.rowsErr())
	if ok {
		var id, set any
		e.note("Scan %s: %v %v", errText(e.rows.Scan(&id, &set)), id, set)
	}
	return ok
}

// raw uses the driver's connection as a program may: by Unwrap, and by the
// interfaces that the driver has.
func (e *env) raw(how string) {
	if e.conn == nil {
		return
	}
	e.free()
	e.note("%s", errText(e.conn.Raw(func(dc any) error {
		inner := baldur.Unwrap(dc.(driver.Conn))
		e.note("conn%d", inner.(interface{ ID() int }).ID())
		switch how {
		case "panic":
			panic("in Raw")
		case "error":
			return errDriver
		case "bad":
			return driver.ErrBadConn
		}
		if _, ok := inner.(driver.Pinger); ok {
			e.note("Ping %s", errText(dc.(driver.Pinger).Ping(e.opCtx(nil))))
		}
		if _, ok := inner.(driver.ExecerContext); ok {
			_, err := dc.(driver.ExecerContext).ExecContext(e.opCtx(nil), "raw", nil)
			e.note("ExecContext %s", errText(err))
		}
		if q, ok := dc.(driver.QueryerContext); ok {
			if _, ok := inner.(driver.QueryerContext); ok {
				e.rawRows(q)
			}
		}
		return io.EOF
	})))
}

// rawRows reads several rows of one connection at a time, and closes some twice.
func (e *env) rawRows(q driver.QueryerContext) {
	var open []driver.Rows
	query := func() bool {
		rows, err := q.QueryContext(e.opCtx(nil), "raw", nil)
		e.note("QueryContext %s", errText(err))
		if err == nil {
			open = append(open, rows)
		}
		return err == nil
	}
	next := func(i int) {
		dest := make([]driver.Value, len(open[i].Columns()))
		e.note("Next %s: %v", errText(open[i].Next(dest)), dest)
	}
	for range 2 {
		if !query() {
			return
		}
	}
	next(0)
	e.note("Close %s, %s", errText(open[0].Close()), errText(open[0].Close()))
	next(0)
	next(1)
	if !query() {
		return
	}
	e.note("Close %s", errText(open[0].Close()))
	next(2)
	e.note("Close %s, %s", errText(open[2].Close()), errText(open[1].Close()))
}
