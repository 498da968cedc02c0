package baldur

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/text"
)

// Backend is a session of the server's (the manual's 28.2.3, pg_stat_activity).
// What the role may not see of others' is empty: grant pg_read_all_stats.
type Backend struct {
	PID             int       `json:"pid"`
	ApplicationName string    `json:"application_name"`
	User            string    `json:"user"`
	ClientAddr      string    `json:"client_addr"` // "" over a Unix socket
	State           string    `json:"state"`
	WaitEvent       string    `json:"wait_event"` // "Lock: advisory"
	Query           string    `json:"query"`      // the last one, perhaps ended
	BackendStart    time.Time `json:"backend_start"`
	XactStart       time.Time `json:"xact_start"` // zero outside of a transaction
	QueryStart      time.Time `json:"query_start"`
}

// backendColumns are a Backend's columns of pg_stat_activity a. The times are in µs
// since 1970: as text a time is as DateStyle says.
const backendColumns = `coalesce(a.pid, 0), coalesce(a.application_name, ''), coalesce(a.usename::pg_catalog.text, ''), coalesce(pg_catalog.host(a.client_addr), ''),` +
	` coalesce(a.state, ''), coalesce(a.wait_event_type OPERATOR(pg_catalog.||) ': '::pg_catalog.text OPERATOR(pg_catalog.||) a.wait_event, ''), coalesce(a.query, ''),` +
	` (EXTRACT(epoch FROM a.backend_start) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8,` +
	` (EXTRACT(epoch FROM a.xact_start) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8,` +
	` (EXTRACT(epoch FROM a.query_start) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8`

// scan returns where to scan the columns, and what sets the times after that.
func (b *Backend) scan() (dest []any, set func()) {
	times := make([]sql.NullInt64, 3)
	at := func(t sql.NullInt64) time.Time {
		if !t.Valid {
			return time.Time{}
		}
		return time.UnixMicro(t.Int64)
	}
	return []any{&b.PID, &b.ApplicationName, &b.User, &b.ClientAddr, &b.State, &b.WaitEvent, &b.Query, &times[0], &times[1], &times[2]},
		func() { b.BackendStart, b.XactStart, b.QueryStart = at(times[0]), at(times[1]), at(times[2]) }
}

// LockHolder is a session that has an advisory lock.
type LockHolder struct {
	Backend
	Shared bool `json:"shared"`

	// Since is when it was taken, if a hold of this PGAdmin's has it (SinceExact).
	// Else PostgreSQL does not tell, and it is the start of the transaction, if
	// there is one, or else of the session: not before that.
	Since      time.Time `json:"since"`
	SinceExact bool      `json:"since_exact"`
}

// LockHolders returns the sessions that have the lock id in the current database,
// in the order of their process ids; one alone, or several that share it. Locks
// of two int4 keys are others (the manual's 54.12, pg_locks).
func (p *PGAdmin) LockHolders(ctx context.Context, id int64) (holders []LockHolder, err error) {
	err = p.pool.Rows(ctx, "SELECT l.mode OPERATOR(pg_catalog.=) 'ShareLock', "+backendColumns+", l.pid"+
		" FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid"+
		" WHERE "+pgsql.GrantedLock(id)+" AND l.database OPERATOR(pg_catalog.=)"+
		" (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"+
		" ORDER BY l.pid, l.mode",
		func(rows *sql.Rows) error {
			var h LockHolder
			var pid sql.NullInt64
			dest, set := h.scan()
			if err := rows.Scan(append(append([]any{&h.Shared}, dest...), &pid)...); err != nil {
				return err
			}
			set()
			h.PID = int(pid.Int64)
			if h.Since = h.XactStart; h.Since.IsZero() {
				h.Since = h.BackendStart
			}
			holders = append(holders, h)
			return nil
		})
	if err != nil {
		return nil, err
	}
	for i, h := range holders {
		if since, ok := p.locks.Since(pgsql.Lock{ID: id, Shared: h.Shared}, h.PID); ok {
			holders[i].Since, holders[i].SinceExact = since, true
		}
	}
	return holders, nil
}

// BlockingNode is a session that blocks others or is blocked.
type BlockingNode struct {
	Backend
	BlockedBy []int           `json:"blocked_by"` // process ids; also of sessions that wait before it in a queue
	Blocks    []*BlockingNode `json:"blocks"`     // who waits for it
}

// String is the tree in lines, indented.
func (n *BlockingNode) String() string {
	var b strings.Builder
	n.write(&b, 0)
	return b.String()
}

