package baldur

import (
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// holds gathers how long a connection was held, checkout by checkout, as long
// as they are of one call site and one bucket of its histogram. So connections
// that are taken at one place do not all write the same cache lines at each
// return.
//
// It is part of a record and guarded by its lock, but for ended: give sets that
// without the lock, only after a take has cleared it under the lock. Each hold
// gets into a histogram once, so counts are exact whenever flush was called.
type holds struct {
	ended  word // how long the last checkout took, ns; 0: counted, or not to be
	at     *stack.Site
	bucket int
	n      uint64 // not yet in at's histogram
	sum    time.Duration
}

// countLocked counts the checkout that has ended, if there is one; take has not
// yet replaced its site.
func (r *record) countLocked() {
	d := time.Duration(r.ended.get())
	if d == 0 {
		return
	}
	r.ended.set(0)
	if b := stack.Bucket(d); b != r.bucket || r.site != r.at {
		r.flushLocked()
		r.at, r.bucket = r.site, b
	}
	r.n++
	r.sum += d
}

func (r *record) flushLocked() {
	if r.n > 0 {
		r.at.Holds.Add(r.bucket, r.n, r.sum)
		r.n, r.sum = 0, 0
	}
}

// flush brings the histograms up to date with what the record has gathered.
func (r *record) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.countLocked()
	r.flushLocked()
}

// flushHolds brings the histograms of all call sites up to date.
func flushHolds() {
	for _, t := range Trackers() {
		for _, r := range t.list() {
			r.flush()
		}
	}
}
