package baldur

import (
	"context"
	"sync"
	"time"

	"github.com/baldur-go/baldur/internal/hook"
)

const killEvery = 20 * time.Millisecond

// killGuards begins to end the sessions that keep the link's next statement
// waiting, from killAfter on and one after the other, on a connection beside the
// pool; the function that it returns ends that. See WithFenceKill.
func (l *link) killGuards(ctx context.Context) (stop func()) {
	pid := l.pid.Load()
	if l.cfg.killAfter == 0 || pid == 0 {
		return func() {}
	}
	db, ok := beside(l.db)
	if !ok {
		return func() {}
	}
	ctx, cancel := context.WithCancel(hook.Own(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() { _ = db.Close() }()
		select {
		case <-time.After(l.cfg.killAfter):
		case <-ctx.Done():
			return
		}
		// A guard has locked a row of the table for sharing. Other candidates, and a holder,
		// keep us waiting too, and change it.
		kill := sqlFill(`SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(b.pid))
	FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids({pid}::pg_catalog.int4)) AS b(pid) WHERE b.pid {<>} 0
		AND EXISTS ({lock} {=} 'RowShareLock'::pg_catalog.text) AND NOT EXISTS ({lock} {=} 'RowExclusiveLock'::pg_catalog.text)`,
			"{lock}", `SELECT FROM pg_catalog.pg_locks k JOIN pg_catalog.pg_database d ON d.oid {=} k.database
			WHERE d.datname {=} pg_catalog.current_database() AND k.pid {=} b.pid AND k.relation {=} `+quoted(l.table.Load().oid)+`::pg_catalog.oid AND k.granted AND k.mode`,
			"{pid}", quoted(pid))
		for ctx.Err() == nil {
			var n int
			if err := db.QueryRowContext(ctx, kill).Scan(&n); err != nil && ctx.Err() == nil {
				l.cfg.log.Warn("baldur: a takeover waits for guarded transactions and cannot end their sessions", "lease", l.cfg.name, "error", err)
				return
			} else if n > 0 {
				l.cfg.log.Warn("baldur: a takeover has ended sessions with guarded transactions", "lease", l.cfg.name, "sessions", n)
			}
			select {
			case <-time.After(killEvery):
			case <-ctx.Done():
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}
