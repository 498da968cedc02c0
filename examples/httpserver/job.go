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
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer q.Close()
		// Again and again, whenever this server is primary: its error is that of ctx.
		_ = q.Run(ctx, func(primary context.Context) error {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				select {
				case <-primary.Done():
					return nil
				case <-tick.C:
					if err := closeDay(primary, q); err != nil {
						slog.Error("job", "err", err)
					}
				}
			}
		})
	}()
	return func() { <-done }, nil
}

// closeDay is what must not be done by two: the lease says who is to do it, and
// InTx makes that hold until the commit, however long this process was paused in
// between.
func closeDay(ctx context.Context, q *baldur.PGQuorum) error {
	var n int
	var by int64
	err := q.InTx(ctx, nil, func(tx *sql.Tx, epoch int64) error {
		by = epoch
		return tx.QueryRowContext(ctx, "UPDATE httpserver_days SET closed = closed + 1 RETURNING closed").Scan(&n)
	})
	switch {
	case errors.Is(err, baldur.ErrNotPrimary), errors.Is(err, baldur.ErrFenced):
		return nil // somebody else does it
	case err != nil: // with ErrCommitUnknown it may be done; here the next second counts on
		return err
	}
	slog.Info("job done", "times", n, "epoch", by)
	return nil
}
