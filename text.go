package baldur

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/baldur-go/baldur/internal/callsite"
	"github.com/baldur-go/baldur/internal/text"
)

// How much of a report its text shows; JSON has all of it.
const (
	textConns  = 5   // connections of a call site
	textFrames = 8   // frames of a stack
	textQuery  = 100 // characters of a query
)

// String returns the report for people: the pool's state and leases, then by call site
// the suspected leaks, who holds a pool that is full or waited for, and who else holds a
// connection for long; and which connections came back dirty.
func (r LeakReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pool %s: %s", clean(r.PoolName), r.Health)
	if r.Exhausted > 0 {
		fmt.Fprintf(&b, " for %s", short(r.Exhausted))
	}
	if r.Recovered > 0 {
		fmt.Fprintf(&b, ", recovered after %s", short(r.Recovered))
	}
	accused, suspected := r.Accused(), r.suspectedOnly()
	if n := len(accused); n > 0 {
		fmt.Fprintf(&b, ", %s", plural(n, "leak"))
	}
	if n := len(suspected); n > 0 {
		fmt.Fprintf(&b, ", %s", plural(n, "suspected leak"))
	}
	fmt.Fprintf(&b, "\n%s\nleak threshold %s, %s\n", r.Figures(), short(r.LeakThreshold), r.ReportTime.Format(time.RFC3339))
	for _, l := range r.Leases {
		fmt.Fprintf(&b, "%s\n", clean(l.String()))
		if l.BackendPID != 0 {
			fmt.Fprintf(&b, "    by a connection of its own, beside the pool: pg pid %d\n", l.BackendPID)
		}
	}
	if r.Deadlock != nil {
		fmt.Fprintf(&b, "\n%s\n", clean(strings.ToUpper(r.Deadlock.String()[:1])+r.Deadlock.String()[1:]))
	}
	for _, g := range groupBySite(accused) {
		b.WriteString("\nLEAK: ")
		g.writeHead(&b)
		fmt.Fprintf(&b, "    proof: %s\n", clean(g.Connections[0].Evidence))
		if m := g.Connections[0].LikelyMissing(); m != "" {
			fmt.Fprintf(&b, "    missing: %s\n", m)
		}
		g.writeConns(&b, ConnectionInfo.unused)
		writeStack(&b, g.Connections[0])
	}
	for _, g := range groupBySite(suspected) {
		b.WriteString("\nLEAK? ")
		g.writeHead(&b)
		if c := g.Connections[0]; c.Verdict == VerdictAbandoned {
			fmt.Fprintf(&b, "    abandoned: %s\n", clean(c.Evidence))
		}
		if m := g.Connections[0].LikelyMissing(); m != "" {
			fmt.Fprintf(&b, "    likely missing: %s\n", m)
		}
		g.writeConns(&b, ConnectionInfo.unused)
		writeStack(&b, g.Connections[0])
	}
	r.writeHolding(&b)
	r.writeWaiters(&b)
	if len(r.LongHeld) > 0 {
		b.WriteString("\nheld for as long, but in use or expected, and not accused:\n")
	}
	for _, g := range groupBySite(r.LongHeld) {
		b.WriteString("  ")
		g.writeHead(&b)
		g.writeConns(&b, func(c ConnectionInfo) string {
			doing := "held for " + short(c.Held)
			if c.Label != "" {
				doing = clean(c.Label) + ", " + doing
			}
			if c.InCall > 0 || c.State == StateInCall || c.State == StateUnseen {
				return doing + ", " + c.Doing()
			}
			return doing + ", last used " + short(c.Idle) + " ago"
		})
	}
	for i, s := range r.OpenStatements {
		if i == 0 {
			b.WriteString("\nprepared and not closed: a Stmt.Close may be missing\n")
		}
		if i == textConns {
			fmt.Fprintf(&b, "  and %s more\n", plural(len(r.OpenStatements)-i, "connection"))
			break
		}
		fmt.Fprintf(&b, "  connection %d: %s open\n", s.ConnectionID, plural(s.Open, "statement"))
	}
	for i, c := range r.Returned {
		if i == 0 {
			b.WriteString("\ncame back:\n")
		}
		fmt.Fprintf(&b, "  taken at %s, returned after %s\n", clean(c.CallSite().place()), short(c.Held))
	}
	for i, e := range r.ContextEnded {
		if i == 0 {
			b.WriteString("\nended by the ctx, and given back by database/sql:\n")
		}
		if i == textConns {
			fmt.Fprintf(&b, "  and %s more\n", plural(len(r.ContextEnded)-i, "line"))
			break
		}
		fmt.Fprintf(&b, "  %s\n", clean(e.String()))
	}
	if r.DirtyTotal > 0 {
		fmt.Fprintf(&b, "\ncame back dirty, %d in all; the latest:\n", r.DirtyTotal)
	}
	for _, d := range r.DirtyReturns {
		fmt.Fprintf(&b, "  %s: %s\n", d.ReturnedAt.Format(time.RFC3339), clean(d.String()))
	}
	return b.String()
}

