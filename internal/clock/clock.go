// Package clock gives the time twice: coarsely for one load, and exactly for less
// than what the kernel's clock costs, where the CPU's counter can be trusted.
package clock

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baldur-go/baldur/internal/tsc"
)

// A Clock gives coarse and exact times since its base.
//
// When a call began and ended, and when a row was read, is needed only to say
// "idle for 40 s". For that there is the coarse time, which a goroutine stores
// every tick. The first reader that finds the clock stopped starts that goroutine,
// and it ends after a while without work (see run), so an idle program runs no
// timer of ours. Rejected: a time.Now per call and row, which is two more than a
// checkout needs, and 40 ns for every row.
//
// The exact time is the kernel's, or between two ticks the CPU counter's where that
// can be trusted: see counter.go.
type Clock struct {
	base   time.Time     // a second before the clock was made, so that no time is 0
	tick   time.Duration // resolution of the coarse time; at most a second
	onTick func() bool   // called after each tick; true: there is work, keep ticking

	ms  atomic.Int64            // the coarse time, ms since base; 0: stopped, or about to
	seg atomic.Pointer[segment] // nil: the exact time is the kernel's

	track counterTrack // owned by the goroutine

	mu      sync.Mutex // guards the fields below
	closed  bool
	wake    chan struct{} // closed by Stop
	ticking bool          // there is a goroutine that has not decided to end
	wanted  bool          // a reader came after the goroutine had stopped the clock
	running sync.WaitGroup
}

const (
	idleTicks  = 16 // without work, after which the clock stops
	trustTicks = 64 // after which the counter's trustworthiness is checked again

	sameMoment = 2048 // ticks of the counter, 0.5 to 1 µs: readings within it count as simultaneous
)

// New returns a stopped clock. onTick is called at each tick, and tells whether
// there is work that still needs the clock.
func New(tick time.Duration, onTick func() bool) *Clock {
	return &Clock{base: time.Now().Add(-time.Second), tick: tick, onTick: onTick}
}

// Now returns the exact time since base: see counter.go for how exact.
func (c *Clock) Now() time.Duration {
	if s := c.seg.Load(); s != nil {
		if t, ok := s.at(tsc.Read()); ok {
			return t
		}
	}
	return c.Kernel()
}

// Kernel returns the exact time by the kernel's clock.
func (c *Clock) Kernel() time.Duration { return time.Since(c.base) }

// Coarse returns the coarse time in ms since base.
func (c *Clock) Coarse() int64 {
	if ms := c.ms.Load(); ms != 0 {
		return ms
	}
	return c.start()
}

// Tick is the resolution of the coarse time.
func (c *Clock) Tick() time.Duration { return c.tick }

// At returns the wall-clock time of d since base.
func (c *Clock) At(d time.Duration) time.Time { return c.base.Add(d) }

func (c *Clock) start() int64 {
	ms := c.Kernel().Milliseconds()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.ms.Load() != 0 {
		return ms
	}
	c.ms.Store(ms)
	if c.ticking {
		c.wanted = true
		return ms
	}
	c.ticking = true
	c.wake = make(chan struct{})
	c.running.Add(1)
	go c.run(c.wake)
	return ms
}

// run ticks. After idleTicks without work it stops the clock, and at the next
// tick it ends, unless a reader has started the clock again.
func (c *Clock) run(wake <-chan struct{}) {
	defer c.running.Done()
	ticker := time.NewTicker(c.tick)
	defer ticker.Stop()
	trusted := tsc.Trusted(time.Now())
	c.look(trusted)
	for n, idle := 1, 0; ; n++ {
		select {
		case <-wake:
			c.end(false)
			return
		case <-ticker.C:
		}
		if n%trustTicks == 0 {
			trusted = tsc.Trusted(time.Now())
		}
		now := c.look(trusted)
		if idle == idleTicks {
			if c.end(true) {
				return
			}
			idle = 0
		}
		c.ms.Store(now.Milliseconds())
		if idle++; c.onTick() {
			idle = 0
		}
		if idle == idleTicks {
			c.halt()
		}
	}
}

// look reads the kernel's clock, and what the counter is at that moment.
func (c *Clock) look(trusted bool) (now time.Duration) {
	if trusted {
		for range 4 { // it fails only if it is interrupted each time
			ticks := tsc.Read()
			now = c.Kernel()
			if tsc.Read()-ticks < sameMoment {
				c.seg.Store(c.track.look(ticks, now, c.tick))
				return now
			}
		}
	}
	c.track = counterTrack{}
	c.seg.Store(nil)
	return c.Kernel()
}

// halt stops the clock; the next reader starts it.
func (c *Clock) halt() {
	c.mu.Lock()
	c.ms.Store(0)
	c.wanted = false
	c.mu.Unlock()
}

// end stops the clock for good. With unlessWanted it does not where a reader has
// come meanwhile.
func (c *Clock) end(unlessWanted bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if unlessWanted && c.wanted {
		return false
	}
	c.ms.Store(0)
	c.seg.Store(nil)
	c.ticking = false
	return true
}

// Stop ends the goroutine and waits for it. Until Reopen the clock still answers,
// with an exact time where a coarse one is asked for.
func (c *Clock) Stop() {
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

// Reopen undoes Stop.
func (c *Clock) Reopen() {
	c.mu.Lock()
	c.closed = false
	c.mu.Unlock()
}

// Mislead has the exact time wrong by d, and stand still, until the next tick. It
// is for tests.
func (c *Clock) Mislead(d time.Duration) {
	c.seg.Store(&segment{time: c.Kernel() + d, valid: math.MaxUint64})
}
