// Package leasepg keeps a lease in a table of a PostgreSQL: it is the witness and the line of
// package lease. It has the lease's connection, its statements, the search for its table and
// the table's making, and the guards of transactions.
package leasepg

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/hook"
	"github.com/baldur-go/baldur/internal/lease"
	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/sqlpool"
)

// A Pool is the pool beside which the connection of a lease is made. Where it is not
// baldur's, Dial and Untracked are nil.
type Pool struct {
	DB        *sql.DB
	Dial      func(context.Context) (driver.Conn, *pqconn.Socket, error) // connects as the pool does
	Untracked driver.Connector                                           // so too; its connections end at ctx's deadline
	State     func() (s sqlpool.State, ok bool)
	Closed    func() bool
}

// A Witness is the lease table of a PostgreSQL, and the connection by which it is asked: one
// of its own, made by the pool's connector beside the pool.
//
// A pooled connection would save the time to connect, once (some 45 ms on a busy machine, most
// of it spent on examining the table). But programs leave things on pooled connections, also by
// accident: an open transaction, a role, a search_path, an encoding. Not all of these can be
// detected, or undone without harm to the program. And a lease that queued for a pool would be
// lost when the pool is exhausted, or would itself exhaust a small pool.
//
// Each request is one statement in a transaction of its own: the row's lock and the re-check
// after it make the compare-and-swap atomic in READ COMMITTED. The times are
// clock_timestamp(), not now(), which is that of a transaction's begin.
//
// The statements have no parameters, for PgBouncer's sake, and mean the same in every session:
// functions, operators, types and tables have their full names, literals their exact type, and
// what is not ASCII is sent and received as digits.
//
// It belongs to one goroutine at a time, except for Interrupt, PID and Table.
type Witness struct {
	cfg  Config
	pool Pool

	conn      *sql.Conn      // nil: not open
	ownDB     *sql.DB        // that conn is of
	inner     driver.Conn    // the driver's own connection below conn
	pq        bool           // inner is lib/pq's
	sock      *pqconn.Socket // nil: the driver dials by itself
	driverPID int            // the process id that the driver was told at log-in; 0 if it does not tell
	pooler    bool           // there is a pooler, or there may be: the backend may change
	listen    bool           // the session LISTENs
	proved    bool           // the server's advisory locks do lock
	limit     time.Duration  // of a request
	overrule  bool           // the session begins read-only, though the server may be written to

	pid   atomic.Int64              // of the server's process; 0: behind a pooler, or not known
	table atomic.Pointer[usedTable] // read by anyone; it outlives the connection

	barredSince   time.Time   // the courtesy lock could not be had since then; zero: it could
	lockIgnored   bool        // it was logged who has it, and acquisitions do without
	optional      bool        // the request is not essential: see failed
	noListenUntil time.Time   // LISTEN is not tried before
	noNotifyUntil time.Time   // NOTIFY is not tried before
	bellAt        time.Time   // when a bell was answered last
	madeRoomAt    time.Time   // when a connection of the pool was closed last
	warned        atomic.Bool // a WARNING came during the statement

	mu      sync.Mutex    // guards the field below, and sock's read deadline while it is set
	waiting bool          // in pqconn.AwaitReadable
	wake    chan struct{} // of capacity 1
}

// usedTable is the table that the witness uses.
type usedTable struct {
	oid   int64
	name  string // quoted, with its schema
	lacks []string
}

// New returns the witness of a lease, which connects when it is asked first.
func New(cfg Config, pool Pool) *Witness {
	return &Witness{cfg: cfg, pool: pool, limit: cfg.Attempt, wake: make(chan struct{}, 1)}
}

// PID is the process id of the server's end of the connection; 0 behind a pooler, and where
// it is not known.
func (w *Witness) PID() int { return int(w.pid.Load()) }

// Table is the name, quoted and with its schema, of the lease table; "" if no connection
// has found it yet.
func (w *Witness) Table() string {
	if t := w.table.Load(); t != nil {
		return t.name
	}
	return ""
}

// ErrNotOurs is of a pool that is not baldur's.
var ErrNotOurs = errors.New(`the pool is not baldur's: open it by sql.Open("baldur-pq", …), Open or OpenDB`)

