package baldur

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
)

// WithTxAdvisoryLock calls f in a transaction that has the lock until it ends
// (the manual's 9.28.10, pg_advisory_xact_lock), and commits if f returns nil,
// else rolls back, also if f panics. It needs no session of the server's and so
// works through a pooler in transaction mode. f must not end tx.
//
// With NoWait, and somebody having the lock, f is called with acquired false.
// Waiting is as in AcquireAdvisoryLock, with a transaction of its own for each try,
// so that none is open in between. Three round trips.
//
// The transaction's isolation level is what the server gives a new session of the
// role and database, and not what was set on a pooled connection. In REPEATABLE
// READ and SERIALIZABLE its snapshot may be older than the lock: f may not see what
// the last holder has committed.
func (p *PGAdmin) WithTxAdvisoryLock(ctx context.Context, id int64, opts LockOptions, f func(ctx context.Context, tx *sql.Tx, acquired bool) error) error {
	if opts.Timeout < 0 {
		return fmt.Errorf("baldur: LockOptions.Timeout is %v; it must not be negative", opts.Timeout)
	}
	if err := p.check(); err != nil {
		return err
	}
	w := p.newWait(ctx, id, opts)
	defer w.cancel()
	in, err := w.enter(opts)
	if err != nil {
		return err
	}
	if in {
		defer p.gates.Leave(id, opts.Shared)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tx, acquired, err := w.beginLocked(ctx, cancel, lockKey{id, opts.Shared}, opts, in)
	if err != nil {
		return err
	}
	defer tx.end() // also if f panics; after Commit it gives the connection back
	if err := f(ctx, tx.Tx, acquired); err != nil {
		return err
	}
	return tx.Commit()
}

// The settings of a transaction that a lock's must not meet, and that the program's
// statements in it are to meet again.
var txSettings = []string{"statement_timeout", "lock_timeout", "default_transaction_isolation", "default_transaction_read_only"}

// inTx is a request that meets them as they are in a new session.
func inTx(query string) pgsession.Request {
	var keep, reset, restore []string
	for _, name := range txSettings {
		keep = append(keep, pgsql.SetConfig("baldur."+name, pgsql.CurrentSetting(name)))
		reset = append(reset, pgsql.SetConfig(name, "NULL"))
		restore = append(restore, pgsql.SetConfig(name, pgsql.CurrentSetting("baldur."+name)))
	}
	return pgsession.Request{
		Before: []string{"SELECT " + strings.Join(keep, ", "), "SELECT " + strings.Join(reset, ", ")},
		Query:  query,
		After:  []string{"SELECT " + strings.Join(restore, ", ")},
	}
}

// beginLocked begins a transaction and takes the lock in it, unless the gate has
// not been entered. The transaction ends with ctx, which cancel ends.
func (w *lockWait) beginLocked(ctx context.Context, cancel func(), key lockKey, o LockOptions, in bool) (tx *adminTx, acquired bool, err error) {
	stop := context.AfterFunc(w.limited, cancel)
	query := "SELECT " + lockCall("pg_try_advisory_xact_lock", key)
	for _, name := range []string{"lock_timeout", "transaction_isolation", "default_transaction_isolation", "transaction_read_only", "default_transaction_read_only"} {
		query += ", " + pgsql.CurrentSetting(name)
	}
	mode := ""
	try := func(limited context.Context) (ok bool, lockTimeout string, err error) {
		for {
			tx, err = w.p.begin(limited, ctx, mode)
			if err != nil || !in {
				return false, "", err
			}
			var isolation, isolationOfNew, readOnly, readOnlyOfNew string
			err = tx.ask(limited, inTx(query), &ok, &lockTimeout, &isolation, &isolationOfNew, &readOnly, &readOnlyOfNew)
			if err != nil {
				tx.end()
				return false, "", err
			}
			asOfNew := isolation == isolationOfNew && (readOnly == "off" || readOnlyOfNew == "on")
			if mode == "" && !asOfNew { // what somebody has set on this connection
				tx.end()
				mode = txMode(isolationOfNew, readOnlyOfNew)
				continue
			}
			if !ok && !o.NoWait {
				tx.end() // nothing is open while it waits
			}
			return ok, lockTimeout, nil
		}
	}
	acquired, err = w.tries(o.NoWait, try)
	if err == nil && !stop() {
		tx.end()
		err = w.result(context.Canceled) // just before it was over
	}
	if err != nil {
		stop()
		return nil, false, err
	}
	return tx, acquired, nil
}

// txMode is the mode of SET TRANSACTION for these settings.
func txMode(isolation, readOnly string) string {
	mode := "ISOLATION LEVEL " + map[string]string{
		"read uncommitted": "READ UNCOMMITTED", "repeatable read": "REPEATABLE READ", "serializable": "SERIALIZABLE",
	}[isolation]
	if mode == "ISOLATION LEVEL " {
		mode += "READ COMMITTED"
	}
	if readOnly == "off" {
		mode += ", READ WRITE"
	}
	return mode
}
