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
// gets into the histograms, its call site's and its pool's, once; so counts are
// exact whenever flush was called.
type holds struct {
	ended  word // how long the last checkout took, ns; 0: counted, or not to be
	at     *stack.Site
	bucket int
	n      uint64 // not yet in the histograms
	sum    time.Duration
}

// count counts the checkout that has ended, if there is one. It was taken at site.
func (h *holds) count(site *stack.Site, pool *stack.Hist) {
	d := time.Duration(h.ended.get())
	if d == 0 {
		return
	}
	h.ended.set(0)
	if b := stack.Bucket(d); b != h.bucket || site != h.at {
		h.flush(pool)
		h.at, h.bucket = site, b
	}
	h.n++
	h.sum += d
}

func (h *holds) flush(pool *stack.Hist) {
	if h.n > 0 {
		h.at.Holds.Add(h.bucket, h.n, h.sum)
		pool.Add(h.bucket, h.n, h.sum)
		h.n, h.sum = 0, 0
	}
}

// flush brings the histograms up to date with what the record has gathered.
func (r *record) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds.count(r.site, &r.t.holds)
	r.holds.flush(&r.t.holds)
}

// flushHolds brings the histograms up to date with all records of the pool.
func (t *Tracker) flushHolds() {
	for _, r := range t.list() {
		r.flush()
	}
}

// flushHolds brings the histograms of all call sites up to date.
func flushHolds() {
	for _, t := range Trackers() {
		t.flushHolds()
	}
}