// open connects, if it is not open, and makes sure that the server can be a witness.
func (w *Witness) open(ctx context.Context) error {
	if w.conn != nil {
		return nil
	}
	if w.pool.Closed() {
		return fmt.Errorf("baldur: lease %q: the pool is closed", w.cfg.Name)
	}
	w.limit = w.cfg.TTL // examining takes a busy server longer, and waits for no lock
	err := w.connect(ctx)
	w.limit = w.cfg.Attempt
	if err != nil {
		err = w.classify(err)
		w.Close()
	}
	return err
}

// connect dials and examines the server. A refusal is the server's answer, or says what is
// wrong with the server.
func (w *Witness) connect(ctx context.Context) error {
	c := &ownConnector{pool: w.pool}
	w.ownDB = sql.OpenDB(c)
	var err error
	if w.conn, err = w.dial(ctx, c); err != nil {
		return err
	}
	err = w.conn.Raw(func(dc any) error {
		w.sock = c.sock
		w.inner, w.driverPID = pgsession.Inner(dc.(driver.Conn))
		w.pq = pqconn.Is(w.inner)
		if w.pq {
			// A commit that is cancelled while it waits for a synchronous standby is
			// reported as a success with a warning: a failover may lose it.
			pq.SetNoticeHandler(w.inner, func(e *pq.Error) {
				if e.Code == "01000" {
					w.warned.Store(true)
				}
			})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.nearEnough(ctx); err != nil {
		return err
	}
	return w.examine(ctx)
}

// dial connects. If the server has no connection left, an idle one of the pool is closed to
// make room. It also is, at most once in a TTL, if there was no answer, as from a pooler that has
// no connection to spare.
func (w *Witness) dial(ctx context.Context, c *ownConnector) (*sql.Conn, error) {
	first := ctx
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		first, cancel = context.WithTimeout(ctx, time.Until(deadline)*3/4)
		defer cancel()
	}
	conn, err := c.conn(hook.Own(first), w.ownDB)
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	code, _ := pqconn.SQLState(err)
	least := 1
	if code != "53300" {
		if first.Err() == nil || time.Since(w.madeRoomAt) < w.cfg.TTL {
			return nil, err
		}
		least = 2 // the pooler may have only one connection to the server
	}
	if s, ok := w.pool.State(); !ok || s.Idle < least {
		return nil, err
	}
	w.madeRoomAt = time.Now()
	// It comes at once, unless it has been taken meanwhile.
	at, cancel := context.WithTimeout(hook.Own(ctx), w.cfg.Attempt/4)
	defer cancel()
	if idle, e := w.pool.DB.Conn(at); e == nil {
		sqlpool.Discard(idle)
		w.cfg.Log.Info("baldur: a connection of the pool was closed to make room for the lease's", "lease", w.cfg.Name, "error", err)
	}
	return c.conn(hook.Own(ctx), w.ownDB)
}

// ownConnector connects as the pool does, beside it.
type ownConnector struct {
	pool Pool
	sock *pqconn.Socket // of the last connection
}

func (c *ownConnector) Connect(ctx context.Context) (ci driver.Conn, err error) {
	ci, c.sock, err = c.pool.Dial(ctx)
	return ci, err
}

// conn returns a connection of own, c's pool, that answers and is in no transaction: a hook of
// the program may have left one open. That it answers must be tried, since a pooler admits
// clients for whom it has no connection to the server.
func (c *ownConnector) conn(ctx context.Context, own *sql.DB) (*sql.Conn, error) {
	conn, err := own.Conn(ctx)
	if err != nil {
		return nil, err
	}
	command := "SELECT 1"
	_ = conn.Raw(func(dc any) error {
		if c.status(dc) != 'I' {
			command = "ROLLBACK"
		}
		return nil
	})
	if c.sock == nil {
		_, err = conn.ExecContext(ctx, command)
	} else {
		stop := context.AfterFunc(ctx, c.sock.Cut)
		_, err = conn.ExecContext(context.WithoutCancel(ctx), command)
		if !stop() {
			err = errors.Join(context.Cause(ctx), err)
		}
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("baldur: connected, but not answered in time (if there is a pooler: has it a connection to the server to spare?): %w", err)
		}
		return nil, err
	}
	return conn, nil
}

func (c *ownConnector) Driver() driver.Driver { return c.pool.DB.Driver() }

// status is the transaction status of a connection by lib/pq.
func (c *ownConnector) status(dc any) byte {
	inner, _ := pgsession.Inner(dc.(driver.Conn))
	return pqconn.TxStatus(inner)
}

// examine makes the settings that the session needs, refuses a server that cannot keep the
// promises, and finds the table.
func (w *Witness) examine(ctx context.Context) error {
	var recovery, writable bool
	var pid int64
	var version, source pgsql.HexText
	err := w.queryRow(ctx, readOnly, pgsql.Fill(`SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid(), `+pgsql.Hex("pg_catalog.version()")+`,
	s.setting {=} 'off'::pg_catalog.text, `+pgsql.Hex("s.source")+` FROM pg_catalog.pg_settings s WHERE s.name {=} 'default_transaction_read_only'::pg_catalog.text`),
		&recovery, &pid, &version, &writable, &source)
	if err != nil {
		return err
	}
	// A server that its operator has made read-only stays so: it may have been replaced by
	// another one. Defaults of a role, a database, a DSN or a hook are meant for the program.
	byServer := source == "configuration file" || source == "command line" || source == "environment variable"
	switch {
	case recovery:
		return w.unfit("the server is a standby: a lease needs the primary server (target_session_attrs=read-write finds it)")
	case !writable && byServer:
		return w.unfit("the server is read-only (default_transaction_read_only in its configuration): a lease needs to write")
	case !strings.HasPrefix(string(version), "PostgreSQL "):
		return w.unfit(fmt.Sprintf("the server is %.60q; the witness must be a PostgreSQL", string(version)))
	}
	w.overrule = !writable
	if w.pooler = int64(w.driverPID) != pid; !w.pooler { // not known with other drivers
		w.pid.Store(pid)
		if err := w.settle(ctx); err != nil {
			return err
		}
	}
	if err := w.findTable(ctx); err != nil {
		return err
	}
	if err := w.proveLocks(ctx); err != nil {
		return err
	}
	w.limit = w.cfg.Attempt // the table may be locked
	return w.makeRow(ctx)
}

// settle disables the timeouts that would end the session between two requests or within
// one. It is not called behind a pooler, where others use the session too.
func (w *Witness) settle(ctx context.Context) error {
	return w.ask(ctx, readOnly, pgsql.Fill(`SELECT pg_catalog.set_config(s.name, '0'::pg_catalog.text, false) FROM pg_catalog.pg_settings s
	WHERE s.name {=} ANY (ARRAY['idle_session_timeout', 'transaction_timeout']::pg_catalog.text[])`),
		func(*sql.Rows) error { return nil })
}

// findTable finds the lease table, and makes it where there is none.
func (w *Witness) findTable(ctx context.Context) error {
	spec := w.cfg.leaseTable()
	known := w.table.Load()
	if known == nil {
		known = &usedTable{}
	}
	for made := false; ; made = true {
		found, err := spec.find(ctx, func(ctx context.Context, query string, each func(*sql.Rows) error) error {
			return w.ask(ctx, readOnly, query, each)
		})
		if err != nil {
			return err
		}
		t, err := spec.choose(found, known.oid)
		switch {
		case err == nil && t == nil && !made:
			err = w.run(ctx, func(ctx context.Context) error { return spec.migrate(ctx, w.conn, w.limit, false) })
			if err != nil {
				return fmt.Errorf("baldur: lease %q: there is no table %s, and it cannot be made (MigrateQuorum makes it, by a role that may): %w", w.cfg.Name, spec, err)
			}
			continue
		case err == nil && t == nil:
			err = fmt.Errorf("table %s was made and is gone", spec)
		}
		if err != nil {
			return w.unfit(err.Error())
		}
		if known.oid != 0 && known.oid != t.oid {
			w.cfg.Log.Warn("baldur: the lease table is another one than before, so that what it says may be older", "lease", w.cfg.Name, "table", t.name)
		}
		w.table.Store(&usedTable{t.oid, t.name, t.lacks})
		return nil
	}
}

// nearEnough refuses a server that is too far away for the TTL.
func (w *Witness) nearEnough(ctx context.Context) error {
	var rtt time.Duration
	for range 2 { // the first may happen to be slow
		began := time.Now()
		var err error
		if w.pq {
			err = w.queryRow(ctx, readOnly, "SELECT 1", new(int))
		} else { // a request takes several round trips
			err = w.run(ctx, func(ctx context.Context) error { return w.conn.QueryRowContext(ctx, "SELECT 1").Scan(new(int)) })
		}
		if err != nil {
			return err
		}
		if rtt = time.Since(began); 4*rtt+2*w.cfg.Margin <= w.cfg.TTL {
			return nil
		}
	}
	rtt = rtt.Round(time.Microsecond)
	return w.unfit(fmt.Sprintf("a round trip takes %v, and the TTL is %v: it must be at least 4 round trips and 2 margins (TTL >= 4*%v + 2*%v)", rtt, w.cfg.TTL, rtt, w.cfg.Margin))
}

// makeRow makes the lease's row if there is none.
func (w *Witness) makeRow(ctx context.Context) error {
	var there bool
	if err := w.queryRow(ctx, readOnly, w.fill(leaseExists), &there); err != nil || there {
		return err
	}
	return w.ask(ctx, readWrite, w.fill(leaseInsert), nil)
}

// attend begins to LISTEN, and tells whether it does. It is called when there is nothing else
// to do: without it, changes are found by polling.
func (w *Witness) attend(ctx context.Context) bool {
	if !w.cfg.Notify || !pqconn.CanPeek || w.sock == nil || w.pooler || time.Now().Before(w.noListenUntil) {
		return false
	}
	if w.listen = w.aside(ctx, "LISTEN "+pq.QuoteIdentifier(leaseChannel(w.cfg.Name))); !w.listen {
		w.noListenUntil = time.Now().Add(3 * w.cfg.TTL)
	}
	return w.listen
}

// Announce notifies those who LISTEN of a change. It is a request of its own, after the
// commit: NOTIFY may fail or block because of the notifications of others.
func (w *Witness) Announce(ctx context.Context) {
	if w.cfg.Notify && w.conn != nil && ctx.Err() == nil && !time.Now().Before(w.noNotifyUntil) {
		if !w.aside(ctx, "NOTIFY "+pq.QuoteIdentifier(leaseChannel(w.cfg.Name))) {
			w.noNotifyUntil = time.Now().Add(3 * w.cfg.TTL)
		}
	}
}

// aside does what is not essential, in a small part of an attempt.
func (w *Witness) aside(ctx context.Context, command string) bool {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Attempt/2)
	defer cancel()
	w.optional = true
	defer func() { w.optional = false }()
	err := w.within(ctx, w.cfg.Attempt/4, readWrite, command, nil)
	if err != nil && ctx.Err() == nil {
		w.cfg.Log.Warn("baldur: no notifications of the lease's changes for now", "lease", w.cfg.Name, "error", err)
	}
	return err == nil
}

