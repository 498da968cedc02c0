package baldur

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/baldur-go/baldur/internal/callsite"
	"github.com/baldur-go/baldur/internal/stack"
)

// CallSiteStats is what is known of a line of code that takes connections.
type CallSiteStats struct {
	StackTrace []Frame       // as in a ConnectionInfo; of several paths to the line, that of the most checkouts
	Kind       Kind          // what that path took connections for
	Returned   uint64        // checkouts that have ended
	P50, P99   time.Duration // how long those held their connections, to 25 %

	site int // the call site's index in StackTrace
}

// CallSite is the line: see [ConnectionInfo.CallSite].
func (s CallSiteStats) CallSite() Frame {
	return ConnectionInfo{StackTrace: s.StackTrace, site: s.site}.CallSite()
}

// CallSites returns the lines from which connections were taken under [CaptureFull], of
// all pools of the program, those with the most returned checkouts first. They have the
// names that the pools' reports give them. At most some 16,000 paths to such lines are
// kept apart; the rest counts as one, without a StackTrace.
func CallSites() []CallSiteStats {
	flushHolds()
	type line struct {
		holds stack.Hist
		most  uint64 // of a path
		info  *siteInfo
	}
	lines := map[Frame]*line{}
	add := func(s *stack.Site) {
		n := s.Holds.Count()
		if n == 0 {
			return
		}
		info := siteInfoOf(s)
		at := ConnectionInfo{StackTrace: info.frames, site: info.at}.CallSite()
		l := lines[at]
		if l == nil {
			l = new(line)
			lines[at] = l
		}
		l.holds.Merge(&s.Holds)
		if n > l.most {
			l.most, l.info = n, info
		}
	}
	for s := range stack.All() {
		add(s)
	}
	add(stack.Other())
	all := make([]CallSiteStats, 0, len(lines))
	for _, l := range lines {
		all = append(all, CallSiteStats{l.info.frames, l.info.kind, l.holds.Count(), l.holds.Quantile(0.5), l.holds.Quantile(0.99), l.info.at})
	}
	slices.SortFunc(all, func(a, b CallSiteStats) int {
		f, g := a.CallSite(), b.CallSite()
		return cmp.Or(cmp.Compare(b.Returned, a.Returned), cmp.Compare(f.File, g.File), cmp.Compare(f.Line, g.Line), cmp.Compare(f.Function, g.Function))
	})
	return all
}

// HoldBucket counts the checkouts that held their connections for less than
// Below, and not less than the bucket before.
type HoldBucket struct {
	Below time.Duration // 0: any time
	Count uint64
}

// HoldTimes returns the histogram of how long the pool's connections were held by the
// checkouts that have ended under [CaptureFull], and the sum of those times. Both are
// exact: each checkout that had ended before is counted once. One that ends meanwhile
// may be in only one of the two. The buckets are always the same, from 1.024 µs to 73
// minutes, two for each power of two. Counts never fall.
func (t *Tracker) HoldTimes() (buckets []HoldBucket, total time.Duration) {
	holds := t.ledger.Holds()
	holds.Each(func(below time.Duration, n uint64) {
		buckets = append(buckets, HoldBucket{below, n})
	})
	return buckets, holds.Sum()
}

// flushHolds brings the histograms of all call sites up to date.
func flushHolds() {
	for _, t := range Trackers() {
		t.ledger.Flush()
	}
}

// siteInfo is what a report tells of a call site.
type siteInfo struct {
	kind   Kind    // KindUnknown where the stack does not tell
	frames []Frame // from the first frame of the application on, or of a library's if there is none
	at     int     // the call site's index in frames
}

// A siteCache names call sites by one configuration of what is skipped, which all
// trackers with that configuration share. It resolves a site when a report first
// meets it.
type siteCache struct {
	skip callsite.Skip
	tag  uint32   // of the sites that are captured for it
	m    sync.Map // *stack.Site → *siteInfo
}

// siteCaches holds every siteCache by its tag. They are few: a program has a
// configuration or two.
var siteCaches struct {
	mu  sync.Mutex
	all []*siteCache
}

// siteCacheOf returns the cache of a configuration. A site is captured for one cache,
// so every report names it the same.
func siteCacheOf(packages, functions []string) *siteCache {
	normal := func(list []string) []string {
		return slices.Compact(slices.Sorted(slices.Values(list)))
	}
	packages, functions = normal(packages), normal(functions)
	siteCaches.mu.Lock()
	defer siteCaches.mu.Unlock()
	for _, c := range siteCaches.all {
		if slices.Equal(c.skip.Packages, packages) && slices.Equal(c.skip.Functions, functions) {
			return c
		}
	}
	c := &siteCache{skip: callsite.Skip{Packages: packages, Functions: functions}, tag: uint32(len(siteCaches.all))}
	siteCaches.all = append(siteCaches.all, c)
	return c
}

// siteInfoOf names a site by the cache that it was captured for.
func siteInfoOf(s *stack.Site) *siteInfo {
	siteCaches.mu.Lock()
	var c *siteCache
	if i := int(s.Tag()); i < len(siteCaches.all) {
		c = siteCaches.all[i]
	}
	siteCaches.mu.Unlock()
	if c == nil { // the one site for all paths beyond the limit, and no pool was made
		c = new(siteCache)
	}
	return c.of(s)
}

func (c *siteCache) of(s *stack.Site) *siteInfo {
	if s == nil { // CaptureOff
		return &siteInfo{kind: KindUnknown}
	}
	if v, ok := c.m.Load(s); ok {
		return v.(*siteInfo)
	}
	at := callsite.Of(s, c.skip)
	info := &siteInfo{kind: Kind(at.Kind), at: at.At}
	for _, f := range at.Frames {
		info.frames = append(info.frames, Frame(f))
	}
	v, _ := c.m.LoadOrStore(s, info)
	return v.(*siteInfo)
}