func (n *BlockingNode) write(b *strings.Builder, depth int) {
	fmt.Fprintf(b, "%s%d %s %s: %s\n", strings.Repeat("    ", depth), n.PID, text.Clean(n.ApplicationName), n.State, text.OneLine(n.Query, 80))
	for _, c := range n.Blocks {
		c.write(b, depth+1)
	}
}

// BlockingTree returns who blocks whom, of all databases (the manual's 9.26.1,
// pg_blocking_pids): the sessions that block others and wait for nobody, with
// those that wait for them below. A session that waits for several is below one of
// them; BlockedBy has all. Of sessions that wait for each other in a circle the
// one with the lowest process id is on top. Process id 0 is a prepared
// transaction. The server is asked once, and locks its lock table for a moment.
func (p *PGAdmin) BlockingTree(ctx context.Context) ([]*BlockingNode, error) {
	var nodes []*BlockingNode
	err := p.pool.Rows(ctx, `WITH waiting AS MATERIALIZED (SELECT l.pid, pg_catalog.pg_blocking_pids(l.pid) AS by`+
		` FROM (SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE NOT granted) l),`+
		` involved AS (SELECT pid FROM waiting UNION SELECT pg_catalog.unnest(by) FROM waiting)`+
		` SELECT i.pid, coalesce(pg_catalog.array_to_string(w.by, ','::pg_catalog.text), ''), `+backendColumns+
		` FROM involved i LEFT JOIN waiting w ON w.pid OPERATOR(pg_catalog.=) i.pid`+
		` LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) i.pid ORDER BY i.pid`,
		func(rows *sql.Rows) error {
			n := new(BlockingNode)
			var pid int
			var by string
			dest, set := n.scan()
			if err := rows.Scan(append([]any{&pid, &by}, dest...)...); err != nil {
				return err
			}
			set()
			n.PID = pid
			if pid == 0 {
				n.State = "prepared transaction"
			}
			if by != "" {
				for _, s := range strings.Split(by, ",") {
					blocker, err := strconv.Atoi(s)
					if err != nil {
						return err
					}
					if !slices.Contains(n.BlockedBy, blocker) { // parallel workers count for their leader
						n.BlockedBy = append(n.BlockedBy, blocker)
					}
				}
			}
			nodes = append(nodes, n)
			return nil
		})
	if err != nil {
		return nil, err
	}
	return blockingTree(nodes), nil
}

// blockingTree builds the tree from nodes in the order of their process ids.
// Each has one place: as a queue blocks its later members by its earlier ones,
// all places would be too many.
func blockingTree(nodes []*BlockingNode) []*BlockingNode {
	waiters := map[int][]*BlockingNode{}
	for _, n := range nodes {
		for _, by := range n.BlockedBy {
			waiters[by] = append(waiters[by], n)
		}
	}
	var roots []*BlockingNode
	placed := map[*BlockingNode]bool{}
	place := func(root *BlockingNode) {
		roots = append(roots, root)
		placed[root] = true
		for queue := []*BlockingNode{root}; len(queue) > 0; queue = queue[1:] {
			for _, w := range waiters[queue[0].PID] {
				if !placed[w] {
					placed[w] = true
					queue[0].Blocks = append(queue[0].Blocks, w)
					queue = append(queue, w)
				}
			}
		}
	}
	for _, n := range nodes {
		if len(n.BlockedBy) == 0 && len(waiters[n.PID]) > 0 {
			place(n)
		}
	}
	for _, n := range nodes { // circles, and what has ended meanwhile
		if !placed[n] && len(n.BlockedBy) > 0 {
			place(n)
		}
	}
	return roots
}

// Terminate ends a backend (the manual's 9.28.2, pg_terminate_backend), and
// returns false if there is none of that process id. It needs the same role, or
// pg_signal_backend.
func (p *PGAdmin) Terminate(ctx context.Context, pid int) (bool, error) {
	return p.signal(ctx, "pg_terminate_backend", pid)
}

// Cancel cancels what a backend is doing (the manual's 9.28.2, pg_cancel_backend),
// and returns false if there is none of that process id. It needs the same role,
// or pg_signal_backend.
func (p *PGAdmin) Cancel(ctx context.Context, pid int) (bool, error) {
	return p.signal(ctx, "pg_cancel_backend", pid)
}

func (p *PGAdmin) signal(ctx context.Context, function string, pid int) (ok bool, err error) {
	if pid <= 0 || pid > 1<<31-1 {
		return false, fmt.Errorf("baldur: process id %d is not that of a backend", pid)
	}
	err = p.pool.Row(ctx, "SELECT pg_catalog."+function+"("+strconv.Itoa(pid)+"::pg_catalog.int4)", &ok)
	return ok, err
}
