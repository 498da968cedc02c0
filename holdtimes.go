package baldur

import (
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// HoldBucket counts the checkouts that held their connections for less than
// Below, and not less than the bucket before.
type HoldBucket struct {
	Below time.Duration // 0: any time
	Count uint64
}

// HoldTimes returns the histogram of how long connections were held, by all
// checkouts that have ended under [CaptureFull], of all pools of the program,
// closed ones included. Its buckets are always the same, from 1.024 µs to 73
// minutes, two for each power of two; counts never fall.
//
// There is none for each pool: holds are counted by call site, and one call site
// may use several pools.
func HoldTimes() []HoldBucket {
	var all []HoldBucket
	add := func(s *stack.Site) {
		i := 0
		s.Holds.Each(func(below time.Duration, n uint64) {
			if i == len(all) {
				all = append(all, HoldBucket{Below: below})
			}
			all[i].Count += n
			i++
		})
	}
	add(stack.Other())
	for s := range stack.All() {
		add(s)
	}
	return all
}
