package baldurhttp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/baldur-go/baldur"
)

// How much of foreign text is shown, in bytes. A name may be anything, and a
// query be generated.
const (
	maxName  = 200
	maxQuery = 10_000
	more     = " …"
)

// pool is one look at a pool.
type pool struct {
	report  baldur.LeakReport
	holders []baldur.ConnectionInfo // of all connections, the longest held first
}

// look looks at the pools. A connection that comes or goes meanwhile may be in
// one of the two lists only.
func look(trackers []*baldur.Tracker) []pool {
	var pools []pool
	for i, t := range trackers {
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
	r.PoolName = cut(r.PoolName, maxName)
	r.Stats.PoolName = r.PoolName
	of := func(c *baldur.ConnectionInfo) {
		c.Label, c.QueryInfo = cut(c.Label, maxName), cut(c.QueryInfo, maxQuery)
	}
	for _, list := range [][]baldur.ConnectionInfo{r.SuspectedLeaks, r.LongHeld, p.holders} {
		for i := range list {
			of(&list[i])
		}
	}
	for i := range r.DirtyReturns {
		of(&r.DirtyReturns[i].Connection)
	}
	for i := range r.Leases {
		l := &r.Leases[i]
		for _, s := range []*string{&l.Lease, &l.Region, &l.Holder.Lease.Region, &l.Holder.Lease.LeaseID, &l.LastError} {
			*s = cut(*s, maxName)
		}
	}
}

// verdict of a holder: what the report says of it.
type verdict string

const (
	suspected verdict = "suspected"
	longHeld  verdict = "long_held" // beyond the threshold, in use or labelled
	young     verdict = "in_use"    // out for less than the threshold
)

// verdicts tells what the report says of a holder.
func (p pool) verdicts() func(baldur.ConnectionInfo) verdict {
	type checkout struct {
		id int64
		at time.Time
	}
	of := map[checkout]verdict{}
	for _, c := range p.report.SuspectedLeaks {
		of[checkout{c.ConnectionID, c.AcquiredAt}] = suspected
	}
	for _, c := range p.report.LongHeld {
		of[checkout{c.ConnectionID, c.AcquiredAt}] = longHeld
	}
	return func(c baldur.ConnectionInfo) verdict {
		if v, ok := of[checkout{c.ConnectionID, c.AcquiredAt}]; ok {
			return v
		}
		return young
	}
}

// summary says the worst of all pools in a line: "3 suspected leaks (2 of
// goroutines that have exited); pool shop: exhausted, 10 of 10 in use, 12 waiting".
func summary(pools []pool) string {
	if len(pools) == 0 {
		return "no pool is open"
	}
	leaks, exited := 0, 0
	for _, p := range pools {
		leaks += p.report.LeakCount()
		for _, c := range p.report.SuspectedLeaks {
			if c.Goroutine == baldur.GoroutineExited {
				exited++
			}
		}
	}
	parts := []string{"no suspected leak"}
	if leaks > 0 {
		parts[0] = plural(leaks, "suspected leak")
		if exited > 0 {
			parts[0] += fmt.Sprintf(" (%d of goroutines that have exited)", exited)
		}
	}
	healthy := 0
	for _, p := range pools {
		if len(pools) > 1 && p.report.Health == baldur.HealthHealthy {
			healthy++
			continue
		}
		parts = append(parts, fmt.Sprintf("pool %s: %s, %s", clean(p.report.PoolName), health(p.report.Health), usage(p.report.Stats)))
	}
	if healthy > 0 {
		parts = append(parts, plural(healthy, "healthy pool"))
	}
	return strings.Join(parts, "; ")
}

func health(h baldur.PoolHealthStatus) string { return strings.ReplaceAll(string(h), "_", " ") }

func usage(s baldur.PoolStats) string {
	var text string
	switch {
	case s.ActiveConnections < 0:
		return "figures unknown"
	case s.MaxConnections == 0:
		text = fmt.Sprintf("%d in use, no limit", s.ActiveConnections)
	default:
		text = fmt.Sprintf("%d of %d in use", s.ActiveConnections, s.MaxConnections)
	}
	if s.WaitingRequests >= 0 {
		text += fmt.Sprintf(", %d waiting", s.WaitingRequests)
	}
	return text
}

func writeText(b *bytes.Buffer, pools []pool) error {
	fmt.Fprintf(b, "%s\n", summary(pools))
	for _, p := range pools {
		fmt.Fprintf(b, "\n%s", p.report)
	}
	return nil
}

func writeJSON(b *bytes.Buffer, pools []pool) error {
	type poolJSON struct {
		Report  baldur.LeakReport       `json:"report"`
		Holders []baldur.ConnectionInfo `json:"holders"`
	}
	doc := struct {
		Summary string     `json:"summary"`
		Pools   []poolJSON `json:"pools"`
	}{summary(pools), []poolJSON{}}
	for _, p := range pools {
		doc.Pools = append(doc.Pools, poolJSON{p.report, append([]baldur.ConnectionInfo{}, p.holders...)})
	}
	return json.NewEncoder(b).Encode(doc)
}

// cut makes s valid UTF-8 of n bytes at most, and a mark where it was longer.
func cut(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "\ufffd")
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.ToValidUTF8(s[:n], "\ufffd") + more
}

// clean makes foreign text safe to stand in a line: no control characters, and
// none that turn the direction of what follows.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r < ' ', 0x7f <= r && r < 0xa0, r == '\u2028', r == '\u2029', '\u202a' <= r && r <= '\u202e', '\u2066' <= r && r <= '\u2069':
			return '\ufffd'
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
}

// line is a query on one line, cut after n bytes.
func line(query string, n int) string {
	return cut(clean(strings.Join(strings.Fields(query), " ")), n)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
