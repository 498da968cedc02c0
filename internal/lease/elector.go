// Package lease is the protocol by which at most one process at a time holds a lease, and
// the Elector that keeps to it. It knows no SQL: a [Witness] keeps the lease, a [Line] tells
// the Elector of changes, and an [Observer] gets what people want to know.
//
// The rules, and why they are safe, are in package leadershipmodel, which explores them
// state by state with the decisions of this package: [Watch.Note], [Watch.TakeAt] and
// [Row.NextEpoch]. In short: a holder believes for TTL − margin from before it sent the
// request that was confirmed; a candidate takes another one's lease only after it has seen
// the row unchanged for the row's TTL, counted from when it received it; what is unknown
// changes nothing.
package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// The TTLs that a lease may have.
const (
	MinTTL = 500 * time.Millisecond
	MaxTTL = 300 * time.Second
)

// ClockDrift is the most by which the rates of two machines' clocks may differ from true
// time: NTP slews by 500 ppm at most, and this is twice that.
const ClockDrift = 1e-3

// Parts of the TTL.
const (
	pollPart    = 0.2 // how often a candidate looks: it waits a TTL from the last look that met news
	backoffPart = 6   // the longest pause after errors is a sixth
	retryPart   = 20  // how often it tries while only the server's clock is against it

	firstBackoff = 50 * time.Millisecond
)

// Config configures an Elector, which does not check it: see Check.
type Config struct {
	Name    string        // of the lease, for errors
	TTL     time.Duration // how long a lease lasts that is not renewed
	Margin  time.Duration // by how much the holder's belief ends before that
	Renew   time.Duration // between two renewals
	Attempt time.Duration // of a request
	Jitter  float64       // fraction by which intervals vary, up or down

	Clock     func() time.Duration   // nil: the monotonic clock of package time
	Suspended func() time.Duration   // for how long the machine has been suspended so far; nil: as it says itself
	Gone      func() <-chan struct{} // returns what is closed when the witness is not to be used any more
}

// belief is for how long after the sending of a request its success lets the holder
// believe: D_H in the proof.
func (c *Config) belief() time.Duration { return c.TTL - c.Margin }

// Check returns an error that names the option and the inequality that does not hold.
func (c *Config) Check() error {
	least := time.Duration(float64(c.TTL) * 2 * ClockDrift / (1 + ClockDrift))
	switch {
	case c.TTL < MinTTL || c.TTL > MaxTTL:
		return fmt.Errorf("TTL (WithLeaseTTL) is %v; it must be from %v to %v", c.TTL, MinTTL, MaxTTL)
	case c.TTL%time.Millisecond != 0:
		return fmt.Errorf("TTL (WithLeaseTTL) is %v; it must be whole milliseconds, as the table has it", c.TTL)
	case c.Margin < least:
		return fmt.Errorf("safety margin (WithSafetyMargin) is %v; it must be at least %v, which is what two clocks may drift apart in a TTL of %v: margin >= TTL*2ρ/(1+ρ) with ρ = %v", c.Margin, least, c.TTL, ClockDrift)
	case c.Margin >= c.TTL/2:
		return fmt.Errorf("safety margin (WithSafetyMargin) is %v; it must be less than half of the TTL of %v: margin < TTL/2", c.Margin, c.TTL)
	case c.Renew <= 0 || c.Renew > c.belief()/3:
		return fmt.Errorf("renew interval (WithRenewInterval) is %v; it must be above 0 and at most %v: renew <= (TTL-margin)/3", c.Renew, c.belief()/3)
	case c.Attempt <= 0 || c.Attempt > c.belief()/4:
		return fmt.Errorf("attempt timeout (WithAttemptTimeout) is %v; it must be above 0 and at most %v: attempt <= (TTL-margin)/4", c.Attempt, c.belief()/4)
	case !(c.Jitter >= 0 && c.Jitter <= 0.5):
		return fmt.Errorf("jitter is %v; it must be from 0 to 0.5", c.Jitter)
	}
	return nil
}

