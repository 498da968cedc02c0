package lease

import (
	"context"
	"errors"
	"time"
)

// A Witness keeps the lease, as one row. Each method is one request. Where it returns an
// error, the request may have been carried out, or may be carried out later, unless the
// error is a Refusal.
type Witness interface {
	// Observe reads the row.
	Observe(ctx context.Context) (Row, error)
	// Acquire makes id the holder. It succeeds if the server is still the one that gave
	// seen, if the row still has seen's version (a failover may bring an old version
	// back), and if the row is free, already id's, or expired by the server's clock, which
	// ignoreClock leaves out. The new epoch is above the row's and above floor. It returns
	// the row as it has become, or else as it was.
	Acquire(ctx context.Context, id string, seen Row, floor int64, ignoreClock bool) (row Row, ok bool, err error)
	// Renew moves the expiry, if the row is still id's with this epoch.
	Renew(ctx context.Context, id string, epoch int64) (row Row, ok bool, err error)
	// Release frees the row, if it is still id's with this epoch.
	Release(ctx context.Context, id string, epoch int64) (row Row, ok bool, err error)
}

// A Line is how an Elector hears of its witness. Interrupt may be called by any
// goroutine; the rest by the one that has the witness.
type Line interface {
	// Wait returns after d; or sooner, on Interrupt, if unless says so at the beginning,
	// or, with bell, if there is news of the lease.
	Wait(d time.Duration, bell bool, unless func() bool)
	// Interrupt ends a Wait, the present one or the next.
	Interrupt()
	// Announce tells other processes that the lease has changed.
	Announce(ctx context.Context)
	IsOpen() bool
	Close()
}

// A Refusal is an error by which the server has answered that the request was not
// carried out.
type Refusal struct{ Err error }

func (r Refusal) Error() string { return r.Err.Error() }
func (r Refusal) Unwrap() error { return r.Err }

// IsRefusal tells whether an error is a Refusal.
func IsRefusal(err error) bool {
	var r Refusal
	return errors.As(err, &r)
}

// ErrAttempt is why a request ended that was not answered in time.
var ErrAttempt = errors.New("baldur: the witness has not answered in time (WithAttemptTimeout)")

// A Row is a version of the row, as one reply tells it.
type Row struct {
	Witness Server // that replied
	Given   Server // that gave the epoch; zero: none has
	Epoch   int64
	Seq     int64  // renewals of this epoch, and its release
	LeaseID string // of the holder; "": free
	Region  string // of the holder, or of the last one
	TTL     time.Duration
	Expired bool  // by the server's clock
	Table   int64 // which table it is in; 0 where there is only one

	Acquired, Expires time.Time // by the server's clock, for people
}

// A Server identifies a witness. A failover begins a new timeline of the same system.
type Server struct {
	System   int64
	Timeline int64
}

// TimelineShift: an epoch is a count below a number that rises with the timeline, so that
// no epoch is given again where a failover has lost the last ones. The number is the
// timeline itself where the server was never replaced by another one, as by pg_upgrade,
// whose timelines begin at 1 again.
const TimelineShift = 32

// Forgotten tells that transactions of the row may be lost: its epoch was not given by
// this server in this timeline. While that is so, someone may believe in a lease of which
// the row knows nothing.
func (r Row) Forgotten() bool { return r.Given != r.Witness }

// NextEpoch is the epoch that follows the row's. The witness's own statement does the
// same.
func (r Row) NextEpoch(floor int64) int64 {
	next := max(r.Epoch, floor) + 1
	switch {
	case r.Given == r.Witness:
		return next
	case r.Given.System == r.Witness.System && r.Given != (Server{}):
		return max(next, (r.Epoch>>TimelineShift+r.Witness.Timeline-max(r.Given.Timeline, 1))<<TimelineShift+1)
	}
	return max(next, (r.Epoch>>TimelineShift+r.Witness.Timeline)<<TimelineShift+1)
}

func (r Row) sameVersion(s Row) bool {
	return r.Witness == s.Witness && r.Epoch == s.Epoch && r.Seq == s.Seq && r.LeaseID == s.LeaseID
}

// A Watch is what a candidate has seen of the row, and when, by its own clock. The zero
// value has seen nothing.
type Watch struct {
	Seen    bool
	Row     Row
	Since   time.Duration // when this version was received first
	Suspect bool          // the witness has lost an epoch
	Born    time.Duration // when this witness was first heard of
	Top     int64         // the highest epoch seen, of any witness
}

// Note takes in a row that was received at that time. It must not be counted from when
// the request was sent: the row's version may have been committed after that. It tells
// whether the witness has turned out to be another one than was known, or to have lost
// an epoch.
func (w *Watch) Note(row Row, at time.Duration) (failedOver bool) {
	switch {
	case !w.Seen:
		w.Seen, w.Born = true, at
	case row.Witness != w.Row.Witness:
		w.Born, failedOver = at, true
	case row.Epoch < w.Row.Epoch, row.Table != w.Row.Table:
		w.Suspect, w.Born, failedOver = true, at, true
	case row.sameVersion(w.Row):
		w.Row.Expired = row.Expired
		return false
	}
	w.Row, w.Since, w.Top = row, at, max(w.Top, row.Epoch)
	return failedOver
}

// TakeAt returns from when on, by the candidate's clock, it may take the lease, and from
// when on whatever the server's clock says.
//
// The server's clock is asked too, since the candidate's own may have jumped; but not for
// ever, since the server's may have been set back. A lease that is free, or that is the
// candidate's own without its believing in it, is nobody's and may be taken at once. Where
// the row may have been forgotten, neither the row nor the time for which it was watched
// tells anything: whoever believes got its confirmation before this witness was first
// heard of, and stops within a TTL from then.
func (w *Watch) TakeAt(id string, ttl time.Duration) (at, anyway time.Duration) {
	at, anyway = w.Born, w.Born
	if w.Row.LeaseID != "" && w.Row.LeaseID != id {
		// Nobody waits for longer than the largest TTL, whatever the server's clock says.
		at, anyway = w.Since+w.Row.TTL, w.Since+max(w.Row.TTL, min(3*w.Row.TTL, MaxTTL))
	}
	if w.Suspect || w.Row.Forgotten() {
		quiet := w.Born + max(ttl, w.Row.TTL)
		at, anyway = max(at, quiet), max(anyway, quiet)
	}
	return at, anyway
}

// A State is what the witness says of the lease.
type State uint8

// What the witness says of the lease.
const (
	Free   State = iota // released, or never held
	Held                // and renewed
	Lapsed              // held, and not renewed for its TTL

	StateCount = iota
)

// State is the row's state now, by the candidate's clock and the server's.
func (w *Watch) State(now time.Duration) State {
	switch {
	case w.Row.LeaseID == "":
		return Free
	case w.Row.Expired && now >= w.Since+w.Row.TTL:
		return Lapsed
	}
	return Held
}
