package baldur

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// PGQuorum is a [QuorumWitness] on PostgreSQL: a lease kept in a row of the table
// baldur_lease, which [MigrateQuorum] makes. It may be used by any goroutine.
//
// # What holds
//
// At most one PGQuorum of a lease is primary at any time, on machines whose
// clocks may show any time and be set at any moment, provided that their rates
// are right to 1 in 1000, and that the witness does not forget what it has
// committed (see below for failovers).
//
//   - The holder believes until TTL − margin ([WithSafetyMargin]) after it has sent the request
//     that was confirmed; not after the reply: the two can be any time apart.
//   - A candidate takes the lease of another one only when it has watched the row
//     unchanged for the row's TTL, counted from when it received it; not from when
//     it asked. The server's clock must agree that the lease has expired, for up
//     to three TTLs. No wall clock decides alone.
//   - Taking is a compare-and-swap on the version that was watched, so that it
//     does not matter how late a request is carried out. Renewing and releasing
//     name the epoch.
//   - A request without an answer (a cut connection, a commit with a warning) has
//     an unknown result: the holder's deadline stays as it was, and a candidate is
//     not primary. If the row turns out to be the candidate's own it takes it
//     again, by another compare-and-swap: an epoch names one unbroken belief.
//   - The lease is committed with synchronous_commit = on, whatever the session
//     or server has, in a LOGGED table.
//   - After a failover, which shows in the server's timeline, or a change of the
//     server, or where an epoch has gone back, the row may have lost the last
//     acquisitions. Until an epoch was given by this server in this timeline, a
//     candidate waits a TTL from when it has first heard of it; who believes goes
//     on, and renews. Epochs rise with the timeline, so that none is given twice.
//   - A belief ends by the clock: IsPrimary reads it, and a timer ends the
//     contexts of PrimaryContext and calls WithOnLost's function, whatever the
//     network does. If the machine was suspended it ends some hundredths of the
//     TTL after it wakes, or at once with WithQuorumClock(BootTime).
//
// The protocol was explored state by state: see internal/leadershipmodel, for
// what was covered, and which errors it finds.
//
// # What does not
//
// A check and an action after it are two things: a process can be paused in
// between for any time. Only [PGQuorum.RequirePrimary], in the transaction that
// acts, closes that gap. A witness that forgets by other ways than a failover to
// a new timeline gives no promise: fsync = off, rows deleted or restored, two
// standbys promoted to the same timeline, an old primary server that goes on
// beside the new one, or pg_upgrade after a failover before anyone has taken the
// lease. Servers that only speak PostgreSQL's protocol are refused.
//
// # Its connection and its table
//
// It keeps one connection of its own, which the pool's connector makes beside the pool. It takes
// none of the pool's, and meets nothing that a program has left on one. Stats has its process
// id. If the server has no connection left, an idle one of the pool is closed to make room.
// Loss of the connection does not end a belief: it connects again and renews. The pool must be
// baldur's, so that a call on a silent network can be cut: connections that baldur does not dial
// itself (Wrap, OpenDB) are interrupted only as well as their driver heeds a ctx. Behind
// PgBouncer, in any mode but statement, all works but [WithFenceKill] and LISTEN: a successor
// learns of a release by polling, every 0.2 TTL, not at once. So it is with other drivers than
// lib/pq.
// In session mode the lease keeps one of PgBouncer's connections to the server: where there is
// only one, so that the lease or the program would wait for ever, requests end with an error
// that says so.
//
// Each request is a transaction of its own, with a lock_timeout and a statement_timeout, so that
// the server gives up too, half a second after the attempt's time at the latest. What it means
// does not depend on the session: neither on the search_path nor the role, the encoding, or the
// defaults of a role, a database or a DSN. Read-only defaults of these are overruled; the
// server's configuration is not.
//
// The table is looked for in all schemas: see [WithLeaseTable]. It must be plain: a
// trigger, a rule, row level security, inheritance, a foreign key, and functions of
// others in its defaults, constraints and indexes are refused, and so is an owner who
// is not one of [WithLeaseOwner].
type PGQuorum struct {
	cfg     *quorumConfig
	t       *Tracker
	line    line
	witness witness
	id      string // lease id: of this PGQuorum, in this process

	term    atomic.Pointer[term] // changed under mu
	waiters atomic.Int32         // for own
	own     chan struct{}        // full while someone has the witness; guards the fields below
	watch   leaseWatch
	maybe   bool          // an acquisition is of unknown result, or a release
	leaseTo time.Duration // when the lease ends that was last asked for, if it was granted
	renewAt time.Duration // when the loop renews next
	holdOff time.Duration // until when the loop takes nothing
	errors  int           // in a row

	mu       sync.Mutex // guards the fields below
	guard    *time.Timer
	begun    chan struct{} // closed and replaced when a tenure begins
	closed   chan struct{} // closed by Close
	campaign bool          // between StartAutoRenew and StopAutoRenew
	turn     *tenure       // that Run's f is called for
	watchers map[chan QuorumEvent]bool
	told     QuorumEvent // the last one; State "": none yet
	loop     *quorumLoop // nil: there is none
	last     *quorumLoop // the last one that there was
	stats    QuorumStats
	logs     []func() // what unlock logs
	calls    callQueue
}

