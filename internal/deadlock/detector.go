package deadlock

import (
	"database/sql"
	"slices"
	"sync"
	"time"

	"github.com/baldur-go/baldur/internal/sqlpool"
)

// A Source is a pool that may be part of a deadlock: it is full, and somebody waits. Its
// holders' IDs are of checkouts, and unique among all sources.
type Source = Pool[*sql.DB]

// Patience is how long the same holders must have been seen to wait before they are asked
// for: a look at each is not one moment.
const Patience = 100 * time.Millisecond

// A Detector finds deadlocks of a program's pools by repeated looks. The zero value is ready.
type Detector struct {
	mu    sync.Mutex
	seen  map[*sql.DB]sighting  // what fitted at the last look
	asked map[*sql.DB]time.Time // the pools that found is about, and since when they had been as they were
	found []Deadlock[*sql.DB]
}

// A sighting is a pool as it has been for some time.
type sighting struct {
	pool  Source
	since time.Time
}

// Look tells the deadlocks among what look finds: all full pools of the program with waiters.
// mayWait tells of a goroutine that it may wait for a connection of some pool, without a
// pause. Only when all holders of a pool may, and the same ones at two looks that are Patience
// apart, the program is stopped for an instant to see what they wait for. Then look is called
// again: who had a connection before that instant and has it after it, had it in between.
//
// A deadlock is told as long as looks find its pools with the same holders. Of two looks at
// a time one tells nothing.
func (d *Detector) Look(now time.Time, look func() []Source, mayWait func(goroutine int64) bool) []Deadlock[*sql.DB] {
	if !d.mu.TryLock() {
		return nil
	}
	defer d.mu.Unlock()
	seen := map[*sql.DB]sighting{}
	var steady []Source
	var dbs []*sql.DB
	known := true
	for _, p := range look() {
		if !fits(p, mayWait) {
			continue
		}
		s, ok := d.seen[p.ID]
		if !ok || !same(s.pool, p) {
			s = sighting{p, now}
		}
		seen[p.ID] = s
		if now.Sub(s.since) >= Patience {
			steady, dbs = append(steady, p), append(dbs, p.ID)
			known = known && d.asked[p.ID].Equal(s.since)
		}
	}
	d.seen = seen
	if !known {
		if waits, ok := sqlpool.Waits(dbs, time.Now()); ok {
			again := look()
			steady = slices.DeleteFunc(steady, func(p Source) bool {
				return !slices.ContainsFunc(again, func(q Source) bool { return same(p, q) })
			})
			d.found, d.asked = Find(steady, waits), map[*sql.DB]time.Time{}
			for _, p := range steady {
				d.asked[p.ID] = seen[p.ID].since
			}
		}
	}
	d.found = slices.DeleteFunc(d.found, func(f Deadlock[*sql.DB]) bool {
		return slices.ContainsFunc(f.Pools, func(db *sql.DB) bool {
			s, ok := seen[db]
			return !ok || !d.asked[db].Equal(s.since)
		})
	})
	return slices.Clone(d.found)
}

// fits tells whether each holder of a pool may wait for a connection, or has exited.
func fits(p Source, mayWait func(int64) bool) bool {
	waiting := false
	for _, h := range p.Holders {
		for _, u := range h.Users {
			if u.Exited {
				continue
			}
			if !mayWait(u.Goroutine) {
				return false
			}
			waiting = true
		}
	}
	return waiting && p.Full && p.Unknown == 0
}

// same tells whether two looks have found the same checkouts, with the same users.
func same(a, b Source) bool {
	return a.ID == b.ID && slices.EqualFunc(a.Holders, b.Holders, func(a, b Holder) bool {
		return a.ID == b.ID && slices.EqualFunc(a.Users, b.Users, func(a, b User) bool { return a.Goroutine == b.Goroutine && a.Exited == b.Exited })
	})
}
