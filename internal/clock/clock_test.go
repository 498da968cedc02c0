package clock

import (
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/baldur-go/baldur/internal/tsc"
)

// TestSegments has the counter jump, stop and change its rate at any moment. No
// time by a segment is wrong by more than a tick, or the time since the last look
// if that is longer; none goes back, and with a steady counter each is right to a thousandth of a tick
// from the third look on.
func TestSegments(t *testing.T) {
	const tick = 100 * time.Millisecond
	reads := 0
	var hundred []time.Duration
	for i := range time.Duration(101) {
		hundred = append(hundred, i)
	}
	rapid.Check(t, func(rt *rapid.T) {
		var (
			track  counterTrack
			seg    *segment
			now    = time.Second // the true time
			ticks  = rapid.Uint64().Draw(rt, "counter")
			rate   = rapid.Float64Range(0.2, 5).Draw(rt, "ticks per ns")
			steady int           // looks since the counter was last disturbed
			told   time.Duration // the last time by a segment, while the counter is steady
			seen   int

			looked      time.Duration // at the last look, by true time
			lookedTicks uint64
			rateBefore  float64
		)
		pass := func(d time.Duration) {
			now += d
			ticks += uint64(float64(d) * rate)
		}
		percent := rapid.SampledFrom(hundred) // IntRange would prefer small ones
		disturbed := func() {
			if steady, told = 0, 0; rate == 0 {
				steady = math.MinInt
			}
		}
		actions := map[string]func(*rapid.T){
			"read": func(rt *rapid.T) {
				pass(percent.Draw(rt, "after") * tick / 300)
				if seg == nil {
					return
				}
				got, ok := seg.at(ticks)
				if !ok {
					return
				}
				seen++
				wrong := (got - now).Abs()
				if wrong > max(tick, now-looked) {
					rt.Fatalf("at %v: %v, last looked at %v", now, got, looked)
				}
				if steady >= 3 {
					if wrong > tick/1000 {
						rt.Fatalf("at %v: %v, with a steady counter", now, got)
					}
					if got < told {
						rt.Fatalf("at %v: %v, after %v", now, got, told)
					}
					told = got
				}
			},
			"look": func(rt *rapid.T) {
				pass(tick/2 + percent.Draw(rt, "after")*tick/200)
				// The kernel's clock is read after the counter.
				late := time.Duration(rapid.IntRange(0, 500).Draw(rt, "late"))
				old := seg
				seg = track.look(ticks, now+late, tick)
				steady++
				if old != nil && seg != nil {
					before, ok := old.at(ticks)
					if after, _ := seg.at(ticks); ok && after < before {
						rt.Fatalf("at %v: %v by the segment of before, then %v", now, before, after)
					}
				}
				interval := float64(now-looked) / float64(ticks-lookedTicks)
				if d := math.Abs(interval/rateBefore - 1); seg != nil && !(d < 2*rateTolerance) {
					rt.Fatalf("a rate that has changed by %v is believed", d)
				}
				looked, lookedTicks, rateBefore = now, ticks, interval
				if steady >= 3 && seg == nil {
					rt.Fatal("a steady counter is not believed")
				}
			},
			"jump": func(rt *rapid.T) {
				ticks += uint64(rapid.SampledFrom([]int64{-1e18, -1e9, -1e7, -1e5, 1e5, 1e7, 1e9, 1e18}).Draw(rt, "by"))
				disturbed()
			},
			"rate": func(rt *rapid.T) {
				rate = rapid.OneOf(rapid.Just(0.), rapid.Float64Range(0.2, 5)).Draw(rt, "rate")
				disturbed()
			},
			"idle": func(rt *rapid.T) { // nobody looks, as while the clock is stopped
				pass(time.Duration(rapid.IntRange(1, 1e6).Draw(rt, "ms")) * time.Millisecond)
				seg = nil
			},
		}
		often := rapid.SampledFrom([]string{"look", "look", "look", "look", "read", "read", "read", "read", "jump", "rate", "idle"})
		for range 100 {
			actions[often.Draw(rt, "action")](rt)
		}
		reads += seen
	})
	if reads == 0 {
		t.Error("no time by a segment")
	}
}

