package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lib/pq"
)

// Prepared statements: of a DB, of a Conn, of a Tx, and what is left open with them.
var stmtLeaks = []program{
	stmtRowsOfDB, stmtRowOfDB, stmtCacheRows, stmtOfConnForgotten, stmtOfConnClosedAlone, stmtOfTx, stmtBoundToTx,
	stmtClosedBeforeRows, stmtInGoroutines, stmtCopyInWithoutCommit, stmtReturnedFromConn,
}

// stmtRowsOfDB breaks out of the Rows of a statement of the pool.
func stmtRowsOfDB(w *world) error {
	stmt, err := w.db.Prepare("SELECT id FROM orders WHERE amount > $1")
	if err != nil {
		return err
	}
	defer stmt.Close()
	rows, err := stmt.Query(30) // LEAK
	if err != nil {
		return err
	}
	var id int
	for rows.Next() && id == 0 {
		err = rows.Scan(&id)
	}
	return err
}

// stmtRowOfDB runs an INSERT … RETURNING by a statement's QueryRow, without Scan.
func stmtRowOfDB(w *world) error {
	stmt, err := w.db.Prepare("INSERT INTO events (kind, body) VALUES ($1, $2) RETURNING id")
	if err != nil {
		return err
	}
	return errors.Join(stmt.QueryRow("visit", "/").Err(), stmt.Close()) // LEAK
}

// A stmtCache prepares each query once.
type stmtCache struct {
	db    *sql.DB
	mu    sync.Mutex
	stmts map[string]*sql.Stmt
}

func (c *stmtCache) prepare(query string) (*sql.Stmt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.stmts[query]; s != nil {
		return s, nil
	}
	s, err := c.db.Prepare(query)
	if err == nil {
		c.stmts[query] = s
	}
	return s, err
}

func (c *stmtCache) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (c *stmtCache) query(query string, args ...any) (*sql.Rows, error) {
	s, err := c.prepare(query)
	if err != nil {
		return nil, err
	}
	return s.Query(args...) // LEAK stmtCacheRows
}

// stmtCacheRows has a good cache of statements, and forgets a query's Rows.
func stmtCacheRows(w *world) error {
	cache := &stmtCache{db: w.db, stmts: map[string]*sql.Stmt{}}
	w.atEnd(func() { _ = cache.close() })
	for _, state := range []string{"new", "done"} {
		rows, err := cache.query("SELECT id, payload FROM jobs WHERE state = $1", state)
		if err != nil {
			return err
		}
		if !rows.Next() {
			rows.Close()
		}
	}
	return nil
}

// stmtOfConnForgotten prepares on a connection, and leaves both.
func stmtOfConnForgotten(w *world) error {
	c, err := w.db.Conn(w.ctx) // LEAK
	if err != nil {
		return err
	}
	stmt, err := c.PrepareContext(w.ctx, "SELECT name FROM customers WHERE id = $1")
	if err != nil {
		return err
	}
	var name string
	return stmt.QueryRow(2).Scan(&name)
}

// stmtOfConnClosedAlone closes the statement, which does not close the connection.
func stmtOfConnClosedAlone(w *world) error {
	ctx := context.Background()
	c, err := w.db.Conn(ctx) // LEAK
	if err != nil {
		return err
	}
	stmt, err := c.PrepareContext(ctx, "UPDATE orders SET note = $2 WHERE id = $1")
	if err != nil {
		c.Close()
		return err
	}
	defer stmt.Close()
	for id := range 5 {
		if _, err := stmt.ExecContext(ctx, id, "checked"); err != nil {
			return err
		}
	}
	return nil
}

// stmtReturnedFromConn returns a statement, and nobody has its connection any more.
func stmtReturnedFromConn(w *world) error {
	prepared := func(query string) (*sql.Stmt, error) {
		c, err := w.db.Conn(context.Background()) // LEAK
		if err != nil {
			return nil, err
		}
		return c.PrepareContext(context.Background(), query)
	}
	stmt, err := prepared("SELECT count(*) FROM jobs WHERE state = $1")
	if err != nil {
		return err
	}
	var n int
	return errors.Join(stmt.QueryRow("new").Scan(&n), stmt.Close())
}

