package baldurhttp

import (
	"bufio"
	"context"
	"io"
	"time"

	"github.com/google/pprof/profile"

	"github.com/baldur-go/baldur"
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
// (suspected, long_held, in_use: see [baldur.Verdict]), state, kind, and where
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
	b := builder{
		p: &profile.Profile{
			SampleType:        []*profile.ValueType{{Type: "connections", Unit: "count"}, {Type: "held", Unit: "nanoseconds"}},
			DefaultSampleType: "held",
			TimeNanos:         now.UnixNano(),
			// All is known: pprof need not look for a binary.
			Mapping:  []*profile.Mapping{{ID: 1, HasFunctions: true, HasFilenames: true, HasLineNumbers: true}},
			Comments: []string{summary(pools)},
		},
		functions: map[[2]string]*profile.Function{},
		locations: map[baldur.Frame]*profile.Location{},
	}
	for _, p := range pools {
		for _, c := range p.holders {
			b.add(p.report.PoolName, c)
		}
	}
	return b.p
}

// builder makes a profile; functions and locations are in it once.
type builder struct {
	p         *profile.Profile
	functions map[[2]string]*profile.Function // by name and file
	locations map[baldur.Frame]*profile.Location
}

func (b *builder) add(poolName string, c baldur.ConnectionInfo) {
	s := &profile.Sample{
		Value: []int64{1, int64(c.Held)},
		Label: map[string][]string{
			"pool":    {clean(poolName)},
			"verdict": {string(c.Verdict)},
			"state":   {string(c.State)},
			"kind":    {string(c.Kind)},
		},
		NumLabel: map[string][]int64{"goroutine": {c.GoroutineID}, "connection": {c.ConnectionID}, "idle": {int64(c.Idle)}},
		NumUnit:  map[string][]string{"goroutine": {"id"}, "connection": {"id"}, "idle": {"nanoseconds"}},
	}
	for key, value := range map[string]string{
		"label":    clean(c.Label),
		"query":    text.OneLine(c.QueryInfo, profileQuery),
		"trace_id": c.Span.String(),
	} {
		if value != "" {
			s.Label[key] = []string{value}
		}
	}
	if c.Goroutine != baldur.GoroutineUnknown {
		s.Label["goroutine_state"] = []string{string(c.Goroutine)}
	}
	if c.BackendPID != 0 {
		s.NumLabel["backend_pid"], s.NumUnit["backend_pid"] = []int64{int64(c.BackendPID)}, []string{"id"}
	}
	frames := c.StackTrace
	if len(frames) == 0 {
		frames = []baldur.Frame{c.CallSite()}
	}
	for _, f := range frames {
		s.Location = append(s.Location, b.location(f))
	}
	b.p.Sample = append(b.p.Sample, s)
}

func (b *builder) location(f baldur.Frame) *profile.Location {
	if l, ok := b.locations[f]; ok {
		return l
	}
	key := [2]string{f.Function, f.File}
	fn, ok := b.functions[key]
	if !ok {
		fn = &profile.Function{ID: uint64(len(b.p.Function) + 1), Name: f.Function, SystemName: f.Function, Filename: f.File}
		b.functions[key] = fn
		b.p.Function = append(b.p.Function, fn)
	}
	l := &profile.Location{ID: uint64(len(b.p.Location) + 1), Mapping: b.p.Mapping[0], Line: []profile.Line{{Function: fn, Line: int64(f.Line)}}}
	b.locations[f] = l
	b.p.Location = append(b.p.Location, l)
	return l
}