// unused is what the holder does, first of all how long it has not used its connection.
func (c ConnectionInfo) unused() string {
	doing := strings.Replace(c.Doing(), "idle for", "unused for", 1)
	if c.Held-c.Idle-c.InCall >= time.Second {
		doing += ", held for " + short(c.Held)
	}
	return doing
}

// writeHolding writes who has the connections while others want one.
func (r LeakReport) writeHolding(b *strings.Builder) {
	if len(r.Holding) == 0 {
		return
	}
	why := "the pool is full"
	if n := r.Stats.WaitingRequests; n == 1 {
		why = "1 request waits"
	} else if n > 1 {
		why = fmt.Sprintf("%d requests wait", n)
	}
	held := "held"
	if len(r.SuspectedLeaks)+len(r.Proven)+len(r.LongHeld) > 0 {
		held = "also held"
	}
	fmt.Fprintf(b, "\n%s; %s by, the longest unused first, which accuses nobody:\n", why, held)
	for _, g := range r.HoldingGroups() {
		b.WriteString("  ")
		g.writeHead(b)
		if c := g.Connections[0]; c.missing() != "" && c.State != StateInCall && !c.waits {
			fmt.Fprintf(b, "    still to come: %s\n", c.missing())
		}
		g.writeConns(b, ConnectionInfo.unused)
	}
}

// writeWaiters writes who waits, by line.
func (r LeakReport) writeWaiters(b *strings.Builder) {
	for i, w := range r.Waiters {
		if i == 0 {
			b.WriteString("\nwho waits:\n")
		}
		if i == textConns {
			fmt.Fprintf(b, "  and %s more\n", plural(len(r.Waiters)-i, "line"))
			return
		}
		fmt.Fprintf(b, "  %s\n", clean(w.String()))
	}
}

// String says it in a line: "15 wait at shop/checkout.go:17 in main.pay".
func (w WaiterGroup) String() string {
	verb := "wait"
	if w.Count == 1 {
		verb = "waits"
	}
	s := fmt.Sprintf("%d %s at %s in %s", w.Count, verb, w.CallSite.at(), w.CallSite.short())
	if !w.OfPool {
		s += ", for a connection of this pool or of another"
	}
	return s
}

// suspectedOnly are the suspected leaks that are not proven.
func (r LeakReport) suspectedOnly() []ConnectionInfo {
	return slices.DeleteFunc(slices.Clone(r.SuspectedLeaks), func(c ConnectionInfo) bool { return c.Verdict.Accuses() })
}

