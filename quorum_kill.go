package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync"
	"time"

	"github.com/baldur-go/baldur/internal/hook"
)

const killEvery = 20 * time.Millisecond

// killGuards begins to end the sessions that keep the link's next statement
// waiting, from killAfter on and one after the other, on a connection beside the
// pool; the function that it returns ends that. See WithFenceKill.
func (l *link) killGuards(ctx context.Context) (stop func()) {
	beside, ok := l.db.Driver().(interface{ untracked() driver.Connector })
	if l.cfg.killAfter == 0 || l.pid == 0 || !ok {
		return func() {}
	}
	ctx, cancel := context.WithCancel(hook.Own(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-time.After(l.cfg.killAfter):
		case <-ctx.Done():
			return
		}
		db := sql.OpenDB(beside.untracked())
		defer func() { _ = db.Close() }()
		kill := fmt.Sprintf("SELECT count(pg_catalog.pg_terminate_backend(b)) FROM unnest(pg_catalog.pg_blocking_pids(%d)) AS b WHERE b <> 0", l.pid)
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