// An Observer is told what an Elector does. Its methods must neither block nor call a
// method of the Elector but ID. Began and Lost come in the order of the changes.
type Observer interface {
	// Began: this process is primary, after it has watched the row for waited.
	Began(b *Belief, waited time.Duration)
	// Lost: this process has stopped being primary.
	Lost(b *Belief, reason Reason)
	// Heard: the witness has told its row.
	Heard(row Row, state State, failedOver bool)
	// Renewed: a renewal was confirmed, so long after it was sent.
	Renewed(took time.Duration)
	// Failed: a request was refused, or had no answer.
	Failed(request string, err error)
	// InUse: the Elector begins, or no longer needs, to use its witness.
	InUse(bool)
	// Ended: the witness has gone (Config.Gone), and nobody follows any more.
	Ended()
}

// An Elector contends for one lease on behalf of this process, and says whether it holds
// it. It may be used by any goroutine.
type Elector struct {
	cfg      Config
	witness  Witness
	line     Line
	observer Observer
	id       string // lease id: of this Elector, in this process; never used again

	belief    atomic.Pointer[Belief] // changed under mu
	claimants atomic.Int32           // that wait for claimed
	claimed   chan struct{}          // full while someone has the witness; guards the fields below
	watch     Watch
	unsure    bool          // the result of an acquisition, or of a release, is unknown
	leaseTo   time.Duration // when the lease ends that was last asked for, if it was granted
	renewAt   time.Duration // when the loop renews next
	holdOff   time.Duration // until when the loop takes nothing
	failures  int           // in a row

	mu        sync.Mutex // guards the fields below
	guard     *time.Timer
	gap       time.Duration // for how long the machine was suspended in this term
	begun     chan struct{} // closed and replaced when a term begins
	closed    chan struct{} // closed by Close
	campaign  bool          // between Start and Stop
	followers int           // see Follow
	endsWith  *Term         // with whose loss the campaign ends
	loop      *loop         // nil: there is none
	last      *loop         // the last one that there was
}

// New returns an Elector, which does nothing yet.
func New(cfg Config, w Witness, l Line, o Observer) *Elector {
	e := &Elector{
		cfg: cfg, witness: w, line: l, observer: o, id: rand.Text(),
		claimed: make(chan struct{}, 1), begun: make(chan struct{}), closed: make(chan struct{}),
	}
	e.holdOff = e.now()
	return e
}

// ID is the lease id of this process's holds.
func (e *Elector) ID() string { return e.id }

// now reads the clock.
func (e *Elector) now() time.Duration {
	if e.cfg.Clock != nil {
		return e.cfg.Clock()
	}
	return time.Since(base)
}

// suspendGap is for how long the machine has been suspended since it booted.
func (e *Elector) suspendGap() time.Duration {
	if e.cfg.Suspended != nil {
		return e.cfg.Suspended()
	}
	return bootGap()
}

// Belief returns what this process believes at this moment; nil if it is not primary. It
// does no I/O, takes no lock and allocates nothing. It reads the clock, since a flag that
// a timer puts down is put down late, after a pause of the process by any amount.
func (e *Elector) Belief() *Belief {
	if b := e.belief.Load(); b != nil && e.now() < b.deadline {
		return b
	}
	return nil
}

// Snapshot is Belief with the time that remains of it, and for how long the machine was
// suspended in this term; after the Observer has heard of all of it.
func (e *Elector) Snapshot() (b *Belief, remaining, gap time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if b = e.belief.Load(); b != nil {
		if remaining = b.Remaining(e.now()); remaining <= 0 {
			b, remaining = nil, 0
		}
	}
	return b, remaining, e.gap
}

// Await waits until this process is primary. It returns ctx's cause if that has ended, and
// ErrClosed or ErrGone.
func (e *Elector) Await(ctx context.Context) (*Belief, error) {
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		e.mu.Lock()
		begun := e.begun
		e.mu.Unlock()
		if b := e.Belief(); b != nil {
			return b, nil
		}
		if err := e.Closed(); err != nil {
			return nil, err
		}
		select {
		case <-begun:
		case <-ctx.Done():
		case <-e.closed:
		case <-e.cfg.Gone():
		}
	}
}

