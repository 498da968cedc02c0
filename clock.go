package baldur

import (
	"sync"
	"sync/atomic"
	"time"
)

// clock gives the time twice: exactly, for the 20 to 40 ns that the operating
// system takes for it, and coarsely, for one load.
//
// When a call began and ended, and when a row was read, is needed only to say
// "idle for 40 s", so it is told by the coarse time: a goroutine that stores it
// every tick. The goroutine is started by the first reader that finds the clock
// stopped, and ends by itself after a while without work (see run), so an idle
// program has no timer of ours. Rejected: a time.Now per call and row (two
// more than a checkout needs, and 40 ns for every row).
type clock struct {
	base   time.Time     // of the times below; a second before the tracker was made, so that no time is 0
	tick   time.Duration // resolution of the coarse time
	onTick func() bool   // called after each tick; true: there is work, go on

	ms atomic.Int64 // the coarse time, ms since base; 0: stopped

	mu      sync.Mutex // guards the fields below
	closed  bool
	wake    chan struct{} // closed by stop
	running sync.WaitGroup
}

// Ticks without work after which the clock's goroutine ends.
const idleTicks = 16

func newClock(tick time.Duration, onTick func() bool) *clock {
	return &clock{base: time.Now().Add(-time.Second), tick: tick, onTick: onTick}
}

// now returns the exact time since base. It is monotonic.
func (c *clock) now() time.Duration { return time.Since(c.base) }

// coarse returns the coarse time in ms since base.
func (c *clock) coarse() int64 {
	if ms := c.ms.Load(); ms != 0 {
		return ms
	}
	return c.start()
}

// at returns the wall-clock time of d since base.
func (c *clock) at(d time.Duration) time.Time { return c.base.Add(d) }

func (c *clock) start() int64 {
	ms := c.now().Milliseconds()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.ms.Load() != 0 {
		return ms
	}
	c.ms.Store(ms)
	c.wake = make(chan struct{})
	c.running.Add(1)
	go c.run(c.wake)
	return ms
}

func (c *clock) run(wake <-chan struct{}) {
	defer c.running.Done()
	ticker := time.NewTicker(c.tick)
	defer ticker.Stop()
	for idle := 0; idle < idleTicks; idle++ {
		select {
		case <-wake:
			c.halt()
			return
		case <-ticker.C:
		}
		c.ms.Store(c.now().Milliseconds())
		if c.onTick() {
			idle = 0
		}
	}
	c.halt()
}

func (c *clock) halt() {
	c.mu.Lock()
	c.ms.Store(0)
	c.mu.Unlock()
}

// stop ends the goroutine and waits for it. The clock goes on to answer, each
// coarse time by an exact one, until reopen.
func (c *clock) stop() {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		if c.wake != nil {
			close(c.wake)
			c.wake = nil
		}
	}
	c.mu.Unlock()
	c.running.Wait()
}

func (c *clock) reopen() {
	c.mu.Lock()
	c.closed = false
	c.mu.Unlock()
}
