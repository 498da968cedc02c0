package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/baldur-go/baldur/internal/pqconn"
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

const (
	probeRounds  = 6
	probeTimeout = 5 * time.Second // for the second connection
)

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
		conn, err := p.take(ctx)
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
	mode, err := p.probe(ctx, conn)
	if err == nil && mode != PoolerUnknown {
		p.pooler.mode = mode
	}
	return mode, err
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

func (p *PGAdmin) probe(ctx context.Context, conn *sql.Conn) (PoolerMode, error) {
	pid, err := askPID(ctx, conn)
	if err != nil {
		return "", err
	}
	told := toldPID(conn)
	if told == pid {
		return PoolerNone, nil
	}
	second, done, err := p.secondDB()
	if err != nil {
		return unseen(told), nil
	}
	defer done()
	ctx2, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	other, err := takeClean(ctx2, second)
	if err != nil {
		return unseen(told), ctx.Err()
	}
	defer other.Close()
	for range probeRounds {
		pid2, err := askPID(ctx2, other)
		if err != nil {
			return unseen(told), ctx.Err()
		}
		again, err := askPID(ctx, conn)
		if err != nil {
			return "", err
		}
		if again != pid || again == pid2 {
			return transactionOrStatement(ctx2, other), ctx.Err()
		}
	}
	if told == 0 {
		return PoolerNone, nil
	}
	return PoolerSession, nil
}

// unseen is what a probe comes to that could not be made.
func unseen(told int) PoolerMode {
	if told == 0 { // nothing speaks for a pooler
		return PoolerNone
	}
	return PoolerUnknown
}

// transactionOrStatement: in statement mode PgBouncer refuses BEGIN, and hangs up.
func transactionOrStatement(ctx context.Context, conn *sql.Conn) PoolerMode {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return PoolerStatement
	}
	_ = tx.Rollback()
	return PoolerTransaction
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

const askPIDQuery = "SELECT pg_catalog.pg_backend_pid()"

func askPID(ctx context.Context, conn *sql.Conn) (pid int, err error) {
	err = conn.QueryRowContext(ctx, askPIDQuery).Scan(&pid)
	return pid, err
}

// toldPID is the process id that lib/pq was told at log-in, or 0.
func toldPID(conn *sql.Conn) (pid int) {
	_ = conn.Raw(func(dc any) error {
		if c, ok := dc.(driver.Conn); ok {
			pid = pqconn.PID(Unwrap(c))
		}
		return nil
	})
	return pid
}
