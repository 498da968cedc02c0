package baldur

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"
)

// Parts of the TTL.
const (
	pollPart    = 0.2 // how often a candidate looks: it waits a TTL from the last look that met news
	backoffPart = 6   // the longest pause after errors is a sixth
	retryPart   = 20  // how often it tries while only the server's clock is against it

	firstBackoff = 50 * time.Millisecond
)

// StartAutoRenew has this process renew the lease while it is primary, and be a
// candidate while it is not, on a goroutine of its own, until StopAutoRenew.
// Errors are logged, counted in Stats, and tried again. A second call does
// nothing, and neither does one after Close. When the pool is closed it stops.
func (q *PGQuorum) StartAutoRenew() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.campaign && !q.isClosedLocked() {
		q.campaign = true
		q.startLocked()
	}
}

// Run calls f whenever this process becomes primary, with a ctx that ends when it is
// primary no more, as PrimaryContext's. It contends for the lease by StartAutoRenew until
// then, and again when f has returned: never while f still runs, so that no other process
// waits for one that only believes to be at work. When it returns it has released the lease.
//
// It returns when f returns while this process is still primary, with f's error, nil or
// not; when ctx ends, with its cause; and, when the quorum or its pool is closed, with
// [ErrQuorumClosed]; in each case after f has returned. An error of an f whose lease was
// lost is logged. A panic of f passes, and the lease is released.
//
// Call neither StartAutoRenew nor StopAutoRenew beside it. What f must not do twice belongs in
// a transaction: see [PGQuorum.InTx].
func (q *PGQuorum) Run(ctx context.Context, f func(ctx context.Context) error) error {
	defer q.stopAutoRenew(true)
	for {
		q.StartAutoRenew()
		primary, tenure, err := q.awaitPrimary(ctx)
		if err != nil {
			return err
		}
		if !q.setTurn(tenure) {
			continue // lost already
		}
		err = func() error {
			defer q.setTurn(nil) // also if f panics
			return f(primary)
		}()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case q.holds(tenure):
			return err
		}
		if closed := q.isClosed(); closed != nil {
			return closed
		}
		if err != nil {
			q.cfg.log.Warn("baldur: the work of a primary has ended after its lease was lost", "lease", q.cfg.name, "cause", context.Cause(primary), "error", err)
		}
	}
}

// holds tells whether this process is primary by a tenure. What the clock has ended is
// lost, though the timer that is to say so is late.
func (q *PGQuorum) holds(t *tenure) bool {
	if now := q.valid(); now != nil && now.tenure == t {
		return true
	}
	q.mu.Lock()
	defer q.unlock()
	if now := q.term.Load(); now != nil && now.tenure == t {
		q.loseLocked(LossExpired)
	}
	return false
}

// setTurn notes the hold that Run's f is called for, with whose loss the contention ends, and
// reports false if it is lost. While f winds up because ctx has ended, the lease is renewed.
func (q *PGQuorum) setTurn(t *tenure) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t != nil && t.ctx.Err() != nil {
		return false
	}
	q.turn = t
	return true
}

// quorumLoop is a run of the loop.
type quorumLoop struct {
	end  atomic.Bool                        // it is to end
	done chan struct{}                      // closed when it has ended
	cut  atomic.Pointer[context.CancelFunc] // cuts the request that it is in; nil: none yet
}

// startLocked starts a loop, or has the one that there is look about.
func (q *PGQuorum) startLocked() {
	if q.loop == nil {
		q.loop = &quorumLoop{done: make(chan struct{})}
		q.last = q.loop
		q.t.addQuorum(q)
		go q.run(q.loop)
	}
	q.line.interrupt()
}

// endLoopLocked has the loop end if nothing needs it.
func (q *PGQuorum) endLoopLocked() {
	if q.loop != nil && !q.campaign && len(q.watchers) == 0 {
		q.loop.end.Store(true)
		q.loop = nil
	}
}

// StopAutoRenew ends StartAutoRenew, releases the lease if this process is
// primary, and returns when that is done, or has failed twice, with no goroutine
// left, and no connection unless Watch has need of it. It may be called at any
// time, also by WithOnAcquired's and WithOnLost's functions; if it was stopped
// already, it does nothing.
func (q *PGQuorum) StopAutoRenew() { q.stopAutoRenew(false) }

// stopAutoRenew is StopAutoRenew; with release the lease is also released if it was stopped
// already.
func (q *PGQuorum) stopAutoRenew(release bool) {
	q.mu.Lock()
	was := q.campaign || release
	q.campaign = false
	q.endLoopLocked()
	last, ending := q.last, q.loop == nil
	q.mu.Unlock()
	if was {
		_ = q.resign(last) // its errors are logged
	}
	if last != nil && ending {
		q.line.interrupt()
		<-last.done
	}
	q.calls.drain(0)
	q.cfg.logs.drain(logsWait)
}