// stmtOfTx closes a transaction's statement by defer, and returns before Commit.
func stmtOfTx(w *world) error {
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	stmt, err := tx.Prepare("INSERT INTO jobs (payload) VALUES ($1)")
	if err != nil {
		tx.Rollback()
		return err
	}
	defer stmt.Close()
	for _, payload := range []any{"a", "b", nil} {
		if _, err := stmt.Exec(payload); err != nil {
			return nil // payload must not be NULL
		}
	}
	return tx.Commit()
}

// stmtBoundToTx uses a statement of the pool in a transaction, and ends only the statement.
func stmtBoundToTx(w *world) error {
	credit, err := w.db.Prepare("UPDATE customers SET balance = balance + $1 WHERE id = $2")
	if err != nil {
		return err
	}
	defer credit.Close()
	tx, err := w.db.BeginTx(context.Background(), nil) // LEAK
	if err != nil {
		return err
	}
	inTx := tx.Stmt(credit)
	defer inTx.Close()
	_, err = inTx.Exec(5, 1)
	return err
}

// stmtClosedBeforeRows closes the statement and thinks that its Rows go with it.
func stmtClosedBeforeRows(w *world) error {
	stmt, err := w.db.PrepareContext(w.ctx, "SELECT id, amount FROM orders WHERE status = $1")
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(context.Background(), "open") // LEAK
	if err != nil {
		return errors.Join(err, stmt.Close())
	}
	if !rows.Next() {
		return errors.New("no order")
	}
	return stmt.Close()
}

// stmtInGoroutines shares a statement between goroutines, each of which reads one row.
func stmtInGoroutines(w *world) error {
	stmt, err := w.db.Prepare("SELECT amount FROM orders WHERE customer_id = $1")
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			rows, err := stmt.Query(i + 1) // LEAK
			if err != nil {
				return
			}
			rows.Next()
		})
	}
	wg.Wait()
	return nil
}

// stmtCopyInWithoutCommit does a COPY as it must be, and forgets the Commit.
func stmtCopyInWithoutCommit(w *world) error {
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	stmt, err := tx.Prepare(pq.CopyIn("events", "kind", "body")) //nolint:staticcheck
	if err != nil {
		return errors.Join(err, tx.Rollback())
	}
	for range 100 {
		if _, err := stmt.Exec("bulk", "x"); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	if _, err := stmt.Exec(); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return stmt.Close()
}

// Statements that nobody closes, on connections that come back: they hold none.
var stmtPiles = []program{pilePerCall, pileCacheByText, pileOfConn}

// pilePerCall prepares in each call of a function, and does not close.
func pilePerCall(w *world) error {
	w.db.SetMaxOpenConns(1)
	name := func(id int) (name string, err error) {
		stmt, err := w.db.Prepare("SELECT name FROM customers WHERE id = $1")
		if err != nil {
			return "", err
		}
		return name, stmt.QueryRow(id).Scan(&name)
	}
	for i := range 60 {
		if _, err := name(i%20 + 1); err != nil {
			return err
		}
	}
	return nil
}

// pileCacheByText caches statements by their text, which has the arguments in it.
func pileCacheByText(w *world) error {
	w.db.SetMaxOpenConns(1)
	cache := &stmtCache{db: w.db, stmts: map[string]*sql.Stmt{}}
	w.atEnd(func() { _ = cache.close() })
	for id := range 70 {
		stmt, err := cache.prepare(fmt.Sprintf("SELECT amount FROM orders WHERE id = %d", id))
		if err != nil {
			return err
		}
		var amount int
		if err := stmt.QueryRow().Scan(&amount); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
	}
	return nil
}

// pileOfConn prepares on one long-lived connection for each event, and closes none.
func pileOfConn(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for i := 0; ; i++ {
		stmt, err := c.PrepareContext(w.ctx, "INSERT INTO events (kind, body) VALUES ('piled', $1)")
		if err != nil {
			return err
		}
		if _, err := stmt.ExecContext(w.ctx, fmt.Sprint(i)); err != nil {
			return err
		}
		if i == 80 {
			w.stands()
		}
		if i >= 80 && !w.sleep(50*time.Millisecond) {
			return nil
		}
	}
}
