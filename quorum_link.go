package baldur

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/hook"
)

// link is the connection that a quorum keeps: one of the pool, named in its
// reports. If the pool is full, or its connections are dead, it is dialled beside
// the pool: a lease that had to queue for an exhausted pool would be lost just
// when it is needed.
//
// It belongs to one goroutine at a time, but for interrupt.
type link struct {
	db  *sql.DB
	t   *Tracker
	cfg *quorumConfig

	conn   *sql.Conn   // nil: not open
	inner  driver.Conn // its driver's own
	beside *sql.DB     // conn's, if that is not of the pool
	sock   *socket     // nil: the driver dials by itself
	pid    int         // of the server's process; 0: behind a pooler, or not known
	listen bool        // LISTENs
	proved bool        // the server's advisory locks lock

	table  atomic.Pointer[string] // quoted; for everyone, and stays when the link is closed
	warned atomic.Bool            // a WARNING came during the statement

	mu      sync.Mutex    // guards the field below, and sock's read deadline while it is set
	waiting bool          // in awaitReadable
	wake    chan struct{} // of capacity 1
}

func newLink(db *sql.DB, t *Tracker, cfg *quorumConfig) *link {
	return &link{db: db, t: t, cfg: cfg, wake: make(chan struct{}, 1)}
}

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
	for range 3 { // connections of a server that has crashed may lie in the pool
		if l.poolFull() || ctx.Err() != nil {
			break
		}
		if err := l.connect(ctx, l.db, nil); err == nil || isRefusal(err) {
			return err
		}
	}
	beside := &besideConnector{poolDialer: dial, drv: l.db.Driver()}
	if err := l.connect(ctx, sql.OpenDB(beside), beside); err != nil {
		return err
	}
	l.cfg.log.Info("baldur: the lease's connection is beside the pool, which is full or has none that works", "lease", l.cfg.name)
	return nil
}

var errNotOurs = errors.New(`the pool is not baldur's: open it by sql.Open("baldur-pq", …), Open or OpenDB`)

func (l *link) poolFull() bool {
	s, ok := l.t.pool()
	return ok && s.maxOpen > 0 && s.inUse() >= s.maxOpen
}

// besideConnector connects as the pool does, beside it.
type besideConnector struct {
	poolDialer
	drv  driver.Driver
	sock *socket // of the last connection
}

type poolDialer interface {
	dial(context.Context) (driver.Conn, *socket, error)
}

func (c *besideConnector) Connect(ctx context.Context) (ci driver.Conn, err error) {
	ci, c.sock, err = c.dial(ctx)
	return ci, err
}

func (c *besideConnector) Driver() driver.Driver { return c.drv }

