package leadershipmodel

import (
	"hash/maphash"
	"time"
)

// A Result is what Explore found.
type Result struct {
	States, Transitions int
	Depth               int      // steps to the state farthest from the first
	Exhausted           bool     // every state within the bounds was visited
	Broken              string   // the invariant that broke; "": none
	Trace               []string // a shortest way to it, a line a step
	Took                time.Duration
}

// Explore visits the states that v can reach, nearest first, until there are no
// more, an invariant breaks, or there are more than limit.
func Explore(v Variant, limit int) Result {
	_, r := explore(&v, limit)
	return r
}

func explore(v *Variant, limit int) (*set, Result) {
	begin := time.Now()
	x := newSet()
	x.add(v.initial(), 0)
	r := Result{Exhausted: true}
	for at := 0; at < len(x.states) && r.Exhausted; at++ {
		s := x.states[at]
		if s.isOver() {
			continue
		}
		v.next(&s, func(n state, _ step) {
			r.Transitions++
			v.settle(&n)
			n.order()
			if x.add(n, uint32(at)) && n.broken != holds && r.Broken == "" {
				r.Broken = invariants[n.broken]
				r.Trace = x.trace(v, len(x.states)-1)
			}
		})
		r.Exhausted = r.Broken == "" && len(x.states) <= limit
	}
	r.States = len(x.states)
	r.Depth = len(x.path(len(x.states)-1)) - 1
	r.Took = time.Since(begin)
	return x, r
}

// A set holds states in the order they were met, each with the one it was met
// from. It is exact: a hash only finds the place.
type set struct {
	seed   maphash.Seed
	states []state
	from   []uint32
	// slots is a hash table: half of the hash, and 1 + the index into states. It
	// has a power of two of them, at least half of which are empty.
	slots []slot
}

type slot struct{ hash, index uint32 }

func newSet() *set {
	return &set{seed: maphash.MakeSeed(), slots: make([]slot, 1<<16)}
}

// add tells whether s is new.
func (x *set) add(s state, from uint32) bool {
	if 2*len(x.states) >= len(x.slots) {
		x.grow()
	}
	hash := maphash.Comparable(x.seed, s)
	p := x.find(hash, func(p *slot) bool { return x.states[p.index-1] == s })
	if p.index != 0 {
		return false
	}
	x.states, x.from = append(x.states, s), append(x.from, from)
	*p = slot{uint32(hash >> 32), uint32(len(x.states))}
	return true
}

// find returns the slot that same takes for the state looked for, or else the
// empty one where it belongs.
func (x *set) find(hash uint64, same func(*slot) bool) *slot {
	for h := hash; ; h++ {
		p := &x.slots[h&uint64(len(x.slots)-1)]
		if p.index == 0 || p.hash == uint32(hash>>32) && same(p) {
			return p
		}
	}
}

func (x *set) grow() {
	x.slots = make([]slot, 2*len(x.slots))
	for i := range x.states {
		hash := maphash.Comparable(x.seed, x.states[i])
		*x.find(hash, func(*slot) bool { return false }) = slot{uint32(hash >> 32), uint32(i + 1)}
	}
}

// settle judges s, and drops the late requests that can change nothing any more:
// those for what the row has left behind.
func (v *Variant) settle(s *state) {
	if s.client[0].belief > 0 && s.client[1].belief > 0 {
		s.broken = twoPrimaries
	}
	if v.goal != nil && v.goal(s) {
		s.broken = goalReached
	}
	for k := range s.late {
		if v.Bug == 0 && v.RowLosses == 0 && s.late[k].isVoid(s) {
			s.late[k] = request{}
		}
	}
}

// isVoid tells whether no row that can still come is one that q would change.
func (q *request) isVoid(s *state) bool {
	switch {
	case q.kind == acquire && (s.left.takeovers == 0 || q.identity != s.identity):
		return true
	case q.kind == renew && s.left.renewals == 0:
		return true
	}
	for _, r := range []*row{&s.row, &s.standby} {
		if r == &s.standby && !s.lagging {
			continue
		}
		if q.epoch > r.epoch || q.epoch == r.epoch && (q.kind != acquire || q.seq >= r.seq) {
			return false
		}
	}
	return true
}

// isOver tells whether nothing can break after s: no grant and no belief can
// come, for the bounds are used up and none is under way; and a transaction that
// begins now cannot be fenced any more.
func (s *state) isOver() bool {
	for i := range s.client {
		c := &s.client[i]
		if c.guard != 0 || c.call.done && c.call.ok && c.call.kind != release {
			return false
		}
	}
	return s.left.takeovers == 0 && s.left.renewals == 0
}

// order makes one state of two that differ only in which of the clients, who are
// alike, is called A.
func (s *state) order() {
	if s.client[0].rank() > s.client[1].rank() {
		s.mirror()
	}
}

// mirror calls A what was B, and B what was A.
func (s *state) mirror() {
	s.client[0], s.client[1] = s.client[1], s.client[0]
	for _, id := range []*uint8{&s.row.lease, &s.standby.lease, &s.late[0].lease, &s.late[1].lease, &s.client[0].call.lease, &s.client[1].call.lease} {
		if *id == idA || *id == idB {
			*id ^= idA ^ idB
		}
	}
}

// rank need not tell all clients apart: where it does not, order leaves two
// states instead of one.
func (c *client) rank() uint64 {
	r := uint64(0)
	for _, b := range [...]uint8{c.belief, c.holder, c.call.kind, c.seen.epoch, c.seen.seq, c.call.epoch, c.call.seq, c.age<<4 | c.quarantine} {
		r = r<<8 | uint64(b)
	}
	return r
}
