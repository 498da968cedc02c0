package baldur

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baldur-go/baldur/internal/lockqueue"
	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/sqlpool"
)

// PGAdminProvider is what a health check, a stress test or a job that must not
// run twice asks of PostgreSQL: [PGAdmin] where there is one, [NoopPGAdmin]
// where there is none.
type PGAdminProvider interface {
	IsAvailable() bool
	Ping(ctx context.Context) error
	ConnectionStats(ctx context.Context) (ConnectionStats, error)
	ActiveConnectionCount(ctx context.Context) (int, error)

	Sleep(ctx context.Context, d time.Duration) error
	ExecuteSlowQuery(ctx context.Context, d time.Duration) error
	BackendPIDWithDelay(ctx context.Context, delay time.Duration) (int, error)
	ExecuteAggregateQuery(ctx context.Context, table string) (Aggregate, error)
	ExecuteNonexistentTableQuery(ctx context.Context) error
	ExecuteTimeoutQuery(ctx context.Context, timeout, sleep time.Duration) error

	AcquireAdvisoryLock(ctx context.Context, id int64, wait bool) (bool, error)
	AcquireAdvisoryLockShared(ctx context.Context, id int64, wait bool) (bool, error)
	TryAdvisoryLock(ctx context.Context, id int64) (bool, error)
	ReleaseAdvisoryLock(ctx context.Context, id int64) (bool, error)
	ReleaseAdvisoryLockShared(ctx context.Context, id int64) (bool, error)
	WithAdvisoryLock(ctx context.Context, id int64, opts LockOptions, f func(ctx context.Context, s *Session, acquired bool) error) error
	WithTxAdvisoryLock(ctx context.Context, id int64, opts LockOptions, f func(ctx context.Context, tx *sql.Tx, acquired bool) error) error
	WithTimeouts(ctx context.Context, lock, statement time.Duration, f func(ctx context.Context, s *Session) error) error
	Session(ctx context.Context) (*Session, error)
	CreateCursor(ctx context.Context) (*Cursor, error)

	LockHolders(ctx context.Context, id int64) ([]LockHolder, error)
	BlockingTree(ctx context.Context) ([]*BlockingNode, error)
	Terminate(ctx context.Context, pid int) (bool, error)
	Cancel(ctx context.Context, pid int) (bool, error)

	Close() error
}

// ErrPGAdminClosed is returned by calls of a closed [PGAdmin] that would keep a
// connection.
var ErrPGAdminClosed = errors.New("baldur: the PGAdmin is closed")

var errNoPostgres = errors.New("baldur: there is no PostgreSQL: the pool is nil, or this is a NoopPGAdmin's")

// PGAdmin does PostgreSQL administration on a pool. It works on any *sql.DB of a
// PostgreSQL; on one of baldur's the connections that it keeps have names in the
// reports, as "advisory lock 42", and are not accused.
//
// A call takes one connection of the pool and makes one round trip, and gives
// the connection back, unless its comment says otherwise; with other drivers than
// lib/pq a call that settings of the session could change is a transaction of five.
// Errors are the driver's own or wrap them, so that errors.As finds a *pq.Error.
//
// What the program has left on a pooled connection does not matter: one in an open
// transaction is discarded and another is taken, a setting that could change a
// call's result is set for that call, and names mean pg_catalog's whatever the
// search_path is. A role and the search_path stay in force; a Session has the
// settings of its connection.
//
// Its methods may be called from any goroutine.
//
// The statements are sent without parameters: the numbers in them are written by
// strconv, everything else is quoted. lib/pq needs two round trips for a
// parameter, and in between PgBouncer in transaction mode may change the server.
type PGAdmin struct {
	db     *sql.DB
	pooler pooler
	gates  lockqueue.Locks

	// The lock_timeout that the pool's connections were last seen with, in ns.
	lockTimeout atomic.Int64

	life context.Context // until Close
	end  context.CancelFunc

	mu       sync.Mutex // guards the fields below
	closed   bool
	sessions map[*Session]bool   // of Session, CreateCursor
	holds    map[lockKey][]*hold // of AcquireAdvisoryLock and its like
}