func (w *Witness) unfit(why string) error {
	return lease.Refusal{Err: fmt.Errorf("baldur: lease %q: %s", w.cfg.Name, why)}
}

// explain adds advice to a server's error.
func (w *Witness) explain(err error, code string) error {
	why := ""
	switch code {
	case "55P03":
		why = "a lock was not had in time: transactions that the last primary guards (RequirePrimary) are still open, or somebody has locked the table"
	case "42501":
		t := w.table.Load()
		switch {
		case t == nil:
			return err
		case len(t.lacks) > 0:
			why = "the role lacks " + strings.Join(t.lacks, ", ")
		default:
			why = "the role needs USAGE on the schema of the lease table, SELECT, INSERT and UPDATE on the table, and EXECUTE on pg_catalog.pg_control_system()"
		}
	case "22003":
		why = "the epoch in the lease's row cannot rise any more: it was not given by a lease"
	case "25006", "0A000":
		why = "the server is read-only"
	default:
		return err
	}
	return fmt.Errorf("baldur: lease %q: %s: %w", w.cfg.Name, why, err)
}

// proveLocks finds out whether the server's advisory locks are real. Some servers that speak
// PostgreSQL's protocol have stubs, by which two connections get the same lock. It is done
// once. If a second connection is not available soon, it is left for the next time: the lock
// keeps order among candidates, and safety does not depend on it.
func (w *Witness) proveLocks(ctx context.Context) error {
	if w.proved {
		return nil
	}
	other := sql.OpenDB(w.pool.Untracked)
	defer func() { _ = other.Close() }()
	soon := w.cfg.Attempt / 2
	if deadline, ok := ctx.Deadline(); ok {
		soon = min(soon, time.Until(deadline)/4)
	}
	var b [8]byte
	_, _ = rand.Read(b[:])
	try := "SELECT pg_catalog.pg_try_advisory_xact_lock(" + pgsql.Int(int64(binary.NativeEndian.Uint64(b[:]))) + "::pg_catalog.int8)"
	var first, second bool
	var otherErr error
	bounded, cancel := context.WithTimeoutCause(ctx, w.limit, lease.ErrAttempt)
	defer cancel()
	err := w.run(bounded, func(own context.Context) error {
		tx, err := w.conn.BeginTx(own, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		limit := strconv.FormatInt((2*soon + serverGrace).Milliseconds(), 10)
		for _, set := range []string{"SET LOCAL idle_in_transaction_session_timeout = " + limit, "SET LOCAL statement_timeout = " + limit} {
			if _, err := tx.ExecContext(own, set); err != nil {
				return err
			}
		}
		if err := tx.QueryRowContext(own, try).Scan(&first); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(hook.Own(ctx), soon)
		defer cancel()
		otherErr = other.QueryRowContext(ctx, try).Scan(&second)
		return tx.Commit() // fails if the server has ended it meanwhile, and with it the lock
	})
	if err != nil {
		return err
	}
	if s, ok := w.pool.State(); otherErr != nil && w.pooler && ok && s.Open == 0 { // in transaction mode one connection to the server is enough
		ctx, cancel := context.WithTimeout(hook.Own(ctx), soon)
		defer cancel()
		if err := other.QueryRowContext(ctx, "SELECT 1").Scan(new(int)); err != nil {
			return w.unfit(fmt.Sprintf("the pooler has no second connection to the server, so that the lease would keep the program from it (in session mode PgBouncer's default_pool_size must be 2 at least): %v", err))
		}
	}
	if otherErr != nil {
		w.cfg.Log.Warn("baldur: no second connection to try advisory locks with", "lease", w.cfg.Name, "error", otherErr)
		return nil
	}
	if !first || second {
		return w.unfit("the server gives one advisory lock to two sessions: the witness must be a PostgreSQL")
	}
	w.proved = true
	return nil
}

// accessMode is how a request's transaction begins.
type accessMode bool

const (
	readOnly  accessMode = false
	readWrite accessMode = true
)

// ask does a request: one statement in a transaction of its own, which the server, too, ends
// soon after the attempt's time, whatever is locked.
func (w *Witness) ask(ctx context.Context, mode accessMode, statement string, each func(*sql.Rows) error) error {
	limit := w.limit
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, lease.ErrAttempt)
	defer cancel()
	return w.within(ctx, limit, mode, statement, each)
}

