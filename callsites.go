package baldur

import (
	"cmp"
	"slices"
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// CallSiteStats is what is known of a call path that takes connections.
type CallSiteStats struct {
	StackTrace []Frame       // from the first frame of the application on
	Kind       Kind          // what the connections were taken for
	Returned   uint64        // checkouts that have ended
	P50, P99   time.Duration // how long those held their connections, to 25 %
}

// CallSites returns the call paths from which connections were taken under
// [CaptureFull], of all pools of the program, the one with the most returned
// checkouts first. At most some 16,000 paths are kept apart; the rest is counted
// as one, with no StackTrace.
func CallSites() []CallSiteStats {
	flushHolds()
	var cache siteCache
	var all []CallSiteStats
	add := func(s *stack.Site) {
		n := s.Holds.Count()
		if n == 0 {
			return
		}
		info := cache.resolve(s.Frames())
		all = append(all, CallSiteStats{info.frames, info.kind, n, s.Holds.Quantile(0.5), s.Holds.Quantile(0.99)})
	}
	for s := range stack.All() {
		add(s)
	}
	add(stack.Other())
	slices.SortStableFunc(all, func(a, b CallSiteStats) int { return cmp.Compare(b.Returned, a.Returned) })
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
