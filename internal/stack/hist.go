package stack

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// The histogram has two buckets per power of two from 2^minExp to 2^maxExp ns, one below, one above.
const (
	minExp  = 10 // 1.024 µs
	maxExp  = 42 // 4,398 s
	buckets = 2*(maxExp-minExp) + 2
)

// Hist counts durations in log-linear buckets from 1.024 µs to 73 minutes; shorter ones share a
// bucket, and so do longer ones. Durations are added without a lock. The zero value is empty and
// ready; a Hist must not be copied. It takes 536 bytes.
//
// A cache line that all cores write costs them more than the counting: who has many durations of one
// bucket adds them together.
type Hist struct {
	counts [buckets]atomic.Uint64
	sum    atomic.Int64 // ns
}

// Bucket returns the index of d's bucket; negative durations (a clock set back) go to the first.
func Bucket(d time.Duration) int {
	if d < 1<<minExp {
		return 0
	}
	exp := bits.Len64(uint64(d)) - 1
	if exp >= maxExp {
		return buckets - 1
	}
	half := int(d>>(exp-1)) & 1 // the bit after the leading one
	return 1 + 2*(exp-minExp) + half
}

// limits returns the range [lo, hi) of bucket i.
func limits(i int) (lo, hi time.Duration) {
	switch i {
	case 0:
		return 0, 1 << minExp
	case buckets - 1:
		return 1 << maxExp, 1 << maxExp // open: never claim more than is known
	}
	exp, half := (i-1)/2+minExp, (i-1)%2
	lo = time.Duration(2+half) << (exp - 1)
	return lo, lo + 1<<(exp-1)
}

// Record counts d.
func (h *Hist) Record(d time.Duration) { h.Add(Bucket(d), 1, d) }

// Add counts n durations of one bucket, whose sum is given.
func (h *Hist) Add(bucket int, n uint64, sum time.Duration) {
	h.counts[bucket].Add(n)
	h.sum.Add(int64(sum))
}

// Merge adds what o has.
func (h *Hist) Merge(o *Hist) {
	for i := range o.counts {
		h.counts[i].Add(o.counts[i].Load())
	}
	h.sum.Add(o.sum.Load())
}

// Sum returns the sum of the durations recorded.
func (h *Hist) Sum() time.Duration { return time.Duration(h.sum.Load()) }

// Count returns the number of durations recorded.
func (h *Hist) Count() uint64 {
	var n uint64
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// Quantile returns the duration at or below which the fraction q of those recorded lie, q from 0 to
// 1: the middle of its bucket, so between 1.024 µs and 73 minutes the error is at most 25 %. It is
// 0 if nothing was recorded, and 4,398 s if the answer lies above that. Durations recorded
// meanwhile may or may not count.
func (h *Hist) Quantile(q float64) time.Duration {
	var counts [buckets]uint64
	var total uint64
	for i := range counts {
		counts[i] = h.counts[i].Load()
		total += counts[i]
	}
	if total == 0 {
		return 0
	}
	rank := uint64(q * float64(total-1)) // of the one sought, from 0
	for i, n := range counts {
		if rank < n {
			lo, hi := limits(i)
			return lo + (hi-lo)/2
		}
		rank -= n
	}
	return 1 << maxExp
}