var (
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the elector is closed")
	// ErrGone: the witness has gone (Config.Gone).
	ErrGone = errors.New("the elector's witness has gone")
)

// Closed returns ErrClosed or ErrGone if that is so.
func (e *Elector) Closed() error {
	select {
	case <-e.closed:
		return ErrClosed
	case <-e.cfg.Gone():
		return ErrGone
	default:
		return nil
	}
}

// claim waits for the witness, which one goroutine has at a time; the loop makes way.
func (e *Elector) claim(ctx context.Context) error {
	e.claimants.Add(1)
	defer e.claimants.Add(-1)
	e.line.Interrupt()
	select {
	case e.claimed <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *Elector) unclaim() { <-e.claimed }

// claimOpen is claim of an Elector that is not closed.
func (e *Elector) claimOpen(ctx context.Context) error {
	err := e.Closed() // who is closed does not wait
	if err == nil {
		if err = e.claim(ctx); err != nil {
			return err
		}
		if err = e.Closed(); err != nil {
			e.unclaim()
		}
	}
	return err
}

// attempt is the ctx of one request. A holder leaves itself time for another one.
func (e *Elector) attempt(ctx context.Context) (context.Context, context.CancelFunc) {
	d := e.cfg.Attempt
	if !e.line.IsOpen() {
		d = 2 * e.cfg.TTL // to connect takes several round trips
	}
	if b := e.Belief(); b != nil {
		d = min(d, b.Remaining(e.now())/2)
	}
	return context.WithTimeoutCause(ctx, d, ErrAttempt)
}

// TryAcquire makes this process primary if it can be now, and tells whether it is. If it
// is already, it renews.
func (e *Elector) TryAcquire(ctx context.Context) (bool, error) {
	if err := e.claimOpen(ctx); err != nil {
		return false, err
	}
	defer e.unclaim()
	if b := e.Belief(); b != nil {
		return e.renew(ctx, b)
	}
	e.lose(Expired) // so that the loss comes before the gain
	return e.take(ctx)
}

// take is TryAcquire of a process that is not primary.
func (e *Elector) take(ctx context.Context) (bool, error) {
	e.observer.InUse(true)
	if err := e.look(ctx); err != nil {
		return false, err
	}
	now := e.now()
	at, anyway := e.watch.TakeAt(e.id, e.cfg.TTL)
	if now < at {
		return false, nil
	}
	ctx, cancel := e.attempt(ctx)
	defer cancel()
	gap := e.suspendGap() // first: the machine may be suspended before the reply
	sent, waited := e.now(), max(0, now-e.watch.Since)
	e.leaseTo = sent + e.cfg.TTL
	row, ok, err := e.witness.Acquire(ctx, e.id, e.watch.Row, e.watch.Top, now >= anyway)
	if err != nil {
		e.unsure = e.unsure || !IsRefusal(err)
		return false, e.failed("acquire", err)
	}
	if err := e.heard(row); err != nil {
		e.unsure = true
		return false, e.failed("acquire", err)
	}
	if !ok {
		return false, nil
	}
	e.unsure = true // until begin has it
	if !e.begin(row.Epoch, sent, gap, waited) {
		return false, nil
	}
	e.unsure = false
	e.renewAt = sent + e.jittered(e.cfg.Renew)
	e.line.Announce(ctx)
	return true, nil
}

// look reads the row.
func (e *Elector) look(ctx context.Context) error {
	ctx, cancel := e.attempt(ctx)
	defer cancel()
	row, err := e.witness.Observe(ctx)
	if err != nil {
		return e.failed("observe", err)
	}
	if err := e.heard(row); err != nil {
		return e.failed("observe", err)
	}
	return nil
}

// Look asks the witness for its row.
func (e *Elector) Look(ctx context.Context) (Row, error) {
	if err := e.claimOpen(ctx); err != nil {
		return Row{}, err
	}
	defer e.unclaim()
	if err := e.look(ctx); err != nil {
		return Row{}, err
	}
	return e.watch.Row, nil
}

// Verify asks the witness whether this process is primary: that was so when it answered,
// and is so by the clock now. If the witness denies it, the belief ends.
func (e *Elector) Verify(ctx context.Context) (bool, error) {
	return e.whilePrimary(ctx, func(b *Belief) (bool, error) {
		if err := e.look(ctx); err != nil {
			return false, err
		}
		if r := e.watch.Row; r.LeaseID != e.id || r.Epoch != b.Epoch {
			e.lose(Fenced)
			return false, nil
		}
		return e.Belief() != nil, nil
	})
}

// Renew renews the lease, if this process is primary, and tells whether it still is. With
// an error it is unknown whether the lease was renewed, and the belief ends when it would
// have.
func (e *Elector) Renew(ctx context.Context) (bool, error) {
	return e.whilePrimary(ctx, func(b *Belief) (bool, error) { return e.renew(ctx, b) })
}

// whilePrimary calls f with the witness, if this process is primary then.
func (e *Elector) whilePrimary(ctx context.Context, f func(*Belief) (bool, error)) (bool, error) {
	if err := e.claimOpen(ctx); err != nil {
		return false, err
	}
	defer e.unclaim()
	b := e.Belief()
	if b == nil {
		return false, nil
	}
	return f(b)
}

func (e *Elector) renew(ctx context.Context, b *Belief) (bool, error) {
	ctx, cancel := e.attempt(ctx)
	defer cancel()
	sent := e.now()
	e.leaseTo = sent + e.cfg.TTL
	before := e.watch.Row.Witness
	row, ok, err := e.witness.Renew(ctx, e.id, b.Epoch)
	if err != nil {
		return e.Belief() != nil, e.failed("renew", err)
	}
	received := e.now()
	if err := e.heard(row); err != nil {
		return e.Belief() != nil, e.failed("renew", err)
	}
	if !ok {
		if row.Witness != before || row.Epoch < b.Epoch {
			e.lose(Failover)
		} else {
			e.lose(Fenced)
		}
		return false, nil
	}
	e.renewAt = sent + e.jittered(e.cfg.Renew)
	e.observer.Renewed(received - sent)
	if !e.extend(b, sent) {
		e.unsure = true
		return false, nil
	}
	return true, nil
}

// Release ends the belief, if there is one, and then the lease. A campaign goes on as a
// candidate after a TTL. It takes no longer than two attempts.
func (e *Elector) Release(ctx context.Context) error {
	e.lose(Released) // first: nobody may take what is believed
	if err := e.claim(ctx); err != nil {
		return err
	}
	defer e.unclaim()
	return e.release(ctx)
}

func (e *Elector) release(ctx context.Context) error {
	e.lose(Released) // one that the loop has begun meanwhile
	now := e.now()
	e.holdOff = now + e.cfg.TTL
	if !e.mayHold() || now >= e.leaseTo { // what has run out needs no release
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, min(2*e.cfg.Attempt, e.leaseTo-now), ErrAttempt)
	defer cancel()
	err := e.releaseOnce(ctx)
	if err != nil && !IsRefusal(err) && ctx.Err() == nil { // perhaps only the connection was lost
		err = e.releaseOnce(ctx)
	}
	return err
}

// mayHold tells whether the row may be this process's.
func (e *Elector) mayHold() bool { return e.unsure || e.watch.Seen && e.watch.Row.LeaseID == e.id }

func (e *Elector) releaseOnce(ctx context.Context) error {
	if e.unsure { // of which epoch, the row knows
		if err := e.look(ctx); err != nil {
			return err
		}
	}
	if e.watch.Row.LeaseID == e.id {
		ctx, cancel := e.attempt(ctx)
		defer cancel()
		row, ok, err := e.witness.Release(ctx, e.id, e.watch.Row.Epoch)
		if err != nil {
			e.unsure = true
			return e.failed("release", err)
		}
		if ok {
			e.line.Announce(ctx)
		}
		if err := e.heard(row); err != nil {
			return e.failed("release", err)
		}
	}
	e.unsure = false
	return nil
}

// heard takes in a row that has just been received. A server that was replaced by a
// failover, and is still there, is not listened to.
func (e *Elector) heard(row Row) error {
	now, last := e.now(), e.watch.Row.Witness
	if row.Witness.System == last.System && row.Witness.Timeline < last.Timeline {
		e.line.Close()
		return fmt.Errorf("baldur: lease %q: the server is in timeline %d and another one was in timeline %d: it has been replaced", e.cfg.Name, row.Witness.Timeline, last.Timeline)
	}
	e.failures = 0
	failedOver := e.watch.Note(row, now)
	e.observer.Heard(e.watch.Row, e.watch.State(now), failedOver)
	return nil
}

// failed tells the observer of an error of a request.
func (e *Elector) failed(request string, err error) error {
	e.failures++
	e.observer.Failed(request, err)
	return err
}

// Outdone gives up a term whose epoch a later one of the same lease has outdone. No
// process can go on with it, and the next epoch must be above the later one.
func (e *Elector) Outdone(ctx context.Context, t *Term, top int64) {
	if err := e.claim(ctx); err != nil {
		return
	}
	defer e.unclaim()
	if top < math.MaxInt64-1<<TimelineShift { // one that nobody can go beyond was not given by any lease
		e.watch.Top = max(e.watch.Top, top)
	}
	e.Fenced(t)
}

// Fenced ends the belief if it is still of that term, which another process has fenced.
func (e *Elector) Fenced(t *Term) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if b := e.belief.Load(); b != nil && b.Term == t {
		e.loseLocked(Fenced)
	}
}

