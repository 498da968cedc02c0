package baldur

import (
	"maps"
	"slices"
	"time"
)

// QuorumStats is what a [PGQuorum] has done and knows, at one instant. Counts are
// since its making.
type QuorumStats struct {
	Lease     string // its name
	Region    string // this process's
	IsPrimary bool
	Epoch     int64         // of the hold, if IsPrimary
	Remaining time.Duration // until the belief ends, if IsPrimary

	Holder QuorumEvent // what the witness has told last; State "" if nothing yet

	Elections       int64                // won
	Losses          map[LossReason]int64 // every reason has an entry
	Renewals        int64                // confirmed
	RenewTotal      time.Duration        // from sending to confirmation, of all of them
	RenewMax        time.Duration
	Unanswered      int64         // requests of unknown result
	Refused         int64         // requests that the server has refused, and connections that could not be made
	LastError       string        // of those
	TakeoverWait    time.Duration // for how long the row was watched before the last election that was won
	ClockGap        time.Duration // for how long the machine was suspended in this hold
	GuardRejections int64         // by RequirePrimary and Seal.Require
}

// Stats returns what the quorum has done. It asks nobody.
func (q *PGQuorum) Stats() QuorumStats {
	q.mu.Lock()
	s := q.stats
	s.Losses = maps.Clone(s.Losses)
	s.Holder = q.told
	q.mu.Unlock()
	s.Lease, s.Region = q.cfg.name, q.cfg.region
	if t := q.valid(); t != nil {
		s.IsPrimary, s.Epoch, s.Remaining = true, t.lease.Epoch, t.remaining(q.now())
	}
	return s
}

func (t *Tracker) addQuorum(q *PGQuorum) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(t.quorums, q) {
		t.quorums = append(t.quorums, q)
	}
}

func (t *Tracker) removeQuorum(q *PGQuorum) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.quorums, q); i >= 0 {
		t.quorums = slices.Delete(t.quorums, i, i+1)
	}
}

// Quorums returns what the quorums on the pool that are in use have done and know.
func (t *Tracker) Quorums() []QuorumStats {
	t.mu.Lock()
	quorums := slices.Clone(t.quorums)
	t.mu.Unlock()
	var all []QuorumStats
	for _, q := range quorums {
		all = append(all, q.Stats())
	}
	return all
}
