package main

import (
	"context"
	"database/sql"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/lib/pq"
)

// Honest queries and transactions: the shapes of the leaks, done right.
var honestUse = []program{
	okRowsDefer, okRowsFirstRow, okRowsBreak, okRowsResultSets, okRowsSeq, okRowsPullStop, okRowsPanic, okRowsReturned,
	okRowsProducer, okRowsSlowExport, okRowsHugeSlowly, okRowRows, okRowForUpdateReturning, okExecMany, okHandlerJSON,
	okHandlerClientGone, okTxDefer, okTxClosure, okTxPanic, okTxRetry, okTxSavepoints, okTxLong, okTxIntoStruct,
	okTxInCtx, okTxHandedOver, okTxAcrossGoroutines, okTxReadOnly, okTxTimeout, okTxCopyIn, okTxCancelledThenClosed,
	okNestedOnTwoPools, okUnitOfWork, okRowsDeepBatches, okTxLockQueue,
}

// okRowsDefer reads all rows, with Close by defer and Err at the end.
func okRowsDefer(w *world) error {
	rows, err := w.db.QueryContext(w.ctx, "SELECT id, name FROM customers ORDER BY id")
	if err != nil {
		return err
	}
	defer rows.Close()
	names := map[int]string{}
	for rows.Next() {
		var id int
		var name string
		if err := rows.Scan(&id, &name); err != nil {
			return err
		}
		names[id] = name
	}
	return rows.Err()
}

// okRowsFirstRow reads the first row of many, and closes.
func okRowsFirstRow(w *world) error {
	rows, err := w.db.Query("SELECT amount FROM orders ORDER BY amount DESC")
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		return errors.Join(sql.ErrNoRows, rows.Err())
	}
	var most int
	if err := rows.Scan(&most); err != nil {
		return err
	}
	return rows.Close()
}

// okRowsBreak breaks at the end of a page, and closes after the loop.
func okRowsBreak(w *world) error {
	rows, err := w.db.Query("SELECT i FROM generate_series(1, 5000) i")
	if err != nil {
		return err
	}
	n := 0
	for rows.Next() {
		if n++; n == 25 {
			break
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// okRowsResultSets reads two result sets to their ends.
func okRowsResultSets(w *world) error {
	rows, err := w.db.Query("SELECT id FROM orders; SELECT id FROM customers")
	if err != nil {
		return err
	}
	defer rows.Close()
	for more := true; more; more = rows.NextResultSet() {
		for rows.Next() {
			var id int
			if err := rows.Scan(&id); err != nil {
				return err
			}
		}
	}
	return rows.Err()
}

// each is an iterator over a query's single column.
func each[T any](ctx context.Context, q querier, query string, args ...any) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var v T
		rows, err := q.QueryContext(ctx, query, args...)
		if err != nil {
			yield(v, err)
			return
		}
		defer rows.Close()
		for rows.Next() {
			err := rows.Scan(&v)
			if !yield(v, err) || err != nil {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(v, err)
		}
	}
}

// okRowsSeq ranges over an iterator that closes by defer, and breaks.
func okRowsSeq(w *world) error {
	for id, err := range each[int](w.ctx, w.db, "SELECT id FROM orders ORDER BY id") {
		if err != nil {
			return err
		}
		if id > 20 {
			break
		}
		if !w.sleep(2 * time.Millisecond) {
			return nil
		}
	}
	return nil
}

// okRowsPullStop pulls from two iterators in turn, and stops both.
func okRowsPullStop(w *world) error {
	a, stopA := iter.Pull2(each[int](w.ctx, w.db, "SELECT id FROM orders ORDER BY id"))
	defer stopA()
	b, stopB := iter.Pull2(each[int](w.ctx, w.db, "SELECT id FROM customers ORDER BY id"))
	defer stopB()
	for {
		x, errA, _ := a()
		y, errB, ok := b()
		if err := errors.Join(errA, errB); err != nil || !ok {
			return err
		}
		if x != y {
			return fmt.Errorf("%d, %d", x, y)
		}
	}
}

// okRowsPanic panics in the loop; the deferred Close runs, and the middleware recovers.
func okRowsPanic(w *world) (err error) {
	defer func() {
		if p := recover(); p == nil {
			err = errors.Join(err, errors.New("no panic"))
		}
	}()
	rows, err := w.db.Query("SELECT id FROM jobs")
	if err != nil {
		return err
	}
	defer rows.Close()
	var stats struct{ counts map[int]int } // not made
	for rows.Next() {
		var id int
		_ = rows.Scan(&id)
		stats.counts[id]++
	}
	return rows.Err()
}

// okRowsReturned returns Rows out of a function, to a caller that closes them.
func okRowsReturned(w *world) error {
	open := func() (*sql.Rows, error) {
		return w.db.QueryContext(w.ctx, "SELECT id FROM orders WHERE status = 'open'")
	}
	rows, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
	}
	return rows.Err()
}

// okRowsProducer sends rows to a channel; when the reader has enough it cancels, and waits.
func okRowsProducer(w *world) error {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	ids := make(chan int)
	done := make(chan error, 1)
	go func() {
		defer close(ids)
		for id, err := range each[int](ctx, w.db, "SELECT i FROM generate_series(1, 100000) i") {
			if err != nil {
				done <- err
				return
			}
			select {
			case ids <- id:
			case <-ctx.Done():
				done <- ctx.Err()
				return
			}
		}
		done <- nil
	}()
	for id := range ids {
		if id == 300 {
			cancel()
			break
		}
	}
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) && !isCancelled(err) {
		return err
	}
	return nil
}

