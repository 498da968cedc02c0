package baldur

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/baldur-go/baldur/internal/backends"
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
	found, err := backends.Holders(ctx, p.pool.Rows, id)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		h := LockHolder{Backend: Backend(f.Backend), Shared: f.Shared, Since: f.XactStart}
		if h.Since.IsZero() {
			h.Since = h.BackendStart
		}
		if since, ok := p.locks.Since(pgsql.Lock{ID: id, Shared: h.Shared}, h.PID); ok {
			h.Since, h.SinceExact = since, true
		}
		holders = append(holders, h)
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
	nodes, err := backends.Blocking(ctx, p.pool.Rows)
	if err != nil {
		return nil, err
	}
	return blockingNodes(nodes), nil
}

func blockingNodes(from []*backends.Node) (nodes []*BlockingNode) {
	for _, n := range from {
		nodes = append(nodes, &BlockingNode{Backend(n.Backend), n.BlockedBy, blockingNodes(n.Blocks)})
	}
	return nodes
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