var _ PGAdminProvider = (*PGAdmin)(nil)

// A PGAdminOption sets one thing about a PGAdmin.
type PGAdminOption func(*PGAdmin)

// WithPooler says what stands between the pool and PostgreSQL, which is
// otherwise found out before the first call that needs to know: see
// [PGAdmin.PoolerMode].
func WithPooler(m PoolerMode) PGAdminOption {
	return func(p *PGAdmin) { p.pooler.mode = m }
}

// NewPGAdmin returns a PGAdmin on db, which stays the caller's. It connects to
// nothing. Close it to give back what it keeps.
func NewPGAdmin(db *sql.DB, opts ...PGAdminOption) *PGAdmin {
	p := &PGAdmin{db: db, sessions: map[*Session]bool{}, holds: map[lockKey][]*hold{}}
	p.life, p.end = context.WithCancel(context.Background())
	p.pooler.sem = make(chan struct{}, 1)
	for _, o := range opts {
		o(p)
	}
	return p
}

// IsAvailable tells whether there is a pool to work on. It does not ask the
// server: Ping does.
func (p *PGAdmin) IsAvailable() bool { return p.db != nil }

// Close releases the advisory locks of AcquireAdvisoryLock and its like, and
// closes the Sessions and Cursors that are open. Calls of WithAdvisoryLock and
// WithTimeouts that are under way give back what they have when they return;
// those that wait for a lock end with [ErrPGAdminClosed]. The pool stays open.
func (p *PGAdmin) Close() error {
	p.mu.Lock()
	p.closed = true
	holds, sessions := p.holds, p.sessions
	p.holds, p.sessions = map[lockKey][]*hold{}, map[*Session]bool{}
	p.mu.Unlock()
	p.end()
	p.gates.Close(ErrPGAdminClosed)
	var errs []error
	for _, hs := range holds {
		for _, h := range hs {
			errs = append(errs, h.end())
		}
	}
	for s := range sessions {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// check tells whether a connection may be kept.
func (p *PGAdmin) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.db == nil:
		return errNoPostgres
	case p.closed:
		return ErrPGAdminClosed
	}
	return nil
}

// Ping asks the server for a row (SELECT 1), which sql.DB.Ping leaves to the driver.
func (p *PGAdmin) Ping(ctx context.Context) error {
	return p.row(ctx, "SELECT 1::pg_catalog.int4", new(int))
}

// ConnectionStats are the server's connections to the current database.
type ConnectionStats struct {
	TotalConnections  int `json:"total_connections"`
	Active            int `json:"active"`
	Idle              int `json:"idle"`
	IdleInTransaction int `json:"idle_in_transaction"` // those in a failed one included
	Hidden            int `json:"hidden"`              // whose state the role may not see: grant pg_read_all_stats
}

// ConnectionStats counts the clients of the current database by their state, of
// this program and of others (the manual's 28.2.3, pg_stat_activity). The one
// that asks is active.
func (p *PGAdmin) ConnectionStats(ctx context.Context) (ConnectionStats, error) {
	var s ConnectionStats
	const stateIs = `pg_catalog.count(*) FILTER (WHERE state OPERATOR(pg_catalog.=) ANY ('`
	err := p.row(ctx, `SELECT pg_catalog.count(*), `+stateIs+`{active,fastpath function call}'::pg_catalog.text[])),`+
		` `+stateIs+`{idle}'::pg_catalog.text[])), `+stateIs+`{idle in transaction,idle in transaction (aborted)}'::pg_catalog.text[])),`+
		` pg_catalog.count(*) FILTER (WHERE state IS NULL)`+
		` FROM pg_catalog.pg_stat_activity WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()`+
		` AND coalesce(backend_type, 'client backend') OPERATOR(pg_catalog.=) 'client backend'`,
		&s.TotalConnections, &s.Active, &s.Idle, &s.IdleInTransaction, &s.Hidden)
	if err != nil {
		return ConnectionStats{}, err
	}
	return s, nil
}

