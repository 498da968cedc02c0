package baldurhttp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

// How much is shown, in bytes. A name may be anything.
const (
	maxName = 200
	maxJSON = 8 << 20 // of the connections in a report.json
)

// pool is one look at a pool.
type pool struct {
	report  baldur.LeakReport
	holders []baldur.ConnectionInfo // of all connections, the longest held first
}

// look looks at the pools. A connection that comes or goes meanwhile may be in
// one of the two lists only.
func look(ctx context.Context, trackers []*baldur.Tracker) []pool {
	var pools []pool
	for i, t := range trackers {
		if ctx.Err() != nil {
			break
		}
		if t == nil || slices.Contains(trackers[:i], t) {
			continue
		}
		p := pool{report: t.Report(), holders: t.Holders()}
		p.bound()
		pools = append(pools, p)
	}
	return pools
}

// bound cuts the foreign text.
func (p *pool) bound() {
	r := &p.report
	r.PoolName = text.Cut(r.PoolName, maxName)
	r.Stats.PoolName = r.PoolName
	for i := range r.Leases {
		l := &r.Leases[i]
		for _, s := range []*string{&l.Lease, &l.Region, &l.Holder.Lease.Region, &l.Holder.Lease.LeaseID, &l.LastError} {
			*s = text.Cut(*s, maxName)
		}
	}
}

// summary says the worst of all pools in a line: "3 suspected leaks (2 of
// goroutines that have exited); pool shop: exhausted, 10 of 10 in use, 12 waiting".
func summary(pools []pool) string {
	if len(pools) == 0 {
		return "no pool is open"
	}
	proven, leaks, exited := 0, 0, 0
	for _, p := range pools {
		proven += len(p.report.Accused())
		for _, c := range suspectedOnly(p.report) {
			leaks++
			if c.Goroutine == baldur.GoroutineExited {
				exited++
			}
		}
	}
	var parts []string
	if proven > 0 {
		parts = append(parts, text.Plural(proven, "leak"))
	}
	if leaks > 0 {
		part := text.Plural(leaks, "suspected leak")
		if exited > 0 {
			part += fmt.Sprintf(" (%d of goroutines that have exited)", exited)
		}
		parts = append(parts, part)
	}
	if parts == nil {
		parts = []string{"no suspected leak"}
	}
	healthy := 0
	for _, p := range pools {
		if len(pools) > 1 && p.report.Health == baldur.HealthHealthy {
			healthy++
			continue
		}
		parts = append(parts, fmt.Sprintf("pool %s: %s, %s", text.Clean(p.report.PoolName), health(p.report.Health), usage(p.report.Stats)))
	}
	if healthy > 0 {
		parts = append(parts, text.Plural(healthy, "healthy pool"))
	}
	return strings.Join(parts, "; ")
}

// suspectedOnly are the suspected leaks that are not accused.
func suspectedOnly(r baldur.LeakReport) []baldur.ConnectionInfo {
	return slices.DeleteFunc(slices.Clone(r.SuspectedLeaks), func(c baldur.ConnectionInfo) bool { return c.Verdict.Accuses() })
}

func health(h baldur.PoolHealthStatus) string { return strings.ReplaceAll(string(h), "_", " ") }

func usage(s baldur.PoolStats) string {
	var used string
	switch {
	case s.ActiveConnections < 0:
		return "figures unknown"
	case s.MaxConnections == 0:
		used = fmt.Sprintf("%d in use, no limit", s.ActiveConnections)
	default:
		used = fmt.Sprintf("%d of %d in use", s.ActiveConnections, s.MaxConnections)
	}
	if s.WaitingRequests >= 0 {
		used += fmt.Sprintf(", %d waiting", s.WaitingRequests)
	}
	return used
}

func writeText(ctx context.Context, w *bufio.Writer, pools []pool) error {
	fmt.Fprintf(w, "%s\n", summary(pools))
	for _, p := range pools {
		if err := ctx.Err(); err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%s", p.report)
	}
	return nil
}

// writeJSON writes a connection at a time, and at most maxJSON bytes of them in
// all: first those that are accused or suspected, then the others that a report lists, then
// all holders. What is left out is counted.
func writeJSON(ctx context.Context, w *bufio.Writer, pools []pool) error {
	left := maxJSON
	fmt.Fprintf(w, `{"summary":%s,"pools":[`, quote(summary(pools)))
	for i, p := range pools {
		if i > 0 {
			w.WriteByte(',')
		}
		r := p.report
		of := map[string][]baldur.ConnectionInfo{"accused": r.Accused(), "suspected_leaks": r.SuspectedLeaks, "long_held": r.LongHeld, "holding": r.Holding}
		r.Proven, r.SuspectedLeaks, r.LongHeld, r.Holding, r.Returned = nil, nil, nil, nil, nil
		head, err := json.Marshal(r)
		if err != nil {
			return err
		}
		head = bytes.Replace(head, []byte(`"leak_count":0`), fmt.Appendf(nil, `"leak_count":%d`, p.report.LeakCount()), 1)
		omitted := map[string]int{}
		list := func(name string, infos []baldur.ConnectionInfo) error {
			for i, c := range infos {
				if err := ctx.Err(); err != nil {
					return err
				}
				if left <= 0 {
					omitted[name] = len(infos) - i
					break
				}
				b, err := json.Marshal(c)
				if err != nil {
					return err
				}
				if left -= len(b); left <= 0 && len(b) > 0 {
					omitted[name] = len(infos) - i
					break
				}
				if i > 0 {
					w.WriteByte(',')
				}
				if _, err := w.Write(b); err != nil {
					return err
				}
			}
			return nil
		}
		// The report's own keys, but for the lists, which are written in their places.
		w.WriteString(`{"report":`)
		for len(head) > 0 {
			at, name := len(head), ""
			for n := range of {
				if i := bytes.Index(head, []byte(`"`+n+`":[]`)); i >= 0 && i < at {
					at, name = i, n
				}
			}
			w.Write(head[:at])
			if head = head[at:]; name != "" {
				fmt.Fprintf(w, `"%s":[`, name)
				if err := list(name, of[name]); err != nil {
					return err
				}
				w.WriteByte(']')
				head = head[len(name)+len(`"":[]`):]
			}
		}
		w.WriteString(`,"holders":[`)
		if err := list("holders", p.holders); err != nil {
			return err
		}
		rest, err := json.Marshal(omitted)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, `],"left_out":%s}`, rest)
	}
	_, err := w.WriteString("]}\n")
	return err
}

// quote is a string as JSON.
func quote(s string) []byte {
	b, _ := json.Marshal(s)
	return text.JSON(b)
}
