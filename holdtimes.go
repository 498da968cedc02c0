package baldur

import "time"

// HoldBucket counts the checkouts that held their connections for less than
// Below, and not less than the bucket before.
type HoldBucket struct {
	Below time.Duration // 0: any time
	Count uint64
}

// HoldTimes returns the histogram of how long the pool's connections were held,
// by all checkouts that have ended under [CaptureFull], and the sum of those
// times, both exact: each checkout that had ended is in them once. Buckets are
// always the same, from 1.024 µs to 73 minutes, two for each power of two; counts
// never fall. A checkout that ends meanwhile may be in one of the two only.
func (t *Tracker) HoldTimes() (buckets []HoldBucket, total time.Duration) {
	holds := t.ledger.Holds()
	holds.Each(func(below time.Duration, n uint64) {
		buckets = append(buckets, HoldBucket{below, n})
	})
	return buckets, holds.Sum()
}