func (w *Witness) queryRow(ctx context.Context, mode accessMode, statement string, dest ...any) error {
	none := true
	err := w.ask(ctx, mode, statement, func(rows *sql.Rows) error {
		none = false
		return rows.Scan(dest...)
	})
	if err == nil && none {
		err = w.failed(sql.ErrNoRows)
	}
	return err
}

// serverGrace is for how much longer than we do the server goes on with a request. A
// cancelled wait for a synchronous standby is reported as a success with a warning, which not
// all drivers pass on: we must have given up before the server cancels it.
const serverGrace = 500 * time.Millisecond

// within does a request within a time limit. The timeouts are set in its transaction, before
// the statement: a statement waits for its tables' locks before any of it is executed.
//
// With lib/pq that is one message; other drivers send one statement at a time.
func (w *Witness) within(ctx context.Context, limit time.Duration, mode accessMode, statement string, each func(*sql.Rows) error) error {
	limit = max(0, limit)
	wait, limitMS := max(1, (limit*4/5).Milliseconds()), (limit + serverGrace).Milliseconds()
	return w.run(ctx, func(ctx context.Context) error {
		if !w.pq {
			return w.inTx(ctx, wait, limitMS, mode, statement, each)
		}
		access := ""
		switch {
		case mode == readOnly:
			access = " READ ONLY"
		case w.overrule:
			access = " READ WRITE"
		}
		err := eachRow(ctx, w.conn, fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED%s; SET LOCAL lock_timeout = %d; SET LOCAL statement_timeout = %d;"+
			" SET LOCAL client_min_messages = warning; SET LOCAL jit = off; %s; COMMIT", access, wait, limitMS, statement), each)
		status := pqconn.TxStatus(w.inner)
		if err == nil && status != 'I' {
			return fmt.Errorf("baldur: lease %q: the transaction has not ended: status %q", w.cfg.Name, status)
		}
		if status == 'E' { // after an error the rest of the message, with its COMMIT, is skipped
			if _, end := w.conn.ExecContext(ctx, "ROLLBACK"); end != nil {
				err = errors.Join(err, end)
			}
		}
		return err
	})
}

