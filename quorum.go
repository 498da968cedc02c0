package baldur

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// QuorumWitness says which one of several regions, or processes, is the
// primary. [PGQuorum] asks a PostgreSQL.
//
// Three things hold: at most one of them is primary at any time; a lease ends by
// itself after its TTL; only its holder renews or releases it.
type QuorumWitness interface {
	TryAcquirePrimary(ctx context.Context) (bool, error)
	RenewLease(ctx context.Context) (bool, error)
	ReleaseLease(ctx context.Context) error
	CurrentPrimary(ctx context.Context) (region string, ok bool, err error)
	IsPrimary() bool
	IsPrimaryVerified(ctx context.Context) (bool, error)
	Lease() (QuorumLease, bool)
	StartAutoRenew()
	StopAutoRenew()
	RequirePrimary(ctx context.Context, tx *sql.Tx) (epoch int64, err error)
	PrimaryContext(ctx context.Context) (context.Context, error)
	Watch(ctx context.Context) <-chan QuorumEvent
}

// A QuorumLease is a hold of the lease. Its times are wall clock times, for
// people and logs: nothing is decided by them.
type QuorumLease struct {
	Region     string
	LeaseID    string // of one PGQuorum of one process; never used again
	AcquiredAt time.Time
	ExpiresAt  time.Time // if it is not renewed; the holder's belief ends a safety margin before
	Epoch      int64     // the fencing token: grows with each acquisition, and is never given twice
}

// IsValid tells that the lease has not expired by this machine's wall clock.
// What may be done while it is valid is [PGQuorum.IsPrimary]'s to say.
func (l QuorumLease) IsValid() bool { return l.LeaseID != "" && time.Now().Before(l.ExpiresAt) }

// Errors of a quorum, found by errors.Is.
var (
	// ErrNotPrimary: this process does not hold the lease.
	ErrNotPrimary = errors.New("baldur: not the primary")
	// ErrFenced: this process held the lease and another one has taken it since.
	ErrFenced = errors.New("baldur: fenced: another process has become primary")
	// ErrQuorumClosed: the quorum, or its pool, is closed, and takes no lease any more.
	ErrQuorumClosed = errors.New("baldur: the quorum is closed")
	// ErrCommitUnknown: the answer to a COMMIT was lost, and the transaction may be
	// committed or not. Look before you do its work again.
	ErrCommitUnknown = errors.New("baldur: whether the transaction was committed is unknown")
)

// LossReason says why a process has stopped being primary.
type LossReason string

// Why a process has stopped being primary.
const (
	LossExpired   LossReason = "expired"   // its belief ran out before a renewal was confirmed
	LossFenced    LossReason = "fenced"    // the witness says that another one has the lease
	LossSuspended LossReason = "suspended" // the machine was suspended meanwhile
	LossReleased  LossReason = "released"  // by ReleaseLease, StopAutoRenew or Close
	LossFailover  LossReason = "failover"  // the witness has forgotten the lease: it failed over, or its data was restored
)

// LeaseLostError is the cause with which a context of PrimaryContext ends. It is
// an ErrNotPrimary, or, if the reason is LossFenced, an ErrFenced too.
type LeaseLostError struct {
	Lease  string // its name
	Epoch  int64
	Reason LossReason
}

func (e *LeaseLostError) Error() string {
	return fmt.Sprintf("baldur: lease %q of epoch %d is lost: %s", e.Lease, e.Epoch, e.Reason)
}

// Is tells what it stands for.
func (e *LeaseLostError) Is(target error) bool {
	return target == ErrNotPrimary || target == ErrFenced && e.Reason == LossFenced
}

// A QuorumEvent is a change of who holds the lease, as the witness tells it.
type QuorumEvent struct {
	State LeaseState
	Lease QuorumLease // the last hold; zero if there never was one
	Local bool        // it is, or was, this process's
}

// LeaseState is what the witness says of a lease.
type LeaseState string

// What the witness says of a lease.
const (
	LeaseHeld    LeaseState = "held"
	LeaseFree    LeaseState = "free"    // released, or never held
	LeaseExpired LeaseState = "expired" // not renewed for its TTL
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
