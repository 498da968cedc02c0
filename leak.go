package baldur

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/baldur-go/baldur/internal/callsite"
	"github.com/baldur-go/baldur/internal/text"
)

// Kind is what a connection was taken for.
type Kind string

// What a connection can be taken for.
const (
	KindUnknown Kind = "unknown" // no call was made yet, and the call stack does not tell
	KindQuery   Kind = "query"   // Query or QueryRow: held until the Rows is closed
	KindExec    Kind = "exec"
	KindTx      Kind = "tx"   // Begin: held until Commit or Rollback
	KindConn    Kind = "conn" // DB.Conn: held until Conn.Close
	KindStmt    Kind = "stmt" // a prepared statement, or Prepare
	KindPing    Kind = "ping"
)

// State is what the holder of a connection is doing with it.
type State string

// The states of a holder; the first that holds is given.
const (
	StateInCall   State = "in_call"             // inside a call of the driver
	StateClosing  State = "closing_statement"   // inside a call of the driver that closes a prepared statement
	StateUnseen   State = "unwrapped"           // Unwrap has handed out the driver's own connection since the last call: its use is not seen
	StateIdleInTx State = "idle_in_transaction" // between Begin and Commit or Rollback, no call in flight
	StateRowsOpen State = "rows_open"           // a Rows is open, and is not being read
	StateIdle     State = "idle"                // calls have been made, none is in flight
	StateNoCall   State = "no_call_yet"         // taken, and not used since
)

// Verdict is what is thought of a holder, by the rule that its value names. The first that
// holds is given; a labelled holder (see [Label]) is long_held or in_use.
//
// Two of them are accusations, which are proven:
//
//   - lost: nothing in the program refers to the Rows or the Row that the connection was
//     taken for. So nobody can close it, ever. Two looks have seen that, 100 ms apart or
//     more, after a garbage collection. It is not seen while the Rows has a ctx that can
//     end (database/sql keeps such a Rows until then), and not of a Rows on a Tx or a
//     Conn. A program that hides a Rows from the garbage collector, by package unsafe,
//     can falsify it.
//   - deadlock: the pool is full, others wait, and each holder of its connections waits
//     for a connection itself, or its goroutine has exited. So none of them can go on
//     before another does, unless a ctx ends. Two looks have seen that, 100 ms apart or
//     more. One thing is not seen: a goroutine to which one of the connections was handed
//     on and that has not used it yet.
//
// The others accuse nobody. suspected and abandoned are suspicions, after the leak
// threshold; abandoned has the stronger reason. It may lie in a map or a struct, where a
// program keeps it on purpose: [Label] says so.
type Verdict string

// The verdicts.
const (
	VerdictLost      Verdict = "lost"      // accused: nothing refers to the Rows that it was taken for
	VerdictDeadlock  Verdict = "deadlock"  // accused: all holders of the pool wait for a connection themselves
	VerdictAbandoned Verdict = "abandoned" // suspected, and whoever took and last used it has left the function that took it
	VerdictSuspected Verdict = "suspected" // out for the threshold, and not used for that long
	VerdictLongHeld  Verdict = "long_held" // out for the threshold, but labelled, or used within it
	VerdictInUse     Verdict = "in_use"    // out for less than the leak threshold
)

// Accuses tells whether the verdict is an accusation: lost and deadlock are.
func (v Verdict) Accuses() bool { return v == VerdictLost || v == VerdictDeadlock }

// Liveness tells whether a goroutine has ended.
type Liveness string

// Whether a goroutine has ended. It is read from the runtime's own record of the
// goroutine, without a pause, where a self-test has shown that this works.
const (
	GoroutineAlive   Liveness = "alive"
	GoroutineExited  Liveness = "exited"
	GoroutineUnknown Liveness = "unknown"
)

// A Frame is one call of a stack.
type Frame struct {
	Function string `json:"function"` // with its import path, without arguments
	File     string `json:"file"`
	Line     int    `json:"line"` // 0: unknown
}

// String returns the function, and the file's last folder and name with the
// line: "main.handler (shop/orders.go:88)".
func (f Frame) String() string { return f.short() + " (" + f.at() + ")" }