var _ QuorumWitness = (*PGQuorum)(nil)

// NewPGQuorum returns the quorum of this process on db, a pool of baldur's that
// stays the caller's. It connects to nothing yet. The region is a label, which
// others get from CurrentPrimary: processes of one region compete as those of two do.
//
// An error names the option that is wrong, and the inequality that it breaks.
func NewPGQuorum(db *sql.DB, region string, opts ...QuorumOption) (*PGQuorum, error) {
	cfg, err := newQuorumConfig(region, opts)
	if err != nil {
		return nil, fmt.Errorf("baldur: NewPGQuorum: %w", err)
	}
	t := TrackerOf(db)
	if t == nil {
		return nil, fmt.Errorf("baldur: NewPGQuorum: %w", errNotOurs)
	}
	link := newLink(db, t, cfg)
	return newQuorum(cfg, t, link, pgWitness{cfg, link}), nil
}

// line is what a quorum hears of its witness by: a link, or a test's stand-in.
type line interface {
	wait(d time.Duration, bell bool, unless func() bool)
	announce(ctx context.Context) // that the lease has changed
	interrupt()
	isOpen() bool
	close()
}

func newQuorum(cfg *quorumConfig, t *Tracker, l line, w witness) *PGQuorum {
	q := &PGQuorum{
		cfg: cfg, t: t, line: l, witness: w, id: rand.Text(),
		own: make(chan struct{}, 1), begun: make(chan struct{}), closed: make(chan struct{}), watchers: map[chan QuorumEvent]bool{},
	}
	q.holdOff = q.now()
	q.stats.Losses = map[LossReason]int64{}
	for _, r := range lossReasons {
		q.stats.Losses[r] = 0
	}
	return q
}

