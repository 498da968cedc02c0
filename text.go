package baldur

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// How much of a report its text shows; JSON has all of it.
const (
	textConns  = 5   // connections of a call site
	textFrames = 8   // frames of a stack
	textQuery  = 100 // characters of a query
)

// String returns the report for people: a verdict, then the suspected leaks by
// call site, then who else holds a connection for long.
func (r LeakReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pool %s: %s", clean(r.PoolName), r.Health)
	if n := len(r.SuspectedLeaks); n > 0 {
		fmt.Fprintf(&b, ", %s", plural(n, "suspected leak"))
	}
	fmt.Fprintf(&b, "\n%s\n", r.figures())
	for _, g := range r.Groups() {
		fmt.Fprintf(&b, "\nLEAK? %s taken at %s in %s\n", plural(len(g.Connections), "connection"), g.CallSite.at(), g.CallSite.short())
		writeConns(&b, g.Connections)
		writeStack(&b, g.Connections[0].StackTrace)
	}
	if len(r.LongHeld) > 0 {
		fmt.Fprintf(&b, "\nheld for longer than %s but in use, not accused:\n", short(r.LeakThreshold))
		for _, g := range groupBySite(r.LongHeld) {
			fmt.Fprintf(&b, "  %s taken at %s in %s\n", plural(len(g.Connections), "connection"), g.CallSite.at(), g.CallSite.short())
			writeConns(&b, g.Connections)
		}
	}
	for i, c := range r.Returned {
		if i == 0 {
			b.WriteString("\ncame back:\n")
		}
		fmt.Fprintf(&b, "  #%d taken at %s returned after %s\n", c.ConnectionID, c.CallSite().at(), short(c.Held))
	}
	return b.String()
}

func (r LeakReport) figures() string {
	s := r.Stats
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch {
	case !s.known():
		add("%d in use that are tracked, pool size unknown", r.Tracked)
	case s.MaxConnections == 0:
		add("%d in use, no limit", s.ActiveConnections)
	default:
		add("%d of %d in use", s.ActiveConnections, s.MaxConnections)
	}
	if r.Connecting > 0 {
		add("%d connecting", r.Connecting)
	}
	switch {
	case s.WaitingRequests >= 0:
		add("%d waiting", s.WaitingRequests)
	default:
		add("waiting unknown")
	}
	if r.Unattributed > 0 {
		add("%d of them not seen (taken by DB.Conn and not used yet)", r.Unattributed)
	}
	add("leak threshold %s", short(r.LeakThreshold))
	add("%s", r.ReportTime.Format(time.RFC3339))
	return strings.Join(parts, ", ")
}

func writeConns(b *strings.Builder, conns []ConnectionInfo) {
	for i, c := range conns {
		if i == textConns {
			fmt.Fprintf(b, "    and %d more\n", len(conns)-i)
			break
		}
		kind := string(c.Kind)
		if c.Label != "" {
			kind = clean(c.Label)
		}
		fmt.Fprintf(b, "    #%d %s, held for %s, %s; goroutine %d", c.ConnectionID, kind, short(c.Held), c.Doing(), c.GoroutineID)
		if c.Goroutine == GoroutineExited {
			b.WriteString(" has exited")
		}
		if c.LastGoroutineID != c.GoroutineID {
			fmt.Fprintf(b, ", last used by %d", c.LastGoroutineID)
		}
		if c.BackendPID != 0 {
			fmt.Fprintf(b, ", backend %d", c.BackendPID)
		}
		if c.Span.IsValid() {
			fmt.Fprintf(b, ", trace %s", c.Span)
		}
		b.WriteByte('\n')
		if c.QueryInfo != "" {
			fmt.Fprintf(b, "       %s\n", excerpt(c.QueryInfo))
		}
	}
}

func writeStack(b *strings.Builder, frames []Frame) {
	for i, f := range frames {
		if i == textFrames {
			fmt.Fprintf(b, "      … %d more frames\n", len(frames)-i)
			break
		}
		fmt.Fprintf(b, "      %s\n          %s:%d\n", clean(f.Function), clean(f.File), f.Line)
	}
}

// excerpt is a query on one line and not too long.
func excerpt(query string) string {
	const more = " …"
	if len(query) > 8*textQuery {
		query = query[:8*textQuery] + more
	}
	s := clean(strings.Join(strings.Fields(query), " "))
	if r := []rune(s); len(r) > textQuery {
		return strings.TrimSuffix(string(r[:textQuery]), " ") + more
	}
	return s
}

