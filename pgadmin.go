package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/baldur-go/baldur/internal/advisory"
	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/wrap"
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

	Close() error
}

// ErrPGAdminClosed is returned by calls of a closed [PGAdmin] that would keep a
// connection.
var ErrPGAdminClosed = errors.New("baldur: the PGAdmin is closed")

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
	pool  *pgsession.Pool
	locks *advisory.Locks
}

var _ PGAdminProvider = (*PGAdmin)(nil)

// A PGAdminOption sets one thing about a PGAdmin.
type PGAdminOption func(*pgAdminConfig)

type pgAdminConfig struct{ pooler PoolerMode }

// WithPooler says what stands between the pool and PostgreSQL, which is
// otherwise found out before the first call that needs to know: see
// [PGAdmin.PoolerMode].
func WithPooler(m PoolerMode) PGAdminOption {
	return func(c *pgAdminConfig) { c.pooler = m }
}

// NewPGAdmin returns a PGAdmin on db, which stays the caller's. It connects to
// nothing. Close it to give back what it keeps.
func NewPGAdmin(db *sql.DB, opts ...PGAdminOption) *PGAdmin {
	var cfg pgAdminConfig
	for _, o := range opts {
		o(&cfg)
	}
	pool := pgsession.NewPool(pgsession.Config{DB: db, Mode: pgsession.Pooler(cfg.pooler), Beside: beside, Label: labelSession, Errors: adminErrors})
	return &PGAdmin{pool, advisory.New(pool, socketOf)}
}

// adminErrors are the errors of internal packages that have a type here.
var adminErrors = pgsession.Errors{
	Closed:  ErrPGAdminClosed,
	Pooler:  func(p pgsession.Pooler) error { return &PoolerError{PoolerMode(p)} },
	Lost:    func(ids []int64, err error) error { return &LockLostError{ids, err} },
	IsLost:  func(err error) bool { return errors.As(err, new(*LockLostError)) },
	Timeout: func(id int64, waited time.Duration, err error) error { return &LockTimeoutError{id, waited, err} },
}

// labelSession is Label where there are reports: a pool that is not baldur's has none.
func labelSession(conn *sql.Conn, name string) { _ = Label(conn, name) }

// beside returns where connections are made as the pool makes its own, beside it; false if it
// is not baldur's. The deadline of the ctx that a connection is made with ends that too.
func beside(db *sql.DB) (*sql.DB, bool) {
	d, ok := db.Driver().(interface{ untracked() driver.Connector })
	if !ok {
		return nil, false
	}
	return sql.OpenDB(d.untracked()), true
}

// socketOf is the socket of a connection that baldur has dialled, else nil.
func socketOf(conn *sql.Conn) (sock *pqconn.Socket) {
	_ = conn.Raw(func(dc any) error {
		if c, ok := dc.(driver.Conn); ok {
			if r := wrap.RecordOf(c); r != nil {
				sock = r.Sock
			}
		}
		return nil
	})
	return sock
}

// IsAvailable tells whether there is a pool to work on. It does not ask the
// server: Ping does.
func (p *PGAdmin) IsAvailable() bool { return p.pool.DB() != nil }

// Close releases the advisory locks of AcquireAdvisoryLock and its like, and
// closes the Sessions and Cursors that are open. Calls of WithAdvisoryLock and
// WithTimeouts that are under way give back what they have when they return;
// those that wait for a lock end with [ErrPGAdminClosed]. The pool stays open.
func (p *PGAdmin) Close() error {
	p.pool.Shut()
	return errors.Join(p.locks.Close(), p.pool.Close())
}

// Ping asks the server for a row (SELECT 1), which sql.DB.Ping leaves to the driver.
func (p *PGAdmin) Ping(ctx context.Context) error {
	return p.pool.Row(ctx, "SELECT 1::pg_catalog.int4", new(int))
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
	err := p.pool.Row(ctx, `SELECT pg_catalog.count(*), `+stateIs+`{active,fastpath function call}'::pg_catalog.text[])),`+
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

// NoopPGAdmin is the PGAdminProvider where there is no PostgreSQL. It is not available, reads give zero values, locks are not acquired, and the rest does
// nothing, at once. The functions given to its With… methods are called all the same, with
// acquired false, a Session that does nothing and whose queries fail, and a nil
// *sql.Tx. The queries of its Cursor fail, too. The zero value is ready.
type NoopPGAdmin struct{}

var _ PGAdminProvider = NoopPGAdmin{}

// What each of them does, the type's comment says.

func (NoopPGAdmin) IsAvailable() bool          { return false }
func (NoopPGAdmin) Ping(context.Context) error { return nil }
func (NoopPGAdmin) ConnectionStats(context.Context) (ConnectionStats, error) {
	return ConnectionStats{}, nil
}
func (NoopPGAdmin) ActiveConnectionCount(context.Context) (int, error) { return 0, nil }
func (NoopPGAdmin) AcquireAdvisoryLock(context.Context, int64, bool) (bool, error) {
	return false, nil
}
func (NoopPGAdmin) AcquireAdvisoryLockShared(context.Context, int64, bool) (bool, error) {
	return false, nil
}
func (NoopPGAdmin) TryAdvisoryLock(context.Context, int64) (bool, error)     { return false, nil }
func (NoopPGAdmin) ReleaseAdvisoryLock(context.Context, int64) (bool, error) { return false, nil }
func (NoopPGAdmin) ReleaseAdvisoryLockShared(context.Context, int64) (bool, error) {
	return false, nil
}
func (NoopPGAdmin) WithAdvisoryLock(ctx context.Context, _ int64, _ LockOptions, f func(context.Context, *Session, bool) error) error {
	return f(ctx, new(Session), false)
}
func (NoopPGAdmin) WithTxAdvisoryLock(ctx context.Context, _ int64, _ LockOptions, f func(context.Context, *sql.Tx, bool) error) error {
	return f(ctx, nil, false)
}
func (NoopPGAdmin) WithTimeouts(ctx context.Context, _, _ time.Duration, f func(context.Context, *Session) error) error {
	return f(ctx, new(Session))
}
func (NoopPGAdmin) Session(context.Context) (*Session, error) { return new(Session), nil }
func (NoopPGAdmin) CreateCursor(context.Context) (*Cursor, error) {
	return new(Cursor), nil
}
func (NoopPGAdmin) Close() error { return nil }
