package baldur

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
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
)

// link is the connection that a quorum keeps: its own, made by the pool's connector beside the
// pool.
//
// One of the pool would save the time to connect, once (some 45 ms on
// a busy machine, most of it for the look at the table). But programs leave things
// on pooled connections, by accident too: an open transaction, a role, a search_path, an
// encoding. Not all of that can be seen, or undone without harm to the program. And a lease that
// queued for a pool would be lost when the pool is exhausted, or would exhaust a small pool.
//
// It belongs to one goroutine at a time, except for Interrupt, pid and table.
type link struct {
	db  *sql.DB
	t   *Tracker
	cfg *quorumConfig

	conn   *sql.Conn      // nil: not open
	own    *sql.DB        // conn's
	inner  driver.Conn    // its driver's own
	pq     bool           // that is lib/pq's
	sock   *pqconn.Socket // nil: the driver dials by itself
	pooler bool           // there is one, and the backend may change
	listen bool           // LISTENs
	proved bool           // the server's advisory locks lock
	limit  time.Duration  // of a request

	pid       atomic.Int64              // of the server's process; 0: behind a pooler, or not known
	table     atomic.Pointer[linkTable] // for everyone, and stays when the link is closed
	overrule  bool                      // read-only is what the session begins with, not what the server wants
	barred    time.Time                 // since when the courtesy lock could not be had; zero: it could
	told      bool                      // who has it, and it is done without
	deaf      time.Time                 // until when LISTEN is not tried
	mute      time.Time                 // until when NOTIFY is not
	heardBell time.Time                 // when a bell was answered last
	madeRoom  time.Time                 // when a connection of the pool was closed last
	warned    atomic.Bool               // a WARNING came during the statement

	mu      sync.Mutex    // guards the field below, and sock's read deadline while it is set
	waiting bool          // in awaitReadable
	wake    chan struct{} // of capacity 1
}

// linkTable is the table that the quorum uses.
type linkTable struct {
	oid   int64
	name  string // quoted, with its schema
	lacks []string
}

func newLink(db *sql.DB, t *Tracker, cfg *quorumConfig) *link {
	return &link{db: db, t: t, cfg: cfg, limit: cfg.attempt, wake: make(chan struct{}, 1)}
}

var errNotOurs = errors.New(`the pool is not baldur's: open it by sql.Open("baldur-pq", …), Open or OpenDB`)

// open connects, if need be, and makes sure that the server can be a witness.
func (l *link) open(ctx context.Context) error {
	if l.conn != nil {
		return nil
	}
	if l.t.isClosed() {
		return fmt.Errorf("baldur: lease %q: the pool is closed", l.cfg.name)
	}
	dial, ok := l.db.Driver().(poolDialer)
	if !ok { // it was one when the quorum was made
		return errNotOurs
	}
	l.limit = l.cfg.ttl // it looks at more, which takes a busy server some time, and waits for no lock
	err := l.connect(ctx, dial)
	l.limit = l.cfg.attempt
	if err != nil {
		err = l.classify(err)
		l.Close()
	}
	return err
}

