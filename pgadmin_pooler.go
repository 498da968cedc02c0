package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/baldur-go/baldur/internal/pgsession"
)

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

// poolerModes are the modes that a probe finds.
var poolerModes = [pgsession.PoolerCount]PoolerMode{
	pgsession.NoPooler: PoolerNone, pgsession.SessionPooler: PoolerSession, pgsession.TransactionPooler: PoolerTransaction,
	pgsession.StatementPooler: PoolerStatement, pgsession.UnknownPooler: PoolerUnknown,
}

// PoolerError refuses a call that needs a session of the server's for itself
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

// errMoved: a pinned connection was answered by another backend than before.
var errMoved = fmt.Errorf("the backend has changed in mid-session: %w", &PoolerError{PoolerTransaction})

// pooler is what is known of it.
type pooler struct {
	sem  chan struct{} // guards mode, and is waited for with a ctx
	mode PoolerMode    // "": not known yet
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
	if p.db == nil {
		return "", errNoPostgres
	}
	for left := p.attempts(); ; left-- {
		conn, err := pgsession.Take(ctx, p.db)
		if err != nil {
			return "", err
		}
		mode, err := p.poolerMode(ctx, conn)
		_ = conn.Close()
		if !p.again(ctx, left, err) {
			return mode, err
		}
	}
}

// poolerMode is PoolerMode, asked on conn where it is not known.
func (p *PGAdmin) poolerMode(ctx context.Context, conn *sql.Conn) (PoolerMode, error) {
	select {
	case p.pooler.sem <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	defer func() { <-p.pooler.sem }()
	if p.pooler.mode != "" {
		return p.pooler.mode, nil
	}
	found, err := pgsession.Probe(ctx, conn, p.secondDB)
	if err != nil {
		return "", err
	}
	mode := poolerModes[found]
	if mode != PoolerUnknown {
		p.pooler.mode = mode
	}
	return mode, nil
}

// mayKeep returns an error if conn is no session of the server's own.
func (p *PGAdmin) mayKeep(ctx context.Context, conn *sql.Conn) error {
	mode, err := p.poolerMode(ctx, conn)
	switch {
	case err != nil:
		return err
	case mode == PoolerNone || mode == PoolerSession:
		return nil
	}
	return &PoolerError{mode}
}

var errNoSecond = errors.New("no second connection to be had")

// secondDB returns where a connection beside a pinned one can be had: outside of
// the pool if it is baldur's, so that a full pool is no obstacle.
func (p *PGAdmin) secondDB() (db *sql.DB, done func(), err error) {
	if db, ok := beside(p.db); ok {
		return db, func() { _ = db.Close() }, nil
	}
	if s := p.db.Stats(); s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections {
		return nil, nil, errNoSecond
	}
	return p.db, func() {}, nil
}

// beside returns where connections are made as the pool makes its own, beside it; false if it
// is not baldur's. The deadline of the ctx that a connection is made with ends that too.
func beside(db *sql.DB) (*sql.DB, bool) {
	d, ok := db.Driver().(interface{ untracked() driver.Connector })
	if !ok {
		return nil, false
	}
	return sql.OpenDB(d.untracked()), true
}
