package leasepg

import (
	"context"
	"database/sql"
	"sync"
	"time"

	"github.com/baldur-go/baldur/internal/hook"
	"github.com/baldur-go/baldur/internal/pgsql"
)

const killEvery = 20 * time.Millisecond

// killGuards ends the sessions for which the witness's next statement waits, from FenceKill
// on, by a connection beside the pool, until the function that it returns is called. See
// WithFenceKill.
func (w *Witness) killGuards(ctx context.Context) (stop func()) {
	pid := w.pid.Load()
	if w.cfg.FenceKill == 0 || pid == 0 {
		return func() {}
	}
	db := sql.OpenDB(w.pool.Untracked)
	ctx, cancel := context.WithCancel(hook.Own(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() { _ = db.Close() }()
		select {
		case <-time.After(w.cfg.FenceKill):
		case <-ctx.Done():
			return
		}
		// A guard holds a row of the table for sharing. Other candidates and a holder also
		// keep us waiting, but they have the table locked for writing.
		kill := pgsql.Fill(`SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(b.pid))
	FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids({pid}::pg_catalog.int4)) AS b(pid) WHERE b.pid {<>} 0
		AND EXISTS ({lock} {=} 'RowShareLock'::pg_catalog.text) AND NOT EXISTS ({lock} {=} 'RowExclusiveLock'::pg_catalog.text)`,
			"{lock}", `SELECT FROM pg_catalog.pg_locks k JOIN pg_catalog.pg_database d ON d.oid {=} k.database
			WHERE d.datname {=} pg_catalog.current_database() AND k.pid {=} b.pid AND k.relation {=} `+pgsql.Int(w.table.Load().oid)+`::pg_catalog.oid AND k.granted AND k.mode`,
			"{pid}", pgsql.Int(pid))
		for ctx.Err() == nil {
			var n int
			if err := db.QueryRowContext(ctx, kill).Scan(&n); err != nil && ctx.Err() == nil {
				w.cfg.Log.Warn("baldur: a takeover waits for guarded transactions and cannot end their sessions", "lease", w.cfg.Name, "error", err)
				return
			} else if n > 0 {
				w.cfg.Log.Warn("baldur: a takeover has ended sessions with guarded transactions", "lease", w.cfg.Name, "sessions", n)
			}
			select {
			case <-time.After(killEvery):
			case <-ctx.Done():
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}