// begin makes this process primary by an acquisition that was sent at sent, when the
// machine had been suspended for gap. It reports false where the answer has come too late
// to be believed.
func (e *Elector) begin(epoch int64, sent, gap, waited time.Duration) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	if now >= sent+e.cfg.belief() || e.suspendGap()-gap > suspendTolerance {
		return false
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	began := time.Now()
	b := &Belief{
		Term:     &Term{epoch, began, ctx, cancel},
		Expires:  began.Add(sent + e.cfg.TTL - now),
		deadline: sent + e.cfg.belief(),
		gap:      gap,
	}
	e.believeLocked(b)
	e.observer.Began(b, waited)
	close(e.begun)
	e.begun = make(chan struct{})
	return true
}

// extend moves the deadline of b, whose renewal was sent at sent, unless b is over.
func (e *Elector) extend(b *Belief, sent time.Duration) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	if e.belief.Load() != b || b.Remaining(now) <= 0 {
		return false
	}
	gap := e.suspendGap()
	if gap-b.gap > suspendTolerance {
		e.loseLocked(Suspended)
		return false
	}
	e.believeLocked(&Belief{
		Term:     b.Term,
		Expires:  time.Now().Add(sent + e.cfg.TTL - now),
		deadline: sent + e.cfg.belief(),
		gap:      gap,
	})
	return true
}

