package baldur

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// A tenure is one hold of the lease by this process, from a confirmed
// acquisition to its loss: what an epoch names.
type tenure struct {
	lease  QuorumLease // as it was acquired
	ctx    context.Context
	cancel context.CancelCauseFunc // with a *LeaseLostError
}

// A term is what is believed of a tenure since the last confirmation of it. It
// is never changed: a renewal makes a new one.
type term struct {
	*tenure
	deadline time.Duration // by the clock: where the belief ends
	expires  time.Time     // of the lease, by the wall clock
	gap      time.Duration // suspendGap when it was confirmed
}

func (t *term) remaining(now time.Duration) time.Duration { return t.deadline - now }

// base is the instant that the default clock counts from.
var base = time.Now()

// now reads the clock.
func (q *PGQuorum) now() time.Duration {
	if q.cfg.clock != nil {
		return q.cfg.clock()
	}
	return time.Since(base)
}

// IsPrimary tells whether this process is the primary at this moment: it does no
// I/O, takes no lock and allocates nothing. It reads the clock, since a flag that
// a timer puts down is put down late, after a pause of the process by any amount.
//
// What you do after it may still be too late, if the process is paused in
// between. What must not happen twice belongs in a transaction that
// [PGQuorum.RequirePrimary] guards.
func (q *PGQuorum) IsPrimary() bool {
	t := q.term.Load()
	return t != nil && q.now() < t.deadline
}

// valid returns the term, if it is believed.
func (q *PGQuorum) valid() *term {
	if t := q.term.Load(); t != nil && q.now() < t.deadline {
		return t
	}
	return nil
}

// Lease returns the lease that this process holds; false if it is not primary.
func (q *PGQuorum) Lease() (QuorumLease, bool) {
	t := q.valid()
	if t == nil {
		return QuorumLease{}, false
	}
	l := t.lease
	l.ExpiresAt = t.expires
	return l, true
}

// PrimaryContext returns a context that ends when this process is primary no
// more, at the end of its belief at the latest, whatever the network does; its
// [context.Cause] is then a [*LeaseLostError]. It ends with ctx, too.
//
// It returns ErrNotPrimary if this process is not primary now. To wait until it
// is, see [PGQuorum.AwaitPrimary].
func (q *PGQuorum) PrimaryContext(ctx context.Context) (context.Context, error) {
	ctx, _, err := q.primaryContext(ctx)
	return ctx, err
}

// primaryContext is PrimaryContext, and tells the tenure that it is of.
func (q *PGQuorum) primaryContext(ctx context.Context) (context.Context, *tenure, error) {
	t := q.valid()
	if t == nil {
		return nil, nil, ErrNotPrimary
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.ctx, func() { cancel(context.Cause(t.ctx)) })
	context.AfterFunc(ctx, func() { stop() })
	return ctx, t.tenure, nil
}

// AwaitPrimary waits until this process is primary, for which StartAutoRenew must
// be in effect or someone call TryAcquirePrimary, and returns PrimaryContext's.
// It returns ctx's cause if that ends, or has ended, before, and [ErrQuorumClosed] if
// the quorum or its pool is closed.
func (q *PGQuorum) AwaitPrimary(ctx context.Context) (context.Context, error) {
	ctx, _, err := q.awaitPrimary(ctx)
	return ctx, err
}

func (q *PGQuorum) awaitPrimary(ctx context.Context) (context.Context, *tenure, error) {
	for {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		q.mu.Lock()
		begun := q.begun
		q.mu.Unlock()
		if c, tenure, err := q.primaryContext(ctx); err == nil {
			return c, tenure, nil
		}
		if err := q.isClosed(); err != nil {
			return nil, nil, err
		}
		select {
		case <-begun:
		case <-ctx.Done():
		case <-q.closed:
		case <-q.t.whenClosed():
		}
	}
}

