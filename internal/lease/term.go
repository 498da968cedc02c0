package lease

import (
	"context"
	"fmt"
	"time"
)

// A Term is one unbroken hold of the lease by this process, from a confirmed acquisition
// to its loss. An epoch names exactly one of them.
type Term struct {
	Epoch int64
	Began time.Time // by the wall clock, for people

	ctx    context.Context
	cancel context.CancelCauseFunc
}

// Context ends when the term is lost, with a *Lost as its cause.
func (t *Term) Context() context.Context { return t.ctx }

// A Belief is what the last confirmation of a Term allows this process to believe. It
// never changes: a renewal makes a new one.
type Belief struct {
	*Term
	Expires time.Time // of the lease, by the wall clock, for people

	deadline time.Duration // by the elector's clock: the belief ends here
	gap      time.Duration // Elector.suspendGap when it was confirmed
}

// Remaining is the time until the belief ends. It has ended if that is not above 0.
func (b *Belief) Remaining(now time.Duration) time.Duration { return b.deadline - now }

// Lost is the cause with which a term's context ends.
type Lost struct {
	Epoch  int64
	Reason Reason
}

func (l *Lost) Error() string { return fmt.Sprintf("epoch %d is lost: %v", l.Epoch, l.Reason) }

// A Reason says why a term was lost.
type Reason uint8

// Why a term was lost.
const (
	Expired   Reason = iota // the belief ran out before a renewal was confirmed
	Fenced                  // the witness says that another process has the lease
	Suspended               // the machine was suspended meanwhile
	Released                // by this process
	Failover                // the witness has forgotten the lease

	ReasonCount = iota
)

func (r Reason) String() string {
	return [ReasonCount]string{"expired", "fenced", "suspended", "released", "failover"}[r]
}

// base is the instant from which the default clock counts.
var base = time.Now()

// suspendTolerance is by how much the clock that counts the time of a suspended machine
// may get ahead of the one that does not.
const suspendTolerance = 50 * time.Millisecond
