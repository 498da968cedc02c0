package pgsession

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"time"

	"github.com/baldur-go/baldur/internal/pqconn"
)

// A Pooler is what stands between a pool and PostgreSQL; "" where it is not known yet.
type Pooler string

// What can stand there: nothing, or a pooler by its mode.
const (
	NoPooler          Pooler = "none"
	SessionPooler     Pooler = "session"
	TransactionPooler Pooler = "transaction"
	StatementPooler   Pooler = "statement"
	UnknownPooler     Pooler = "unknown"
)

const (
	probeRounds  = 6
	probeTimeout = 5 * time.Second // for the second connection
)

// probe finds out, with conn and a connection of second, which kind of pooler, if any, is between the pool and the server. The
// rules are in the comment of PGAdmin.PoolerMode.
func probe(ctx context.Context, conn *sql.Conn, second func() (db *sql.DB, done func(), err error)) (Pooler, error) {
	pid, err := backendPID(ctx, conn)
	if err != nil {
		return NoPooler, err
	}
	told := toldPID(conn)
	if told == pid {
		return NoPooler, nil
	}
	db, done, err := second()
	if err != nil {
		return unseen(told), nil
	}
	defer done()
	ctx2, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	other, err := Take(ctx2, db)
	if err != nil {
		return unseen(told), ctx.Err()
	}
	defer other.Close()
	for range probeRounds {
		pid2, err := backendPID(ctx2, other)
		if err != nil {
			return unseen(told), ctx.Err()
		}
		again, err := backendPID(ctx, conn)
		if err != nil {
			return NoPooler, err
		}
		if again != pid || again == pid2 {
			return transactionOrStatement(ctx2, other), ctx.Err()
		}
	}
	if told == 0 {
		return NoPooler, nil
	}
	return SessionPooler, nil
}

// unseen is the result of a probe that could not be made.
func unseen(told int) Pooler {
	if told == 0 { // nothing speaks for a pooler
		return NoPooler
	}
	return UnknownPooler
}

// transactionOrStatement: in statement mode PgBouncer refuses BEGIN, and hangs up.
func transactionOrStatement(ctx context.Context, conn *sql.Conn) Pooler {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return StatementPooler
	}
	_ = tx.Rollback()
	return TransactionPooler
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