// begin makes this process primary: by row, whose acquisition was sent at sent,
// when the machine had been suspended for gap. It reports false where the answer
// has come too late to be believed.
func (q *PGQuorum) begin(row leaseRow, sent, gap time.Duration) bool {
	q.mu.Lock()
	defer q.unlock()
	now := q.now()
	if now >= sent+q.cfg.belief() || suspendGap()-gap > suspendTolerance {
		return false
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	lease := QuorumLease{Region: q.cfg.region, LeaseID: q.id, AcquiredAt: time.Now(), Epoch: row.epoch}
	lease.ExpiresAt = lease.AcquiredAt.Add(sent + q.cfg.ttl - now)
	q.setTermLocked(&term{
		tenure:   &tenure{lease, ctx, cancel},
		deadline: sent + q.cfg.belief(),
		expires:  lease.ExpiresAt,
		gap:      gap,
	})
	q.stats.Elections++
	q.logLocked(slog.LevelInfo, "baldur: this process is primary", "epoch", row.epoch)
	if f := q.cfg.onAcquired; f != nil {
		q.calls.add(func() { f(lease) })
	}
	close(q.begun)
	q.begun = make(chan struct{})
	return true
}

// extend moves the deadline of t, whose renewal was sent at sent, unless t is
// over.
func (q *PGQuorum) extend(t *term, sent time.Duration) bool {
	q.mu.Lock()
	defer q.unlock()
	now := q.now()
	if q.term.Load() != t || t.remaining(now) <= 0 {
		return false
	}
	gap := suspendGap()
	if gap-t.gap > suspendTolerance {
		q.loseLocked(LossSuspended)
		return false
	}
	q.setTermLocked(&term{
		tenure:   t.tenure,
		deadline: sent + q.cfg.belief(),
		expires:  time.Now().Add(sent + q.cfg.ttl - now),
		gap:      gap,
	})
	return true
}

func (q *PGQuorum) setTermLocked(t *term) {
	q.term.Store(t)
	if q.guard == nil {
		q.guard = time.AfterFunc(q.guardAfter(t), q.watchTerm)
	} else {
		q.guard.Reset(q.guardAfter(t))
	}
}

// guardAfter is when to look at a term next: at its deadline, and often enough
// before to notice a suspended machine soon after it has woken.
func (q *PGQuorum) guardAfter(t *term) time.Duration {
	return max(0, min(t.remaining(q.now()), q.cfg.ttl/50, 250*time.Millisecond))
}

// watchTerm ends the term at its deadline. It runs on a timer of its own: no call
// that hangs can keep it.
func (q *PGQuorum) watchTerm() {
	q.mu.Lock()
	defer q.unlock()
	t := q.term.Load()
	if t == nil {
		return
	}
	gap := suspendGap() - t.gap
	q.stats.ClockGap = max(0, gap)
	switch {
	case t.remaining(q.now()) <= 0:
		q.loseLocked(LossExpired)
	case gap > suspendTolerance:
		q.loseLocked(LossSuspended)
	default:
		q.guard.Reset(q.guardAfter(t))
	}
}

// lose ends the term, if there is one. A term that has run out already is lost
// for that reason.
func (q *PGQuorum) lose(reason LossReason) (*term, bool) {
	q.mu.Lock()
	defer q.unlock()
	return q.loseLocked(reason)
}

func (q *PGQuorum) loseLocked(reason LossReason) (*term, bool) {
	t := q.term.Load()
	if t == nil {
		return nil, false
	}
	if t.remaining(q.now()) <= 0 {
		reason = LossExpired
	}
	q.term.Store(nil)
	q.guard.Stop()
	t.cancel(&LeaseLostError{q.cfg.name, t.lease.Epoch, reason})
	if q.turn == t.tenure {
		q.campaign = false
		q.endLoopLocked()
		q.line.interrupt()
	}
	q.stats.Losses[reason]++
	if reason == LossReleased {
		q.logLocked(slog.LevelInfo, "baldur: this process has released the lease", "epoch", t.lease.Epoch)
	} else {
		q.logLocked(slog.LevelWarn, "baldur: this process is primary no more", "epoch", t.lease.Epoch, "reason", string(reason))
	}
	if f := q.cfg.onLost; f != nil {
		lease := t.lease
		lease.ExpiresAt = t.expires
		q.calls.add(func() { f(lease, reason) })
	}
	return t, true
}

// logLocked has unlock log: a handler may take its time, or ask for a report.
func (q *PGQuorum) logLocked(level slog.Level, msg string, args ...any) {
	q.logs = append(q.logs, func() {
		q.cfg.log.Log(context.Background(), level, msg, append([]any{"lease", q.cfg.name, "region", q.cfg.region}, args...)...)
	})
}

func (q *PGQuorum) unlock() {
	logs := q.logs
	q.logs = nil
	q.mu.Unlock()
	for _, log := range logs {
		log()
	}
}

// suspendTolerance is by how much the clock that counts the time of a suspended
// machine may get ahead of the one that does not.
const suspendTolerance = 50 * time.Millisecond

// suspendGap is for how long the machine has been suspended since it booted.
func suspendGap() time.Duration {
	if f := fakeSuspendGap.Load(); f != nil {
		return (*f)()
	}
	return bootGap()
}

// fakeSuspendGap is for tests: no test can suspend its machine.
var fakeSuspendGap atomic.Pointer[func() time.Duration]
