// Package backends finds out which sessions of the server's have an advisory lock, and which
// of them block others.
package backends

import (
	"context"
	"database/sql"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/baldur-go/baldur/internal/pgsql"
)

// A Backend is a session of the server's, as pg_stat_activity has it.
type Backend struct {
	PID             int
	ApplicationName string
	User            string
	ClientAddr      string
	State           string
	WaitEvent       string
	Query           string
	BackendStart    time.Time
	XactStart       time.Time
	QueryStart      time.Time
}

// columns are a Backend's columns of pg_stat_activity a. The times are in µs
// since 1970: as text a time is as DateStyle says.
const columns = `coalesce(a.pid, 0), coalesce(a.application_name, ''), coalesce(a.usename::pg_catalog.text, ''), coalesce(pg_catalog.host(a.client_addr), ''),` +
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

// An Asker asks for rows, and calls each for every one.
type Asker func(ctx context.Context, query string, each func(*sql.Rows) error) error

// A Holder has a lock.
type Holder struct {
	Backend
	Shared bool
}

// Holders returns those of an advisory lock in the current database, in the order of their
// process ids.
func Holders(ctx context.Context, ask Asker, id int64) (holders []Holder, err error) {
	err = ask(ctx, "SELECT l.mode OPERATOR(pg_catalog.=) 'ShareLock', "+columns+", l.pid"+
		" FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid"+
		" WHERE "+pgsql.GrantedLock(id)+" AND l.database OPERATOR(pg_catalog.=)"+
		" (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"+
		" ORDER BY l.pid, l.mode",
		func(rows *sql.Rows) error {
			var h Holder
			var pid sql.NullInt64
			dest, set := h.scan()
			if err := rows.Scan(append(append([]any{&h.Shared}, dest...), &pid)...); err != nil {
				return err
			}
			set()
			h.PID = int(pid.Int64)
			holders = append(holders, h)
			return nil
		})
	if err != nil {
		return nil, err
	}
	return holders, nil
}

// A Node blocks others or is blocked.
type Node struct {
	Backend
	BlockedBy []int
	Blocks    []*Node
}

// Blocking returns who blocks whom, of all databases: those that wait for nobody, with those
// that wait for them below.
func Blocking(ctx context.Context, ask Asker) ([]*Node, error) {
	var nodes []*Node
	err := ask(ctx, `WITH waiting AS MATERIALIZED (SELECT l.pid, pg_catalog.pg_blocking_pids(l.pid) AS by`+
		` FROM (SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE NOT granted) l),`+
		` involved AS (SELECT pid FROM waiting UNION SELECT pg_catalog.unnest(by) FROM waiting)`+
		` SELECT i.pid, coalesce(pg_catalog.array_to_string(w.by, ','::pg_catalog.text), ''), `+columns+
		` FROM involved i LEFT JOIN waiting w ON w.pid OPERATOR(pg_catalog.=) i.pid`+
		` LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) i.pid ORDER BY i.pid`,
		func(rows *sql.Rows) error {
			n := new(Node)
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
	return arrange(nodes), nil
}

// arrange builds the tree from nodes in the order of their process ids.
// Each has one place: as a queue blocks its later members by its earlier ones,
// all places would be too many.
func arrange(nodes []*Node) []*Node {
	waiters := map[int][]*Node{}
	for _, n := range nodes {
		for _, by := range n.BlockedBy {
			waiters[by] = append(waiters[by], n)
		}
	}
	var roots []*Node
	placed := map[*Node]bool{}
	place := func(root *Node) {
		roots = append(roots, root)
		placed[root] = true
		for queue := []*Node{root}; len(queue) > 0; queue = queue[1:] {
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
