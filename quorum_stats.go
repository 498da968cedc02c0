package baldur

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// QuorumStats is what a [PGQuorum] has done and knows, at one instant. Counts are
// since its making.
type QuorumStats struct {
	CheckedAt time.Time
	Lease     string // its name
	Region    string // this process's
	IsPrimary bool
	Epoch     int64         // of the hold, if IsPrimary
	Remaining time.Duration // until the belief ends, if IsPrimary

	Holder QuorumEvent // what the witness has told last; State "" if nothing yet

	BackendPID int // of the lease's own connection, beside the pool; 0: it has none, or it is not known (a pooler, another driver than lib/pq)

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

// String says in a line who has the lease: this process by its own belief, else
// as the witness has told last, which may be out of date; unknown, where what it
// told has expired since.
func (s QuorumStats) String() string {
	line := fmt.Sprintf("lease %q: ", s.Lease)
	last := s.Holder.Lease
	by := fmt.Sprintf("by %s, epoch %d", excerpt(last.Region), last.Epoch)
	switch {
	case s.IsPrimary:
		return fmt.Sprintf("%sprimary here (%s), epoch %d, %s left", line, excerpt(s.Region), s.Epoch, short(s.Remaining))
	case s.Holder.State == LeaseHeld && !s.CheckedAt.Before(last.ExpiresAt):
		return line + "unknown; last heard of as held " + by + ", until " + last.ExpiresAt.Format(time.RFC3339)
	case s.Holder.State == LeaseHeld && s.Holder.Local:
		return line + "held " + by + ": this process, which no longer believes in it"
	case s.Holder.State == LeaseHeld:
		return line + "held " + by
	case s.Holder.State == LeaseFree:
		return line + "free, when last heard of"
	case s.Holder.State == LeaseExpired:
		return line + "not renewed " + by + ", when last heard of"
	}
	return line + "unknown"
}

// MarshalJSON writes durations in seconds and times in RFC 3339. Epochs are whole
// numbers beyond 2^32, but below 2^53, which JavaScript has exactly, until the
// witness has failed over two million times.
func (s QuorumStats) MarshalJSON() ([]byte, error) {
	type holder struct {
		State      LeaseState `json:"state"` // "": unknown
		Region     string     `json:"region,omitempty"`
		LeaseID    string     `json:"lease_id,omitempty"`
		Epoch      int64      `json:"epoch,omitempty"`
		AcquiredAt time.Time  `json:"acquired_at,omitzero"`
		ExpiresAt  time.Time  `json:"expires_at,omitzero"`
		Local      bool       `json:"local"`
	}
	h, l := s.Holder, s.Holder.Lease
	if l.LeaseID == "" { // the table's defaults, where the lease was never held
		l.AcquiredAt, l.ExpiresAt = time.Time{}, time.Time{}
	}
	return json.Marshal(struct {
		CheckedAt       time.Time            `json:"checked_at"`
		Lease           string               `json:"lease"`
		Region          string               `json:"region"`
		IsPrimary       bool                 `json:"is_primary"`
		Epoch           int64                `json:"epoch,omitempty"`
		Remaining       float64              `json:"remaining_seconds"`
		Holder          holder               `json:"holder"`
		BackendPID      int                  `json:"backend_pid,omitempty"`
		Elections       int64                `json:"elections"`
		Losses          map[LossReason]int64 `json:"losses"`
		Renewals        int64                `json:"renewals"`
		RenewTotal      float64              `json:"renew_total_seconds"`
		RenewMax        float64              `json:"renew_max_seconds"`
		Unanswered      int64                `json:"unanswered"`
		Refused         int64                `json:"refused"`
		LastError       string               `json:"last_error,omitempty"`
		TakeoverWait    float64              `json:"takeover_wait_seconds"`
		ClockGap        float64              `json:"clock_gap_seconds"`
		GuardRejections int64                `json:"guard_rejections"`
	}{s.CheckedAt, s.Lease, s.Region, s.IsPrimary, s.Epoch, s.Remaining.Seconds(),
		holder{h.State, l.Region, l.LeaseID, l.Epoch, l.AcquiredAt, l.ExpiresAt, h.Local}, s.BackendPID,
		s.Elections, s.Losses, s.Renewals, s.RenewTotal.Seconds(), s.RenewMax.Seconds(), s.Unanswered, s.Refused, s.LastError,
		s.TakeoverWait.Seconds(), s.ClockGap.Seconds(), s.GuardRejections})
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