// Figures is the line that adds up: "10 of 10 in use: 6 suspected, 3 long held
// but used, 1 other; 7 waiting".
func (r LeakReport) Figures() string {
	var b strings.Builder
	s := r.Stats
	switch {
	case r.Health == HealthClosed:
		return fmt.Sprintf("closed, %d still out", r.Tracked)
	case !s.known():
		fmt.Fprintf(&b, "%d in use that are tracked, pool size unknown", r.Tracked)
	case s.MaxConnections == 0:
		fmt.Fprintf(&b, "%d in use, no limit", s.ActiveConnections)
	default:
		fmt.Fprintf(&b, "%d of %d in use", s.ActiveConnections, s.MaxConnections)
	}
	var parts []string
	add := func(n int, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	add(len(r.Accused()), "leaked")
	add(len(r.suspectedOnly()), "suspected")
	add(len(r.LongHeld), "long held but used")
	add(r.Unattributed, "not seen (taken by DB.Conn, not used yet)")
	add(r.Connecting, "connecting")
	add(r.Closing, "closing")
	if parts != nil {
		add(r.Tracked-len(r.SuspectedLeaks)-len(r.Proven)-len(r.LongHeld), "other")
		fmt.Fprintf(&b, ": %s", strings.Join(parts, ", "))
	}
	if s.WaitingRequests < 0 {
		b.WriteString("; waiting unknown")
	} else {
		fmt.Fprintf(&b, "; %d waiting", s.WaitingRequests)
	}
	return b.String()
}

// LikelyMissing is the call that the holder has probably left out, if it is a leak:
// "Rows.Close, or Row.Scan". It is "" if there is no hint.
//
// A holder may wait for a second connection itself: it may make a query beside an open
// transaction, or in a loop over rows. Then nothing need be missing, and there is no hint;
// Where says so. Where requests wait and it is not known whether the holder is one of them,
// the hint names both.
func (c ConnectionInfo) LikelyMissing() string {
	if c.waits {
		return ""
	}
	missing := c.missing()
	if missing != "" && c.mayWait && c.Where == "" {
		missing += "; or it waits for a second connection itself"
	}
	return missing
}

func (c ConnectionInfo) missing() string {
	switch {
	case c.InTransaction:
		return "Tx.Commit or Tx.Rollback"
	case c.Kind == KindConn && c.RowsOpen:
		return "Rows.Close, and Conn.Close"
	case c.Kind == KindConn:
		return "Conn.Close"
	case c.RowsOpen:
		return "Rows.Close, or Row.Scan"
	}
	return ""
}

func (g LeakGroup) writeHead(b *strings.Builder) {
	if g.CallSite.begun() {
		fmt.Fprintf(b, "%s taken by %s\n", plural(len(g.Connections), "connection"), clean(g.CallSite.place()))
		return
	}
	fmt.Fprintf(b, "%s taken at %s in %s\n", plural(len(g.Connections), "connection"), clean(g.CallSite.at()), clean(g.CallSite.short()))
}

// writeConns writes a line for each connection, and its last query; only one query if
// it is the same for all.
func (g LeakGroup) writeConns(b *strings.Builder, doing func(ConnectionInfo) string) {
	query := g.Connections[0].QueryInfo
	same := !slices.ContainsFunc(g.Connections, func(c ConnectionInfo) bool { return c.QueryInfo != query })
	writeQuery := func(query string) {
		if query != "" {
			fmt.Fprintf(b, "    last: %s\n", excerpt(query))
		}
	}
	if same {
		writeQuery(query)
	}
	for i, c := range g.Connections {
		if i == textConns {
			fmt.Fprintf(b, "    and %d more\n", len(g.Connections)-i)
			break
		}
		fmt.Fprintf(b, "    %s; goroutine %d", doing(c), c.GoroutineID)
		if c.Goroutine == GoroutineExited {
			b.WriteString(" has exited")
		}
		if c.LastGoroutineID != c.GoroutineID {
			fmt.Fprintf(b, ", last used by %d", c.LastGoroutineID)
		}
		if c.BackendPID != 0 {
			fmt.Fprintf(b, ", pg pid %d", c.BackendPID)
		}
		if c.Span.IsValid() {
			fmt.Fprintf(b, ", trace %s", c.Span)
		}
		b.WriteByte('\n')
		if c.Where != "" && c.State != StateInCall {
			fmt.Fprintf(b, "      %s\n", clean(c.Where))
		}
		if !same {
			writeQuery(c.QueryInfo)
		}
	}
}

// writeStack writes the call site's place in full, to be clicked on, and a line for each
// of its callers in the application. For a goroutine that a library has started it
// writes the library's frames.
func writeStack(b *strings.Builder, c ConnectionInfo) {
	site := c.CallSite()
	if site.File == "" {
		return
	}
	fmt.Fprintf(b, "    %s:%d\n", clean(site.File), site.Line)
	frames := c.StackTrace[c.site+1:]
	for len(frames) > 0 && slices.Contains([]string{"runtime", "sync", "testing", "net/http"}, frames[len(frames)-1].pkg()) {
		frames = frames[:len(frames)-1]
	}
	by := "by"
	if c.site > 0 {
		by, frames = "calls", slices.Clone(c.StackTrace[:c.site])
		slices.Reverse(frames)
	}
	more := len(frames) - textFrames
	frames = frames[:min(len(frames), textFrames)]
	width := 0
	for _, f := range frames {
		width = max(width, utf8.RuneCountInString(f.short()))
	}
	for _, f := range frames {
		fmt.Fprintf(b, "      %s %-*s  %s\n", by, width, clean(f.short()), clean(f.at()))
	}
	if more > 0 {
		fmt.Fprintf(b, "      and %d more\n", more)
	}
}

// excerpt is a query, or other foreign text, on one line and not too long.
func excerpt(query string) string { return text.OneLine(query, textQuery) }

// shorten cuts s after n bytes.
func shorten(s string, n int) string { return text.Cut(s, n) }

func clean(s string) string { return text.Clean(s) }

// place says where a connection was taken: "shop/orders.go:88".
func (f Frame) place() string {
	switch {
	case !f.begun():
		return f.at()
	case f.File == "":
		return f.Function + ", started by a go statement"
	}
	return f.Function + ", started by a go statement at " + f.at()
}

// pkg is the package in the function's name.
func (f Frame) pkg() string {
	pkg, _ := callsite.SplitName(f.Function)
	return pkg
}

func plural(n int, what string) string { return text.Plural(n, what) }

const logSitesMax = 10 // entries of a list

// logSites are call sites for a log record, each as "orders/orders.go:88 ×3".
func logSites(groups []LeakGroup, more func(LeakGroup) string) (sites []string) {
	for i, g := range groups {
		if i == logSitesMax {
			return append(sites, "…")
		}
		sites = append(sites, fmt.Sprintf("%s ×%d", clean(g.CallSite.place()), len(g.Connections))+more(g))
	}
	return sites
}

func unusedFor(g LeakGroup) string { return ", unused for " + short(g.Connections[0].Idle) }

func (r LeakReport) waitingAt() (sites []string) {
	for i, w := range r.Waiters {
		if i == logSitesMax {
			return append(sites, "…")
		}
		sites = append(sites, clean(fmt.Sprintf("%s ×%d", w.CallSite.place(), w.Count)))
	}
	return sites
}

// bySite are the lines that hold connections, and those that wait, for a log record.
func (r LeakReport) bySite() []slog.Attr {
	all := slices.Concat(r.SuspectedLeaks, r.Proven, r.LongHeld, r.Holding)
	slices.SortStableFunc(all, func(a, b ConnectionInfo) int { return cmp.Compare(b.Idle, a.Idle) })
	attrs := appendList(nil, "held_by", logSites(bySite(all), unusedFor))
	return appendList(attrs, "waiting_at", r.waitingAt())
}

func appendList(attrs []slog.Attr, key string, list []string) []slog.Attr {
	if list == nil {
		return attrs
	}
	return append(attrs, slog.Any(key, list))
}

// LogValue makes a report one group of a log record: the figures; each line that has leaked
// for certain (leaked_at), or is suspected (call_sites), as "orders/orders.go:88 ×3"; of
// Holding as "orders/orders.go:88 ×3, unused for 20s" (held_by); who waits (waiting_at); and
// ContextEnded (context_ended); ten of each. A handler decides the format.
func (r LeakReport) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("pool", clean(r.PoolName)),
		slog.String("health", string(r.Health)),
		slog.Int("accused", len(r.Accused())),
		slog.Int("suspected_leaks", len(r.SuspectedLeaks)),
		slog.Int("long_held", len(r.LongHeld)),
		slog.Int("active_connections", r.Stats.ActiveConnections),
		slog.Int("max_connections", r.Stats.MaxConnections),
		slog.Int("waiting_requests", r.Stats.WaitingRequests),
		slog.Int("unattributed", r.Unattributed),
		slog.Duration("leak_threshold", r.LeakThreshold),
	}
	plain := func(LeakGroup) string { return "" }
	attrs = appendList(attrs, "leaked_at", logSites(groupBySite(r.Accused()), plain))
	attrs = appendList(attrs, "call_sites", logSites(r.Groups(), plain))
	attrs = appendList(attrs, "held_by", logSites(r.HoldingGroups(), unusedFor))
	attrs = appendList(attrs, "waiting_at", r.waitingAt())
	if r.Deadlock != nil {
		attrs = append(attrs, slog.String("deadlock", clean(r.Deadlock.String())))
	}
	var ended []string
	for i, e := range r.ContextEnded {
		if i == logSitesMax {
			ended = append(ended, "…")
			break
		}
		ended = append(ended, clean(e.String()))
	}
	attrs = appendList(attrs, "context_ended", ended)
	var back []string
	for _, c := range r.Returned {
		back = append(back, fmt.Sprintf("%s after %s", clean(c.CallSite().place()), short(c.Held)))
	}
	attrs = appendList(attrs, "returned", back)
	var leases []string
	for _, l := range r.Leases {
		leases = append(leases, clean(l.String()))
	}
	attrs = appendList(attrs, "leases", leases)
	if r.DirtyTotal > 0 {
		attrs = append(attrs, slog.Int("dirty_returns", r.DirtyTotal))
	}
	return slog.GroupValue(attrs...)
}

