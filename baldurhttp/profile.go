package baldurhttp

import (
	"bufio"
	"context"
	"io"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/profile"
	"github.com/baldur-go/baldur/internal/text"
)

const profileQuery = 120 // characters of a query that a label has

// WriteProfile writes a profile of the connections that are out, gzip-compressed
// for go tool pprof. With no trackers it is of all pools that are open; nil ones
// are left out.
//
// A sample is a connection, at the stack that took it, which starts at the
// application's frame. Its values are of the types
//
//	held/nanoseconds    how long it has been out; the default type
//	connections/count   1
//
// so that a flame graph shows who keeps connections away from others, and with
// -sample_index=connections who has how many. Its labels are pool, verdict
// (lost, deadlock, abandoned, suspected, long_held, in_use: see [baldur.Verdict]), state, kind, and where
// they are known goroutine_state, label, query (an excerpt), trace_id;
// as numbers, goroutine, connection, backend_pid, and idle in nanoseconds: so
// -tagfocus=verdict=lost|suspected|abandoned and -tagfocus=idle=5m: choose among the samples.
func WriteProfile(w io.Writer, trackers ...*baldur.Tracker) error {
	if len(trackers) == 0 {
		trackers = baldur.Trackers()
	}
	return newProfile(look(context.Background(), trackers), time.Now()).Write(w)
}

func writeProfile(_ context.Context, w *bufio.Writer, pools []pool) error {
	return newProfile(pools, time.Now()).Write(w)
}

func newProfile(pools []pool, now time.Time) *profile.Profile {
	p := &profile.Profile{
		SampleTypes:       []profile.ValueType{{Type: "connections", Unit: "count"}, {Type: "held", Unit: "nanoseconds"}},
		DefaultSampleType: "held",
		TimeNanos:         now.UnixNano(),
		Comment:           summary(pools),
	}
	for _, pool := range pools {
		for _, c := range pool.holders {
			p.Samples = append(p.Samples, sample(pool.report.PoolName, c))
		}
	}
	return p
}

func sample(poolName string, c baldur.ConnectionInfo) profile.Sample {
	s := profile.Sample{Values: []int64{1, int64(c.Held)}}
	str := func(key, value string) {
		if value != "" {
			s.Labels = append(s.Labels, profile.Label{Key: key, Text: value})
		}
	}
	num := func(key string, n int64, unit string) {
		s.Labels = append(s.Labels, profile.Label{Key: key, Number: n, Unit: unit})
	}
	str("pool", text.Clean(poolName))
	str("verdict", string(c.Verdict))
	str("state", string(c.State))
	str("kind", string(c.Kind))
	str("label", text.Clean(c.Label))
	str("query", text.OneLine(c.QueryInfo, profileQuery))
	str("trace_id", c.Span.String())
	if c.Goroutine != baldur.GoroutineUnknown {
		str("goroutine_state", string(c.Goroutine))
	}
	num("goroutine", c.GoroutineID, "id")
	num("connection", c.ConnectionID, "id")
	num("idle", int64(c.Idle), "nanoseconds")
	if c.BackendPID != 0 {
		num("backend_pid", int64(c.BackendPID), "id")
	}
	frames := c.StackTrace
	if len(frames) == 0 {
		frames = []baldur.Frame{c.CallSite()}
	}
	for _, f := range frames {
		s.Stack = append(s.Stack, profile.Frame{Function: f.Function, File: f.File, Line: f.Line})
	}
	return s
}