// A segment starts at the clock's time, give or take what passes between the
// two readings, after many looks, too.
func TestSegmentsForLong(t *testing.T) {
	const tick = 100 * time.Millisecond
	rnd := rand.New(rand.NewPCG(1, 2))
	var track counterTrack
	for range 4 {
		if track.look(5, time.Second, tick) != nil {
			t.Fatal("a counter that stands still, as the clock does, is believed")
		}
	}
	track = counterTrack{}
	for i := range 1_000_000 {
		now := time.Second + time.Duration(i)*tick
		ticks, late := 3*uint64(now), time.Duration(rnd.IntN(500))
		s := track.look(ticks, now+late, tick)
		if s == nil {
			if i > 1 {
				t.Fatal("a steady counter is not believed")
			}
			continue
		}
		if ahead := s.time - now; ahead < 0 || ahead > 2*time.Microsecond {
			t.Fatalf("look %d: %v ahead", i, ahead)
		}
	}
}

// On this machine, the exact time is the kernel's within a thousandth of a tick,
// on every core, and mostly not asked of the kernel.
func TestClockByCounter(t *testing.T) {
	if !tsc.Trusted(time.Now()) {
		t.Skip("the kernel does not keep its time by the counter here")
	}
	const tick = 20 * time.Millisecond
	c := New(tick, func() bool { return true })
	defer c.Stop()
	c.Coarse()
	for c.seg.Load() == nil {
		runtime.Gosched() // until two looks have agreed; the test's deadline ends it
	}
	var byCounter atomic.Int64
	var all sync.WaitGroup
	const n = 200_000
	for range 4 {
		all.Go(func() {
			for last := time.Duration(0); byCounter.Load() < n && !t.Failed(); {
				before := c.Kernel()
				s := c.seg.Load()
				got := c.Now()
				if s != nil && s == c.seg.Load() {
					byCounter.Add(1)
				}
				if after := c.Kernel(); got < before-tick/1000 || got > after+tick/1000 || got < last-tick/1000 {
					t.Errorf("%v, between %v and %v by the kernel, after %v", got, before, after, last)
				}
				last = got
			}
		})
	}
	all.Wait()
}

// In a bubble the time is not the kernel's, and the counter must not be asked.
func TestClockInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if tsc.Trusted(time.Now()) {
			t.Error("the time of a bubble is taken for the kernel's")
		}
		c := New(100*time.Millisecond, func() bool { return true })
		defer c.Stop()
		for c.Coarse(); c.Kernel() < 20*time.Second; time.Sleep(30 * time.Millisecond) {
			if c.seg.Load() != nil || c.Now() != c.Kernel() {
				t.Fatalf("%v, not %v", c.Now(), c.Kernel())
			}
		}
	})
}

// The clock's goroutine goes on as long as the clock is read, and ends soon after.
func TestClockEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tick = 100 * time.Millisecond
		var ticks atomic.Int64
		c := New(tick, func() bool { ticks.Add(1); return false })
		defer c.Stop()
		c.Coarse()
		c.mu.Lock()
		wake := c.wake
		c.mu.Unlock()
		for range 10 * idleTicks {
			time.Sleep(tick)
			synctest.Wait()
			if lag := c.Kernel() - time.Duration(c.Coarse())*time.Millisecond; lag < 0 || lag > tick {
				t.Fatalf("the coarse time is %v late", lag)
			}
		}
		c.mu.Lock()
		if c.wake != wake || !c.ticking {
			t.Error("another goroutine ticks")
		}
		c.mu.Unlock()
		time.Sleep((idleTicks + 2) * tick)
		synctest.Wait()
		n := ticks.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if c.mu.Lock(); c.ticking || ticks.Load() != n || c.ms.Load() != 0 {
			t.Error("the clock ticks though nobody reads it")
		}
		c.mu.Unlock()
		if c.Coarse(); c.ms.Load() == 0 {
			t.Error("the clock does not start again")
		}
	})
}