// LogValue makes a connection one group of a log record.
func (c ConnectionInfo) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.Int64("connection", c.ConnectionID),
		slog.String("call_site", clean(c.CallSite().place())),
		slog.String("function", clean(c.CallSite().Function)),
		slog.Duration("held", c.Held),
		slog.String("kind", string(c.Kind)),
		slog.String("doing", c.Doing()),
		slog.String("verdict", string(c.Verdict)),
		slog.Int64("goroutine", c.GoroutineID),
		slog.String("goroutine_state", string(c.Goroutine)),
	}
	if c.Evidence != "" {
		attrs = append(attrs, slog.String("evidence", c.Evidence))
	}
	if c.Where != "" {
		attrs = append(attrs, slog.String("where", clean(c.Where)))
	}
	if c.BackendPID != 0 {
		attrs = append(attrs, slog.Int("backend_pid", c.BackendPID))
	}
	if c.QueryInfo != "" {
		attrs = append(attrs, slog.String("query", excerpt(c.QueryInfo)))
	}
	if c.Label != "" {
		attrs = append(attrs, slog.String("label", clean(c.Label)))
	}
	if c.Span.IsValid() {
		attrs = append(attrs, slog.String("trace_id", c.Span.String()))
	}
	return slog.GroupValue(attrs...)
}