func (w *Witness) inTx(ctx context.Context, wait, limit int64, mode accessMode, statement string, each func(*sql.Rows) error) error {
	tx, err := w.conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted, ReadOnly: mode == readOnly})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if mode == readWrite && w.overrule {
		if _, err := tx.ExecContext(ctx, "SET TRANSACTION READ WRITE"); err != nil {
			return err
		}
	}
	err = tx.QueryRowContext(ctx, fmt.Sprintf("SELECT pg_catalog.set_config('lock_timeout'::pg_catalog.text, '%d'::pg_catalog.text, true),"+
		" pg_catalog.set_config('statement_timeout'::pg_catalog.text, '%[2]d'::pg_catalog.text, true),"+
		" pg_catalog.set_config('idle_in_transaction_session_timeout'::pg_catalog.text, '%[2]d'::pg_catalog.text, true),"+
		" pg_catalog.set_config('jit'::pg_catalog.text, 'off'::pg_catalog.text, true), "+pgsql.Fill(pgsql.SetConfigIfKnown("transaction_timeout", "'0'")), wait, limit)).
		Scan(new(string), new(string), new(string), new(string), new(sql.NullString))
	if err != nil {
		return err
	}
	if err := eachRow(ctx, tx, statement, each); err != nil {
		return err
	}
	return tx.Commit()
}

