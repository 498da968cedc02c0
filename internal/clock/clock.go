package baldur

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/baldur-go/baldur/internal/tsc"
)

// clock gives the time twice: exactly, and coarsely, for one load.
//
// When a call began and ended, and when a row was read, is needed only to say
// "idle for 40 s", so it is told by the coarse time: a goroutine that stores it
// every tick. The goroutine is started by the first reader that finds the clock
// stopped, and ends by itself after a while without work (see run), so an idle
// program has no timer of ours. Rejected: a time.Now per call and row (two
// more than a checkout needs, and 40 ns for every row).
//
// The exact time is the kernel's, or the CPU counter's between two ticks where
// that can be trusted: see clock_counter.go.
type clock struct {
	base   time.Time     // of the times below; a second before the tracker was made, so that no time is 0
	tick   time.Duration // resolution of the coarse time; at most a second
	onTick func() bool   // called after each tick; true: there is work, go on

	ms  atomic.Int64            // the coarse time, ms since base; 0: stopped, or about to
	seg atomic.Pointer[segment] // nil: the exact time is the kernel's

	track counterTrack // of the goroutine

	mu      sync.Mutex // guards the fields below
	closed  bool
	wake    chan struct{} // closed by stop
	ticking bool          // there is a goroutine that has not decided to end
	wanted  bool          // a reader came after the goroutine had stopped the clock
	running sync.WaitGroup
}

const (
	idleTicks  = 16 // without work, after which the clock stops
	trustTicks = 64 // after which it is asked again whether the counter is to be trusted

	sameMoment = 2048 // ticks of the counter, 0.5 to 1 µs: what is read in less belongs together
)

func newClock(tick time.Duration, onTick func() bool) *clock {
	return &clock{base: time.Now().Add(-time.Second), tick: tick, onTick: onTick}
}

// now returns the exact time since base: see clock_counter.go for how exact.
func (c *clock) now() time.Duration {
	if s := c.seg.Load(); s != nil {
		if t, ok := s.at(tsc.Read()); ok {
			return t
		}
	}
	return c.kernel()
}

// kernel returns the exact time by the kernel's clock.
func (c *clock) kernel() time.Duration { return time.Since(c.base) }

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
	ms := c.kernel().Milliseconds()
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
func (c *clock) run(wake <-chan struct{}) {
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
func (c *clock) look(trusted bool) (now time.Duration) {
	if trusted {
		for range 4 { // unless it is interrupted each time
			ticks := tsc.Read()
			now = c.kernel()
			if tsc.Read()-ticks < sameMoment {
				c.seg.Store(c.track.look(ticks, now, c.tick))
				return now
			}
		}
	}
	c.track = counterTrack{}
	c.seg.Store(nil)
	return c.kernel()
}

// halt stops the clock: the next reader starts it.
func (c *clock) halt() {
	c.mu.Lock()
	c.ms.Store(0)
	c.wanted = false
	c.mu.Unlock()
}

// end stops the clock for good, unless it is wanted and may go on.
func (c *clock) end(unlessWanted bool) bool {
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
