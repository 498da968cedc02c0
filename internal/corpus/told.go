package main

import (
	"context"
	"errors"
	"time"
)

// What may be accused though it is honest, as the claim of its verdict says.
var falseAlarms = []program{toldHandedOnUnused}

// toldHandedOnUnused hands a transaction to a goroutine that first uses it 400 ms later,
// and asks the same pool, which is full, for another: it looks like a deadlock, and is none.
func toldHandedOnUnused(w *world) error {
	w.db.SetMaxOpenConns(1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tx, err := w.db.BeginTx(ctx, nil) // LEAK
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		w.sleep(400 * time.Millisecond)
		_, err := tx.ExecContext(ctx, "UPDATE orders SET note = 'late' WHERE id = 1")
		done <- errors.Join(err, tx.Commit())
	}()
	_, err = w.db.ExecContext(ctx, "UPDATE orders SET note = 'early' WHERE id = 2")
	return errors.Join(err, <-done)
}
