package main

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/baldur-go/baldur"
)

// startJob runs closeDay every second on the one of the servers that is primary.
// wait returns when it has ended, which it does with ctx, and the lease is free
// for another server.
func startJob(ctx context.Context, db *sql.DB) (wait func(), err error) {
	if err := baldur.MigrateQuorum(ctx, db); err != nil {
		return nil, err
	}
	name, err := os.Hostname() // or the region
	if err != nil {
		return nil, err
	}
	q, err := baldur.NewPGQuorum(db, name, baldur.WithLeaseName("httpserver"), baldur.WithQuorumLogger(slog.Default()))
	if err != nil {
		return nil, err
	}
	q.StartAutoRenew()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer q.Close()
		for ctx.Err() == nil {
			primary, err := q.AwaitPrimary(ctx)
			if err != nil {
				return // ctx has ended
			}
			everySecond(primary, func() {
				if err := closeDay(primary, db, q); err != nil {
					slog.Error("job", "err", err)
				}
			})
		}
	}()
	return func() { <-done }, nil
}

// everySecond calls f until ctx ends: here, when this server is primary no more.
func everySecond(ctx context.Context, f func()) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// closeDay is what must not be done by two: the lease says who is to do it, and
// RequirePrimary makes that hold until the commit, however long this process was
// paused in between.
func closeDay(ctx context.Context, db *sql.DB, q *baldur.PGQuorum) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	epoch, err := q.RequirePrimary(ctx, tx)
	if errors.Is(err, baldur.ErrNotPrimary) || errors.Is(err, baldur.ErrFenced) {
		return nil // somebody else does it
	}
	if err != nil {
		return err
	}
	var n int
	if err := tx.QueryRowContext(ctx, "UPDATE httpserver_days SET closed = closed + 1 RETURNING closed").Scan(&n); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	slog.Info("job done", "times", n, "epoch", epoch)
	return nil
}
