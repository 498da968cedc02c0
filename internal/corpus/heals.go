package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Leaks under a ctx that ends: database/sql then takes the connection back.
var healing = []program{
	healRowsOfRequest, healRowOfRequest, healTxOfRequest, healTxTimeout, healRowsOfGroup, healStmtRowsOfRequest,
	healClientGone, healRowsCause, healTxUnitTest, healRowsOfTxOfRequest,
}

// healRowsOfRequest is the commonest leak of a web service: Rows on r.Context(), not closed.
func healRowsOfRequest(w *world) error {
	return get(w, func(rw http.ResponseWriter, r *http.Request) {
		rows, err := w.db.QueryContext(r.Context(), "SELECT id FROM orders ORDER BY id") // LEAK
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		for rows.Next() {
			var id int
			if err := rows.Scan(&id); err != nil || id > 10 {
				return
			}
			fmt.Fprintln(rw, id)
		}
	})
}

// healRowOfRequest writes by QueryRow on r.Context(), and does not scan.
func healRowOfRequest(w *world) error {
	return get(w, func(rw http.ResponseWriter, r *http.Request) {
		w.db.QueryRowContext(r.Context(), "INSERT INTO events (kind, body) VALUES ('hit', $1) RETURNING id", r.URL.Path) // LEAK
		rw.WriteHeader(http.StatusNoContent)
	})
}

// healTxOfRequest returns 404 out of a transaction on r.Context().
func healTxOfRequest(w *world) error {
	return get(w, func(rw http.ResponseWriter, r *http.Request) {
		tx, err := w.db.BeginTx(r.Context(), nil) // LEAK
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		var name string
		if err := tx.QueryRowContext(r.Context(), "SELECT name FROM customers WHERE id = $1", r.FormValue("id")).Scan(&name); err != nil {
			return
		}
		_ = tx.Commit()
	})
}

// healTxTimeout begins with a timeout, and leaves it to that.
func healTxTimeout(w *world) error {
	if err := w.db.Ping(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	tx, err := w.db.BeginTx(ctx, nil) // LEAK
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE jobs SET state = 'x' WHERE id = 1"); err != nil && ctx.Err() == nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// healRowsOfGroup leaks Rows under the ctx of a group of goroutines that ends.
func healRowsOfGroup(w *world) error {
	g := newGroup(w.ctx)
	for _, state := range []string{"new", "done"} {
		g.run(func(ctx context.Context) error {
			rows, err := w.db.QueryContext(ctx, "SELECT id FROM jobs WHERE state = $1 OR id < 20", state) // LEAK
			if err != nil {
				return err
			}
			if rows.Next() {
				return nil
			}
			return rows.Close()
		})
	}
	if err := g.wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// healStmtRowsOfRequest reads one row of a prepared statement's on r.Context().
func healStmtRowsOfRequest(w *world) error {
	stmt, err := w.db.Prepare("SELECT amount FROM orders WHERE customer_id = $1")
	if err != nil {
		return err
	}
	defer stmt.Close()
	return get(w, func(rw http.ResponseWriter, r *http.Request) {
		rows, err := stmt.QueryContext(r.Context(), 3) // LEAK
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		var amount int
		if rows.Next() && rows.Scan(&amount) == nil {
			fmt.Fprintln(rw, amount)
		}
	})
}

// healClientGone is a handler whose client goes away in the middle of it.
func healClientGone(w *world) error {
	begun := make(chan struct{})
	url, err := w.serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		tx, err := w.db.BeginTx(r.Context(), nil) // LEAK
		if err != nil {
			return
		}
		close(begun)
		<-r.Context().Done()
		if r.Context().Err() != nil {
			return
		}
		_ = tx.Commit()
	}))
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancel(w.ctx)
	go func() {
		<-begun
		leave()
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return err
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		return errors.New("the client has not gone")
	}
	return nil
}

// healRowsCause cancels a search as soon as it has what it wants, and does not close.
func healRowsCause(w *world) error {
	found := errors.New("found")
	ctx, stop := context.WithCancelCause(w.ctx)
	defer stop(nil)
	rows, err := w.db.QueryContext(ctx, "SELECT i FROM generate_series(1, 100000) i") // LEAK
	if err != nil {
		return err
	}
	for rows.Next() {
		var i int
		if err := rows.Scan(&i); err != nil {
			return err
		}
		if i == 77 {
			stop(found)
			break
		}
	}
	if context.Cause(ctx) != found {
		return errors.New("not found")
	}
	return nil
}

// healTxUnitTest leaks a transaction in a test, whose t.Context() ends before its clean-ups.
func healTxUnitTest(w *world) error {
	test := func(ctx context.Context, cleanup func(func())) {
		tx, err := w.db.BeginTx(ctx, nil) // LEAK
		if err != nil {
			return
		}
		cleanup(func() {
			if ctx.Err() == nil {
				_ = tx.Rollback()
			}
		})
		_, _ = tx.ExecContext(ctx, "DELETE FROM orders")
	}
	var cleanups []func()
	ctx, cancel := context.WithCancel(context.Background())
	test(ctx, func(f func()) { cleanups = append(cleanups, f) })
	cancel()
	for _, f := range cleanups {
		f()
	}
	return nil
}

// healRowsOfTxOfRequest leaves Rows and transaction of a request open.
func healRowsOfTxOfRequest(w *world) error {
	first := func(ctx context.Context) (id int, err error) {
		tx, err := w.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}) // LEAK
		if err != nil {
			return 0, err
		}
		rows, err := tx.QueryContext(ctx, "SELECT id FROM customers ORDER BY id")
		if err != nil || !rows.Next() {
			return 0, err
		}
		return id, rows.Scan(&id)
	}
	return get(w, func(rw http.ResponseWriter, r *http.Request) {
		id, err := first(r.Context())
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(rw, id)
	})
}
