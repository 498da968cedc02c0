package baldur

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
)

// Session is one server session, on a pinned connection. It
// keeps what PostgreSQL keeps for a session: advisory locks and settings. Close
// gives all back, and the connection with it; where that cannot be confirmed
// (the connection is dead, or in a transaction begun by text) the connection is
// discarded, and its session ends. So no lock and no changed timeout ever travels
// back into the pool. What the program's own SQL sets, as a search_path, does.
//
// One goroutine at a time uses a Session, except for Close.
type Session struct {
	s *pgsession.Session // nil: the one of NoopPGAdmin, which does nothing
}

// Session pins a connection. It needs a server session of its own: where
// a pooler in transaction or statement mode stands before it, the error is a
// [PoolerError]. One round trip, and those of [PGAdmin.PoolerMode] the first time.
//
// ctx is for getting it; the Session outlives it, until Close or the PGAdmin's.
func (p *PGAdmin) Session(ctx context.Context) (*Session, error) {
	s, err := p.pool.Open(ctx)
	if err != nil {
		return nil, err
	}
	return &Session{s}, nil
}

// BackendPID is the process id of the server's backend; 0 for a session that has
// not asked it anything yet.
func (s *Session) BackendPID() int { return s.s.BackendPID() }

// ExecContext is sql.Conn's.
func (s *Session) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return s.s.ExecContext(ctx, query, args...)
}

// QueryContext is sql.Conn's. The rows end with the next call at the latest.
func (s *Session) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return s.s.QueryContext(ctx, query, args...)
}

// QueryRowContext is sql.Conn's. The row ends with the next call at the latest.
func (s *Session) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return s.s.QueryRowContext(ctx, query, args...)
}

// BeginTx is sql.Conn's. Close rolls back what is left open.
func (s *Session) BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error) {
	return s.s.BeginTx(ctx, opts)
}

// Close gives back what the session has, and then its connection. It is not
// hindered by a ctx, and takes some 5 s at most. It returns a [LockLostError] if
// the session had advisory locks and the connection had failed: they may have
// gone before. The second Close does nothing.
func (s *Session) Close() error { return s.s.Close() }

// AcquireAdvisoryLock takes the lock id on this session, where locks nest: it must
// be released as often as it was taken, and a session does not exclude itself.
// With wait it tries again and again, one round trip each, until it has it, ctx
// ends, or the session's lock_timeout or statement_timeout is over (a
// [LockTimeoutError]).
func (s *Session) AcquireAdvisoryLock(ctx context.Context, id int64, wait bool) (bool, error) {
	return s.s.Acquire(ctx, pgsql.Lock{ID: id}, wait)
}

// AcquireAdvisoryLockShared is AcquireAdvisoryLock for a lock that is shared.
func (s *Session) AcquireAdvisoryLockShared(ctx context.Context, id int64, wait bool) (bool, error) {
	return s.s.Acquire(ctx, pgsql.Lock{ID: id, Shared: true}, wait)
}

// TryAdvisoryLock is AcquireAdvisoryLock without wait.
func (s *Session) TryAdvisoryLock(ctx context.Context, id int64) (bool, error) {
	return s.s.Acquire(ctx, pgsql.Lock{ID: id}, false)
}

// ReleaseAdvisoryLock releases the lock once, and returns false if the session
// does not hold it. It goes on although ctx has ended, and takes 5 s at most. If
// the connection has failed the error is a [LockLostError]. One round trip.
func (s *Session) ReleaseAdvisoryLock(ctx context.Context, id int64) (bool, error) {
	return s.s.Release(ctx, pgsql.Lock{ID: id})
}

// ReleaseAdvisoryLockShared is ReleaseAdvisoryLock for a lock that is shared.
func (s *Session) ReleaseAdvisoryLockShared(ctx context.Context, id int64) (bool, error) {
	return s.s.Release(ctx, pgsql.Lock{ID: id, Shared: true})
}

// SetLockTimeout sets how long a statement of this session waits for a lock,
// from 0 (for ever) to 24.8 days, rounded up to ms (the manual's 20.11.1,
// lock_timeout). It is in force until ResetTimeouts or Close.
func (s *Session) SetLockTimeout(ctx context.Context, d time.Duration) error {
	return s.s.SetTimeout(ctx, "lock_timeout", d)
}

