package baldur

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// callQueue calls functions one at a time, in order, on a goroutine that exists
// only while there are any.
type callQueue struct {
	mu      sync.Mutex // guards the fields below
	queue   []func()
	running chan struct{} // closed when the goroutine ends; nil: there is none
	g       stack.G       // that goroutine
}

func (c *callQueue) add(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, f)
	if c.running == nil {
		c.running = make(chan struct{})
		go c.run(c.running)
	}
}

func (c *callQueue) run(done chan struct{}) {
	defer close(done)
	for {
		c.mu.Lock()
		c.g = stack.CurrentG()
		if len(c.queue) == 0 {
			c.running, c.g = nil, stack.G{}
			c.mu.Unlock()
			return
		}
		f := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		f()
	}
}

// drain waits until all has been called, but not for the call that it is itself in, and
// no longer than limit, if that is not 0.
func (c *callQueue) drain(limit time.Duration) {
	c.mu.Lock()
	running, own := c.running, c.g == stack.CurrentG()
	c.mu.Unlock()
	if running == nil || own {
		return
	}
	var over <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-running:
	case <-over:
	}
}

// logQueue is a handler that has another one called aside, in order: a handler may block,
// panic, or call the quorum back, and no renewal waits for that.
type logQueue struct {
	slog.Handler
	calls *callQueue
}

const (
	logsKept = 1000        // that wait for a handler; more are dropped
	logsWait = time.Second // for how long Close and StopAutoRenew wait for them
)

func (l logQueue) Enabled(context.Context, slog.Level) bool { return true }

func (l logQueue) Handle(ctx context.Context, r slog.Record) error {
	r = r.Clone()
	l.calls.mu.Lock()
	full := len(l.calls.queue) >= logsKept
	l.calls.mu.Unlock()
	if !full {
		l.calls.add(func() {
			defer func() { _ = recover() }() // it has nobody to tell
			if l.Handler.Enabled(ctx, r.Level) {
				_ = l.Handler.Handle(ctx, r)
			}
		})
	}
	return nil
}

// Watch returns a channel of the changes of who holds the lease, from what is
// known now on, whoever it is; also while this process is no candidate. Who reads
// slowly misses what was changed again meanwhile, but gets the latest. The channel
// is closed when ctx ends, or by Close, or at once after Close.
//
// A change is known at once by NOTIFY; within 0.2 TTL behind a pooler and with other drivers
// than lib/pq, where LISTEN is not used. A lease that is not renewed shows as LeaseExpired
// after its TTL. That is news for people and for routing: it proves nothing about who is
// primary when it is read.
func (q *PGQuorum) Watch(ctx context.Context) <-chan QuorumEvent {
	c := make(chan QuorumEvent, 1)
	q.mu.Lock()
	defer q.mu.Unlock()
	if ctx.Err() != nil || q.isClosedLocked() {
		close(c)
		return c
	}
	if q.told.State != "" {
		c <- q.told
	}
	q.watchers[c] = true
	q.startLocked()
	context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.watchers[c] {
			delete(q.watchers, c)
			close(c)
			q.endLoopLocked()
			q.line.interrupt()
		}
	})
	return c
}

func (q *PGQuorum) dropWatchersLocked() {
	for c := range q.watchers {
		delete(q.watchers, c)
		close(c)
	}
}

// tell sends the state of the row to the watchers, if it has changed.
func (q *PGQuorum) tell() {
	row := q.watch.row
	e := QuorumEvent{State: LeaseHeld, Lease: row.lease(), Local: row.leaseID == q.id}
	switch {
	case row.leaseID == "":
		e.State = LeaseFree
	case row.expired && q.now() >= q.watch.since+row.ttl:
		e.State = LeaseExpired
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if last := q.told; last.State == e.State && last.Lease.Epoch == e.Lease.Epoch && last.Lease.LeaseID == e.Lease.LeaseID {
		q.told.Lease.ExpiresAt = e.Lease.ExpiresAt
		return
	}
	if e.State == LeaseFree && q.told.Lease.Epoch == e.Lease.Epoch {
		e.Local = q.told.Local // its own release
	}
	q.told = e
	for c := range q.watchers {
		select {
		case <-c: // the one that was not read
		default:
		}
		c <- e
	}
}
