// Package aside calls functions of the program's on a goroutine of their own, in order: one
// that blocks delays those behind it, and nothing of ours.
package aside

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// A Queue calls functions one at a time, in order, on a goroutine that exists
// only while there are any.
type Queue struct {
	mu      sync.Mutex // guards the fields below
	queue   []func()
	running chan struct{} // closed when the goroutine ends; nil: there is none
	g       stack.G       // that goroutine
}

// Add has f called after those that were added before.
func (c *Queue) Add(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, f)
	if c.running == nil {
		c.running = make(chan struct{})
		go c.run(c.running)
	}
}

func (c *Queue) run(done chan struct{}) {
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

// Drain waits until all has been called, but not for the call that it is itself in, and
// no longer than limit, if that is not 0.
func (c *Queue) Drain(limit time.Duration) {
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

// Handler returns one that has another one called aside, in order: a handler may block,
// panic, or call back, and nothing of ours waits for that. Of records that wait it keeps
// 1000, and drops more.
func Handler(h slog.Handler, calls *Queue) slog.Handler { return handler{h, calls} }

type handler struct {
	slog.Handler
	calls *Queue
}

const kept = 1000 // records that wait

func (l handler) Enabled(context.Context, slog.Level) bool { return true }

func (l handler) Handle(ctx context.Context, r slog.Record) error {
	r = r.Clone()
	l.calls.mu.Lock()
	full := len(l.calls.queue) >= kept
	l.calls.mu.Unlock()
	if !full {
		l.calls.Add(func() {
			defer func() { _ = recover() }() // it has nobody to tell
			if l.Handler.Enabled(ctx, r.Level) {
				_ = l.Handler.Handle(ctx, r)
			}
		})
	}
	return nil
}