// eachRow calls each for every row of a query. It may be nil where there are no rows.
func eachRow(ctx context.Context, on interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, query string, each func(*sql.Rows) error) error {
	rows, err := on.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// run calls f, which uses the connection. When ctx ends the socket is cut, so that f returns
// at once; lib/pq itself would dial again to send a cancel request, which hangs on a silent
// network too. Then the connection is closed: what was sent may yet be executed, but its reply
// cannot be taken for that of a later request.
func (w *Witness) run(ctx context.Context, f func(context.Context) error) error {
	if ctx.Err() != nil { // not sent
		return lease.Refusal{Err: context.Cause(ctx)}
	}
	ctx = hook.Own(ctx)
	w.warned.Store(false)
	if w.sock == nil {
		err := f(ctx)
		if ctx.Err() != nil { // the answer may be about a statement that was cancelled
			err = errors.Join(context.Cause(ctx), err)
			w.Close()
			return err
		}
		return w.failed(err)
	}
	stop := context.AfterFunc(ctx, w.sock.Cut)
	err := f(context.WithoutCancel(ctx))
	if !stop() || ctx.Err() != nil { // the socket is cut, or will be in a moment
		err = errors.Join(context.Cause(ctx), err)
		w.Close()
		return err
	}
	return w.failed(err)
}

// failed classifies the result of a round trip, and closes the connection after an error: often
// the remedy is a new one, since the server has become read-only, the table has moved, or a
// right was granted. It is kept if somebody holds a lock, and if what was refused is not
// essential and has left nothing behind: whoever waits for a connection would take its place.
func (w *Witness) failed(err error) error {
	if err == nil && w.warned.Load() {
		err = errors.New("baldur: the server committed with a warning: it may not be on the synchronous standby")
	}
	if err == nil {
		return nil
	}
	code, _ := pqconn.SQLState(err)
	err = w.classify(err)
	if code == "55P03" || w.optional && code != "" && lease.IsRefusal(err) && pqconn.TxStatus(w.inner) == 'I' {
		return err
	}
	w.Close()
	return err
}

// classify tells a server's answer from the failure to get one.
func (w *Witness) classify(err error) error {
	if lease.IsRefusal(err) {
		return err
	}
	if code, ok := pqconn.SQLState(err); ok {
		switch code[:2] {
		case "08", "57", "58", "XX": // connection, shutdown, disk, internal error: it may have come after the commit
			return err
		}
		return lease.Refusal{Err: w.explain(err, code)}
	}
	if pqconn.Poisoned(err) { // it was not sent
		return lease.Refusal{Err: err}
	}
	if errors.Is(err, sql.ErrNoRows) {
		return lease.Refusal{Err: fmt.Errorf("baldur: lease %q: %w: it was deleted, or its name changed", w.cfg.Name, errNoRow)}
	}
	return err
}

// Close closes the connection.
func (w *Witness) Close() {
	if w.sock != nil {
		w.sock.EndBy(time.Now().Add(closeGrace)) // for pq's farewell
	}
	if w.conn != nil {
		_ = w.conn.Close()
	}
	if w.ownDB != nil {
		_ = w.ownDB.Close()
	}
	w.conn, w.ownDB, w.inner, w.sock, w.pq, w.pooler, w.listen, w.overrule = nil, nil, nil, nil, false, false, false, false
	w.pid.Store(0)
}

// closeGrace is how long the farewell to the server may take.
const closeGrace = 200 * time.Millisecond

// IsOpen tells whether there is a connection.
func (w *Witness) IsOpen() bool { return w.conn != nil }

// Between two notifications that are answered a TTL/bellPart passes at least: anyone who may
// connect can send some. A change that is announced meanwhile is noticed that much later.
const bellPart = 50

// Wait returns after d, or sooner on Interrupt, if unless says so at the beginning, or, with
// bell, if a notification has arrived. The next request reads it.
func (w *Witness) Wait(d time.Duration, bell bool, unless func() bool) {
	if bell && !w.listen && w.IsOpen() && !unless() && w.attend(context.Background()) {
		return // to look at what was announced before we listened
	}
	if !bell || !w.listen {
		w.pause(d, unless)
		return
	}
	if early := time.Until(w.bellAt.Add(w.cfg.TTL / bellPart)); early > 0 {
		if early = min(early, d); w.pause(early, unless) || early == d {
			return
		}
		d -= early
	}
	if w.awaitBell(d, unless) {
		w.bellAt = time.Now()
	}
}

// pause waits for d, and tells whether it was interrupted.
func (w *Witness) pause(d time.Duration, unless func() bool) bool {
	if d <= 0 || unless() {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-w.wake:
		return true
	}
}

// awaitBell waits for something to read, and tells whether there is.
func (w *Witness) awaitBell(d time.Duration, unless func() bool) bool {
	if pqconn.Buffered(w.inner) > 0 {
		return true // lib/pq has already read it
	}
	sc, ok := w.sock.Conn.(syscall.Conn)
	if !ok {
		w.pause(d, unless)
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return true // the next request will find out
	}
	w.mu.Lock()
	if d <= 0 || unless() {
		w.mu.Unlock()
		return false
	}
	select {
	case <-w.wake:
		w.mu.Unlock()
		return false
	default:
	}
	w.waiting = true
	_ = w.sock.Conn.SetReadDeadline(time.Now().Add(d))
	w.mu.Unlock()
	ready := pqconn.AwaitReadable(rc)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = false
	_ = w.sock.Conn.SetReadDeadline(time.Time{})
	select {
	case <-w.wake:
	default:
	}
	return ready
}

// Interrupt ends a Wait, the present one or the next. Any goroutine may call it.
func (w *Witness) Interrupt() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting {
		_ = w.sock.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}
