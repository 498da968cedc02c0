package baldur

import (
	"context"
	"database/sql"
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