// MarshalJSON writes durations in seconds and times in RFC 3339.
func (c ConnectionInfo) MarshalJSON() ([]byte, error) {
	return marshal(struct {
		ConnectionID    int64     `json:"connection_id"`
		AcquiredAt      time.Time `json:"acquired_at"`
		HeldSeconds     float64   `json:"held_seconds"`
		IdleSeconds     float64   `json:"idle_seconds"`
		InCallSeconds   float64   `json:"in_call_seconds"`
		Kind            Kind      `json:"kind"`
		Label           string    `json:"label,omitempty"`
		State           State     `json:"state"`
		Verdict         Verdict   `json:"verdict,omitempty"`
		Evidence        string    `json:"evidence,omitempty"`
		Doing           string    `json:"doing"`
		InTransaction   bool      `json:"in_transaction"`
		RowsOpen        bool      `json:"rows_open"`
		CallSite        Frame     `json:"call_site"`
		StackTrace      []Frame   `json:"stack_trace"`
		QueryInfo       string    `json:"query_info"`
		GoroutineID     int64     `json:"goroutine_id"`
		Goroutine       Liveness  `json:"goroutine"`
		Where           string    `json:"where,omitempty"`
		Now             []Frame   `json:"now,omitempty"`
		LastGoroutineID int64     `json:"last_goroutine_id"`
		BackendPID      int       `json:"backend_pid,omitempty"`
		TraceID         string    `json:"trace_id,omitempty"`
	}{c.ConnectionID, c.AcquiredAt, c.Held.Seconds(), c.Idle.Seconds(), c.InCall.Seconds(), c.Kind, c.Label, c.State, c.Verdict, c.Evidence, c.Doing(),
		c.InTransaction, c.RowsOpen, c.CallSite(), list(c.StackTrace), c.QueryInfo, c.GoroutineID, c.Goroutine, c.Where, c.Now, c.LastGoroutineID, c.BackendPID, c.Span.String()})
}

