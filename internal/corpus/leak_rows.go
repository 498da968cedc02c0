package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// Rows that nobody closes.
var rowsLeaks = []program{
	rowsReturnInLoop, rowsScanError, rowsFirstRowOnly, rowsBreak, rowsNextResultSet, rowsReturnedToCaller,
	rowsCursorNeverClosed, rowsSeqWithoutDefer, rowsPullWithoutStop, rowsPanicRecovered, rowsSecondQueryFails,
	rowsVariableReused, rowsDeferInLongLoop, rowsProducerStuck, rowsLazyClosure, rowsBehindInterface,
	rowsExistenceCheck, rowsQueryForUpdate, rowsValueCtx, rowsWithoutCancel, rowsColumnsOnly, rowsCSVWriterFails,
	rowsInGroup, rowsValuerPanics, rowsSwitchDefault, rowsAppCtx,
}

// rowsReturnInLoop searches by hand and returns at the first match.
func rowsReturnInLoop(w *world) error {
	find := func(email string) (id int, err error) {
		rows, err := w.db.Query("SELECT id, coalesce(email, '') FROM customers ORDER BY id") // LEAK
		if err != nil {
			return 0, err
		}
		for rows.Next() {
			var have string
			if err := rows.Scan(&id, &have); err != nil {
				return 0, err
			}
			if have == email {
				return id, nil
			}
		}
		rows.Close()
		return 0, sql.ErrNoRows
	}
	_, err := find("c3@example.com")
	return err
}

// rowsScanError scans a NULL into a string, and returns the error before Close.
func rowsScanError(w *world) error {
	rows, err := w.db.QueryContext(context.Background(), "SELECT name, email FROM customers ORDER BY email NULLS FIRST") // LEAK
	if err != nil {
		return err
	}
	emails := map[string]string{}
	for rows.Next() {
		var name, email string
		if err := rows.Scan(&name, &email); err != nil {
			slog.Debug("customers", "err", err)
			return nil
		}
		emails[name] = email
	}
	return rows.Close()
}

// rowsFirstRowOnly wants one row and uses "if rows.Next()".
func rowsFirstRowOnly(w *world) error {
	var total int
	rows, err := w.db.Query("SELECT amount FROM orders ORDER BY amount DESC") // LEAK
	if err == nil && rows.Next() {
		err = rows.Scan(&total)
	}
	return err
}

// rowsBreak takes a page out of a larger result, and breaks out of the loop when it is full.
func rowsBreak(w *world) error {
	const pageSize = 10
	rows, err := w.db.Query(`SELECT id, amount FROM orders WHERE status = $1`, "open") // LEAK
	if err != nil {
		return err
	}
	type order struct{ id, amount int }
	var page []order
	for rows.Next() {
		var o order
		if err := rows.Scan(&o.id, &o.amount); err != nil {
			rows.Close()
			return err
		}
		if page = append(page, o); len(page) == pageSize {
			break
		}
	}
	return rows.Err()
}

