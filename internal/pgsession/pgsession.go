package baldur

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"

	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/sqlpool"
)

// How a PGAdmin comes by a connection of the pool, and asks it.
//
// A pooled connection carries what the program has left on it. A transaction is
// the worst: what is done in it is undone when somebody ends it. So a connection
// that is in one is discarded and another is taken. Settings are set for the one
// request, in the same message; a role and a search_path are the program's choice
// and stay. (DISCARD ALL would undo both, and break every sql.Stmt.)

// take takes a connection of the pool that is in no transaction.
func (p *PGAdmin) take(ctx context.Context) (*sql.Conn, error) { return takeClean(ctx, p.db) }

// takeClean takes a connection of a pool that is in no transaction, of those that it has and a
// few new ones.
func takeClean(ctx context.Context, db *sql.DB) (*sql.Conn, error) {
	for left := maxTakes(db); ; left-- {
		conn, err := db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		if err = checkIdle(ctx, conn); err == nil {
			return conn, nil
		}
		sqlpool.Discard(conn)
		if !errors.Is(err, errInTransaction) && !isBadConn(err) || ctx.Err() != nil || left <= 1 {
			return nil, err
		}
	}
}

func maxTakes(db *sql.DB) int { return 3 + db.Stats().OpenConnections }

var errInTransaction = errors.New("baldur: the pool's connections come in an open transaction")

// beside returns where connections are made as the pool makes its own, beside it; false if it
// is not baldur's. The deadline of the ctx that a connection is made with ends that too.
func beside(db *sql.DB) (*sql.DB, bool) {
	d, ok := db.Driver().(interface{ untracked() driver.Connector })
	if !ok {
		return nil, false
	}
	return sql.OpenDB(d.untracked()), true
}

// checkIdle returns errInTransaction if the connection is in a transaction.
func checkIdle(ctx context.Context, conn *sql.Conn) error {
	status, _, err := connStatus(conn)
	switch {
	case err != nil:
		return err
	case status == 'I':
		return nil
	case status != 0:
		return errInTransaction
	}
	// The driver does not tell. What is set for a transaction is there in the next
	// statement only if that is in the same one.
	var b [8]byte
	_, _ = rand.Read(b[:])
	token := hex.EncodeToString(b[:])
	err = conn.QueryRowContext(ctx, "SELECT pg_catalog.set_config('baldur.transaction'::pg_catalog.text, '"+token+"'::pg_catalog.text, true)").Scan(new(string))
	if pqconn.HasState(err, "25P02") {
		return errInTransaction
	}
	if err != nil {
		return err
	}
	var got sql.NullString
	err = conn.QueryRowContext(ctx, "SELECT pg_catalog.current_setting('baldur.transaction'::pg_catalog.text, true)").Scan(&got)
	if err == nil && got.String == token {
		return errInTransaction
	}
	return err
}

// connStatus is a connection's transaction status, in the server's last word as
// the driver has kept it: 'I' idle, 'T' in a transaction, 'E' in a failed one; 0
// if the driver does not tell.
func connStatus(conn *sql.Conn) (status byte, isLibPQ bool, err error) {
	err = conn.Raw(func(dc any) error {
		if c, ok := dc.(driver.Conn); ok {
			c = Unwrap(c)
			if status = pqconn.TxStatus(c); status != 0 {
				isLibPQ = true
			} else {
				status = pgxTxStatus(c)
			}
		}
		return nil
	})
	return status, isLibPQ, err
}

// pgxConn is c.Conn().PgConn() of pgx's stdlib connection, which the root package does not
// import; else nil. The names are constants, so that the linker still drops other methods.
func pgxConn(c driver.Conn) any {
	v := reflect.ValueOf(c).MethodByName("Conn")
	if !v.IsValid() || v.Type().NumIn() != 0 || v.Type().NumOut() != 1 {
		return nil
	}
	if v = v.Call(nil)[0]; v.Kind() != reflect.Pointer || v.IsNil() {
		return nil
	}
	v = v.MethodByName("PgConn")
	if !v.IsValid() || v.Type().NumIn() != 0 || v.Type().NumOut() != 1 {
		return nil
	}
	if v = v.Call(nil)[0]; v.Kind() != reflect.Pointer || v.IsNil() {
		return nil
	}
	return v.Interface()
}

// pgxTxStatus is pgx's pqTxStatus.
func pgxTxStatus(c driver.Conn) byte {
	if s, ok := pgxConn(c).(interface{ TxStatus() byte }); ok {
		return s.TxStatus()
	}
	return 0
}

// driverPID is the process id that the driver was told at log-in; 0 if it does not tell.
func driverPID(c driver.Conn) int {
	if pid := pqconn.PID(c); pid != 0 {
		return pid
	}
	if p, ok := pgxConn(c).(interface{ PID() uint32 }); ok {
		return int(p.PID())
	}
	return 0
}

// isolate comes before the first query: a SERIALIZABLE READ ONLY DEFERRABLE
// transaction, which a session's defaults can make of any, may wait for others.
const isolate = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