func (e *Elector) believeLocked(b *Belief) {
	e.belief.Store(b)
	if e.guard == nil {
		e.guard = time.AfterFunc(e.guardAfter(b), e.check)
	} else {
		e.guard.Reset(e.guardAfter(b))
	}
}

// guardAfter is when to check a belief next: at its deadline, and often enough before to
// notice a suspended machine soon after it has woken.
func (e *Elector) guardAfter(b *Belief) time.Duration {
	return max(0, min(b.Remaining(e.now()), e.cfg.TTL/50, 250*time.Millisecond))
}

// check ends the belief at its deadline. It runs on a timer of its own: no call that hangs
// can delay it.
func (e *Elector) check() {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.belief.Load()
	if b == nil {
		return
	}
	gap := e.suspendGap() - b.gap
	e.gap = max(0, gap)
	switch {
	case b.Remaining(e.now()) <= 0:
		e.loseLocked(Expired)
	case gap > suspendTolerance:
		e.loseLocked(Suspended)
	default:
		e.guard.Reset(e.guardAfter(b))
	}
}

// lose ends the belief, if there is one.
func (e *Elector) lose(reason Reason) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.loseLocked(reason)
}

// loseLocked is lose. A belief that has run out already is lost for that reason.
func (e *Elector) loseLocked(reason Reason) {
	b := e.belief.Load()
	if b == nil {
		return
	}
	if b.Remaining(e.now()) <= 0 {
		reason = Expired
	}
	e.belief.Store(nil)
	e.guard.Stop()
	b.cancel(&Lost{b.Epoch, reason})
	if e.endsWith == b.Term {
		e.campaign = false
		e.endLoopLocked()
		e.line.Interrupt()
	}
	e.observer.Lost(b, reason)
}