// rowsNextResultSet reads the first of two result sets to its end, and forgets the second.
func rowsNextResultSet(w *world) error {
	rows, err := w.db.Query("SELECT count(*) FROM orders; SELECT count(*) FROM customers") // LEAK
	if err != nil {
		return err
	}
	var n int
	for rows.Next() {
		if err := rows.Scan(&n); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return rows.Err() // a single result set would be closed by now
}

// rowsReturnedToCaller hands Rows out of a function, to a caller that reads the first row.
func rowsReturnedToCaller(w *world) error {
	rows, err := ordersOf(w.db, 7)
	if err != nil {
		return err
	}
	if !rows.Next() {
		return rows.Close()
	}
	var id, amount int
	return rows.Scan(&id, &amount)
}

func ordersOf(db *sql.DB, customer int) (*sql.Rows, error) {
	return db.Query("SELECT id, amount FROM orders WHERE customer_id = $1 ORDER BY id", customer) // LEAK rowsReturnedToCaller
}

// rowsCursorNeverClosed wraps Rows in a cursor with a Close, which its user does not know of.
func rowsCursorNeverClosed(w *world) error {
	c, err := openEvents(w.db)
	if err != nil {
		return err
	}
	for range 3 {
		if _, ok := c.next(); !ok {
			break
		}
	}
	return c.err
}

type eventCursor struct {
	rows *sql.Rows
	err  error
	read int
}

func openEvents(db *sql.DB) (*eventCursor, error) {
	rows, err := db.Query("SELECT i::text FROM generate_series(1, 1000) i") // LEAK rowsCursorNeverClosed
	return &eventCursor{rows: rows}, err
}

func (c *eventCursor) next() (kind string, ok bool) {
	if !c.rows.Next() {
		c.err = c.rows.Err()
		return "", false
	}
	c.err = c.rows.Scan(&kind)
	c.read++
	return kind, c.err == nil
}

func (c *eventCursor) close() error { return c.rows.Close() }

var _ interface{ close() error } = (*eventCursor)(nil)

// rowsSeqWithoutDefer ranges over an iterator that closes its Rows after the loop and not
// by defer; the consumer breaks.
func rowsSeqWithoutDefer(w *world) error {
	names := func(yield func(string, error) bool) {
		rows, err := w.db.Query("SELECT name FROM customers") // LEAK
		if err != nil {
			yield("", err)
			return
		}
		for rows.Next() {
			var name string
			err := rows.Scan(&name)
			if !yield(name, err) {
				return
			}
		}
		rows.Close()
	}
	for name, err := range iter.Seq2[string, error](names) {
		if err != nil {
			return err
		}
		if strings.HasSuffix(name, " 5") {
			break
		}
	}
	return nil
}

// rowsPullWithoutStop pulls from a correct iterator and never calls stop.
func rowsPullWithoutStop(w *world) error {
	seq := func(yield func(int) bool) {
		rows, err := w.db.Query("SELECT id FROM orders ORDER BY id") // LEAK
		if err != nil {
			return
		}
		defer rows.Close()
		for rows.Next() {
			var id int
			if rows.Scan(&id) != nil || !yield(id) {
				return
			}
		}
	}
	next, stop := iter.Pull(seq)
	w.atEnd(stop)
	if first, ok := next(); !ok {
		return errors.New("no order")
	} else if second, _ := next(); second < first {
		return errors.New("out of order")
	}
	return nil
}

// rowsPanicRecovered panics between Query and Close; a middleware recovers.
func rowsPanicRecovered(w *world) error {
	recovering := func(next func()) {
		defer func() {
			if p := recover(); p != nil {
				slog.Debug("recovered", "panic", p)
			}
		}()
		next()
	}
	recovering(func() {
		rows, err := w.db.Query("SELECT customer_id, amount FROM orders") // LEAK
		if err != nil {
			return
		}
		var report struct{ totals map[int]int } // not made
		for rows.Next() {
			var customer, amount int
			_ = rows.Scan(&customer, &amount)
			report.totals[customer] += amount
		}
		rows.Close()
	})
	return nil
}

// rowsSecondQueryFails makes a second query while the first is open, and returns its error.
func rowsSecondQueryFails(w *world) error {
	compare := func(ctx context.Context) error {
		have, err := w.db.QueryContext(ctx, "SELECT id FROM customers") // LEAK
		if err != nil {
			return err
		}
		want, err := w.db.QueryContext(ctx, "SELECT id FROM customers_imported")
		if err != nil {
			return fmt.Errorf("imported: %w", err)
		}
		defer have.Close()
		defer want.Close()
		return nil
	}
	if compare(context.Background()) == nil {
		return errors.New("there is a table customers_imported")
	}
	return nil
}

// rowsVariableReused assigns a second Query to the variable of the first.
func rowsVariableReused(w *world) error {
	rows, err := w.db.Query("SELECT id FROM jobs WHERE state = 'new'") // LEAK
	if err != nil {
		return err
	}
	if !rows.Next() {
		rows, err = w.db.Query("SELECT id FROM jobs WHERE state = 'failed'")
	} else {
		rows, err = w.db.Query("SELECT id FROM jobs WHERE state = 'new' ORDER BY id")
	}
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}

// rowsDeferInLongLoop defers Close in the loop of a function that runs for days.
func rowsDeferInLongLoop(w *world) error {
	for customer := 1; ; customer++ {
		rows, err := w.db.Query("SELECT amount FROM orders WHERE customer_id = $1", customer) // LEAK
		if err != nil {
			return err
		}
		defer rows.Close()
		if rows.Next() {
			var amount int
			if err := rows.Scan(&amount); err != nil {
				return err
			}
		}
		if customer == 3 {
			w.stands()
			<-w.over // until the next customer comes
			return nil
		}
	}
}

// rowsProducerStuck sends rows to a channel whose reader has gone.
func rowsProducerStuck(w *world) error {
	ids := make(chan int)
	go func() {
		defer close(ids)
		rows, err := w.db.Query("SELECT id FROM orders") // LEAK
		if err != nil {
			return
		}
		defer rows.Close()
		for rows.Next() {
			var id int
			if rows.Scan(&id) != nil {
				return
			}
			select {
			case ids <- id:
			case <-w.over:
				return
			}
		}
	}()
	for id := range ids {
		if id%4 == 0 {
			break
		}
	}
	return nil
}

// lazily are results that were asked for and not read.
var lazily = map[string]func() (int, bool){}

// rowsLazyClosure keeps a "next" function in a map, and forgets it there.
func rowsLazyClosure(w *world) error {
	rows, err := w.db.Query("SELECT id FROM events UNION ALL SELECT generate_series(1, 500)") // LEAK
	if err != nil {
		return err
	}
	lazily[fmt.Sprint("events ", time.Now())] = func() (id int, ok bool) {
		if !rows.Next() {
			return 0, false
		}
		err := rows.Scan(&id)
		return id, err == nil
	}
	return nil
}

// querier is what a repository needs of a *sql.DB, *sql.Conn or *sql.Tx.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

var (
	_ querier = (*sql.DB)(nil)
	_ querier = (*sql.Conn)(nil)
	_ querier = (*sql.Tx)(nil)
)

// scanner is a result without its Close.
type scanner interface {
	Next() bool
	Scan(dest ...any) error
}

type customers struct{ q querier }

func (c customers) all(ctx context.Context) (scanner, error) {
	return c.q.QueryContext(ctx, "SELECT id, name FROM customers") // LEAK rowsBehindInterface
}

// rowsBehindInterface returns Rows as an interface that has no Close.
func rowsBehindInterface(w *world) error {
	found, err := customers{w.db}.all(context.Background())
	if err != nil {
		return err
	}
	var id int
	var name string
	for found.Next() && id < 5 {
		if err := found.Scan(&id, &name); err != nil {
			return err
		}
	}
	return nil
}

// rowsExistenceCheck asks whether there is a row by Next alone.
func rowsExistenceCheck(w *world) error {
	exists := func(email string) bool {
		rows, err := w.db.Query("SELECT 1 FROM customers WHERE email = $1", email) // LEAK
		return err == nil && rows.Next()
	}
	if !exists("c1@example.com") {
		return errors.New("no such customer")
	}
	return nil
}

// rowsQueryForUpdate runs an UPDATE by Query, and drops the Rows.
func rowsQueryForUpdate(w *world) error {
	_, err := w.db.Query("UPDATE jobs SET state = 'done' WHERE id = $1", 3) // LEAK
	return err
}

type traceKey struct{}

// rowsValueCtx leaks under a ctx that has values and no end.
func rowsValueCtx(w *world) error {
	ctx := context.WithValue(context.Background(), traceKey{}, "4bf92f3577b34da6")
	rows, err := w.db.QueryContext(ctx, "SELECT kind, body FROM events LIMIT 100") // LEAK
	if err != nil {
		return err
	}
	cols, err := rows.ColumnTypes()
	if len(cols) != 2 {
		return fmt.Errorf("%d columns", len(cols))
	}
	return err
}

// rowsWithoutCancel is an HTTP handler that goes on after its request, and returns early.
func rowsWithoutCancel(w *world) error {
	return get(w, func(rw http.ResponseWriter, r *http.Request) {
		ctx := context.WithoutCancel(r.Context())                                      // the audit must be written even if the client goes away
		rows, err := w.db.QueryContext(ctx, "SELECT id FROM orders WHERE amount > 50") // LEAK
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		if r.Header.Get("X-User") == "" {
			rw.WriteHeader(http.StatusNoContent)
			return
		}
		defer rows.Close()
	})
}

// rowsColumnsOnly asks for the columns of a table by a query, and never reads it.
func rowsColumnsOnly(w *world) error {
	columns := func(table string) ([]string, error) {
		rows, err := w.db.Query("SELECT * FROM " + table) // LEAK
		if err != nil {
			return nil, err
		}
		return rows.Columns()
	}
	_, err := columns("orders")
	return err
}

type brokenPipe struct{ left int }

func (b *brokenPipe) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("broken pipe")
	}
	return len(p), nil
}