// ActiveConnectionCount is the Active of ConnectionStats.
func (p *PGAdmin) ActiveConnectionCount(ctx context.Context) (int, error) {
	s, err := p.ConnectionStats(ctx)
	return s.Active, err
}

// row asks for one row on any connection of the pool.
func (p *PGAdmin) row(ctx context.Context, query string, dest ...any) error {
	each, done := pgsession.ScanOne(dest...)
	return done(p.rows(ctx, query, each))
}

// rows asks for rows on any connection of the pool. A connection that has died in
// the pool is replaced.
func (p *PGAdmin) rows(ctx context.Context, query string, each func(*sql.Rows) error) error {
	if p.db == nil {
		return errNoPostgres
	}
	for left := p.attempts(); ; left-- {
		conn, err := pgsession.Take(ctx, p.db)
		if err != nil {
			return err
		}
		seen := false
		err = pgsession.Ask(ctx, conn, pgsession.AsNew, query, func(rows *sql.Rows) error {
			seen = true
			return each(rows)
		})
		if pgsession.IsBad(err) {
			sqlpool.Discard(conn)
		} else {
			_ = conn.Close()
		}
		if seen || !p.again(ctx, left, err) {
			return err
		}
	}
}

// attempts is how often a call is made anew that finds its connection dead or in a
// transaction: all that the pool has may be, as after a restart of the server.
func (p *PGAdmin) attempts() int {
	if p.db == nil {
		return 1
	}
	return pgsession.Takes(p.db)
}

// again tells whether to try another connection: the one of this attempt had died
// in the pool.
func (p *PGAdmin) again(ctx context.Context, left int, err error) bool {
	return pgsession.IsBad(err) && p.mayRetry(ctx, left)
}

func (p *PGAdmin) mayRetry(ctx context.Context, left int) bool { return ctx.Err() == nil && left > 1 }

// adminTx is a transaction with its connection.
type adminTx struct {
	*sql.Tx
	conn    *sql.Conn
	isLibPQ bool
}

// begin begins a transaction on a connection that was in none. mode is as of SET
// TRANSACTION; "": the session's defaults. The transaction ends with life; ctx is
// for getting it.
func (p *PGAdmin) begin(ctx, life context.Context, mode string) (*adminTx, error) {
	for left := p.attempts(); ; left-- {
		conn, err := pgsession.Take(ctx, p.db)
		if err != nil {
			return nil, err
		}
		_, isLibPQ, _ := pgsession.Status(conn)
		tx, err := conn.BeginTx(life, nil)
		if err == nil && mode != "" {
			if _, err = tx.ExecContext(ctx, "SET TRANSACTION "+mode); err != nil {
				_ = tx.Rollback()
			}
		}
		if err == nil {
			return &adminTx{tx, conn, isLibPQ}, nil
		}
		if pgsession.IsBad(err) {
			sqlpool.Discard(conn)
			// As PgBouncer in statement mode answers BEGIN.
			if mode, e := p.PoolerMode(ctx); e == nil && mode == PoolerStatement {
				return nil, errors.Join(&PoolerError{mode}, err)
			}
		} else {
			_ = conn.Close()
		}
		if !p.again(ctx, left, err) {
			return nil, err
		}
	}
}

// end rolls back what is not committed, and gives the connection back.
func (t *adminTx) end() {
	_ = t.Rollback()
	_ = t.conn.Close()
}

func (t *adminTx) ask(ctx context.Context, r pgsession.Request, dest ...any) error {
	each, done := pgsession.ScanOne(dest...)
	if t.isLibPQ {
		return done(pgsession.AskAtOnce(ctx, t.Tx, r, each))
	}
	return done(pgsession.AskInTurn(ctx, t.Tx, r, each))
}

