package baldurhttp

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

// How much the page shows; report.json has all of it.
const (
	pageConns   = 20  // connections of a call site
	pageHolders = 200 // holders of a pool
	pageSites   = 10  // call sites of the program
	pageQuery   = 300 // characters of a query in the head of a call site
)

//go:embed page.html
var pageText string

//go:embed page.css
var pageStyle string

var page = template.Must(template.New("page").Parse(pageText))

// policy lets the page load its own style, by hash, and nothing else.
var policy = func() string {
	sum := sha256.Sum256([]byte(pageStyle))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// The types below are what page.html shows. Their strings are clean; html/template
// does the escaping.

type pageView struct {
	Style   template.CSS
	Summary string
	Class   string // good, warn or bad, as the worst pool is
	Time    string
	Pools   []poolView
	Sites   []siteView
}

type poolView struct {
	Name, Health, HealthClass, Figures, Threshold string
	Leases                                        []string
	Accused, Suspected, LongHeld, Holding         []groupView
	Waiters, Ended                                []string
	Holders                                       []connView
	MoreHolders                                   int
	Dirty                                         []string
	DirtyTotal                                    int
	OpenStatements                                []string
	Used                                          []shareView // of the bar
}

// shareView is a stretch of the bar, in percent of the pool.
type shareView struct {
	Class, X, Width string // of a viewBox of 1000
	Title           string
}

type groupView struct {
	Count        string
	At, Function string
	Oldest       string
	Missing      string
	Evidence     string
	Proven       bool
	Query        string // of all, or ""
	Conns        []connView
	More         int
	Stack        []frameView
	ShowQueries  bool // they differ
	ShowTraces   bool
	First        bool // its stack is unfolded
}

type frameView struct{ Function, Place string }

type connView struct {
	Held, Doing, Where, At, Function, Kind, Label, Query, Trace string
	Goroutine, LastGoroutine, BackendPID, ID                    int64
	Exited                                                      bool
	Verdict                                                     baldur.Verdict
}

type siteView struct {
	At, Function, Kind string
	Returned           uint64
	P50, P99           string
}

func writePage(_ context.Context, w *bufio.Writer, pools []pool) error {
	return page.Execute(w, newPage(pools, baldur.CallSites(), time.Now()))
}

func newPage(pools []pool, sites []baldur.CallSiteStats, now time.Time) pageView {
	v := pageView{Style: template.CSS(pageStyle), Summary: summary(pools), Time: now.Format("2006-01-02 15:04:05 MST")}
	pools = slices.SortedStableFunc(slices.Values(pools), func(a, b pool) int {
		return cmp.Or(cmp.Compare(b.severity(), a.severity()), cmp.Compare(len(b.report.Accused()), len(a.report.Accused())), cmp.Compare(b.report.LeakCount(), a.report.LeakCount()))
	})
	if len(pools) > 0 {
		v.Class = [...]string{"good", "warn", "bad"}[pools[0].severity()]
	}
	for _, p := range pools {
		v.Pools = append(v.Pools, newPoolView(p))
	}
	for _, s := range sites[:min(len(sites), pageSites)] {
		site := s.CallSite()
		v.Sites = append(v.Sites, siteView{at(site), shortName(site), string(s.Kind), s.Returned, text.Short(s.P50), text.Short(s.P99)})
	}
	return v
}

// severity is from 0, all is well, to 2.
func (p pool) severity() int {
	switch h := p.report.Health; {
	case p.report.LeakCount()+len(p.report.Proven) > 0, h == baldur.HealthExhausted, h == baldur.HealthCritical:
		return 2
	case h != baldur.HealthHealthy:
		return 1
	}
	return 0
}

func newPoolView(p pool) poolView {
	r := p.report
	v := poolView{
		Name: text.Clean(r.PoolName), Health: health(r.Health), HealthClass: string(r.Health), Figures: r.Figures(),
		Threshold: text.Short(r.LeakThreshold), Used: bar(p), DirtyTotal: r.DirtyTotal,
		Accused: bySite(r.Accused()), Suspected: bySite(suspectedOnly(r)), LongHeld: bySite(r.LongHeld), Holding: newGroups(r.HoldingGroups()),
	}
	if r.Exhausted > 0 {
		v.Health += " for " + text.Short(r.Exhausted)
	}
	for _, w := range r.Waiters[:min(len(r.Waiters), pageSites)] {
		v.Waiters = append(v.Waiters, text.Clean(w.String()))
	}
	for _, e := range r.ContextEnded[:min(len(r.ContextEnded), pageSites)] {
		v.Ended = append(v.Ended, text.Clean(e.String()))
	}
	for _, l := range r.Leases {
		line := l.String()
		if l.BackendPID != 0 {
			line += "; by a connection of its own, beside the pool: pg pid " + strconv.Itoa(l.BackendPID)
		}
		v.Leases = append(v.Leases, text.Clean(line))
	}
	for _, d := range r.DirtyReturns {
		v.Dirty = append(v.Dirty, d.ReturnedAt.Format("2006-01-02 15:04:05 MST")+": "+text.Clean(d.String()))
	}
	for _, s := range r.OpenStatements[:min(len(r.OpenStatements), pageConns)] {
		v.OpenStatements = append(v.OpenStatements, "connection "+strconv.FormatInt(s.ConnectionID, 10)+": "+text.Plural(s.Open, "statement")+" open")
	}
	for _, c := range p.holders[:min(len(p.holders), pageHolders)] {
		v.Holders = append(v.Holders, newConn(c))
	}
	v.MoreHolders = len(p.holders) - len(v.Holders)
	for _, groups := range [][]groupView{v.Accused, v.Suspected} {
		if len(groups) > 0 {
			groups[0].First = true
			break
		}
	}
	return v
}

func bySite(infos []baldur.ConnectionInfo) []groupView {
	return newGroups((baldur.LeakReport{SuspectedLeaks: infos}).Groups())
}

// bar divides a pool into accused, suspected, long held, otherwise in use, and free
// connections; nothing where its size is not known or has no limit.
func bar(p pool) []shareView {
	s := p.report.Stats
	size := max(s.MaxConnections, s.ActiveConnections)
	if s.MaxConnections <= 0 || s.ActiveConnections < 0 {
		return nil
	}
	proven, leaks, long := len(p.report.Accused()), len(suspectedOnly(p.report)), len(p.report.LongHeld)
	var shares []shareView
	left := 0
	for _, part := range []struct {
		n     int
		class string
		title string
	}{
		{min(proven, size), "accused", "leaked"},
		{min(leaks, max(0, size-proven)), "suspected", "suspected"},
		{min(long, max(0, size-proven-leaks)), "long_held", "long held"},
		{max(0, s.ActiveConnections-proven-leaks-long), "in_use", "in use"},
	} {
		if part.n > 0 {
			x, end := left*1000/size, (left+part.n)*1000/size
			shares = append(shares, shareView{part.class, strconv.Itoa(x), strconv.Itoa(end - x), strconv.Itoa(part.n) + " " + part.title})
			left += part.n
		}
	}
	return shares
}

func newGroups(groups []baldur.LeakGroup) []groupView {
	var views []groupView
	for _, g := range groups {
		first := g.Connections[0]
		v := groupView{Count: text.Plural(len(g.Connections), "connection"), At: at(g.CallSite), Function: shortName(g.CallSite), Oldest: text.Short(first.Held)}
		switch first.Verdict {
		case baldur.VerdictLost, baldur.VerdictDeadlock, baldur.VerdictAbandoned:
			v.Evidence, v.Proven = text.Clean(first.Evidence), first.Verdict.Accuses()
			fallthrough
		case baldur.VerdictSuspected:
			v.Missing = first.LikelyMissing()
		}
		v.ShowQueries = slices.ContainsFunc(g.Connections, func(c baldur.ConnectionInfo) bool { return c.QueryInfo != first.QueryInfo })
		if !v.ShowQueries {
			v.Query = text.OneLine(first.QueryInfo, pageQuery)
		}
		v.ShowTraces = slices.ContainsFunc(g.Connections, func(c baldur.ConnectionInfo) bool { return c.Span.IsValid() })
		for _, c := range g.Connections[:min(len(g.Connections), pageConns)] {
			v.Conns = append(v.Conns, newConn(c))
		}
		v.More = len(g.Connections) - len(v.Conns)
		for _, f := range first.StackTrace {
			v.Stack = append(v.Stack, frameView{text.Clean(f.Function), text.Clean(f.File) + ":" + strconv.Itoa(f.Line)})
		}
		views = append(views, v)
	}
	return views
}

func newConn(c baldur.ConnectionInfo) connView {
	return connView{
		Held: text.Short(c.Held), Doing: c.Doing(), Where: text.Clean(c.Where), At: at(c.CallSite()), Function: shortName(c.CallSite()), Kind: string(c.Kind),
		Label: text.Clean(c.Label), Query: text.OneLine(c.QueryInfo, pageQuery), Trace: c.Span.String(),
		Goroutine: c.GoroutineID, LastGoroutine: c.LastGoroutineID, BackendPID: int64(c.BackendPID), ID: c.ConnectionID,
		Exited: c.Goroutine == baldur.GoroutineExited, Verdict: c.Verdict,
	}
}

// at is the place in short, as in the text of a report: "orders/orders.go:88".
func at(f baldur.Frame) string {
	_, place, _ := strings.Cut(text.Clean(f.String()), " (")
	return strings.TrimSuffix(place, ")")
}

// shortName is the function's, as in the text of a report.
func shortName(f baldur.Frame) string {
	name, _, _ := strings.Cut(text.Clean(f.String()), " (")
	if strings.HasPrefix(f.Function, "database/sql.") {
		name += ", started by a go statement"
	}
	return name
}
