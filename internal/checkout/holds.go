package checkout

import (
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// A holdBatch gathers the hold times of consecutive checkouts of a connection, as long as
// they are of one call site and fall into one bucket of the histogram. Without it all
// connections that are taken at one place would write the same cache lines at each return.
//
// It is part of a Record and guarded by its lock, except for ended: Give sets that without
// the lock, but only after Take has cleared it under the lock. Each hold time enters two
// histograms, its call site's and its pool's, exactly once, so counts are exact after flush.
type holdBatch struct {
	ended  cell // how long the last checkout took, ns; 0: already counted, or not to be counted
	at     *stack.Site
	bucket int
	n      uint64 // not yet in the histograms
	sum    time.Duration
}

// count counts the checkout that has ended, if there is one. site is where it was taken.
func (h *holdBatch) count(site *stack.Site, pool *stack.Hist) {
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

func (h *holdBatch) flush(pool *stack.Hist) {
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
	r.pending.count(r.Site, &r.ledger.holdTimes)
	r.pending.flush(&r.ledger.holdTimes)
}