// isCancelled tells whether PostgreSQL has cancelled a statement.
func isCancelled(err error) bool {
	var e *pq.Error
	return errors.As(err, &e) && e.Code == "57014"
}

// okRowsSlowExport writes a CSV to a client that reads slowly: a row every 50 ms.
func okRowsSlowExport(w *world) error {
	rows, err := w.db.QueryContext(w.ctx, "SELECT id::text, name FROM customers")
	if err != nil {
		return err
	}
	defer rows.Close()
	out := csv.NewWriter(io.Discard)
	for rows.Next() {
		record := make([]string, 2)
		if err := rows.Scan(&record[0], &record[1]); err != nil {
			return err
		}
		if err := out.Write(record); err != nil {
			return err
		}
		if !w.sleep(50 * time.Millisecond) {
			break
		}
	}
	out.Flush()
	return errors.Join(rows.Err(), out.Error())
}

// okRowsHugeSlowly reads a big result in bursts, with a rest of 1.2 s after each.
func okRowsHugeSlowly(w *world) error {
	rows, err := w.db.QueryContext(w.ctx, "SELECT i, repeat('z', 200) FROM generate_series(1, 100000) i")
	if err != nil {
		return err
	}
	defer rows.Close()
	for n := 1; rows.Next(); n++ {
		var i int
		var s string
		if err := rows.Scan(&i, &s); err != nil {
			return err
		}
		if n%500 == 0 && !w.sleep(1200*time.Millisecond) {
			return nil
		}
	}
	return rows.Err()
}

// okRowRows scans each Row.
func okRowRows(w *world) error {
	for id := 1; id <= 20; id++ {
		var email sql.NullString
		switch err := w.db.QueryRow("SELECT email FROM customers WHERE id = $1 AND id <> 7", id).Scan(&email); {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return err
		}
	}
	return nil
}

// okRowForUpdateReturning inserts by QueryRow, and scans the id.
func okRowForUpdateReturning(w *world) error {
	var id int64
	return w.db.QueryRowContext(w.ctx, "INSERT INTO events (kind) VALUES ('visit') RETURNING id").Scan(&id)
}

