package checkout

import (
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// holds gathers how long a connection was held by consecutive checkouts of one call
// site that fall into one bucket of its histogram. So connections that are taken at
// one place do not all write the same cache lines at each return.
//
// It is part of a Record and guarded by its lock, except for ended: Give sets that
// without the lock, and only after a Take has cleared it under the lock. Each hold
// gets into the two histograms, its call site's and its pool's, once. So counts are
// exact after flush.
type holds struct {
	ended  cell // how long the last checkout took, ns; 0: already counted, or not to be counted
	at     *stack.Site
	bucket int
	n      uint64 // not yet in the histograms
	sum    time.Duration
}

// count counts the checkout that has ended, if there is one. site is where it was taken.
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

// flush adds what the record has gathered to the histograms.
func (r *Record) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds.count(r.Site, &r.ledger.holds)
	r.holds.flush(&r.ledger.holds)
}
