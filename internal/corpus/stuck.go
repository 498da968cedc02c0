package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Programs whose pools are deadlocked: who holds a connection waits for another.
var deadlocked = []program{
	stuckNestedInTx, stuckNestedInRows, stuckTwoPools, stuckLeakThenNested, stuckConnThenBegin, stuckAllWorkers,
}

// stuckNestedInTx queries the pool, and not the transaction, inside of a transaction.
func stuckNestedInTx(w *world) error {
	w.db.SetMaxOpenConns(1)
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	defer tx.Rollback()
	w.stands()
	if _, err := w.db.Exec("UPDATE orders SET status = 'sent' WHERE id = 1"); err != nil {
		return err
	}
	return tx.Commit()
}

// stuckNestedInRows makes a query for each row of another.
func stuckNestedInRows(w *world) error {
	w.db.SetMaxOpenConns(1)
	rows, err := w.db.Query("SELECT id FROM customers") // LEAK
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id, n int
		if err := rows.Scan(&id); err != nil {
			return err
		}
		w.stands()
		if err := w.db.QueryRow("SELECT count(*) FROM orders WHERE customer_id = $1", id).Scan(&n); err != nil {
			return err
		}
	}
	return rows.Err()
}

// stuckTwoPools takes from pools A and B, elsewhere from B and A.
func stuckTwoPools(w *world) error {
	archive, err := w.open("archive", 1)
	if err != nil {
		return err
	}
	w.db.SetMaxOpenConns(1)
	var both sync.WaitGroup
	both.Add(2)
	g := newGroup(context.Background())
	g.run(func(context.Context) error {
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			return err
		}
		defer tx.Rollback()
		both.Done()
		both.Wait()
		w.stands()
		_, err = archive.Exec("SELECT 1")
		return err
	})
	g.run(func(context.Context) error {
		tx, err := archive.Begin() // LEAK
		if err != nil {
			return err
		}
		defer tx.Rollback()
		both.Done()
		both.Wait()
		_, err = w.db.Exec("SELECT 1")
		return err
	})
	return g.wait()
}

// stuckLeakThenNested has lost one of two connections, and needs two.
func stuckLeakThenNested(w *world) error {
	w.db.SetMaxOpenConns(2)
	if rows, err := w.db.Query("SELECT id FROM jobs"); err != nil || !rows.Next() { // LEAK
		return errors.Join(err, errors.New("no job"))
	}
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	defer tx.Rollback()
	w.stands()
	var n int
	return w.db.QueryRow("SELECT count(*) FROM orders").Scan(&n)
}

// stuckConnThenBegin takes a connection for a lock, and begins on the pool.
func stuckConnThenBegin(w *world) error {
	w.db.SetMaxOpenConns(1)
	c, err := w.db.Conn(context.Background()) // LEAK
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.ExecContext(context.Background(), "SELECT pg_advisory_lock(1)"); err != nil {
		return err
	}
	w.stands()
	tx, err := w.db.Begin()
	if err != nil {
		return err
	}
	return tx.Commit()
}

// stuckAllWorkers has as many workers as connections, each of which needs a second one.
func stuckAllWorkers(w *world) error {
	const workers = 4
	w.db.SetMaxOpenConns(workers)
	var all sync.WaitGroup
	all.Add(workers)
	g := newGroup(context.Background())
	for i := range workers {
		g.run(func(ctx context.Context) error {
			tx, err := w.db.Begin() // LEAK
			if err != nil {
				return err
			}
			defer tx.Rollback()
			all.Done()
			all.Wait() // a busy hour
			w.stands()
			if _, err := w.db.Exec("INSERT INTO events (kind) VALUES ($1)", fmt.Sprint("worker ", i)); err != nil {
				return err
			}
			return tx.Commit()
		})
	}
	return g.wait()
}
