// Package pgsession takes connections of a pool that carry no transaction, asks them so that
// what a program has left on them does not matter, and finds out what stands between them and
// the server. It works with every driver for PostgreSQL; lib/pq spares round trips.
package pgsession

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"

	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/sqlpool"
)

// A pooled connection carries what the program has left on it. A transaction is the worst:
// what is done in it is undone when somebody rolls it back. So a connection that is in one is
// discarded and another is taken. Settings are made for one request, in the same message. A
// role and a search_path are the program's choice and stay. (DISCARD ALL would undo both, and
// break every sql.Stmt.)

// Take takes a connection of a pool that is in no transaction, of those that it has and a few
// new ones.
func Take(ctx context.Context, db *sql.DB) (*sql.Conn, error) {
	for left := Takes(db); ; left-- {
		conn, err := db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		if err = checkIdle(ctx, conn); err == nil {
			return conn, nil
		}
		sqlpool.Discard(conn)
		// What the server refuses of a probe is due to what was left, as a short statement_timeout.
		_, refused := pqconn.SQLState(err)
		if !errors.Is(err, errInTransaction) && !IsBad(err) && !refused || ctx.Err() != nil || left <= 1 {
			return nil, err
		}
	}
}

// Takes is how often it is worth trying another connection of a pool: all that it has may be
// dead, as after a restart of the server, or in a transaction.
func Takes(db *sql.DB) int { return 3 + db.Stats().OpenConnections }

// errInTransaction is returned if the connections of a pool come in a transaction that was left open.
var errInTransaction = errors.New("baldur: the pool's connections come in an open transaction")

// checkIdle returns errInTransaction if the connection is in a transaction.
func checkIdle(ctx context.Context, conn *sql.Conn) error {
	status, _, err := Status(conn)
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

// Status is a connection's transaction status, as the server told it last and the driver
// has kept it: 'I' idle, 'T' in a transaction, 'E' in a failed one; 0
// if the driver does not tell.
func Status(conn *sql.Conn) (status byte, isLibPQ bool, err error) {
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

// Unwrap returns the driver's own connection, by the Raw methods of the wrappers around it.
func Unwrap(c driver.Conn) driver.Conn {
	for {
		w, ok := c.(interface{ Raw() driver.Conn })
		if !ok {
			return c
		}
		inner := w.Raw()
		if inner == nil {
			return c
		}
		c = inner
	}
}

// pgxConn is c.Conn().PgConn() of pgx's stdlib connection, which this package does not
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

// pgxTxStatus is pqconn.TxStatus for pgx.
func pgxTxStatus(c driver.Conn) byte {
	if s, ok := pgxConn(c).(interface{ TxStatus() byte }); ok {
		return s.TxStatus()
	}
	return 0
}

// Inner is the driver's own connection below c, and the process id of the server's that the
// driver was told at log-in; 0 if it does not tell.
func Inner(c driver.Conn) (inner driver.Conn, pid int) {
	c = Unwrap(c)
	if pid := pqconn.PID(c); pid != 0 {
		return c, pid
	}
	if p, ok := pgxConn(c).(interface{ PID() uint32 }); ok {
		return c, int(p.PID())
	}
	return c, 0
}

// isolate comes before the first query: a session's defaults can make any transaction a
// SERIALIZABLE READ ONLY DEFERRABLE one, which may wait for others.
const isolate = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"

// Settle makes a request's result, and whether there is one, independent of the session's
// settings.
var Settle = "SELECT " + strings.Join([]string{
	pgsql.SetConfig("statement_timeout", "NULL"), pgsql.SetConfig("lock_timeout", "NULL"), pgsql.SetConfigIfKnown("transaction_timeout", "NULL"),
	pgsql.SetConfig("client_encoding", "'UTF8'"), pgsql.SetConfig("DateStyle", "'ISO'"), pgsql.SetConfig("extra_float_digits", "'1'"),
}, ", ")

// A Request is a query with the statements that come before and after it in the same
// transaction, whose results do not matter.
type Request struct {
	Before []string
	Query  string
	After  []string
}

// A Tidy says which of a session's settings must not affect a request.
type Tidy struct {
	before []string
	needed bool // also where it costs a transaction: with other drivers than lib/pq
}

// AsNew: none. AsNewPQ: none where that costs no transaction. AsItIs: the request reads them.
var (
	AsNew   = Tidy{[]string{isolate, Settle}, true}
	AsNewPQ = Tidy{[]string{isolate, Settle}, false}
	AsItIs  = Tidy{[]string{isolate}, false} // the request reads settings
)

// Ask asks a connection, and calls each for every row. If the driver does not tell whether the
// connection is in a transaction, it is in none: see Take.
func Ask(ctx context.Context, conn *sql.Conn, how Tidy, query string, each func(*sql.Rows) error) error {
	status, isLibPQ, err := Status(conn)
	switch {
	case err != nil:
		return err
	case status == 'I' && isLibPQ:
		return askAtOnce(ctx, conn, Request{Before: how.before, Query: query}, each)
	case status != 'I' && status != 0 || !how.needed:
		return askAtOnce(ctx, conn, Request{Query: query}, each)
	}
	// One message has one statement with other drivers, so it takes a transaction.
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := askInTurn(ctx, tx, Request{Before: how.before, Query: query}, each); err != nil {
		return err
	}
	return tx.Commit()
}

// A queryer is a connection or a transaction.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// askAtOnce sends a request as one message, which lib/pq can.
func askAtOnce(ctx context.Context, q queryer, r Request, each func(*sql.Rows) error) error {
	rows, err := q.QueryContext(ctx, strings.Join(append(append(r.Before[:len(r.Before):len(r.Before)], r.Query), r.After...), ";\n"))
	if err != nil {
		return err
	}
	defer rows.Close()
	set := 0 // SET TRANSACTION has no result
	for _, s := range r.Before {
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
func askInTurn(ctx context.Context, q queryer, r Request, each func(*sql.Rows) error) error {
	for _, s := range r.Before {
		if _, err := q.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	if err := askAtOnce(ctx, q, Request{Query: r.Query}, each); err != nil {
		return err
	}
	for _, s := range r.After {
		if _, err := q.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// ScanOne returns a function that scans the first row, and one that turns the error of the
// query into sql.ErrNoRows where there was no row.
func ScanOne(dest ...any) (each func(*sql.Rows) error, done func(error) error) {
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

// askPID asks for the process id of the backend that answers.
const askPID = "SELECT pg_catalog.pg_backend_pid()"

func backendPID(ctx context.Context, conn *sql.Conn) (pid int, err error) {
	err = conn.QueryRowContext(ctx, askPID).Scan(&pid)
	return pid, err
}

// IsBad tells whether a connection was found dead: by the driver, or, as where
// the server's farewell is lost in a reset, by the network.
func IsBad(err error) bool {
	var network *net.OpError
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.As(err, &network) && network.Op != "dial"
}