// MarshalJSON writes durations in seconds and times in RFC 3339.
func (r LeakReport) MarshalJSON() ([]byte, error) {
	return marshal(struct {
		PoolName       string           `json:"pool_name"`
		ReportTime     time.Time        `json:"report_time"`
		LeakThreshold  float64          `json:"leak_threshold_seconds"`
		Health         PoolHealthStatus `json:"health"`
		LeakCount      int              `json:"leak_count"`
		Exhausted      float64          `json:"exhausted_seconds"`
		Recovered      float64          `json:"recovered_after_seconds,omitempty"`
		Stats          PoolStats        `json:"stats"`
		Tracked        int              `json:"tracked"`
		Connecting     int              `json:"connecting"`
		Closing        int              `json:"closing"`
		Unattributed   int              `json:"unattributed"`
		Accused        []ConnectionInfo `json:"accused"`
		SuspectedLeaks []ConnectionInfo `json:"suspected_leaks"`
		LongHeld       []ConnectionInfo `json:"long_held"`
		Holding        []ConnectionInfo `json:"holding"`
		Deadlock       *Deadlock        `json:"deadlock,omitempty"`
		Waiters        []WaiterGroup    `json:"waiters"`
		ContextEnded   []ContextEnded   `json:"context_ended"`
		Returned       []ConnectionInfo `json:"returned"`
		Leases         []QuorumStats    `json:"leases"`
		DirtyReturns   []DirtyReturn    `json:"dirty_returns"`
		DirtyTotal     int              `json:"dirty_returns_total"`
		OpenStatements []OpenStatements `json:"open_statements"`
	}{r.PoolName, r.ReportTime, r.LeakThreshold.Seconds(), r.Health, r.LeakCount(), r.Exhausted.Seconds(), r.Recovered.Seconds(), r.Stats, r.Tracked, r.Connecting, r.Closing, r.Unattributed,
		list(r.Accused()), list(r.SuspectedLeaks), list(r.LongHeld), list(r.Holding), r.Deadlock, list(r.Waiters), list(r.ContextEnded), list(r.Returned), list(r.Leases), list(r.DirtyReturns), r.DirtyTotal, list(r.OpenStatements)})
}

// marshal is json.Marshal, safe to be read on a terminal.
func marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return text.JSON(b), err
}

// list makes a nil list an empty one, which JSON writes as [] and not as null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