// rowsCSVWriterFails exports to a client that has gone, and returns on the write's error.
func rowsCSVWriterFails(w *world) error {
	export := func(to *brokenPipe) error {
		rows, err := w.db.Query("SELECT id, name FROM customers") // LEAK
		if err != nil {
			return err
		}
		for rows.Next() {
			var id int
			var name string
			if err := rows.Scan(&id, &name); err != nil {
				rows.Close()
				return err
			}
			if _, err := fmt.Fprintf(to, "%d,%s\n", id, name); err != nil {
				return err
			}
		}
		return rows.Close()
	}
	if export(&brokenPipe{50}) == nil {
		return errors.New("nothing was written")
	}
	return nil
}

// rowsInGroup makes three queries side by side; the one that succeeds after another has
// failed is forgotten.
func rowsInGroup(w *world) error {
	var results [3]*sql.Rows
	g := newGroup(context.Background())
	for i, table := range []string{"orders", "invoices", "jobs"} {
		g.run(func(context.Context) (err error) {
			results[i], err = w.db.Query("SELECT * FROM " + table) // LEAK
			return err
		})
	}
	if err := g.wait(); err != nil {
		return nil // there is no table invoices
	}
	for _, rows := range results {
		rows.Close()
	}
	return nil
}

type money struct{ cents *int }