// connect opens the link on a connection of db's, which is the pool, or the
// link's own by the connector beside. A refusal is the server's answer, or says
// what is wrong with it.
func (l *link) connect(ctx context.Context, db *sql.DB, beside *besideConnector) error {
	wait := ctx
	if beside == nil {
		deadline, _ := ctx.Deadline()
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, time.Until(deadline)/2) // the pool may have filled meanwhile
		defer cancel()
	} else {
		db.SetMaxOpenConns(1)
		l.beside = db
	}
	conn, err := db.Conn(wait)
	if err != nil {
		l.close()
		return l.classify(err)
	}
	l.conn = conn
	err = conn.Raw(func(dc any) error {
		if beside != nil {
			l.sock = beside.sock
		} else if c, ok := dc.(interface{ record() *record }); ok {
			l.sock = c.record().sock
			c.record().setLabel("quorum lease " + l.cfg.name)
		}
		l.inner = Unwrap(dc.(driver.Conn))
		if isPQ(l.inner) {
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
	if err == nil {
		err = l.nearEnough(ctx)
	}
	if err == nil {
		err = l.examine(ctx)
	}
	if err != nil {
		l.close()
	}
	return err
}

// examine refuses a server that cannot keep the promises, and finds the table.
func (l *link) examine(ctx context.Context) error {
	for migrated := false; ; migrated = true {
		var recovery, readOnly bool
		var table, persistence, comment sql.NullString
		var version string
		err := l.queryRow(ctx, `SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')='on', pg_catalog.version(),
 pg_catalog.pg_backend_pid(),
 pg_catalog.quote_ident(n.nspname)||'.'||pg_catalog.quote_ident(c.relname), c.relpersistence::text, pg_catalog.obj_description(c.oid,'pg_class')
 FROM (SELECT pg_catalog.to_regclass('`+leaseTable+`') AS oid) t LEFT JOIN pg_catalog.pg_class c ON c.oid=t.oid LEFT JOIN pg_catalog.pg_namespace n ON n.oid=c.relnamespace`,
			&recovery, &readOnly, &version, &l.pid, &table, &persistence, &comment)
		if err != nil {
			return err
		}
		switch {
		case recovery:
			return l.unfit("the server is a standby: a lease needs the primary server (target_session_attrs=read-write finds it)")
		case readOnly:
			return l.unfit("the session is read-only (default_transaction_read_only): a lease needs to write")
		case !strings.HasPrefix(version, "PostgreSQL "):
			return l.unfit(fmt.Sprintf("the server is %.60q; the witness must be a PostgreSQL", version))
		case !table.Valid:
			if migrated {
				return l.unfit("the lease table was made and cannot be seen: is it outside of the search_path?")
			}
			if err := l.run(ctx, func(ctx context.Context) error { return migrateQuorum(ctx, l.conn) }); err != nil {
				return fmt.Errorf("baldur: lease %q: there is no table %s, and it cannot be made (MigrateQuorum makes it, by a role that may): %w", l.cfg.name, leaseTable, err)
			}
			continue
		case persistence.String != "p":
			return l.unfit("table " + table.String + " is UNLOGGED or temporary: a crash would empty it, and a lease be given twice")
		}
		if v, err := leaseTableVersion(comment.String); err != nil || v < leaseVersion {
			if err == nil {
				err = fmt.Errorf("table %s is of version %d and this program needs version %d: call MigrateQuorum", table.String, v, leaseVersion)
			}
			return l.unfit(err.Error())
		}
		l.table.Store(&table.String)
		break
	}
	if pqPID(l.inner) != l.pid {
		l.pid = 0 // there is a pooler, and it may change
	}
	if err := l.proveLocks(ctx); err != nil {
		return err
	}
	return l.greet(ctx)
}

// nearEnough refuses a server that is too far away for the TTL.
func (l *link) nearEnough(ctx context.Context) error {
	var rtt time.Duration
	for range 2 { // it may be slow just now
		var one int
		began := time.Now()
		if err := l.queryRow(ctx, "SELECT 1", &one); err != nil {
			return err
		}
		if rtt = time.Since(began); 4*rtt+2*l.cfg.margin <= l.cfg.ttl {
			return nil
		}
	}
	rtt = rtt.Round(time.Microsecond)
	return l.unfit(fmt.Sprintf("a round trip takes %v, and the TTL is %v: it must be at least 4 round trips and 2 margins (TTL >= 4*%v + 2*%v)", rtt, l.cfg.ttl, rtt, l.cfg.margin))
}

// greet makes the lease's row if there is none, and begins to listen.
func (l *link) greet(ctx context.Context) error {
	w := pgWitness{l.cfg, l}
	var there bool
	if err := l.queryRow(ctx, w.fill(leaseExists), &there); err != nil {
		return err
	}
	if !there {
		if err := l.exec(ctx, w.fill(leaseInsert)); err != nil {
			return err
		}
	}
	if l.cfg.notify && canPeek && l.sock != nil && l.pid != 0 {
		if err := l.exec(ctx, "LISTEN "+pq.QuoteIdentifier(leaseChannel(l.cfg.name))); err != nil {
			return err
		}
		l.listen = true
	}
	return nil
}

func (l *link) unfit(why string) error {
	return refusal{fmt.Errorf("baldur: lease %q: %s", l.cfg.name, why)}
}

// proveLocks finds out whether the server's advisory locks are more than stubs,
// as some that speak PostgreSQL's protocol have: two connections must not have
// the same one. It is done once. Where the second connection cannot be had, it
// is left for the next time: what it protects is order among candidates, not safety.
func (l *link) proveLocks(ctx context.Context) error {
	if l.proved {
		return nil
	}
	beside, ok := l.db.Driver().(interface{ untracked() driver.Connector })
	if !ok {
		return nil
	}
	var b [8]byte
	_, _ = rand.Read(b[:])
	try := fmt.Sprintf("SELECT pg_catalog.pg_try_advisory_xact_lock(%d)", int64(binary.NativeEndian.Uint64(b[:])))
	other := sql.OpenDB(beside.untracked()) // which ctx's deadline ends
	defer func() { _ = other.Close() }()
	var first, second bool
	var otherErr error
	err := l.run(ctx, func(own context.Context) error {
		tx, err := l.conn.BeginTx(own, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if err := tx.QueryRowContext(own, try).Scan(&first); err != nil {
			return err
		}
		otherErr = other.QueryRowContext(hook.Own(ctx), try).Scan(&second)
		return nil
	})
	if err != nil {
		return err
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

func (l *link) exec(ctx context.Context, query string) error {
	return l.run(ctx, func(ctx context.Context) error {
		_, err := l.conn.ExecContext(ctx, query)
		return err
	})
}

func (l *link) queryRow(ctx context.Context, query string, dest ...any) error {
	return l.run(ctx, func(ctx context.Context) error {
		return l.conn.QueryRowContext(ctx, query).Scan(dest...)
	})
}

// run does one round trip. When ctx ends the socket is cut, so that nothing is
// waited for; pq's own way would be to dial once more, to send a cancel request,
// which on a silent network waits too. After an error that is not a refusal the
// link is closed: what was sent may be carried out yet, but its reply will not
// be taken for another's.
func (l *link) run(ctx context.Context, f func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = hook.Own(ctx)
	l.warned.Store(false)
	if l.sock == nil {
		return l.failed(f(ctx))
	}
	stop := context.AfterFunc(ctx, l.sock.cut)
	err := f(context.WithoutCancel(ctx))
	if !stop() { // cut, now or in a moment
		err = errors.Join(context.Cause(ctx), err)
		l.close()
		return err
	}
	return l.failed(err)
}

// failed looks at what came of a round trip.
func (l *link) failed(err error) error {
	if err == nil && l.warned.Load() {
		err = errors.New("baldur: the server committed with a warning: it may not be on the synchronous standby")
	}
	if err == nil {
		return nil
	}
	err = l.classify(err)
	if !isRefusal(err) || errors.Is(err, errNoRow) { // to connect makes the row
		l.close()
	}
	return err
}

// classify tells a server's answer from the failure to get one.
func (l *link) classify(err error) error {
	if code, ok := sqlState(err); ok {
		switch code[:2] {
		case "08", "57", "58", "XX": // the connection, the server's end, its disk, its faults: was it before the commit?
			return err
		}
		return refusal{refuse(err, code, l.cfg.name)}
	}
	if errors.Is(err, sql.ErrNoRows) {
		return refusal{fmt.Errorf("baldur: lease %q: %w: it was deleted, or its name changed", l.cfg.name, errNoRow)}
	}
	return err
}

// sqlState is the code of a server's answer, by lib/pq or by pgx.
func sqlState(err error) (code string, ok bool) {
	var e interface{ SQLState() string }
	if errors.As(err, &e) && len(e.SQLState()) == 5 {
		return e.SQLState(), true
	}
	return "", false
}

// close gives the connection up, and not back: it may be cut, and LISTENs.
func (l *link) close() {
	if l.conn != nil {
		_ = l.conn.Raw(func(any) error { return driver.ErrBadConn })
		_ = l.conn.Close()
	}
	if l.beside != nil {
		_ = l.beside.Close()
	}
	l.conn, l.inner, l.beside, l.sock, l.pid, l.listen = nil, nil, nil, nil, 0, false
}

func (l *link) isOpen() bool { return l.conn != nil }

// wait returns after d, or sooner on interrupt, if unless says so at the
// beginning, or, with bell, if there is news of the lease, which the next
// request will read.
func (l *link) wait(d time.Duration, bell bool, unless func() bool) {
	var rc syscall.RawConn
	if bell && l.listen {
		if pqBuffered(l.inner) > 0 {
			return // pq has read more than the last reply
		}
		if sc, ok := l.sock.Conn.(syscall.Conn); ok {
			rc, _ = sc.SyscallConn()
		}
	}
	l.mu.Lock()
	if d <= 0 || unless() {
		l.mu.Unlock()
		return
	}
	if rc == nil {
		l.mu.Unlock()
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-l.wake:
		}
		return
	}
	select {
	case <-l.wake:
		l.mu.Unlock()
		return
	default:
	}
	l.waiting = true
	_ = l.sock.Conn.SetReadDeadline(time.Now().Add(d))
	l.mu.Unlock()
	awaitReadable(rc)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = false
	_ = l.sock.Conn.SetReadDeadline(time.Time{})
	select {
	case <-l.wake:
	default:
	}
}

// interrupt ends a wait, this one or the next. It may be called by anyone.
func (l *link) interrupt() {
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