// Holds tells whether this process is primary by that term. What the clock has ended is
// lost, though the timer that is to say so is late.
func (e *Elector) Holds(t *Term) bool {
	if b := e.Belief(); b != nil && b.Term == t {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if b := e.belief.Load(); b != nil && b.Term == t {
		e.loseLocked(Expired)
	}
	return false
}

// EndWith has the campaign end with the loss of a term, and reports false if that is lost
// already; nil: it no longer does. While whoever called it winds up, the lease is renewed.
func (e *Elector) EndWith(t *Term) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t != nil && t.ctx.Err() != nil {
		return false
	}
	e.endsWith = t
	return true
}

// Start begins a campaign: to renew the lease while this process is primary, and to be a
// candidate while it is not. A second call does nothing, nor does one after Close.
func (e *Elector) Start() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.campaign && !e.isClosedLocked() {
		e.campaign = true
		e.startLocked()
	}
}

// Follow has the Elector look at the row, campaign or not, until each Follow has been
// undone by an Unfollow, the Elector is closed, or the witness has gone.
func (e *Elector) Follow() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.isClosedLocked() {
		e.followers++
		e.startLocked()
	}
}

// Unfollow: see Follow.
func (e *Elector) Unfollow() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.followers = max(0, e.followers-1)
	e.endLoopLocked()
	e.line.Interrupt()
}

// Stop ends the campaign, releases the lease if there was one (with release set, in any case), and
// returns when no goroutine is left, unless somebody follows.
func (e *Elector) Stop(release bool) {
	e.mu.Lock()
	was := e.campaign || release
	e.campaign = false
	e.endLoopLocked()
	last, ending := e.last, e.loop == nil
	e.mu.Unlock()
	if was {
		_ = e.resign(last) // its errors are the observer's
	}
	if last != nil && ending {
		e.line.Interrupt()
		<-last.done
	}
}

// Close is Stop for good, also for those who follow. The error is that of the release.
func (e *Elector) Close() error {
	e.mu.Lock()
	if !e.isClosedLocked() {
		close(e.closed)
	}
	e.campaign, e.followers = false, 0
	e.endLoopLocked()
	last := e.last
	e.mu.Unlock()
	err := e.resign(last)
	if last != nil {
		e.line.Interrupt()
		<-last.done
	}
	return err
}

func (e *Elector) isClosedLocked() bool {
	select {
	case <-e.closed:
		return true
	default:
		return false
	}
}

// resign releases the lease and hangs up, if no loop goes on. A request of the loop's that
// lasts, on a network that has fallen silent, is cut.
func (e *Elector) resign(l *loop) error {
	e.lose(Released)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), e.cfg.Attempt)
		err := e.claim(ctx)
		cancel()
		if err == nil {
			break
		}
		if l != nil {
			if cut := l.cut.Load(); cut != nil {
				(*cut)()
			}
		}
	}
	defer e.unclaim()
	err := e.release(context.Background())
	e.holdOff = e.now() // a new start is a new candidate
	e.hangUp()
	return err
}