// at is the place, shortened: "orders/orders.go:88".
func (f Frame) at() string {
	if f.File == "" {
		return "unknown"
	}
	folder, name := cutLast(strings.ReplaceAll(f.File, `\`, "/"))
	_, last := cutLast(folder)
	if _, base := cutLast(strings.TrimSuffix(folder, "/"+last)); majorVersion.MatchString(last) && base != "" {
		last = base + "/" + last
	}
	if last != "" {
		name = last + "/" + name
	}
	return fmt.Sprintf("%s:%d", name, f.Line)
}

// short is the function without the folders of its import path, except the one that a
// major version belongs to: "pop/v6.newTX".
func (f Frame) short() string {
	pkg, local := callsite.SplitName(f.Function)
	if local == "" {
		return pkg
	}
	folder, last := cutLast(pkg)
	if _, base := cutLast(folder); majorVersion.MatchString(last) && base != "" {
		last = base + "/" + last
	}
	return last + "." + local
}

// majorVersion is the last element of an import path, or of its folder in the
// module cache.
var majorVersion = regexp.MustCompile(`^v[0-9]+(@|$)`)

// cutLast cuts a path before its last slash, and returns what is after it.
func cutLast(path string) (before, last string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

// A SpanContext identifies a trace and a span of it, as OpenTelemetry does. The zero
// value says that there is none.
type SpanContext struct {
	TraceID    [16]byte
	SpanID     [8]byte
	TraceFlags byte
}

// IsValid tells whether both ids are set.
func (s SpanContext) IsValid() bool { return s.TraceID != [16]byte{} && s.SpanID != [8]byte{} }

// String returns the trace id in hex, or "".
func (s SpanContext) String() string {
	if !s.IsValid() {
		return ""
	}
	return hex.EncodeToString(s.TraceID[:])
}

// spanID is the span's id in hex.
func (s SpanContext) spanID() string { return hex.EncodeToString(s.SpanID[:]) }

// ConnectionInfo is what is known of a connection that is out, at one instant. Times of
// use are exact to a tenth of a second (to less where the leak threshold is below a
// second).
type ConnectionInfo struct {
	ConnectionID    int64         // of the pool, from 1, never used again
	AcquiredAt      time.Time     // when the connection was taken
	Held            time.Duration // how long it has been out
	Idle            time.Duration // since the last call ended or the last row was read, or since it was taken; 0 in a call
	InCall          time.Duration // how long the call in flight has lasted; 0 if there is none
	Kind            Kind          // what it was taken for
	State           State
	Verdict         Verdict
	Evidence        string      // for the verdict, in words; "" for in_use
	Label           string      // of an expected holder: see Label
	InTransaction   bool        // begun by Begin; a BEGIN in a query's text is not seen
	RowsOpen        bool        // a Rows of it is open
	StackTrace      []Frame     // of the taking, from the first frame of the application on
	QueryInfo       string      // the text of the last statement, the first 2 kB of it: see WithQueryText
	GoroutineID     int64       // that took it
	Goroutine       Liveness    // whether that goroutine is alive. The connection may have been handed on.
	Where           string      // what the goroutine does now that made the last call, in words; "" if not known
	Now             []Frame     // its stack, from the first frame of the application on; nil if not known
	LastGoroutineID int64       // that made the last call
	BackendPID      int         // of the server; 0: unknown. Behind PgBouncer it is not the server's.
	Span            SpanContext // of the taking, with WithSpanContext

	site    int  // the call site's index in StackTrace
	waits   bool // for a connection itself, within the call that took this one
	mayWait bool // requests wait for a connection of the pool, and the holder may be one of them
}

// CallSite is the line of the application that took the connection. Its
// Function is "unknown" if there is no stack.
//
// It is never in the standard library. A goroutine that a library has started has no
// frame of the application: its call site is the library's outermost frame, and
// StackTrace has the library's other frames before that. For a goroutine that starts in
// database/sql ("go db.ExecContext(…)") the Function is database/sql's, and the line is
// that of the go statement, or 0 if it is not known.
func (c ConnectionInfo) CallSite() Frame {
	if c.site >= len(c.StackTrace) {
		return Frame{Function: "unknown"}
	}
	return c.StackTrace[c.site]
}

// begun tells whether a frame is the call site of a goroutine that a go statement has
// started in database/sql.
func (f Frame) begun() bool { return callsite.Started(f.Function) }

// Doing says in words what the holder does: "idle in transaction for 40s".
func (c ConnectionInfo) Doing() string {
	rows := ""
	if c.RowsOpen {
		rows = ", rows open"
	}
	switch c.State {
	case StateInCall:
		return "in a call for " + short(c.InCall)
	case StateClosing:
		return "closing a statement for " + short(c.InCall)
	case StateUnseen:
		return "unwrapped since " + short(c.Idle) + ": use not seen"
	case StateIdleInTx:
		return "idle in transaction for " + short(c.Idle) + rows
	case StateNoCall:
		return "no call yet"
	}
	return "idle for " + short(c.Idle) + rows
}

func short(d time.Duration) string { return text.Short(d) }

// LeakReport is what a look at a pool has found.
//
// A holder is suspected if it has had its connection for longer than the threshold and
// has not used it for that long: no call in flight, none ended, no row read. One that
// has used it is listed apart, in LongHeld, and not accused.
//
// A holder that is accused (see [Verdict]) is in SuspectedLeaks too if that rule holds for it,
// and else in Proven. Accused has all of them.
//
// While the pool is full, or anyone waits, Holding has all other holders, whatever the
// threshold: in the first minutes of an outage nobody has had a connection for long, and
// who has one is what one wants to know. To be listed there is no accusation.
//
// Unattributed counts the connections that are out by database/sql's count and that the
// tracker has not seen to go out: see "What cannot be seen" in the package comment. They
// have not been used at all since they were made. In a program whose pool is full the
// figure can be above 0 for an instant, when database/sql hands a new connection to a
// waiting goroutine that has not run yet. If it stays above 0 from report to report, a
// connection is held and not used.
type LeakReport struct {
	PoolName       string
	ReportTime     time.Time
	LeakThreshold  time.Duration
	Health         PoolHealthStatus
	Stats          PoolStats
	Exhausted      time.Duration    // how long the pool has been full while requests waited, as far as Watch or Log has seen; 0: not
	Recovered      time.Duration    // in a report of Watch: how long it was, before it came to an end
	SuspectedLeaks []ConnectionInfo // the longest held first
	Proven         []ConnectionInfo // accused before their time, the longest held first
	LongHeld       []ConnectionInfo // out for the threshold, and in use within it or labelled
	Holding        []ConnectionInfo // all others, while the pool is full or anyone waits; the longest unused first
	Deadlock       *Deadlock        // that the pool is part of; nil: none is known
	Waiters        []WaiterGroup    // who waits for a connection, by line, the most first
	Returned       []ConnectionInfo // in a report of Watch: told before, and now back; Held is how long they were out
	Tracked        int              // connections that are out and whose holder is known
	Connecting     int              // being dialled, or to be
	Closing        int              // being closed: an expired one that a checkout has met, or the cleaner's
	Unattributed   int              // out, but not seen; −1: unknown
	ContextEnded   []ContextEnded   // by call site, the most not closed first
	Leases         []QuorumStats    // of the quorums on the pool: see Tracker.Quorums
	DirtyReturns   []DirtyReturn    // the latest that WithReturnAudit has found, 5 at most, the last one last
	DirtyTotal     int              // how many there were since the tracker was made
	OpenStatements []OpenStatements // of the connections with at least OpenStatementsBound, the most first
}

// OpenStatementsBound is how many open statements a connection must have to be listed.
// A program that prepares all its queries once has some dozens; one that forgets
// Stmt.Close has more with each call.
const OpenStatementsBound = 50

// OpenStatements is a connection, out or idle, and the number of statements that were
// prepared on it and not closed.
type OpenStatements struct {
	ConnectionID int64 `json:"connection_id"`
	Open         int   `json:"open"`
}

// DirtyReturn is a connection that came back to the pool with state that its next
// holder will meet.
type DirtyReturn struct {
	Connection      ConnectionInfo `json:"connection"` // as it was at the return; its CallSite is the line that took it
	ReturnedAt      time.Time      `json:"returned_at"`
	OpenTransaction bool           `json:"open_transaction"`         // begun by the text of a query, and neither committed nor rolled back
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

// A Deadlock is pools none of whose holders can go on before another does: see [Verdict].
type Deadlock struct {
	Pools   []string `json:"pools"`   // by their names
	Holders int      `json:"holders"` // connections
	Victims int      `json:"victims"` // goroutines that wait for a connection, and hold none of these pools
}

// String says it in a line.
func (d Deadlock) String() string {
	return fmt.Sprintf("deadlock: all %s of %s are held by goroutines that wait for another, or have exited; %d others wait",
		plural(d.Holders, "connection"), plural(len(d.Pools), "pool")+" ("+strings.Join(d.Pools, ", ")+")", d.Victims)
}

// A WaiterGroup is the goroutines that wait at one line for a connection. They are counted a
// moment before or after the figures of the pool.
type WaiterGroup struct {
	CallSite   Frame   `json:"call_site"`
	StackTrace []Frame `json:"stack_trace"` // from the first frame of the application on
	Count      int     `json:"count"`
	OfPool     bool    `json:"of_pool"` // false: it is not known for which pool they wait; several have waiters
}

// ContextEnded is a line of code whose connections came back because the ctx ended that they
// were taken with, since the tracker was made.
//
// database/sql takes such a connection back on a goroutine of its own. A program that was
// about to close it is in order, and finds it closed. One that never would have is a leak
// that heals itself. Which of the two cannot be seen from a driver, except where whoever
// took the connection has returned from the function that did: see NotClosed.
type ContextEnded struct {
	CallSite  Frame
	Count     int           // checkouts that ended so
	NotClosed int           // of those, that were surely not closed: the function that took them had returned, or its goroutine had exited
	Held      time.Duration // the mean of how long they were out
}

// MarshalJSON writes durations in seconds.
func (e ContextEnded) MarshalJSON() ([]byte, error) {
	return marshal(struct {
		CallSite  Frame   `json:"call_site"`
		Count     int     `json:"count"`
		NotClosed int     `json:"not_closed"`
		Held      float64 `json:"held_seconds_mean"`
	}{e.CallSite, e.Count, e.NotClosed, e.Held.Seconds()})
}

// String says it in a line.
func (e ContextEnded) String() string {
	closed := "whether they would have been closed is not known"
	switch e.NotClosed {
	case 0:
	case e.Count:
		closed = "not closed"
	default:
		closed = fmt.Sprintf("%d of them not closed, of the others it is not known", e.NotClosed)
	}
	return fmt.Sprintf("%s: %s ended by the ctx after %s on average, %s", e.CallSite.place(), plural(e.Count, "checkout"), short(e.Held), closed)
}

// Accused returns the holders whose verdict is an accusation, the longest held first.
func (r LeakReport) Accused() []ConnectionInfo {
	var all []ConnectionInfo
	for _, c := range slices.Concat(r.SuspectedLeaks, r.Proven) {
		if c.Verdict.Accuses() {
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b ConnectionInfo) int { return cmp.Compare(b.Held, a.Held) })
	return all
}

// LeakCount is the number of suspected leaks.
func (r LeakReport) LeakCount() int { return len(r.SuspectedLeaks) }

// A LeakGroup is the holders that took their connections at one line; if their
// goroutines start in database/sql, also with the same statement.
type LeakGroup struct {
	CallSite    Frame
	Connections []ConnectionInfo // the longest held first
}

// Groups returns the suspected leaks by call site, the most connections first.
func (r LeakReport) Groups() []LeakGroup { return groupBySite(r.SuspectedLeaks) }

// HoldingGroups returns Holding by call site, the one with the longest unused first.
func (r LeakReport) HoldingGroups() []LeakGroup { return bySite(r.Holding) }

// groupKey is what the holders of a group have in common.
type groupKey struct {
	site  Frame
	query string // "" where the site is a line of the program's
}

func (c ConnectionInfo) group() groupKey {
	key := groupKey{site: c.CallSite()}
	if key.site.begun() {
		key.query = c.QueryInfo
	}
	return key
}

// groupBySite groups holders, the largest group first.
func groupBySite(infos []ConnectionInfo) []LeakGroup {
	groups := bySite(infos)
	slices.SortStableFunc(groups, func(a, b LeakGroup) int {
		return cmp.Compare(len(b.Connections), len(a.Connections))
	})
	return groups
}

// bySite groups holders in their order.
func bySite(infos []ConnectionInfo) []LeakGroup {
	index := map[groupKey]int{}
	var groups []LeakGroup
	for _, c := range infos {
		key := c.group()
		i, ok := index[key]
		if !ok {
			i = len(groups)
			index[key] = i
			groups = append(groups, LeakGroup{CallSite: key.site})
		}
		groups[i].Connections = append(groups[i].Connections, c)
	}
	return groups
}