// clean makes foreign text safe for a terminal and a log line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return '\ufffd'
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// LogValue makes a report one group of a log record: the figures, and each
// suspected call site as "orders/orders.go:88 ×3". A handler decides the format.
func (r LeakReport) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("pool", r.PoolName),
		slog.String("health", string(r.Health)),
		slog.Int("suspected_leaks", len(r.SuspectedLeaks)),
		slog.Int("long_held", len(r.LongHeld)),
		slog.Int("active_connections", r.Stats.ActiveConnections),
		slog.Int("max_connections", r.Stats.MaxConnections),
		slog.Int("waiting_requests", r.Stats.WaitingRequests),
		slog.Int("unattributed", r.Unattributed),
		slog.Duration("leak_threshold", r.LeakThreshold),
	}
	var sites []string
	for i, g := range r.Groups() {
		if i == 10 {
			sites = append(sites, "…")
			break
		}
		sites = append(sites, fmt.Sprintf("%s ×%d", g.CallSite.at(), len(g.Connections)))
	}
	if sites != nil {
		attrs = append(attrs, slog.Any("call_sites", sites))
	}
	var back []string
	for _, c := range r.Returned {
		back = append(back, fmt.Sprintf("%s after %s", c.CallSite().at(), short(c.Held)))
	}
	if back != nil {
		attrs = append(attrs, slog.Any("returned", back))
	}
	return slog.GroupValue(attrs...)
}

// LogValue makes a connection one group of a log record.
func (c ConnectionInfo) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.Int64("connection", c.ConnectionID),
		slog.String("call_site", c.CallSite().at()),
		slog.String("function", c.CallSite().Function),
		slog.Duration("held", c.Held),
		slog.String("kind", string(c.Kind)),
		slog.String("doing", c.Doing()),
		slog.Int64("goroutine", c.GoroutineID),
		slog.String("goroutine_state", string(c.Goroutine)),
	}
	if c.BackendPID != 0 {
		attrs = append(attrs, slog.Int("backend_pid", c.BackendPID))
	}
	if c.QueryInfo != "" {
		attrs = append(attrs, slog.String("query", excerpt(c.QueryInfo)))
	}
	if c.Label != "" {
		attrs = append(attrs, slog.String("label", c.Label))
	}
	if c.Span.IsValid() {
		attrs = append(attrs, slog.String("trace_id", c.Span.String()))
	}
	return slog.GroupValue(attrs...)
}

// MarshalJSON writes durations in seconds and times in RFC 3339.
func (c ConnectionInfo) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ConnectionID    int64     `json:"connection_id"`
		AcquiredAt      time.Time `json:"acquired_at"`
		HeldSeconds     float64   `json:"held_seconds"`
		IdleSeconds     float64   `json:"idle_seconds"`
		InCallSeconds   float64   `json:"in_call_seconds"`
		Kind            Kind      `json:"kind"`
		Label           string    `json:"label,omitempty"`
		State           State     `json:"state"`
		Doing           string    `json:"doing"`
		InTransaction   bool      `json:"in_transaction"`
		RowsOpen        bool      `json:"rows_open"`
		CallSite        Frame     `json:"call_site"`
		StackTrace      []Frame   `json:"stack_trace"`
		QueryInfo       string    `json:"query_info"`
		GoroutineID     int64     `json:"goroutine_id"`
		Goroutine       Liveness  `json:"goroutine"`
		LastGoroutineID int64     `json:"last_goroutine_id"`
		BackendPID      int       `json:"backend_pid,omitempty"`
		TraceID         string    `json:"trace_id,omitempty"`
	}{c.ConnectionID, c.AcquiredAt, c.Held.Seconds(), c.Idle.Seconds(), c.InCall.Seconds(), c.Kind, c.Label, c.State, c.Doing(),
		c.InTransaction, c.RowsOpen, c.CallSite(), list(c.StackTrace), c.QueryInfo, c.GoroutineID, c.Goroutine, c.LastGoroutineID, c.BackendPID, c.Span.String()})
}

// MarshalJSON writes durations in seconds and times in RFC 3339.
func (r LeakReport) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		PoolName       string           `json:"pool_name"`
		ReportTime     time.Time        `json:"report_time"`
		LeakThreshold  float64          `json:"leak_threshold_seconds"`
		Health         PoolHealthStatus `json:"health"`
		LeakCount      int              `json:"leak_count"`
		Stats          PoolStats        `json:"stats"`
		Tracked        int              `json:"tracked"`
		Connecting     int              `json:"connecting"`
		Unattributed   int              `json:"unattributed"`
		SuspectedLeaks []ConnectionInfo `json:"suspected_leaks"`
		LongHeld       []ConnectionInfo `json:"long_held"`
		Returned       []ConnectionInfo `json:"returned"`
	}{r.PoolName, r.ReportTime, r.LeakThreshold.Seconds(), r.Health, r.LeakCount(), r.Stats, r.Tracked, r.Connecting, r.Unattributed,
		list(r.SuspectedLeaks), list(r.LongHeld), list(r.Returned)})
}

// list makes an empty list of none, which JSON writes as [] and not null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