// settle makes a request's result, and whether it has one, independent of the
// settings that the session has.
var settle = "SELECT " + strings.Join([]string{
	pgsql.SetConfig("statement_timeout", "NULL"), pgsql.SetConfig("lock_timeout", "NULL"), pgsql.SetConfigIfKnown("transaction_timeout", "NULL"),
	pgsql.SetConfig("client_encoding", "'UTF8'"), pgsql.SetConfig("DateStyle", "'ISO'"), pgsql.SetConfig("extra_float_digits", "'1'"),
}, ", ")

// A request is a query with what has to be said before and after it in the same
// transaction, of which the results are of no interest.
type request struct {
	before []string
	query  string
	after  []string
}

// tidy says how much of a session's settings a request must not meet.
type tidy struct {
	before []string
	needed bool // also where it costs a transaction: with other drivers than lib/pq
}

var (
	asNew   = tidy{[]string{isolate, settle}, true}
	asNewPQ = tidy{[]string{isolate, settle}, false}
	asItIs  = tidy{[]string{isolate}, false} // the request reads settings
)

// askClean asks a connection. Where the driver does not tell whether that is in a
// transaction, one that must be clean is not: see take.
func askClean(ctx context.Context, conn *sql.Conn, how tidy, query string, each func(*sql.Rows) error) error {
	status, isLibPQ, err := connStatus(conn)
	switch {
	case err != nil:
		return err
	case status == 'I' && isLibPQ:
		return askAtOnce(ctx, conn, request{before: how.before, query: query}, each)
	case status != 'I' && status != 0 || !how.needed:
		return askAtOnce(ctx, conn, request{query: query}, each)
	}
	// One message has one statement with other drivers, so it takes a transaction.
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := askInTurn(ctx, tx, request{before: how.before, query: query}, each); err != nil {
		return err
	}
	return tx.Commit()
}

type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// askAtOnce sends a request as one message, which lib/pq can.
func askAtOnce(ctx context.Context, q queryer, r request, each func(*sql.Rows) error) error {
	rows, err := q.QueryContext(ctx, strings.Join(append(append(r.before[:len(r.before):len(r.before)], r.query), r.after...), ";\n"))
	if err != nil {
		return err
	}
	defer rows.Close()
	set := 0 // SET TRANSACTION has no result
	for _, s := range r.before {
		if strings.HasPrefix(s, "SELECT ") {
			set++
		}
	}
	for {
		for rows.Next() {
			if set != 0 {
				continue
			}
			if err := each(rows); err != nil {
				return err
			}
		}
		if set--; !rows.NextResultSet() {
			return rows.Err()
		}
	}
}

// askInTurn sends a request's statements one by one.
func askInTurn(ctx context.Context, q queryer, r request, each func(*sql.Rows) error) error {
	for _, s := range r.before {
		if _, err := q.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	if err := askAtOnce(ctx, q, request{query: r.query}, each); err != nil {
		return err
	}
	for _, s := range r.after {
		if _, err := q.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// scanOne returns what scans the first row, and what says whether there was one.
func scanOne(dest ...any) (each func(*sql.Rows) error, done func(error) error) {
	n := 0
	return func(rows *sql.Rows) error {
			if n++; n > 1 {
				return nil
			}
			return rows.Scan(dest...)
		}, func(err error) error {
			if err == nil && n == 0 {
				return sql.ErrNoRows
			}
			return err
		}
}

// row asks for one row on any connection of the pool.
func (p *PGAdmin) row(ctx context.Context, query string, dest ...any) error {
	each, done := scanOne(dest...)
	return done(p.rows(ctx, query, each))
}

// rows asks for rows on any connection of the pool. A connection that has died in
// the pool is replaced.
func (p *PGAdmin) rows(ctx context.Context, query string, each func(*sql.Rows) error) error {
	if p.db == nil {
		return errNoPostgres
	}
	for left := p.attempts(); ; left-- {
		conn, err := p.take(ctx)
		if err != nil {
			return err
		}
		seen := false
		err = askClean(ctx, conn, asNew, query, func(rows *sql.Rows) error {
			seen = true
			return each(rows)
		})
		if isBadConn(err) {
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
	return maxTakes(p.db)
}

// again tells whether to try another connection: the one of this attempt had died
// in the pool.
func (p *PGAdmin) again(ctx context.Context, left int, err error) bool {
	return isBadConn(err) && p.mayRetry(ctx, left)
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
		conn, err := p.take(ctx)
		if err != nil {
			return nil, err
		}
		_, isLibPQ, _ := connStatus(conn)
		tx, err := conn.BeginTx(life, nil)
		if err == nil && mode != "" {
			if _, err = tx.ExecContext(ctx, "SET TRANSACTION "+mode); err != nil {
				_ = tx.Rollback()
			}
		}
		if err == nil {
			return &adminTx{tx, conn, isLibPQ}, nil
		}
		if isBadConn(err) {
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

func (t *adminTx) ask(ctx context.Context, r request, dest ...any) error {
	each, done := scanOne(dest...)
	if t.isLibPQ {
		return done(askAtOnce(ctx, t.Tx, r, each))
	}
	return done(askInTurn(ctx, t.Tx, r, each))
}
