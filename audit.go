package baldur

import (
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"time"

	"github.com/baldur-go/baldur/internal/hook"
	"github.com/baldur-go/baldur/internal/pqconn"
)

// DirtyReturn is a connection that came back to the pool with something that its
// next holder will meet.
type DirtyReturn struct {
	Connection      ConnectionInfo `json:"connection"` // as it was at the return; its CallSite is the line that took it
	ReturnedAt      time.Time      `json:"returned_at"`
	OpenTransaction bool           `json:"open_transaction"`         // begun by text, and neither committed nor rolled back
	Failed          bool           `json:"failed"`                   // that transaction has failed: every query will
	AdvisoryLocks   []string       `json:"advisory_locks,omitempty"` // session locks, by id; a key of two int4 as "1,2"
}

// String says it in a line.
func (d DirtyReturn) String() string {
	what := "with advisory locks"
	switch {
	case d.Failed:
		what = "in a failed transaction"
	case d.OpenTransaction:
		what = "in an open transaction"
	case len(d.AdvisoryLocks) == 1:
		what = "with advisory lock " + d.AdvisoryLocks[0]
	default:
		for i, id := range d.AdvisoryLocks {
			what += map[bool]string{true: ", ", false: " "}[i > 0] + id
		}
	}
	return fmt.Sprintf("connection %d came back %s; taken by %v", d.Connection.ConnectionID, what, d.Connection.CallSite())
}

// WithReturnAudit checks one in every n returns of a connection to the pool, from
// 1 (all) on; 0, the default, checks none. It finds transactions that were begun
// by a query's text and are still open, and session advisory locks: what
// database/sql and lib/pq do not take back. [Tracker.DirtyReturns] has what was
// found. The connection itself goes back as it is.
//
// A check of a connection without a transaction is a round trip on the goroutine
// that returns it, of at most 1 s. It needs lib/pq; through a pooler in
// transaction mode it means nothing.
// DSN: baldur_return_audit.
func WithReturnAudit(n int) Option {
	return func(c *config) { c.returnAudit = n }
}

const (
	auditTimeout = time.Second
	auditKept    = 100
	reportDirty  = 5 // in a report

	auditQuery = "SELECT CASE WHEN objsubid OPERATOR(pg_catalog.=) 1::pg_catalog.int2" +
		" THEN ((classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32) OPERATOR(pg_catalog.|) objid::pg_catalog.int8)::pg_catalog.text" +
		" ELSE classid::pg_catalog.text OPERATOR(pg_catalog.||) ','::pg_catalog.text OPERATOR(pg_catalog.||) objid::pg_catalog.text END" +
		" FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND granted AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() ORDER BY 1"
)

// DirtyReturns returns what [WithReturnAudit] has found, the latest last, 100 at
// most; total is how many there were.
func (t *Tracker) DirtyReturns() (latest []DirtyReturn, total int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.dirty), t.dirtyTotal
}

// auditDue tells whether this return is one that is checked.
func (c *conn) auditDue() bool {
	n := c.rec.t.cfg.returnAudit
	if n == 0 || c.rec.flags&flagOut == 0 { // off; or the second IsValid of a return
		return false
	}
	return int(c.rec.t.returns.Add(1)%int64(n)) == 0
}

// audit checks a connection that is being returned.
func (c *conn) audit() {
	d := DirtyReturn{}
	switch pqconn.TxStatus(Unwrap(c.inner)) {
	case 0:
		return // not lib/pq's
	case 'E':
		d.OpenTransaction, d.Failed = true, true
	case 'T':
		d.OpenTransaction = true
	}
	t := c.rec.t
	s, _, ok := c.rec.snapshot(t.clk.Now()) // before our own query is the last one
	if !ok {
		return
	}
	if !d.OpenTransaction {
		d.AdvisoryLocks = c.sessionLocks()
		if len(d.AdvisoryLocks) == 0 {
			return
		}
	}
	now := t.clk.Now()
	d.Connection, d.ReturnedAt = t.info(s, now), t.clk.At(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dirtyTotal++
	if len(t.dirty) == auditKept {
		t.dirty = slices.Delete(t.dirty, 0, 1)
	}
	t.dirty = append(t.dirty, d)
}

// sessionLocks asks for the session's advisory locks. After an error there are
// none to tell; lib/pq has then marked the connection, or the sweep has.
func (c *conn) sessionLocks() (ids []string) {
	ctx, cancel := context.WithTimeout(hook.Own(context.Background()), auditTimeout)
	defer cancel()
	rs, err := c.queryContext(ctx, auditQuery, nil)
	if err != nil {
		return nil
	}
	defer func() { _ = rs.Close() }()
	row := make([]driver.Value, 1)
	for rs.Next(row) == nil {
		switch id := row[0].(type) {
		case string:
			ids = append(ids, id)
		case []byte:
			ids = append(ids, string(id))
		}
	}
	return ids
}