// connect dials, and looks at the server. A refusal is the server's answer, or says
// what is wrong with it.
func (l *link) connect(ctx context.Context, dial poolDialer) error {
	c := &ownConnector{poolDialer: dial, drv: l.db.Driver()}
	l.own = sql.OpenDB(c)
	var err error
	if l.conn, err = l.dial(ctx, c); err != nil {
		return err
	}
	err = l.conn.Raw(func(dc any) error {
		l.sock, l.inner = c.sock, Unwrap(dc.(driver.Conn))
		l.pq = pqconn.Is(l.inner)
		if l.pq {
			// A commit that waits for a synchronous standby, and is cancelled, comes
			// with success and a warning: it may be lost in a failover.
			pq.SetNoticeHandler(l.inner, func(e *pq.Error) {
				if e.Code == "01000" {
					l.warned.Store(true)
				}
			})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.nearEnough(ctx); err != nil {
		return err
	}
	return l.examine(ctx)
}

// dial connects. Where the server has no connection left, one of those that lie idle in the
// pool is given up for it; and, no more than once in a TTL, where there was no answer, as of
// a pooler that has none for us.
func (l *link) dial(ctx context.Context, c *ownConnector) (*sql.Conn, error) {
	first := ctx
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		first, cancel = context.WithTimeout(ctx, time.Until(deadline)*3/4)
		defer cancel()
	}
	conn, err := c.conn(hook.Own(first), l.own)
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	code, _ := pqconn.SQLState(err)
	least := 1
	if code != "53300" {
		if first.Err() == nil || time.Since(l.madeRoom) < l.cfg.ttl {
			return nil, err
		}
		least = 2 // a pooler's connection to the server may be the only one
	}
	if s, ok := l.t.pool(); !ok || s.Idle < least {
		return nil, err
	}
	l.madeRoom = time.Now()
	// It is had at once, unless it has gone meanwhile.
	at, cancel := context.WithTimeout(hook.Own(ctx), l.cfg.attempt/4)
	defer cancel()
	if idle, e := l.db.Conn(at); e == nil {
		discard(idle)
		l.cfg.log.Info("baldur: a connection of the pool was closed to make room for the lease's", "lease", l.cfg.name, "error", err)
	}
	return c.conn(hook.Own(ctx), l.own)
}

// ownConnector connects as the pool does, beside it.
type ownConnector struct {
	poolDialer
	drv  driver.Driver
	sock *pqconn.Socket // of the last connection
}

type poolDialer interface {
	dial(context.Context) (driver.Conn, *pqconn.Socket, error)
}

func (c *ownConnector) Connect(ctx context.Context) (ci driver.Conn, err error) {
	ci, c.sock, err = c.dial(ctx)
	return ci, err
}

// conn returns a connection of own, which is c's, that answers, and is in no transaction, as a hook of
// the program's may have left one open. A pooler also lets in whom it has no connection to
// the server for.
func (c *ownConnector) conn(ctx context.Context, own *sql.DB) (*sql.Conn, error) {
	conn, err := own.Conn(ctx)
	if err != nil {
		return nil, err
	}
	command := "SELECT 1"
	_ = conn.Raw(func(dc any) error {
		if pqconn.TxStatus(Unwrap(dc.(driver.Conn))) != 'I' {
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

func (c *ownConnector) Driver() driver.Driver { return c.drv }

// examine takes the settings that the session needs, refuses a server that cannot
// keep the promises, and finds the table.
func (l *link) examine(ctx context.Context) error {
	var recovery, writable bool
	var pid int64
	var version, source hexText
	err := l.queryRow(ctx, readOnly, sqlFill(`SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid(), `+sqlHex("pg_catalog.version()")+`,
	s.setting {=} 'off'::pg_catalog.text, `+sqlHex("s.source")+` FROM pg_catalog.pg_settings s WHERE s.name {=} 'default_transaction_read_only'::pg_catalog.text`),
		&recovery, &pid, &version, &writable, &source)
	if err != nil {
		return err
	}
	// Whoever runs the server may want it not to be written: it may have been replaced
	// by another one. What a role, a database, a DSN or a hook sets is for the program.
	byServer := source == "configuration file" || source == "command line" || source == "environment variable"
	switch {
	case recovery:
		return l.unfit("the server is a standby: a lease needs the primary server (target_session_attrs=read-write finds it)")
	case !writable && byServer:
		return l.unfit("the server is read-only (default_transaction_read_only in its configuration): a lease needs to write")
	case !strings.HasPrefix(string(version), "PostgreSQL "):
		return l.unfit(fmt.Sprintf("the server is %.60q; the witness must be a PostgreSQL", string(version)))
	}
	l.overrule = !writable
	if l.pooler = int64(driverPID(l.inner)) != pid; !l.pooler { // with another driver than pq it is not known
		l.pid.Store(pid)
		if err := l.settle(ctx); err != nil {
			return err
		}
	}
	if err := l.findTable(ctx); err != nil {
		return err
	}
	if err := l.proveLocks(ctx); err != nil {
		return err
	}
	l.limit = l.cfg.attempt // the table may be locked
	return l.makeRow(ctx)
}

// settle sets, for the session, what would end it between two requests or in one: not
// behind a pooler, where the session is also another's.
func (l *link) settle(ctx context.Context) error {
	return l.ask(ctx, readOnly, sqlFill(`SELECT pg_catalog.set_config(s.name, '0'::pg_catalog.text, false) FROM pg_catalog.pg_settings s
	WHERE s.name {=} ANY (ARRAY['idle_session_timeout', 'transaction_timeout']::pg_catalog.text[])`),
		func(*sql.Rows) error { return nil })
}

// findTable finds the lease table, and makes it where there is none.
func (l *link) findTable(ctx context.Context) error {
	spec := l.cfg.leaseTable()
	known := l.table.Load()
	if known == nil {
		known = &linkTable{}
	}
	for made := false; ; made = true {
		found, err := spec.find(ctx, func(ctx context.Context, query string, each func(*sql.Rows) error) error {
			return l.ask(ctx, readOnly, query, each)
		})
		if err != nil {
			return err
		}
		t, err := spec.choose(found, known.oid)
		switch {
		case err == nil && t == nil && !made:
			err = l.run(ctx, func(ctx context.Context) error { return spec.migrate(ctx, l.conn, l.limit, false) })
			if err != nil {
				return fmt.Errorf("baldur: lease %q: there is no table %s, and it cannot be made (MigrateQuorum makes it, by a role that may): %w", l.cfg.name, spec, err)
			}
			continue
		case err == nil && t == nil:
			err = fmt.Errorf("table %s was made and is gone", spec)
		}
		if err != nil {
			return l.unfit(err.Error())
		}
		if known.oid != 0 && known.oid != t.oid {
			l.cfg.log.Warn("baldur: the lease table is another one than before, so that what it says may be older", "lease", l.cfg.name, "table", t.name)
		}
		l.table.Store(&linkTable{t.oid, t.name, t.lacks})
		return nil
	}
}

// nearEnough refuses a server that is too far away for the TTL.
func (l *link) nearEnough(ctx context.Context) error {
	var rtt time.Duration
	for range 2 { // it may be slow just now
		began := time.Now()
		var err error
		if l.pq {
			err = l.queryRow(ctx, readOnly, "SELECT 1", new(int))
		} else { // of which a request takes several
			err = l.run(ctx, func(ctx context.Context) error { return l.conn.QueryRowContext(ctx, "SELECT 1").Scan(new(int)) })
		}
		if err != nil {
			return err
		}
		if rtt = time.Since(began); 4*rtt+2*l.cfg.margin <= l.cfg.ttl {
			return nil
		}
	}
	rtt = rtt.Round(time.Microsecond)
	return l.unfit(fmt.Sprintf("a round trip takes %v, and the TTL is %v: it must be at least 4 round trips and 2 margins (TTL >= 4*%v + 2*%v)", rtt, l.cfg.ttl, rtt, l.cfg.margin))
}

// makeRow makes the lease's row if there is none.
func (l *link) makeRow(ctx context.Context) error {
	w := pgWitness{l.cfg, l}
	var there bool
	if err := l.queryRow(ctx, readOnly, w.fill(leaseExists), &there); err != nil || there {
		return err
	}
	return l.ask(ctx, readWrite, w.fill(leaseInsert), nil)
}

// attend begins to listen, and tells whether it has. It comes when requests have succeeded
// and there is time to wait: without it, changes are found by polling.
func (l *link) attend(ctx context.Context) bool {
	if !l.cfg.notify || !canPeek || l.sock == nil || l.pooler || time.Now().Before(l.deaf) {
		return false
	}
	if l.listen = l.aside(ctx, "LISTEN "+pq.QuoteIdentifier(leaseChannel(l.cfg.name))); !l.listen {
		l.deaf = time.Now().Add(3 * l.cfg.ttl)
	}
	return l.listen
}

// Announce tells those who listen of a change. It is a request of its own, after the
// commit: a notification can fail, or wait, for what others have notified.
func (l *link) Announce(ctx context.Context) {
	if l.cfg.notify && l.conn != nil && ctx.Err() == nil && !time.Now().Before(l.mute) {
		if !l.aside(ctx, "NOTIFY "+pq.QuoteIdentifier(leaseChannel(l.cfg.name))) {
			l.mute = time.Now().Add(3 * l.cfg.ttl)
		}
	}
}

// aside does what can be done without, in a small part of an attempt.
func (l *link) aside(ctx context.Context, command string) bool {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.attempt/2)
	defer cancel()
	err := l.within(ctx, l.cfg.attempt/4, readWrite, command, nil)
	if err != nil && ctx.Err() == nil {
		l.cfg.log.Warn("baldur: no notifications of the lease's changes for now", "lease", l.cfg.name, "error", err)
	}
	return err == nil
}

func (l *link) unfit(why string) error {
	return lease.Refusal{Err: fmt.Errorf("baldur: lease %q: %s", l.cfg.name, why)}
}

// explain adds to a server's answer what there is more to say.
func (l *link) explain(err error, code string) error {
	why := ""
	switch code {
	case "55P03":
		why = "a lock was not had in time: transactions that the last primary guards (RequirePrimary) are still open, or somebody has locked the table"
	case "42501":
		t := l.table.Load()
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
	return fmt.Errorf("baldur: lease %q: %s: %w", l.cfg.name, why, err)
}

// proveLocks finds out whether the server's advisory locks are more than stubs,
// as some that speak PostgreSQL's protocol have: two connections must not have
// the same one. It is done once. Where the second connection cannot be had soon, it
// is left for the next time: what it protects is order among candidates, not safety.
func (l *link) proveLocks(ctx context.Context) error {
	if l.proved {
		return nil
	}
	other, ok := beside(l.db)
	if !ok {
		return nil
	}
	defer func() { _ = other.Close() }()
	soon := l.cfg.attempt / 2
	if deadline, ok := ctx.Deadline(); ok {
		soon = min(soon, time.Until(deadline)/4)
	}
	var b [8]byte
	_, _ = rand.Read(b[:])
	try := "SELECT pg_catalog.pg_try_advisory_xact_lock(" + quoted(int64(binary.NativeEndian.Uint64(b[:]))) + "::pg_catalog.int8)"
	var first, second bool
	var otherErr error
	bounded, cancel := context.WithTimeoutCause(ctx, l.limit, lease.ErrAttempt)
	defer cancel()
	err := l.run(bounded, func(own context.Context) error {
		tx, err := l.conn.BeginTx(own, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
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
		return tx.Commit() // what has ended meanwhile has no lock
	})
	if err != nil {
		return err
	}
	if s, ok := l.t.pool(); otherErr != nil && l.pooler && ok && s.Open == 0 { // in transaction mode one connection to the server is enough
		ctx, cancel := context.WithTimeout(hook.Own(ctx), soon)
		defer cancel()
		if err := other.QueryRowContext(ctx, "SELECT 1").Scan(new(int)); err != nil {
			return l.unfit(fmt.Sprintf("the pooler has no second connection to the server, so that the lease would keep the program from it (in session mode PgBouncer's default_pool_size must be 2 at least): %v", err))
		}
	}
	if otherErr != nil {
		l.cfg.log.Warn("baldur: no second connection to try advisory locks with", "lease", l.cfg.name, "error", otherErr)
		return nil
	}
	if !first || second {
		return l.unfit("the server gives one advisory lock to two sessions: the witness must be a PostgreSQL")
	}
	l.proved = true
	return nil
}

// accessMode is how a request's transaction begins.
type accessMode bool

const (
	readOnly  accessMode = false
	readWrite accessMode = true
)

// ask does a request: a statement in a transaction of its own, which the server too
// ends soon after an attempt's time, whatever is locked.
func (l *link) ask(ctx context.Context, mode accessMode, statement string, each func(*sql.Rows) error) error {
	limit := l.limit
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, lease.ErrAttempt)
	defer cancel()
	return l.within(ctx, limit, mode, statement, each)
}

func (l *link) queryRow(ctx context.Context, mode accessMode, statement string, dest ...any) error {
	none := true
	err := l.ask(ctx, mode, statement, func(rows *sql.Rows) error {
		none = false
		return rows.Scan(dest...)
	})
	if err == nil && none {
		err = l.failed(sql.ErrNoRows)
	}
	return err
}

// serverGrace is for how long the server goes on with a request after its time. A wait
// for a synchronous standby that is cancelled is a success with a warning, which not all
// drivers tell of: we must have given up before.
const serverGrace = 500 * time.Millisecond

// within does a request within a time. The settings are a transaction's, and come
// before the statement: it waits for the locks of its tables before anything in it is
// carried out.
//
// With lib/pq that is one message. Other drivers send a statement at a time.
func (l *link) within(ctx context.Context, limit time.Duration, mode accessMode, statement string, each func(*sql.Rows) error) error {
	limit = max(0, limit)
	wait, limitMS := max(1, (limit*4/5).Milliseconds()), (limit + serverGrace).Milliseconds()
	return l.run(ctx, func(ctx context.Context) error {
		if !l.pq {
			return l.inTx(ctx, wait, limitMS, mode, statement, each)
		}
		access := ""
		switch {
		case mode == readOnly:
			access = " READ ONLY"
		case l.overrule:
			access = " READ WRITE"
		}
		err := eachRow(ctx, l.conn, fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED%s; SET LOCAL lock_timeout = %d; SET LOCAL statement_timeout = %d;"+
			" SET LOCAL client_min_messages = warning; SET LOCAL jit = off; %s; COMMIT", access, wait, limitMS, statement), each)
		status := pqconn.TxStatus(l.inner)
		if err == nil && status != 'I' {
			return fmt.Errorf("baldur: lease %q: the transaction has not ended: status %q", l.cfg.name, status)
		}
		if status == 'E' { // an error breaks a message off before its COMMIT
			if _, end := l.conn.ExecContext(ctx, "ROLLBACK"); end != nil {
				err = errors.Join(err, end)
			}
		}
		return err
	})
}

func (l *link) inTx(ctx context.Context, wait, limit int64, mode accessMode, statement string, each func(*sql.Rows) error) error {
	tx, err := l.conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted, ReadOnly: mode == readOnly})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if mode == readWrite && l.overrule {
		if _, err := tx.ExecContext(ctx, "SET TRANSACTION READ WRITE"); err != nil {
			return err
		}
	}
	err = tx.QueryRowContext(ctx, fmt.Sprintf("SELECT pg_catalog.set_config('lock_timeout'::pg_catalog.text, '%d'::pg_catalog.text, true),"+
		" pg_catalog.set_config('statement_timeout'::pg_catalog.text, '%[2]d'::pg_catalog.text, true),"+
		" pg_catalog.set_config('idle_in_transaction_session_timeout'::pg_catalog.text, '%[2]d'::pg_catalog.text, true),"+
		" pg_catalog.set_config('jit'::pg_catalog.text, 'off'::pg_catalog.text, true), "+sqlFill(pgsql.SetConfigIfKnown("transaction_timeout", "'0'")), wait, limit)).
		Scan(new(string), new(string), new(string), new(string), new(sql.NullString))
	if err != nil {
		return err
	}
	if err := eachRow(ctx, tx, statement, each); err != nil {
		return err
	}
	return tx.Commit()
}

// eachRow calls each for the rows of a query; nil where there are none to read.
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

// run calls f, which uses the connection. When ctx ends the socket is cut, so that f does not
// wait; pq's own way is to dial once more, for a cancel request, which on a silent network waits
// too. After an error that is not a refusal the link is closed: what was sent may yet be carried
// out, but its reply will not be taken for another's.
func (l *link) run(ctx context.Context, f func(context.Context) error) error {
	if ctx.Err() != nil { // not sent
		return lease.Refusal{Err: context.Cause(ctx)}
	}
	ctx = hook.Own(ctx)
	l.warned.Store(false)
	if l.sock == nil {
		err := f(ctx)
		if ctx.Err() != nil { // the answer may be of what the server has broken off
			err = errors.Join(context.Cause(ctx), err)
			l.Close()
			return err
		}
		return l.failed(err)
	}
	stop := context.AfterFunc(ctx, l.sock.Cut)
	err := f(context.WithoutCancel(ctx))
	if !stop() || ctx.Err() != nil { // cut, now or in a moment
		err = errors.Join(context.Cause(ctx), err)
		l.Close()
		return err
	}
	return l.failed(err)
}

// failed classifies what came of a round trip, and closes the link after an error: often it is
// not the request but the connection that must change, since the server has become read-only,
// the table has moved, or a right was given. Only where somebody has a lock is it kept.
func (l *link) failed(err error) error {
	if err == nil && l.warned.Load() {
		err = errors.New("baldur: the server committed with a warning: it may not be on the synchronous standby")
	}
	if err == nil {
		return nil
	}
	if code, _ := pqconn.SQLState(err); code == "55P03" {
		return l.classify(err)
	}
	err = l.classify(err)
	l.Close()
	return err
}

// classify tells a server's answer from the failure to get one.
func (l *link) classify(err error) error {
	if lease.IsRefusal(err) {
		return err
	}
	if code, ok := pqconn.SQLState(err); ok {
		switch code[:2] {
		case "08", "57", "58", "XX": // the connection, the server's end, its disk, its faults: was it before the commit?
			return err
		}
		return lease.Refusal{Err: l.explain(err, code)}
	}
	if pqconn.Poisoned(err) { // it was not sent
		return lease.Refusal{Err: err}
	}
	if errors.Is(err, sql.ErrNoRows) {
		return lease.Refusal{Err: fmt.Errorf("baldur: lease %q: %w: it was deleted, or its name changed", l.cfg.name, errNoRow)}
	}
	return err
}

// Close gives the connection up.
func (l *link) Close() {
	if l.sock != nil {
		l.sock.EndBy(time.Now().Add(closeGrace)) // for pq's farewell
	}
	if l.conn != nil {
		_ = l.conn.Close()
	}
	if l.own != nil {
		_ = l.own.Close()
	}
	l.conn, l.own, l.inner, l.sock, l.pq, l.pooler, l.listen, l.overrule = nil, nil, nil, nil, false, false, false, false
	l.pid.Store(0)
}

// closeGrace is how long the farewell to the server may take.
const closeGrace = 200 * time.Millisecond

func (l *link) IsOpen() bool { return l.conn != nil }

// bellPart of a TTL passes between two bells that are answered. Whoever may connect can
// ring; it costs a change that comes just then as much time.
const bellPart = 50

// Wait returns after d, or sooner on Interrupt, if unless says so at the
// beginning, or, with bell, if there is news of the lease, which the next
// request will read.
func (l *link) Wait(d time.Duration, bell bool, unless func() bool) {
	if bell && !l.listen && l.IsOpen() && !unless() && l.attend(context.Background()) {
		return // for a look at what was announced before
	}
	if !bell || !l.listen {
		l.pause(d, unless)
		return
	}
	if early := time.Until(l.heardBell.Add(l.cfg.ttl / bellPart)); early > 0 {
		if early = min(early, d); l.pause(early, unless) || early == d {
			return
		}
		d -= early
	}
	if l.awaitBell(d, unless) {
		l.heardBell = time.Now()
	}
}

// pause waits for d, and tells whether it was interrupted.
func (l *link) pause(d time.Duration, unless func() bool) bool {
	if d <= 0 || unless() {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-l.wake:
		return true
	}
}

// awaitBell waits for something to read, and tells whether there is.
func (l *link) awaitBell(d time.Duration, unless func() bool) bool {
	if pqconn.Buffered(l.inner) > 0 {
		return true // pq has read more than the last reply
	}
	sc, ok := l.sock.Conn.(syscall.Conn)
	if !ok {
		l.pause(d, unless)
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return true // the next request will find out
	}
	l.mu.Lock()
	if d <= 0 || unless() {
		l.mu.Unlock()
		return false
	}
	select {
	case <-l.wake:
		l.mu.Unlock()
		return false
	default:
	}
	l.waiting = true
	_ = l.sock.Conn.SetReadDeadline(time.Now().Add(d))
	l.mu.Unlock()
	ready := awaitReadable(rc)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = false
	_ = l.sock.Conn.SetReadDeadline(time.Time{})
	select {
	case <-l.wake:
	default:
	}
	return ready
}

// Interrupt ends a wait, this one or the next. It may be called by anyone.
func (l *link) Interrupt() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting {
		_ = l.sock.Conn.SetReadDeadline(time.Unix(1, 0))
	}
}
