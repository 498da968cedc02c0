package baldurhttp

import (
	"bufio"
	"context"
	"io"
	"slices"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/profile"
	"github.com/baldur-go/baldur/internal/text"
)

const profileQuery = 120 // bytes of a query that a label has

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
// (suspected, long_held, in_use: see [baldur.LeakReport]), state, kind, and where
// they are known goroutine_state, label, query (an excerpt), trace_id;
// as numbers, goroutine, connection, backend_pid, and idle in nanoseconds: so
// -tagfocus=verdict=suspected and -tagfocus=idle=5m: choose among the samples.
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
		SampleTypes: []profile.ValueType{{Type: "connections", Unit: "count"}, {Type: "held", Unit: "nanoseconds"}},
		Default:     "held",
		Time:        now,
		Comments:    []string{summary(pools)},
	}
	for _, pool := range pools {
		of := pool.verdicts()
		for _, c := range pool.holders {
			addHolder(p, pool.report.PoolName, of(c), c)
		}
	}
	return p
}

func addHolder(p *profile.Profile, poolName string, v verdict, c baldur.ConnectionInfo) {
	labels := []profile.Label{
		{Key: "pool", Str: clean(poolName)},
		{Key: "verdict", Str: string(v)},
		{Key: "state", Str: string(c.State)},
		{Key: "kind", Str: string(c.Kind)},
		{Key: "label", Str: clean(c.Label)},
		{Key: "query", Str: text.OneLine(c.QueryInfo, profileQuery)},
		{Key: "trace_id", Str: c.Span.String()},
	}
	if c.Goroutine != baldur.GoroutineUnknown {
		labels = append(labels, profile.Label{Key: "goroutine_state", Str: string(c.Goroutine)})
	}
	labels = slices.DeleteFunc(labels, func(l profile.Label) bool { return l.Str == "" })
	labels = append(labels,
		profile.Label{Key: "goroutine", Num: c.GoroutineID, Unit: "id"},
		profile.Label{Key: "connection", Num: c.ConnectionID, Unit: "id"},
		profile.Label{Key: "idle", Num: int64(c.Idle), Unit: "nanoseconds"})
	if c.BackendPID != 0 {
		labels = append(labels, profile.Label{Key: "backend_pid", Num: int64(c.BackendPID), Unit: "id"})
	}
	frames := c.StackTrace
	if len(frames) == 0 {
		frames = []baldur.Frame{c.CallSite()}
	}
	stack := make([]profile.Frame, len(frames))
	for i, f := range frames {
		stack[i] = profile.Frame{Function: f.Function, File: f.File, Line: int64(f.Line)}
	}
	p.Add(stack, []int64{1, int64(c.Held)}, labels)
}
