package baldur

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// WithTxAdvisoryLock calls f in a transaction that has the lock until it ends
// (the manual's 9.28.10, pg_advisory_xact_lock), and commits if f returns nil,
// else rolls back, also if f panics. It needs no session of the server's and so
// works through a pooler in transaction mode. f must not end tx.
//
// With NoWait, and somebody having the lock, f is called with acquired false.
// Waiting is as in AcquireAdvisoryLock. Three round trips.
func (p *PGAdmin) WithTxAdvisoryLock(ctx context.Context, id int64, opts LockOptions, f func(ctx context.Context, tx *sql.Tx, acquired bool) error) error {
	if opts.Timeout < 0 {
		return fmt.Errorf("baldur: LockOptions.Timeout is %v; it must not be negative", opts.Timeout)
	}
	if err := p.check(); err != nil {
		return err
	}
	begin := time.Now()
	in, err := p.enter(ctx, id, opts)
	if err != nil {
		return err
	}
	if in {
		defer p.gates.leave(id, opts.Shared)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tx, acquired, err := p.beginLocked(ctx, begin, lockKey{id, opts.Shared}, opts, in)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // also if f panics; after Commit it does nothing
	if err := f(ctx, tx, acquired); err != nil {
		return err
	}
	return tx.Commit()
}

// beginLocked begins a transaction and takes the lock in it, unless the gate has
// not been entered.
func (p *PGAdmin) beginLocked(ctx context.Context, begin time.Time, key lockKey, o LockOptions, in bool) (*sql.Tx, bool, error) {
	for {
		tx, err := p.db.BeginTx(ctx, nil)
		if isBadConn(err) { // as PgBouncer in statement mode answers BEGIN
			if mode, e := p.PoolerMode(ctx); e == nil && mode == PoolerStatement {
				return nil, false, errors.Join(&PoolerError{mode}, err)
			}
		}
		if err != nil || !in {
			return tx, false, err
		}
		var ok bool
		var setting string
		err = tx.QueryRowContext(ctx, "SELECT "+lockCall("pg_try_advisory_xact_lock", key)+lockTimeoutColumn).Scan(&ok, &setting)
		if err == nil && (ok || o.NoWait) {
			return tx, ok, nil
		}
		limit := shorter(o.Timeout, parseTimeout(setting))
		if err == nil {
			waiting, done := p.untilClose(ctx)
			err = tx.QueryRowContext(waiting, waitQuery("pg_advisory_xact_lock", key, p.slice(begin, limit))).Scan(new(int), new(sql.NullString))
			err = done(ended(ctx, err))
		}
		if err == nil {
			return tx, true, nil
		}
		_ = tx.Rollback()
		if !hasState(err, "55P03") {
			return nil, false, err
		}
		if limit > 0 && time.Since(begin) >= limit {
			return nil, false, &LockTimeoutError{key.id, time.Since(begin), err}
		}
	}
}
