// Package deadlock finds pools of connections whose holders wait for each other's
// connections. Find is pure: facts in, findings out.
package deadlock

import (
	"cmp"
	"maps"
	"slices"
)

// A Pool is what is known of one that may be part of a deadlock.
type Pool[P comparable] struct {
	ID      P
	Full    bool     // no connection can be taken or dialled, and somebody waits
	Holders []Holder // of all connections that are out
	Unknown int      // connections that are out, or being dialled, of which no holder is known
}

// A Holder is a checkout.
type Holder struct {
	ID uint64 // the caller's name for it

	// Users are the goroutines that may give the connection back: the one that took it,
	// or the last that used it, or both.
	Users []User
}

// A User is a goroutine.
type User struct {
	Goroutine int64
	Exited    bool
}

// A Deadlock is pools of which this holds, and no pool more to which they are joined by
// waiting: each is full; each of its holders waits for a connection of one of them, or
// has exited; and at least one holder of each pool waits. So none of the holders goes on
// before another does, unless the ctx of a wait ends, or a handle was given to a goroutine
// that is not among its users yet.
//
// A pool all of whose holders have exited is none: that is a leak, or the handles are in
// somebody else's hands. Nor is one that waits only for such a pool.
type Deadlock[P comparable] struct {
	Pools   []P       // in the order of the pools given
	Held    []Held[P] // the holders, in the order given
	Victims []Victim[P]
}

// Held is who holds a connection of a pool, and waits for one of another or the same.
type Held[P comparable] struct {
	Pool      P
	Holder    uint64
	Goroutine int64 // of its users, the one that waits; else the first
	Waits     bool  // else it has exited
	For       P     // the pool whose connection it waits for
}

// A Victim waits for a connection of a pool, and holds none of the deadlock's.
type Victim[P comparable] struct {
	Goroutine int64
	For       P
}

// Find returns the deadlocks among pools: the greatest set of pools that fits, cut into
// those that have nothing to do with each other. waits tells which goroutines wait, and
// for which pool's connection; all others go on by themselves.
func Find[P comparable](pools []Pool[P], waits map[int64]P) []Deadlock[P] {
	in := map[P]bool{}
	for _, p := range pools {
		in[p.ID] = p.Full && p.Unknown == 0
	}
	for shrunk := true; shrunk; {
		shrunk = false
		for _, p := range pools {
			if in[p.ID] && !stuck(p, waits, in) {
				in[p.ID], shrunk = false, true
			}
		}
	}

	// Pools are of one deadlock if a holder of one waits for the other.
	of := map[P]int{} // the deadlock's number
	for i, p := range pools {
		of[p.ID] = i
	}
	join := func(a, b P) {
		from, to := max(of[a], of[b]), min(of[a], of[b])
		for p, n := range of {
			if n == from {
				of[p] = to
			}
		}
	}
	found := map[int]*Deadlock[P]{}
	for _, p := range pools {
		if in[p.ID] {
			for _, h := range p.Holders {
				for _, u := range h.Users {
					if w, ok := waits[u.Goroutine]; ok && !u.Exited {
						join(p.ID, w)
					}
				}
			}
		}
	}
	holding := map[int64]bool{}
	for _, p := range pools {
		if !in[p.ID] {
			continue
		}
		d := found[of[p.ID]]
		if d == nil {
			d = new(Deadlock[P])
			found[of[p.ID]] = d
		}
		d.Pools = append(d.Pools, p.ID)
		for _, h := range p.Holders {
			held := Held[P]{Pool: p.ID, Holder: h.ID}
			for i, u := range h.Users {
				holding[u.Goroutine] = true
				w, ok := waits[u.Goroutine]
				if ok = ok && !u.Exited; ok && !held.Waits || i == 0 {
					held.Goroutine, held.Waits, held.For = u.Goroutine, ok, w
				}
			}
			d.Held = append(d.Held, held)
		}
	}
	for _, g := range slices.Sorted(maps.Keys(waits)) {
		if p := waits[g]; in[p] && !holding[g] {
			d := found[of[p]]
			d.Victims = append(d.Victims, Victim[P]{g, p})
		}
	}
	all := slices.Collect(maps.Values(found))
	slices.SortFunc(all, func(a, b *Deadlock[P]) int { return cmp.Compare(of[a.Pools[0]], of[b.Pools[0]]) })
	out := make([]Deadlock[P], len(all))
	for i, d := range all {
		out[i] = *d
	}
	return out
}

// stuck tells whether no holder of p can go on while those of the pools in the set
// cannot, and one of them waits.
func stuck[P comparable](p Pool[P], waits map[int64]P, in map[P]bool) bool {
	waiting := false
	for _, h := range p.Holders {
		if len(h.Users) == 0 {
			return false
		}
		for _, u := range h.Users {
			if u.Exited {
				continue
			}
			w, ok := waits[u.Goroutine]
			if !ok || !in[w] {
				return false
			}
			waiting = true
		}
	}
	return waiting
}