// failedRow is a row that answers with err, as sql.Row has no constructor.
func failedRow(err error) *sql.Row {
	db := sql.OpenDB(brokenConnector{err})
	defer db.Close()
	return db.QueryRow("")
}

// NoopPGAdmin is the PGAdminProvider where there is no PostgreSQL. It is not
// available, reads give zero values, locks are not acquired, and the rest does
// nothing. The functions given to its With… methods are called all the same, with
// acquired false, a Session that does nothing and whose queries fail, and a nil
// *sql.Tx. The zero value is ready.
type NoopPGAdmin struct{}

var _ PGAdminProvider = NoopPGAdmin{}

// IsAvailable returns false.
func (NoopPGAdmin) IsAvailable() bool { return false }

// Ping does nothing.
func (NoopPGAdmin) Ping(context.Context) error { return nil }

// ConnectionStats returns zeros.
func (NoopPGAdmin) ConnectionStats(context.Context) (ConnectionStats, error) {
	return ConnectionStats{}, nil
}

// ActiveConnectionCount returns 0.
func (NoopPGAdmin) ActiveConnectionCount(context.Context) (int, error) { return 0, nil }

// AcquireAdvisoryLock returns false.
func (NoopPGAdmin) AcquireAdvisoryLock(context.Context, int64, bool) (bool, error) {
	return false, nil
}

// AcquireAdvisoryLockShared returns false.
func (NoopPGAdmin) AcquireAdvisoryLockShared(context.Context, int64, bool) (bool, error) {
	return false, nil
}

// TryAdvisoryLock returns false.
func (NoopPGAdmin) TryAdvisoryLock(context.Context, int64) (bool, error) { return false, nil }

// ReleaseAdvisoryLock returns false.
func (NoopPGAdmin) ReleaseAdvisoryLock(context.Context, int64) (bool, error) { return false, nil }

// ReleaseAdvisoryLockShared returns false.
func (NoopPGAdmin) ReleaseAdvisoryLockShared(context.Context, int64) (bool, error) {
	return false, nil
}

// WithAdvisoryLock calls f, with acquired false.
func (NoopPGAdmin) WithAdvisoryLock(ctx context.Context, _ int64, _ LockOptions, f func(context.Context, *Session, bool) error) error {
	return f(ctx, new(Session), false)
}

// WithTxAdvisoryLock calls f, with a nil tx and acquired false.
func (NoopPGAdmin) WithTxAdvisoryLock(ctx context.Context, _ int64, _ LockOptions, f func(context.Context, *sql.Tx, bool) error) error {
	return f(ctx, nil, false)
}

// WithTimeouts calls f.
func (NoopPGAdmin) WithTimeouts(ctx context.Context, _, _ time.Duration, f func(context.Context, *Session) error) error {
	return f(ctx, new(Session))
}

// Session returns one that does nothing.
func (NoopPGAdmin) Session(context.Context) (*Session, error) { return new(Session), nil }

// CreateCursor returns one whose queries fail.
func (NoopPGAdmin) CreateCursor(context.Context) (*Cursor, error) {
	return &Cursor{new(Session)}, nil
}

// LockHolders returns none.
func (NoopPGAdmin) LockHolders(context.Context, int64) ([]LockHolder, error) { return nil, nil }

// BlockingTree returns none.
func (NoopPGAdmin) BlockingTree(context.Context) ([]*BlockingNode, error) { return nil, nil }

// Terminate returns false.
func (NoopPGAdmin) Terminate(context.Context, int) (bool, error) { return false, nil }

// Cancel returns false.
func (NoopPGAdmin) Cancel(context.Context, int) (bool, error) { return false, nil }

// Close does nothing.
func (NoopPGAdmin) Close() error { return nil }
