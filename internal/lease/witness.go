package baldur

import (
	"context"
	"errors"
	"time"
)

// witness is what keeps the lease: a row in PostgreSQL, or a test's stand-in.
// Each method is one request. Where it returns an error, the request may have
// been carried out, or be carried out later, unless the error is a refusal.
type witness interface {
	// observe reads the row.
	observe(ctx context.Context) (leaseRow, error)
	// acquire makes id the holder, if this is still the server and the version of seen (a
	// failover may bring an old version back), and the row is free, id's already, or expired
	// by the server's clock, which ignoreClock leaves out. The new epoch is above the row's
	// and above floor. It returns the row as it is then, or else as it was.
	acquire(ctx context.Context, id string, seen leaseRow, floor int64, ignoreClock bool) (row leaseRow, ok bool, err error)
	// renew moves the expiry, if the row is still id's of this epoch.
	renew(ctx context.Context, id string, epoch int64) (row leaseRow, ok bool, err error)
	// release frees the row, if it is still id's of this epoch.
	release(ctx context.Context, id string, epoch int64) (row leaseRow, ok bool, err error)
}

// refusal is an error with which the server has answered that the request was
// not carried out.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func isRefusal(err error) bool {
	var r refusal
	return errors.As(err, &r)
}

// leaseRow is a version of the row, as one reply tells it.
type leaseRow struct {
	witness witnessID // that replied
	given   witnessID // that gave the epoch; zero: none has
	epoch   int64
	seq     int64 // renewals of this epoch, and its release
	leaseID string
	region  string // of the holder, or the last one
	ttl     time.Duration
	expired bool  // by the server's clock
	table   int64 // which table it is in; 0 where there is only one

	acquired, expires time.Time // by the server's clock, for people
}

// witnessID says which server it is that answers. A failover begins a new
// timeline of the same system.
type witnessID struct {
	system   int64
	timeline int64
}

// timelineShift: an epoch is a count below a number that rises with the timeline,
// so that it is not given again where a failover has lost the last ones. The
// number is the timeline where the server was never changed for another one, as
// by pg_upgrade, whose timelines begin at 1 again.
const timelineShift = 32

// forgotten tells that transactions of the row may be lost: no epoch was given
// by this server in this timeline. While that is so, someone may believe in a
// lease that the row knows nothing of.
func (r leaseRow) forgotten() bool { return r.given != r.witness }

// nextEpoch is the epoch that follows the row's: see leaseAcquire, which does the
// same.
func (r leaseRow) nextEpoch(floor int64) int64 {
	next := max(r.epoch, floor) + 1
	switch {
	case r.given == r.witness:
		return next
	case r.given.system == r.witness.system:
		return max(next, (r.epoch>>timelineShift+r.witness.timeline-r.given.timeline)<<timelineShift+1)
	}
	return max(next, (r.epoch>>timelineShift+r.witness.timeline)<<timelineShift+1)
}

func (r leaseRow) sameVersion(s leaseRow) bool {
	return r.witness == s.witness && r.epoch == s.epoch && r.seq == s.seq && r.leaseID == s.leaseID
}

// lease returns what the row says of its holder.
func (r leaseRow) lease() QuorumLease {
	return QuorumLease{Region: r.region, LeaseID: r.leaseID, AcquiredAt: r.acquired, ExpiresAt: r.expires, Epoch: r.epoch}
}

// leaseWatch is what a candidate has seen of the row, and when, by its own clock.
// The zero value has seen nothing.
type leaseWatch struct {
	seen    bool
	row     leaseRow
	since   time.Duration // when this version was received first
	suspect bool          // the witness has lost an epoch
	born    time.Duration // when this witness was first heard of
	top     int64         // the highest epoch seen, of any witness
}

// note takes in a row that was received at that time. It must not be counted
// from the sending: the row's version may have been committed after that.
func (w *leaseWatch) note(row leaseRow, at time.Duration) (changed bool) {
	switch {
	case !w.seen:
		w.seen, w.born = true, at
	case row.witness != w.row.witness:
		w.born = at
	case row.epoch < w.row.epoch, row.table != w.row.table:
		w.suspect, w.born = true, at
	case row.sameVersion(w.row):
		w.row.expired = row.expired
		return false
	}
	w.row, w.since, w.top = row, at, max(w.top, row.epoch)
	return true
}

// takeAt returns from when on, by the candidate's clock, it may take the lease,
// and from when on whatever the server's clock says.
//
// The server's clock is asked too, since the candidate's own may have jumped; but
// not for ever, since the server's may have been set back. A lease that is free,
// or the candidate's own which it does not believe in, is nobody's: it may be
// taken at once. Where the row may have been forgotten, neither the row nor the
// time that it was watched for tells anything; whoever believes got its
// confirmation before this witness was first heard of, and stops in a TTL from then.
func (w *leaseWatch) takeAt(id string, ttl time.Duration) (at, anyway time.Duration) {
	at, anyway = w.born, w.born
	if w.row.leaseID != "" && w.row.leaseID != id {
		// Nobody waits for longer than the largest TTL, whatever the server's clock says.
		at, anyway = w.since+w.row.ttl, w.since+max(w.row.ttl, min(3*w.row.ttl, maxLeaseTTL))
	}
	if w.suspect || w.row.forgotten() {
		quiet := w.born + max(ttl, w.row.ttl)
		at, anyway = max(at, quiet), max(anyway, quiet)
	}
	return at, anyway
}
