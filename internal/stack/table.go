package stack

import "sync/atomic"

// maxFrames is the number of physical frames in a key. database/sql and a driver take about 9.
const maxFrames = 32

// stackKey holds the return addresses of a stack, innermost first, then zeros.
type stackKey [maxFrames]uintptr

// entry is immutable once it is in a table. It is apart from its Site so that recording into a
// site's histogram does not take the key's cache lines from the other cores.
type entry struct {
	key  stackKey
	hash uint64
	site *Site // nil: the walk is not to be trusted on this path
}

// table maps keys to entries by open addressing. Lookups take no lock. Entries are never removed,
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

// find returns the entry of key, or nil. Keys are compared in full: equal hashes are not enough.
func (t *table) find(key *stackKey, hash uint64) *entry {
	slots := *t.slots.Load()
	mask := uint64(len(slots) - 1)
	for i := home(hash); ; i++ {
		e := slots[i&mask].Load()
		if e == nil || e.hash == hash && e.key == *key {
			return e
		}
	}
}

// home folds the well-mixed high half of a multiplicative hash onto the low bits.
func home(hash uint64) uint64 { return hash >> 32 }

// insertLocked adds an entry whose key is not in the table.
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
	i := home(e.hash)
	for slots[i&mask].Load() != nil {
		i++
	}
	slots[i&mask].Store(e)
}

// hashKey is walk's hash, for keys that come from runtime.Callers.
func hashKey(pcs []uintptr) uint64 {
	const k = 0x9E3779B97F4A7C15
	h := uint64(k)
	for _, pc := range pcs {
		h = (h ^ uint64(pc)) * k
	}
	return h
}
