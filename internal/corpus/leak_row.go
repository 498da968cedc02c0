package main

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"sync"
)

// Row that nobody scans: its Rows stay open.
var rowLeaks = []program{
	rowInsertReturning, rowErrOnly, rowFuturesNeverScanned, rowScanSkippedByCondition, rowInGoroutine,
	rowBehindInterface, rowTouch, rowHandlerFeatureOff,
}

// rowInsertReturning inserts by QueryRow, and does not want the id.
func rowInsertReturning(w *world) error {
	w.db.QueryRow("INSERT INTO events (kind) VALUES ('login') RETURNING id") // LEAK
	return nil
}

// rowErrOnly looks at Row.Err and never scans.
func rowErrOnly(w *world) error {
	row := w.db.QueryRowContext(context.Background(), "SELECT set_config('application_name', $1, false)", "shop") // LEAK
	return row.Err()
}

type report struct {
	title string
	value *sql.Row
}

// rowFuturesNeverScanned asks for all figures of a report, and prints the first two.
func rowFuturesNeverScanned(w *world) error {
	ask := func(title, query string) report {
		return report{title, w.db.QueryRow(query)} // LEAK
	}
	figures := []report{
		ask("customers", "SELECT count(*) FROM customers"),
		ask("orders", "SELECT count(*) FROM orders"),
		ask("turnover", "SELECT sum(amount) FROM orders"),
	}
	for _, f := range figures[:2] {
		var n int
		if err := f.value.Scan(&n); err != nil {
			return err
		}
	}
	return nil
}

// rowScanSkippedByCondition scans only if somebody wants to know.
func rowScanSkippedByCondition(w *world) error {
	rename := func(id int, name string, old *string) error {
		row := w.db.QueryRow("UPDATE customers SET name = $2 WHERE id = $1 RETURNING name", id, name) // LEAK
		if old != nil {
			return row.Scan(old)
		}
		return nil
	}
	return rename(4, "Customer IV", nil)
}

// rowInGoroutine counts in the background and throws the result away.
func rowInGoroutine(w *world) error {
	var wg sync.WaitGroup
	for _, table := range []string{"orders", "jobs"} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = w.db.QueryRow("SELECT count(*) FROM " + table) // LEAK
		}()
	}
	wg.Wait()
	return nil
}

type ledger interface {
	book(ctx context.Context, amount int) interface{ Scan(...any) error }
}

type sqlLedger struct{ q querier }

func (l sqlLedger) book(ctx context.Context, amount int) interface{ Scan(...any) error } {
	return l.q.QueryRowContext(ctx, "INSERT INTO orders (customer_id, amount) VALUES (1, $1) RETURNING id", amount) // LEAK rowBehindInterface
}

// rowBehindInterface gets "something to scan" from a repository, and does not scan it.
func rowBehindInterface(w *world) error {
	var l ledger = sqlLedger{w.db}
	if l.book(context.Background(), 12) == nil {
		return errors.New("not booked")
	}
	return nil
}

// rowTouch touches the session of a user on each request, as Exec would.
func rowTouch(w *world) error {
	touch := func(id int) { w.db.QueryRow("UPDATE customers SET balance = balance WHERE id = $1", id) } // LEAK
	for id := range 3 {
		touch(id + 1)
	}
	return nil
}

// rowHandlerFeatureOff is a handler that asks first, and then finds that nobody needs the answer.
func rowHandlerFeatureOff(w *world) error {
	recommend := false
	return get(w, func(rw http.ResponseWriter, r *http.Request) {
		best := w.db.QueryRow("SELECT id FROM orders ORDER BY amount DESC LIMIT 1") // LEAK
		if !recommend {
			_, _ = rw.Write([]byte("hello"))
			return
		}
		var id int
		_ = best.Scan(&id)
	})
}