// use waits for the witness, which one goroutine has at a time; the loop lets go
// of it.
func (q *PGQuorum) use(ctx context.Context) error {
	q.waiters.Add(1)
	defer q.waiters.Add(-1)
	q.line.interrupt()
	select {
	case q.own <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (q *PGQuorum) letGo() { <-q.own }

// useOpen is use of a quorum that is not closed.
func (q *PGQuorum) useOpen(ctx context.Context) error {
	err := q.isClosed() // who is closed does not wait
	if err == nil {
		if err = q.use(ctx); err != nil {
			return err
		}
		if err = q.isClosed(); err != nil {
			q.letGo()
		}
	}
	return err
}

// isClosed returns an ErrQuorumClosed if the quorum or its pool is closed.
func (q *PGQuorum) isClosed() error {
	select {
	case <-q.closed:
		return ErrQuorumClosed
	case <-q.t.whenClosed():
		return fmt.Errorf("%w: its pool is", ErrQuorumClosed)
	default:
		return nil
	}
}

// attempt is the ctx of one request. A holder leaves itself time for another one.
func (q *PGQuorum) attempt(ctx context.Context) (context.Context, context.CancelFunc) {
	d := q.cfg.attempt
	if !q.line.isOpen() {
		d = 2 * q.cfg.ttl // to connect takes several round trips
	}
	if t := q.valid(); t != nil {
		d = min(d, t.remaining(q.now())/2)
	}
	return context.WithTimeoutCause(ctx, d, errAttempt)
}

var errAttempt = errors.New("baldur: the witness has not answered in time (WithAttemptTimeout)")

// TryAcquirePrimary makes this process primary if it can be now, and tells whether
// it is. If it is already, it renews. It does not wait: a candidate calls it again
// and again, or StartAutoRenew does; the first call of a candidate cannot succeed
// while the lease is another's, nor before that has been seen unchanged for its TTL.
//
// With an error, the result of the acquisition is unknown, and this process is
// not primary, or as long as it was before. After Close it is [ErrQuorumClosed].
func (q *PGQuorum) TryAcquirePrimary(ctx context.Context) (bool, error) {
	if err := q.useOpen(ctx); err != nil {
		return false, err
	}
	defer q.letGo()
	if t := q.valid(); t != nil {
		return q.renew(ctx, t)
	}
	q.lose(LossExpired) // so that the loss comes before the gain
	return q.take(ctx)
}

// take is TryAcquirePrimary of a process that is not primary.
func (q *PGQuorum) take(ctx context.Context) (bool, error) {
	q.t.addQuorum(q)
	if err := q.look(ctx); err != nil {
		return false, err
	}
	now := q.now()
	at, anyway := q.watch.takeAt(q.id, q.cfg.ttl)
	if now < at {
		return false, nil
	}
	ctx, cancel := q.attempt(ctx)
	defer cancel()
	gap := suspendGap() // first: the machine may be suspended before the reply
	sent, waited := q.now(), max(0, now-q.watch.since)
	q.leaseTo = sent + q.cfg.ttl
	row, ok, err := q.witness.acquire(ctx, q.id, q.watch.row, q.watch.top, now >= anyway)
	if err != nil {
		q.maybe = q.maybe || !isRefusal(err)
		return false, q.failed("acquire", err)
	}
	if err := q.heard(row); err != nil {
		q.maybe = true
		return false, q.failed("acquire", err)
	}
	if !ok {
		return false, nil
	}
	q.maybe = true // until begin has it
	if !q.begin(row, sent, gap) {
		return false, nil
	}
	q.maybe = false
	q.renewAt = sent + q.jittered(q.cfg.renew)
	q.count(func(s *QuorumStats) { s.TakeoverWait = waited })
	q.line.announce(ctx)
	return true, nil
}

// look reads the row.
func (q *PGQuorum) look(ctx context.Context) error {
	ctx, cancel := q.attempt(ctx)
	defer cancel()
	row, err := q.witness.observe(ctx)
	if err != nil {
		return q.failed("observe", err)
	}
	if err := q.heard(row); err != nil {
		return q.failed("observe", err)
	}
	return nil
}

// RenewLease renews the lease, if this process is primary, and tells whether it
// still is. With an error it is unknown whether the lease was renewed, and the
// belief ends when it would have.
func (q *PGQuorum) RenewLease(ctx context.Context) (bool, error) {
	if err := q.useOpen(ctx); err != nil {
		return false, err
	}
	defer q.letGo()
	t := q.valid()
	if t == nil {
		return false, nil
	}
	return q.renew(ctx, t)
}

func (q *PGQuorum) renew(ctx context.Context, t *term) (bool, error) {
	ctx, cancel := q.attempt(ctx)
	defer cancel()
	sent := q.now()
	q.leaseTo = sent + q.cfg.ttl
	before := q.watch.row.witness
	row, ok, err := q.witness.renew(ctx, q.id, t.lease.Epoch)
	if err != nil {
		return q.IsPrimary(), q.failed("renew", err)
	}
	received := q.now()
	if err := q.heard(row); err != nil {
		return q.IsPrimary(), q.failed("renew", err)
	}
	if !ok {
		if row.witness != before || row.epoch < t.lease.Epoch {
			q.lose(LossFailover)
		} else {
			q.lose(LossFenced)
		}
		return false, nil
	}
	q.renewAt = sent + q.jittered(q.cfg.renew)
	q.count(func(s *QuorumStats) {
		s.Renewals++
		s.RenewTotal += received - sent
		s.RenewMax = max(s.RenewMax, received-sent)
	})
	if !q.extend(t, sent) {
		q.maybe = true
		return false, nil
	}
	return true, nil
}

// ReleaseLease ends the belief, if there is one, and then the lease, so that
// another process can be primary at once. A loop of StartAutoRenew goes on as a
// candidate after a TTL. It takes no longer than two attempts. With an error it is
// unknown whether the witness has heard of the release; if not, the lease ends
// after its TTL.
func (q *PGQuorum) ReleaseLease(ctx context.Context) error {
	q.lose(LossReleased) // first: nobody may take what is believed
	if err := q.use(ctx); err != nil {
		return err
	}
	defer q.letGo()
	return q.release(ctx)
}

func (q *PGQuorum) release(ctx context.Context) error {
	q.lose(LossReleased) // one that the loop has begun meanwhile
	now := q.now()
	q.holdOff = now + q.cfg.ttl
	if !q.mayHold() || now >= q.leaseTo { // what has run out needs no release
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, min(2*q.cfg.attempt, q.leaseTo-now), errAttempt)
	defer cancel()
	err := q.releaseOnce(ctx)
	if err != nil && !isRefusal(err) && ctx.Err() == nil { // perhaps only the connection was lost
		err = q.releaseOnce(ctx)
	}
	return err
}

// mayHold tells whether the row may be this process's.
func (q *PGQuorum) mayHold() bool { return q.maybe || q.watch.seen && q.watch.row.leaseID == q.id }

func (q *PGQuorum) releaseOnce(ctx context.Context) error {
	if q.maybe { // of which epoch, the row knows
		if err := q.look(ctx); err != nil {
			return err
		}
	}
	if q.watch.row.leaseID == q.id {
		ctx, cancel := q.attempt(ctx)
		defer cancel()
		row, ok, err := q.witness.release(ctx, q.id, q.watch.row.epoch)
		if err != nil {
			q.maybe = true
			return q.failed("release", err)
		}
		if ok {
			q.line.announce(ctx)
		}
		if err := q.heard(row); err != nil {
			return q.failed("release", err)
		}
	}
	q.maybe = false
	return nil
}

// CurrentPrimary returns the region of the primary, by the witness and by its
// clock; false if there is none. It is for people and for routing: it is out of
// date when it arrives, and proves nothing.
func (q *PGQuorum) CurrentPrimary(ctx context.Context) (region string, ok bool, err error) {
	if err := q.useOpen(ctx); err != nil {
		return "", false, err
	}
	defer q.letGo()
	if err := q.look(ctx); err != nil {
		return "", false, err
	}
	if r := q.watch.row; r.leaseID != "" && !r.expired {
		return r.region, true, nil
	}
	return "", false, nil
}

// IsPrimaryVerified asks the witness whether this process is primary: that was so
// when it answered, and is so by the clock now. If the witness says that it is
// not, the belief ends.
func (q *PGQuorum) IsPrimaryVerified(ctx context.Context) (bool, error) {
	if err := q.useOpen(ctx); err != nil {
		return false, err
	}
	defer q.letGo()
	t := q.valid()
	if t == nil {
		return false, nil
	}
	if err := q.look(ctx); err != nil {
		return false, err
	}
	if r := q.watch.row; r.leaseID != q.id || r.epoch != t.lease.Epoch {
		q.lose(LossFenced)
		return false, nil
	}
	return q.IsPrimary(), nil
}

// heard takes in a row that has just been received. What a server says that was
// replaced by a failover, and is still there, is not listened to.
func (q *PGQuorum) heard(row leaseRow) error {
	now, last := q.now(), q.watch.row.witness
	if row.witness.system == last.system && row.witness.timeline < last.timeline {
		q.line.close()
		return fmt.Errorf("baldur: lease %q: the server is in timeline %d and another one was in timeline %d: it has been replaced", q.cfg.name, row.witness.timeline, last.timeline)
	}
	q.errors = 0
	known := q.watch.seen
	q.watch.note(row, now)
	if known && q.watch.born == now {
		q.cfg.log.Warn("baldur: the witness has failed over, or its data was restored: until someone takes the lease, nobody does before a TTL has passed",
			"lease", q.cfg.name, "system", row.witness.system, "timeline", row.witness.timeline)
	}
	q.tell()
	return nil
}

// failed counts and logs an error of a request.
func (q *PGQuorum) failed(request string, err error) error {
	q.errors++
	q.count(func(s *QuorumStats) {
		if isRefusal(err) {
			s.Refused++
		} else {
			s.Unanswered++
		}
		s.LastError = err.Error()
	})
	q.cfg.log.Warn("baldur: the witness has not granted a request", "lease", q.cfg.name, "request", request, "unknown", !isRefusal(err), "error", err)
	return err
}

func (q *PGQuorum) count(f func(*QuorumStats)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f(&q.stats)
}