func (q *PGQuorum) isClosedLocked() bool {
	select {
	case <-q.closed:
		return true
	default:
		return false
	}
}

// Close is StopAutoRenew for good. It also ends the channels of Watch, releases what
// TryAcquirePrimary has got, and gives the connection up. Calls that wait for the
// lease, and later ones, end with [ErrQuorumClosed]. The error is that of the release.
func (q *PGQuorum) Close() error {
	q.mu.Lock()
	if !q.isClosedLocked() {
		close(q.closed)
	}
	q.campaign = false
	q.dropWatchersLocked()
	q.endLoopLocked()
	last := q.last
	q.mu.Unlock()
	err := q.resign(last)
	if last != nil {
		q.line.interrupt()
		<-last.done
	}
	q.calls.drain(0)
	q.cfg.logs.drain(logsWait)
	return err
}

// resign releases the lease and hangs up, if no loop goes on. A request of the
// loop's that lasts, on a network that has fallen silent, is cut.
func (q *PGQuorum) resign(loop *quorumLoop) error {
	q.lose(LossReleased)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), q.cfg.attempt)
		err := q.use(ctx)
		cancel()
		if err == nil {
			break
		}
		if loop != nil {
			if cut := loop.cut.Load(); cut != nil {
				(*cut)()
			}
		}
	}
	defer q.letGo()
	err := q.release(context.Background())
	q.holdOff = q.now() // a new start is a new candidate
	q.hangUp()
	return err
}

// hangUp gives the connection up, if no loop needs it. The caller has the witness.
func (q *PGQuorum) hangUp() {
	q.mu.Lock()
	needed := q.loop != nil
	q.mu.Unlock()
	if !needed {
		q.line.close()
		q.t.removeQuorum(q)
	}
}

// run is the loop.
func (q *PGQuorum) run(l *quorumLoop) {
	defer close(l.done)
	for {
		q.own <- struct{}{}
		for q.waiters.Load() > 0 { // they have interrupted us; let them go first
			q.letGo()
			runtime.Gosched()
			q.own <- struct{}{}
		}
		if q.t.isClosed() {
			q.mu.Lock()
			q.campaign = false
			q.dropWatchersLocked()
			q.endLoopLocked()
			q.mu.Unlock()
			q.cfg.log.Info("baldur: the pool is closed; the lease is released", "lease", q.cfg.name)
			q.lose(LossReleased)
			if q.line.isOpen() {
				_ = q.release(context.Background())
			}
		}
		if l.end.Load() {
			q.hangUp()
			q.letGo()
			return
		}
		ctx, cut := context.WithCancel(context.Background())
		l.cut.Store(&cut)
		pause := q.step(ctx)
		cut()
		// A primary needs no bell: it would hear its own renewals.
		q.line.wait(pause, q.term.Load() == nil, func() bool { return q.waiters.Load() > 0 || l.end.Load() })
		q.letGo()
	}
}

// step does what is due, and returns in what time it is to be called again.
func (q *PGQuorum) step(ctx context.Context) time.Duration {
	now := q.now()
	if t := q.valid(); t != nil {
		if wait := q.renewAt - now; wait > 0 {
			return wait
		}
		ok, err := q.renew(ctx, t)
		if err != nil {
			return min(q.backoff(), max(0, t.remaining(q.now())))
		}
		if ok {
			return q.renewAt - q.now()
		}
	}
	q.lose(LossExpired) // so that the loss comes before the gain
	q.mu.Lock()
	campaign := q.campaign
	q.mu.Unlock()
	var ok bool
	var err error
	if campaign = campaign && q.now() >= q.holdOff; campaign {
		ok, err = q.take(ctx)
	} else {
		err = q.look(ctx)
	}
	switch {
	case err != nil:
		return q.backoff()
	case ok:
		return q.renewAt - q.now()
	}
	poll := time.Duration(pollPart * float64(q.cfg.ttl) * (1 - q.cfg.jitter*rand.Float64()))
	if !campaign {
		return poll
	}
	at, _ := q.watch.takeAt(q.id, q.cfg.ttl)
	if now = q.now(); at > now {
		return min(poll, at-now)
	}
	return min(poll, q.cfg.ttl/retryPart)
}

// backoff is the pause after errors in a row.
func (q *PGQuorum) backoff() time.Duration {
	d := q.cfg.ttl / backoffPart
	if q.errors < 16 {
		d = min(d, firstBackoff<<max(0, q.errors-1))
	}
	return q.jittered(d)
}

// jittered varies d, so that many processes do not act as one.
func (q *PGQuorum) jittered(d time.Duration) time.Duration {
	return d + time.Duration(float64(d)*q.cfg.jitter*(2*rand.Float64()-1))
}