// hangUp gives the connection up, if no loop needs it. The caller has the witness.
func (e *Elector) hangUp() {
	e.mu.Lock()
	needed := e.loop != nil
	if !needed {
		e.observer.InUse(false) // under mu: a loop that starts now says otherwise afterwards
	}
	e.mu.Unlock()
	if !needed {
		e.line.Close()
	}
}

// loop is a run of the loop.
type loop struct {
	end  atomic.Bool                        // it is to end
	done chan struct{}                      // closed when it has ended
	cut  atomic.Pointer[context.CancelFunc] // cuts the request that it is in; nil: none yet
}

// startLocked starts a loop, or wakes the running one.
func (e *Elector) startLocked() {
	if e.loop == nil {
		e.loop = &loop{done: make(chan struct{})}
		e.last = e.loop
		e.observer.InUse(true)
		go e.run(e.loop)
	}
	e.line.Interrupt()
}

// endLoopLocked has the loop end if nothing needs it.
func (e *Elector) endLoopLocked() {
	if e.loop != nil && !e.campaign && e.followers == 0 {
		e.loop.end.Store(true)
		e.loop = nil
	}
}

// run is the loop.
func (e *Elector) run(l *loop) {
	defer close(l.done)
	for {
		e.claimed <- struct{}{}
		for e.claimants.Load() > 0 { // they have interrupted us; let them go first
			e.unclaim()
			runtime.Gosched()
			e.claimed <- struct{}{}
		}
		if e.isGone() {
			e.mu.Lock()
			e.campaign, e.followers = false, 0
			e.endLoopLocked()
			e.mu.Unlock()
			e.observer.Ended()
			e.lose(Released)
			if e.line.IsOpen() {
				_ = e.release(context.Background())
			}
		}
		if l.end.Load() {
			e.hangUp()
			e.unclaim()
			return
		}
		ctx, cut := context.WithCancel(context.Background())
		l.cut.Store(&cut)
		pause := e.step(ctx)
		cut()
		// A primary needs no bell: nobody else can change the row while it holds the lease.
		e.line.Wait(pause, e.belief.Load() == nil, func() bool { return e.claimants.Load() > 0 || l.end.Load() })
		e.unclaim()
	}
}

func (e *Elector) isGone() bool {
	select {
	case <-e.cfg.Gone():
		return true
	default:
		return false
	}
}

// step does what is due, and returns in what time it is to be called again.
func (e *Elector) step(ctx context.Context) time.Duration {
	now := e.now()
	if b := e.Belief(); b != nil {
		if wait := e.renewAt - now; wait > 0 {
			return wait
		}
		ok, err := e.renew(ctx, b)
		if err != nil {
			return min(e.backoff(), max(0, b.Remaining(e.now())))
		}
		if ok {
			return e.renewAt - e.now()
		}
	}
	e.lose(Expired) // so that the loss comes before the gain
	e.mu.Lock()
	campaign := e.campaign
	e.mu.Unlock()
	var ok bool
	var err error
	if campaign = campaign && e.now() >= e.holdOff; campaign {
		ok, err = e.take(ctx)
	} else {
		err = e.look(ctx)
	}
	switch {
	case err != nil:
		return e.backoff()
	case ok:
		return e.renewAt - e.now()
	}
	poll := time.Duration(pollPart * float64(e.cfg.TTL) * (1 - e.cfg.Jitter*mathrand.Float64()))
	if !campaign {
		return poll
	}
	at, _ := e.watch.TakeAt(e.id, e.cfg.TTL)
	if now = e.now(); at > now {
		return min(poll, at-now)
	}
	return min(poll, e.cfg.TTL/retryPart)
}

// backoff is the pause after failures in a row.
func (e *Elector) backoff() time.Duration {
	d := e.cfg.TTL / backoffPart
	if e.failures < 16 {
		d = min(d, firstBackoff<<max(0, e.failures-1))
	}
	return e.jittered(d)
}

// jittered varies d, so that many processes do not act as one.
func (e *Elector) jittered(d time.Duration) time.Duration {
	return d + time.Duration(float64(d)*e.cfg.Jitter*(2*mathrand.Float64()-1))
}
