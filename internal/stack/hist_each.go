package stack

import "time"

// Each calls f for each bucket, the shortest durations first, with the end of its range, which is
// not in it, and how many durations it holds. The last bucket has no end: upper is 0. Durations
// recorded meanwhile may or may not count.
func (h *Hist) Each(f func(upper time.Duration, n uint64)) {
	for i := range h.counts {
		_, hi := limits(i)
		if i == buckets-1 {
			hi = 0
		}
		f(hi, h.counts[i].Load())
	}
}
