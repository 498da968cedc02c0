package baldur

import (
	"cmp"
	"slices"
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// CallSiteStats is what is known of a line that takes connections.
type CallSiteStats struct {
	StackTrace []Frame       // as of a ConnectionInfo; of several paths to the line, the one with the most checkouts
	Kind       Kind          // what that path took connections for
	Returned   uint64        // checkouts that have ended
	P50, P99   time.Duration // how long those held their connections, to 25 %

	site int // the call site's index in StackTrace
}

// CallSite is the line: see [ConnectionInfo.CallSite].
func (s CallSiteStats) CallSite() Frame {
	return ConnectionInfo{StackTrace: s.StackTrace, site: s.site}.CallSite()
}

// CallSites returns the lines from which connections were taken under
// [CaptureFull], of all pools of the program, the one with the most returned
// checkouts first. They are named as in the reports of the pools. At most some
// 16,000 paths to such lines are kept apart; the rest is counted as one, with no
// StackTrace.
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

// SetCapture changes what is noted of checkouts from now on. See [WithCapture].
// A value that is none of the three is taken for [CaptureOff].
func (t *Tracker) SetCapture(c Capture) {
	if c < CaptureFull || c > CaptureOff {
		c = CaptureOff
	}
	t.capture.Store(int32(c))
}