// SetStatementTimeout sets how long a statement of this session may run, from 0
// (for ever) to 24.8 days, rounded up to ms (the manual's 20.11.1,
// statement_timeout). It is in force until ResetTimeouts or Close.
func (s *Session) SetStatementTimeout(ctx context.Context, d time.Duration) error {
	return s.s.SetTimeout(ctx, "statement_timeout", d)
}

// ResetTimeouts sets both to what they were before the Session changed them.
func (s *Session) ResetTimeouts(ctx context.Context) error { return s.s.ResetTimeouts(ctx) }

// WithTimeouts calls f with a Session that has these timeouts, of which 0 leaves
// one as it is; afterwards, however f ends, they are what they were before. A
// deadline of ctx that is sooner than a timeout shortens it. The ctx of f ends
// when f returns.
//
// It returns f's error, as from a statement that took too long (SQLSTATE 57014)
// or waited too long for a lock (55P03). Two round trips.
func (p *PGAdmin) WithTimeouts(ctx context.Context, lock, statement time.Duration, f func(ctx context.Context, s *Session) error) error {
	return p.pool.WithTimeouts(ctx, lock, statement, func(ctx context.Context, s *pgsession.Session) error {
		return f(ctx, &Session{s})
	})
}

// Cursor is a pinned connection that its owner asks for rows. It is shown by the
// tracker as "cursor", and not accused.
type Cursor struct{ s *pgsession.Session }

// CreateCursor pins a connection, for which ctx is; the Cursor outlives it, until
// Close or the PGAdmin's. One round trip.
func (p *PGAdmin) CreateCursor(ctx context.Context) (*Cursor, error) {
	s, err := p.pool.OpenForRows(ctx, "cursor")
	if err != nil {
		return nil, err
	}
	return &Cursor{s}, nil
}

// QueryRow asks for a row. It ends with the next call at the latest.
func (c *Cursor) QueryRow(ctx context.Context, query string, args ...any) *sql.Row {
	return c.s.QueryRowContext(ctx, query, args...)
}

// Query asks for rows. They end with the next call at the latest.
func (c *Cursor) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return c.s.QueryContext(ctx, query, args...)
}

// Close gives the connection back. The second Close does nothing.
func (c *Cursor) Close() error { return c.s.Close() }

// PoolerMode is what stands between a pool and PostgreSQL.
type PoolerMode string

// What can stand between. The modes are PgBouncer's pool_mode, and of others
// like it.
const (
	PoolerNone        PoolerMode = "none"        // nothing, as far as can be seen
	PoolerSession     PoolerMode = "session"     // a session of ours is one of the server's
	PoolerTransaction PoolerMode = "transaction" // each transaction may be on another session of the server
	PoolerStatement   PoolerMode = "statement"   // each statement may; there are no transactions
	PoolerUnknown     PoolerMode = "unknown"     // there is a pooler, and its mode could not be found out
)

// PoolerError refuses a call that needs a server session of its own
// where a pooler hands these to others.
type PoolerError struct{ Mode PoolerMode }

func (e *PoolerError) Error() string {
	if e.Mode == PoolerUnknown {
		return "baldur: there is a connection pooler (PgBouncer?) before PostgreSQL and its mode could not be found out, for want of a second connection. " +
			"Session locks and settings need pool_mode = session: if it is that, say so by WithPooler(PoolerSession); else use WithTxAdvisoryLock, or connect to PostgreSQL directly"
	}
	return fmt.Sprintf("baldur: a connection pooler (PgBouncer?) in %s mode stands before PostgreSQL: a session lock or setting would stay behind on a connection that it hands to others. "+
		"Connect to PostgreSQL directly or through a pool_mode = session database%s", e.Mode,
		map[bool]string{true: "; or use WithTxAdvisoryLock, which works here"}[e.Mode == PoolerTransaction])
}

// PoolerMode finds out whether there is a pooler between the pool and
// PostgreSQL, and its mode. The answer is kept for the life of the PGAdmin,
// unless it is PoolerUnknown.
//
// A pooler shows in that the process id which lib/pq was told at log-in is not
// that of the backend that answers; without one that is all, and costs one round
// trip. Its mode shows when two connections are asked in turn which backend
// answers: in transaction and in statement mode both meet the same one, or one
// of them meets several. In session mode that cannot be. The second connection
// is dialled outside of the pool if that is baldur's, else taken from it.
//
// With a driver other than lib/pq a pooler in session mode is PoolerNone.
func (p *PGAdmin) PoolerMode(ctx context.Context) (PoolerMode, error) {
	mode, err := p.pool.Mode(ctx)
	return PoolerMode(mode), err
}
