package stack

import (
	"math/bits"
	"sync/atomic"
)

// maxFrames is the number of physical frames in a key. database/sql and a driver take about 9.
const maxFrames = 32

// stackKey holds the return addresses of a stack, innermost first, then zeros.
type stackKey [maxFrames]uintptr

// A fingerprint stands for a stack's return addresses, in 128 bits of two hashes. Two stacks with one
// fingerprint would be taken for the same: see the package comment.
type fingerprint struct{ a, b uint64 }

// entry is immutable once it is in a table. It is apart from its Site so that recording into a
// site's histogram does not take the entry's cache line from the other cores.
type entry struct {
	fingerprint
	site *Site // nil: the walk is not to be trusted on this path
}

// table maps fingerprints to entries by open addressing. Lookups take no lock. Entries are never removed,
// so an empty slot ends a probe.
type table struct {
	slots atomic.Pointer[[]atomic.Pointer[entry]] // a power of two of slots, at most half full
	used  int                                     // guarded by sites.mu
}

const minSlots = 256

func (t *table) init() {
	slots := make([]atomic.Pointer[entry], minSlots)
	t.slots.Store(&slots)
}

// find returns the entry of a fingerprint, or nil.
func (t *table) find(h fingerprint) *entry {
	slots := *t.slots.Load()
	mask := uint64(len(slots) - 1)
	for i := h.home(); ; i++ {
		e := slots[i&mask].Load()
		if e == nil || e.fingerprint == h {
			return e
		}
	}
}

// home folds the well-mixed high half of a multiplicative hash onto the low bits.
func (h fingerprint) home() uint64 { return h.a >> 32 }

// insertLocked adds an entry whose fingerprint is not in the table.
func (t *table) insertLocked(e *entry) {
	slots := *t.slots.Load()
	if t.used++; t.used*2 > len(slots) {
		// A reader that still holds the old slots misses at worst, and asks again under the lock.
		grown := make([]atomic.Pointer[entry], 2*len(slots))
		for i := range slots {
			if old := slots[i].Load(); old != nil {
				place(grown, old)
			}
		}
		place(grown, e)
		t.slots.Store(&grown)
		return
	}
	place(slots, e)
}

func place(slots []atomic.Pointer[entry], e *entry) {
	mask := uint64(len(slots) - 1)
	i := e.home()
	for slots[i&mask].Load() != nil {
		i++
	}
	slots[i&mask].Store(e)
}

// fingerprintOf is walk's, for addresses that come from runtime.Callers: a is a multiplicative hash, b
// the sum of what its multiplications carry beyond 64 bits.
func fingerprintOf(pcs []uintptr) fingerprint {
	const k = 0x9E3779B97F4A7C15
	h := fingerprint{a: k}
	for _, pc := range pcs {
		carry, a := bits.Mul64(h.a^uint64(pc), k)
		h.a, h.b = a, h.b+carry
	}
	return h
}