// okExecMany runs many statements on many goroutines, on a pool that is too small for them.
func okExecMany(w *world) error {
	g := newGroup(w.ctx)
	for i := range 20 {
		g.run(func(ctx context.Context) error {
			for j := range 5 {
				if _, err := w.db.ExecContext(ctx, "UPDATE customers SET balance = balance + $1 WHERE id = $2", j, i+1); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.wait()
}

// okHandlerJSON is a handler that streams JSON and closes its Rows.
func okHandlerJSON(w *world) error {
	return serveOnce(w, func(rw http.ResponseWriter, r *http.Request) {
		rows, err := w.db.QueryContext(r.Context(), "SELECT id, amount FROM orders")
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		defer rows.Close()
		enc := json.NewEncoder(rw)
		for rows.Next() {
			var o struct{ ID, Amount int }
			if err := rows.Scan(&o.ID, &o.Amount); err != nil {
				return
			}
			if enc.Encode(o) != nil {
				return
			}
		}
	}, 0)
}

// okHandlerClientGone is a handler whose client goes away after 100 ms; it closes all the same.
func okHandlerClientGone(w *world) error {
	return serveOnce(w, func(rw http.ResponseWriter, r *http.Request) {
		rows, err := w.db.QueryContext(r.Context(), "SELECT i, pg_sleep(0.01) FROM generate_series(1, 1000) i")
		if err != nil {
			return
		}
		defer rows.Close()
		for rows.Next() {
			if _, err := io.WriteString(rw, "row\n"); err != nil {
				return
			}
		}
	}, 100*time.Millisecond)
}

// serveOnce serves one request, whose client leaves that long after it has begun; 0: never.
func serveOnce(w *world, h http.HandlerFunc, leave time.Duration) error {
	begun, ended := make(chan struct{}), make(chan struct{})
	url, stop, err := listen(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		close(begun)
		defer close(ended)
		h(rw, r)
	}))
	if err != nil {
		return err
	}
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if leave > 0 {
		go func() {
			<-begun
			w.sleep(leave)
			cancel()
		}()
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		err = resp.Body.Close()
	}
	<-ended
	if leave > 0 {
		return nil
	}
	return err
}

// okTxDefer has Rollback by defer, and Commit at the end.
func okTxDefer(w *world) error {
	tx, err := w.db.BeginTx(w.ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, step := range []struct{ amount, id int }{{-5, 1}, {5, 2}} {
		if _, err := tx.Exec("UPDATE customers SET balance = balance + $1 WHERE id = $2", step.amount, step.id); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// inTx runs f in a transaction, as many programs have it.
func inTx(ctx context.Context, db *sql.DB, f func(*sql.Tx) error) (err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			_ = tx.Rollback()
			panic(p)
		}
		if err != nil {
			err = errors.Join(err, tx.Rollback())
			return
		}
		err = tx.Commit()
	}()
	return f(tx)
}

// okTxClosure runs a function in a transaction, which fails now and then.
func okTxClosure(w *world) error {
	broken := errors.New("broken")
	for i := range 4 {
		err := inTx(w.ctx, w.db, func(tx *sql.Tx) error {
			if _, err := tx.Exec("UPDATE jobs SET state = $1 WHERE id = 2", fmt.Sprint(i)); err != nil {
				return err
			}
			if i%2 == 1 {
				return broken
			}
			return nil
		})
		if err != nil && !errors.Is(err, broken) {
			return err
		}
	}
	return nil
}

// okTxPanic panics in a transaction, which is rolled back on the way.
func okTxPanic(w *world) (err error) {
	defer func() {
		if p := recover(); p != "on the way" {
			err = errors.Join(err, fmt.Errorf("recovered %v", p))
		}
	}()
	return inTx(w.ctx, w.db, func(tx *sql.Tx) error {
		if _, err := tx.Exec("DELETE FROM orders"); err != nil {
			return err
		}
		panic("on the way")
	})
}

// okTxRetry retries serialisation failures, of two goroutines on one row.
func okTxRetry(w *world) error {
	g := newGroup(w.ctx)
	for range 3 {
		g.run(func(ctx context.Context) error {
			for {
				tx, err := w.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable})
				if err != nil {
					return err
				}
				var balance int
				if err = tx.QueryRow("SELECT balance FROM customers WHERE id = 5").Scan(&balance); err == nil {
					_, err = tx.Exec("UPDATE customers SET balance = $1 WHERE id = 5", balance+1)
				}
				if err == nil {
					err = tx.Commit()
				}
				_ = tx.Rollback()
				var e *pq.Error
				if errors.As(err, &e) && (e.Code == "40001" || e.Code == "40P01") {
					if !w.sleep(3 * time.Millisecond) {
						return nil
					}
					continue
				}
				return err
			}
		})
	}
	return g.wait()
}

// okTxSavepoints goes back to savepoints, and commits what is left.
func okTxSavepoints(w *world) error {
	return inTx(w.ctx, w.db, func(tx *sql.Tx) error {
		for i := range 6 {
			if _, err := tx.Exec("SAVEPOINT item"); err != nil {
				return err
			}
			// every third has no customer
			if _, err := tx.Exec("INSERT INTO orders (customer_id, amount) VALUES (nullif($1, 0), 1)", i%3); err != nil {
				if _, err := tx.Exec("ROLLBACK TO SAVEPOINT item"); err != nil {
					return err
				}
			}
			if _, err := tx.Exec("RELEASE SAVEPOINT item"); err != nil {
				return err
			}
		}
		return nil
	})
}

// okTxLong has a transaction open for the whole run, and does something every 100 ms.
func okTxLong(w *world) error {
	tx, err := w.db.BeginTx(context.Background(), nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for i := 0; w.sleep(100 * time.Millisecond); i++ {
		if _, err := tx.Exec("UPDATE jobs SET state = $1 WHERE id = $2", fmt.Sprint(i), i%30+1); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// okTxIntoStruct keeps the transaction in a struct, and ends it in a method.
func okTxIntoStruct(w *world) error {
	imp := startHonestImport(w.ctx, w.db)
	for range 10 {
		imp.line("a,b")
		if !w.sleep(20 * time.Millisecond) {
			break
		}
	}
	return imp.finish()
}

type honestImport struct {
	tx  *sql.Tx
	err error
}

func startHonestImport(ctx context.Context, db *sql.DB) *honestImport {
	tx, err := db.BeginTx(ctx, nil)
	return &honestImport{tx, err}
}

func (i *honestImport) line(s string) {
	if i.err == nil {
		_, i.err = i.tx.Exec("INSERT INTO events (kind, body) VALUES ('import', $1)", s)
	}
}

func (i *honestImport) finish() error {
	if i.tx == nil {
		return i.err
	}
	if i.err != nil {
		return errors.Join(i.err, i.tx.Rollback())
	}
	return i.tx.Commit()
}

// okTxInCtx is a middleware with a transaction in the ctx, which it ends whatever happens.
func okTxInCtx(w *world) error {
	n := 0
	handler := func(r *http.Request) {
		q := r.Context().Value(txKey{}).(querier)
		if _, err := q.ExecContext(r.Context(), "UPDATE orders SET note = 'seen' WHERE id = 3"); err != nil || n == 0 {
			panic(http.ErrAbortHandler)
		}
	}
	err := serveOnce(w, func(rw http.ResponseWriter, r *http.Request) {
		defer func() { _ = recover() }()
		_ = inTx(r.Context(), w.db, func(tx *sql.Tx) error {
			handler(r.WithContext(context.WithValue(r.Context(), txKey{}, tx)))
			return nil
		})
	}, 0)
	return err
}

// okTxHandedOver begins, and hands the transaction to a committer by a channel.
func okTxHandedOver(w *world) error {
	finished, result := make(chan *sql.Tx), make(chan error)
	go func() { // the committer
		var errs []error
		for tx := range finished {
			errs = append(errs, tx.Commit())
		}
		result <- errors.Join(errs...)
	}()
	var failed error
	for id := 1; id <= 5 && failed == nil; id++ {
		tx, err := w.db.Begin()
		if err != nil {
			failed = err
			break
		}
		if _, failed = tx.Exec("UPDATE orders SET status = 'handed' WHERE id = $1", id); failed != nil {
			_ = tx.Rollback()
			break
		}
		finished <- tx
	}
	close(finished)
	return errors.Join(failed, <-result)
}

// okTxAcrossGoroutines lets several goroutines use one transaction, one after another.
func okTxAcrossGoroutines(w *world) error {
	tx, err := w.db.BeginTx(w.ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for stage := range 4 {
		failed := make(chan error)
		go func() {
			w.sleep(30 * time.Millisecond)
			_, err := tx.Exec("UPDATE jobs SET state = $1 WHERE id = 11", fmt.Sprint("stage ", stage))
			failed <- err
		}()
		if err := <-failed; err != nil {
			return err
		}
	}
	return tx.Commit()
}

// okTxReadOnly reads a snapshot, and ends by Rollback.
func okTxReadOnly(w *world) error {
	tx, err := w.db.BeginTx(w.ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	var orders, sum int
	err = tx.QueryRow("SELECT count(*), sum(amount) FROM orders").Scan(&orders, &sum)
	return errors.Join(err, tx.Rollback())
}

// okTxTimeout has a timeout that strikes in the middle of a slow statement.
func okTxTimeout(w *world) error {
	ctx, cancel := context.WithTimeout(w.ctx, 80*time.Millisecond)
	defer cancel()
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		if timeout := net.Error(nil); ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout() {
			return nil
		}
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "SELECT pg_sleep(5)"); err == nil {
		return errors.New("no timeout")
	}
	return nil
}

// okTxCopyIn loads 2,000 rows by COPY, with all four of its ends.
func okTxCopyIn(w *world) error {
	tx, err := w.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	stmt, err := tx.Prepare(pq.CopyIn("events", "kind", "body"))
	if err != nil {
		return err
	}
	for i := range 2000 {
		if _, err := stmt.Exec("bulk", fmt.Sprint(i)); err != nil {
			return errors.Join(err, stmt.Close())
		}
		if i%500 == 0 && !w.sleep(50*time.Millisecond) {
			break
		}
	}
	if _, err := stmt.Exec(); err != nil {
		return errors.Join(err, stmt.Close())
	}
	if err := stmt.Close(); err != nil {
		return err
	}
	return tx.Commit()
}

// okTxCancelledThenClosed cancels the ctx, and rolls back a moment later.
func okTxCancelledThenClosed(w *world) error {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, "SELECT id FROM orders")
	if err != nil {
		return errors.Join(err, tx.Rollback())
	}
	rows.Next()
	cancel()
	w.sleep(20 * time.Millisecond) // tells its callers, logs, …
	rows.Close()
	_ = tx.Rollback() // it says that the ctx was faster
	return nil
}

// okNestedOnTwoPools holds a connection of one pool while it uses another, in one order everywhere.
func okNestedOnTwoPools(w *world) error {
	other, err := w.open("okNestedOnTwoPools/other", 1)
	if err != nil {
		return err
	}
	g := newGroup(w.ctx)
	for i := range 6 {
		g.run(func(ctx context.Context) error {
			for w.sleep(time.Duration(i+5) * time.Millisecond) {
				err := inTx(ctx, w.db, func(tx *sql.Tx) error {
					if _, err := other.ExecContext(ctx, "UPDATE orders SET note = $1 WHERE id = 9", fmt.Sprint(i)); err != nil {
						return err
					}
					_, err := tx.ExecContext(ctx, "UPDATE jobs SET state = $1 WHERE id = $2", fmt.Sprint(i), i+1)
					return err
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.wait()
}

// okUnitOfWork is a unit of work that ends its transaction also if it was not dirty.
func okUnitOfWork(w *world) error {
	var u struct {
		begin func() (*sql.Tx, error)
		tx    *sql.Tx
	}
	u.begin = sync.OnceValues(func() (*sql.Tx, error) {
		tx, err := w.db.BeginTx(w.ctx, nil)
		u.tx = tx
		return tx, err
	})
	defer func() {
		if u.tx != nil {
			_ = u.tx.Rollback()
		}
	}()
	for id := range 5 {
		tx, err := u.begin()
		if err != nil {
			return err
		}
		var name string
		if err := tx.QueryRow("SELECT name FROM customers WHERE id = $1", id+1).Scan(&name); err != nil {
			return err
		}
	}
	return nil
}

// okRowsDeepBatches reads a page, works on it for 150 ms without a connection, and reads the next.
func okRowsDeepBatches(w *world) error {
	last := 0
	for {
		var page []int
		for id, err := range each[int](w.ctx, w.db, "SELECT id FROM orders WHERE id > $1 ORDER BY id LIMIT 20", last) {
			if err != nil {
				return err
			}
			page = append(page, id)
		}
		if len(page) == 0 || !w.sleep(150*time.Millisecond) {
			return nil
		}
		last = page[len(page)-1]
	}
}

// okTxLockQueue has five transactions that queue for one row, each for a while in a call.
func okTxLockQueue(w *world) error {
	g := newGroup(w.ctx)
	for range 5 {
		g.run(func(ctx context.Context) error {
			return inTx(ctx, w.db, func(tx *sql.Tx) error {
				if _, err := tx.Exec("SELECT 1 FROM jobs WHERE id = 20 FOR UPDATE"); err != nil {
					return err
				}
				_, err := tx.Exec("SELECT pg_sleep(0.15)")
				return err
			})
		})
	}
	return g.wait()
}