func (m money) Value() (driver.Value, error) { return int64(*m.cents), nil }

// rowsValuerPanics gives Query an argument whose Value panics; database/sql keeps the connection.
func rowsValuerPanics(w *world) (err error) {
	defer func() {
		if recover() == nil {
			err = errors.New("no panic")
		}
	}()
	rows, err := w.db.Query("SELECT id FROM orders WHERE amount > $1", money{}) // LEAK
	if err != nil {
		return err
	}
	return rows.Close()
}

// rowsSwitchDefault closes in two of three branches.
func rowsSwitchDefault(w *world) error {
	rows, err := w.db.Query("SELECT state, count(*) FROM jobs GROUP BY state UNION ALL SELECT 'x', 0") // LEAK
	if err != nil {
		return err
	}
	var state string
	var n int
	rows.Next()
	if err := rows.Scan(&state, &n); err != nil {
		return err
	}
	switch {
	case state == "failed":
		return rows.Close()
	case n > 1_000_000:
		rows.Close()
		return errors.New("too many jobs")
	default:
		return nil
	}
}

// rowsAppCtx leaks under the ctx of the whole program, which can be cancelled and is not.
func rowsAppCtx(w *world) error {
	rows, err := w.db.QueryContext(w.ctx, "SELECT id, payload FROM jobs ORDER BY id") // LEAK
	if err != nil {
		return err
	}
	for i := 0; rows.Next(); i++ {
		if i == 2 {
			return nil
		}
	}
	return rows.Err()
}
