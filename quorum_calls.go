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
