package stack

import (
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"
)

// TestTable inserts many fingerprints, some with one half in common, and finds each again and no other.
func TestTable(t *testing.T) {
	var tab table
	tab.init()
	rng := rand.New(rand.NewPCG(1, 1))
	var entries []*entry
	for i := range 5 * minSlots {
		e := &entry{fingerprint{rng.Uint64N(uint64(2*minSlots)) << 32, uint64(i)}, &Site{id: uint64(i)}}
		if tab.find(e.fingerprint) != nil {
			t.Fatalf("entry %d is found before it is inserted", i)
		}
		tab.insertLocked(e)
		entries = append(entries, e)
		if slots := *tab.slots.Load(); tab.used != i+1 || 2*tab.used > len(slots) {
			t.Fatalf("%d entries in %d slots, after %d insertions", tab.used, len(slots), i+1)
		}
	}
	for i, e := range entries {
		if got := tab.find(e.fingerprint); got != e {
			t.Errorf("entry %d is not found", i)
		}
		for _, h := range []fingerprint{{e.a + 1, e.b}, {e.a, e.b + 5*minSlots}} {
			if got := tab.find(h); got != nil {
				t.Errorf("entry %d is found by a wrong half", i)
			}
		}
	}
}

// TestFingerprint: among a million stacks as alike as a program's are (two or three functions differ,
// by a few bytes or by a power of two) no two have half of their fingerprints in common: not a, and not
// b with the upper half of a. Were these not as good as 64 random bits, some of the 2^39 pairs would.
// (b alone says little of the last frames: its bits come from the frames below.)
func TestFingerprint(t *testing.T) {
	n := 1 << 20
	if testing.Short() {
		n = 1 << 17
	}
	rng := rand.New(rand.NewPCG(1, 6))
	base := make([]uintptr, maxFrames)
	for i := range base {
		base[i] = 0x400000 + uintptr(rng.IntN(1<<24))
	}
	stacks := map[stackKey]bool{}
	as, bs := map[uint64]bool{}, map[fingerprint]bool{}
	for len(stacks) < n {
		key := stackKey(base)
		for range 2 + rng.IntN(2) {
			i := rng.IntN(maxFrames)
			if rng.IntN(2) == 0 {
				key[i] += uintptr(rng.IntN(64))
			} else {
				key[i] ^= 1 << rng.IntN(28)
			}
		}
		if stacks[key] {
			continue
		}
		stacks[key] = true
		h := fingerprintOf(key[:])
		rest := fingerprint{h.a >> 32, h.b}
		if as[h.a] || bs[rest] {
			t.Fatalf("%x has a half of another's fingerprint", key)
		}
		as[h.a], bs[rest] = true, true
	}
}

// TestSpread makes sure that real paths do not crowd in one part of the table.
func TestSpread(t *testing.T) {
	for i := range uint32(4096) {
		fork(i, 12)
	}
	slots := *sites.walked.slots.Load()
	var probes, n int
	for i := range slots {
		if e := slots[i].Load(); e != nil {
			n++
			probes += 1 + (i-int(e.home()))&(len(slots)-1)
		}
	}
	// Linear probing at half full takes 1.5 probes on average if the hash is perfect (Knuth 6.4).
	if mean := float64(probes) / float64(n); n > 0 && mean > 2 {
		t.Errorf("%d entries in %d slots take %.2f probes each", n, len(slots), mean)
	}
}

// TestOther exhausts the cap.
func TestOther(t *testing.T) {
	for _, fast := range []bool{walking.Load(), false} {
		t.Run(strconv.FormatBool(fast), func(t *testing.T) {
			defer walking.Store(walking.Load())
			defer SetMaxSites(DefaultMaxSites)
			walking.Store(fast)
			base := runs.Add(1) * 64
			// One line, so that a path is the same whenever it is visited: 0 is old, 1 to 9 are new.
			var got [4][10]*Site
			for round := range got {
				switch round {
				case 0:
					SetMaxSites(DefaultMaxSites)
				case 1:
					SetMaxSites(sites.walked.used + sites.called.used + 5)
				case 3:
					SetMaxSites(DefaultMaxSites)
				}
				for i := range got[round] {
					if round > 0 || i == 0 {
						got[round][i] = fork(base+uint32(i), 22)
					}
				}
			}
			for i := range 10 {
				if (got[1][i] == Other()) != (i > 5) || got[2][i] != got[1][i] {
					t.Errorf("path %d: sites %d, %d", i, got[1][i].ID(), got[2][i].ID())
				}
				if got[3][i] == Other() || i <= 5 && got[3][i] != got[1][i] {
					t.Errorf("path %d: site %d after the cap was raised", i, got[3][i].ID())
				}
			}
			if got[0][0] == Other() || got[1][0] != got[0][0] {
				t.Error("an old path has lost its site")
			}
			SetMaxSites(0)
			n := testing.AllocsPerRun(100, func() {
				if Capture(0) != Other() {
					t.Error("a new path has a site above the cap")
				}
			})
			if n != 0 {
				t.Errorf("%v allocations above the cap", n)
			}
		})
	}
	if Other().ID() != 0 || len(Other().Frames()) != 0 {
		t.Error("Other is not empty")
	}
}

// TestIntern is what a goroutine gets that was slower than another to intern a path, or to see that
// the cap is reached: the races that TestConcurrentSites may or may not hit.
func TestIntern(t *testing.T) {
	defer SetMaxSites(DefaultMaxSites)
	h := fingerprint{1, uint64(runs.Add(1))}
	first := intern(&sites.called, h, new(Site), true)
	if again := intern(&sites.called, h, new(Site), true); again != first || first == nil {
		t.Error("one path has two sites")
	}
	if again := intern(&sites.called, h, new(Site), false); again != first {
		t.Error("a trusted path lost its site")
	}
	h.a = 2
	SetMaxSites(0)
	if s := intern(&sites.called, h, new(Site), true); s != Other() {
		t.Error("a site above the cap")
	}
}

// TestBrokenChain makes sure that a walk which left the stack is neither served nor stored.
func TestBrokenChain(t *testing.T) {
	key := []uintptr{1, 2, 3}
	h := fingerprintOf(key)
	func() { // stands for Capture
		s := miss(key, h, 8, 0)
		if n := len(s.Frames()); n < 2 || served(s) {
			t.Errorf("%d frames, served by the walk: %v", n, served(s))
		}
	}()
	if sites.walked.find(h) != nil {
		t.Error("the broken chain is in the table")
	}
}

// TestConcurrentSites lets many goroutines see the same new paths at the same time, while the table
// grows: each path must get one site.
func TestConcurrentSites(t *testing.T) {
	const goroutines, paths, depth = 16, 64, 20
	SetMaxSites(1 << 20)
	defer SetMaxSites(DefaultMaxSites)
	base := runs.Add(1) * paths // new paths at every run with -count
	var seen [goroutines][paths]*Site
	var start, done sync.WaitGroup
	start.Add(1)
	for g := range seen {
		done.Go(func() {
			start.Wait()
			for i := range paths {
				j := (i + 7*g) % paths
				seen[g][j] = fork(base+uint32(j), depth)
				seen[g][j].Frames()
			}
		})
	}
	start.Done()
	done.Wait()
	distinct := map[*Site]bool{}
	for i, s := range seen[0] {
		distinct[s] = true
		for g := range seen {
			if seen[g][i] != s || &seen[g][i].Frames()[0] != &s.Frames()[0] {
				t.Errorf("path %d has sites %d and %d", i, s.ID(), seen[g][i].ID())
			}
		}
	}
	if len(distinct) != paths {
		t.Errorf("%d sites of %d paths", len(distinct), paths)
	}
	id := uint64(0)
	for s := range All() {
		if id++; s.ID() != id {
			t.Fatalf("site %d in place %d", s.ID(), id)
		}
	}
}

// runs gives tests paths that no run before has seen, with -count.
var runs atomic.Uint32

func TestNoAllocations(t *testing.T) {
	defer walking.Store(walking.Load())
	for _, fast := range []bool{walking.Load(), false} {
		walking.Store(fast)
		if n := testing.AllocsPerRun(1000, func() { sinkSite = Capture(0) }); n != 0 {
			t.Errorf("walking %v: %v allocations", fast, n)
		}
	}
	s, g := Capture(0), CurrentG()
	s.Frames()
	gs, end := park(1)
	defer end()
	var v View
	if n := testing.AllocsPerRun(1000, func() {
		sinkInt = len(s.Frames())
		s.Holds.Record(1)
		sinkState = g.State()
		gs[0].Look(&v)
		if haveWalk {
			sinkG = CurrentG()
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestMemory holds the documented figures: SetMaxSites says at most 1.3 kB for a site of 32 frames.
func TestMemory(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) < 8 {
		t.Skip("figures are for 64 bits")
	}
	// In the allocator's size classes, with two slots in the table.
	entry, site, pcs := unsafe.Sizeof(entry{}), unsafe.Sizeof(Site{}), uintptr(8*maxFrames)
	if sum := entry + site + 2*pcs + 4*8; sum > 1280 {
		t.Errorf("%d bytes: entry %d, site %d, counters and key %d each", sum, entry, site, pcs)
	}
}

func TestSelf(t *testing.T) {
	h := Self()
	t.Logf("%s/%s: %v, liveness %v, looks %v, reason %q", runtime.GOOS, runtime.GOARCH, h.Capture, h.Liveness, h.Looks, h.Reason)
	if looks := runtime.GOOS == "linux"; haveWalk && (h.Capture != FramePointers || !h.Liveness || h.Looks != looks || (h.Reason == "") != looks) {
		t.Errorf("the self-test failed: %+v", h)
	}
	if !haveWalk && (h.Capture != Callers || h.Liveness || h.Looks || h.Reason == "") {
		t.Errorf("no assembly, but %+v", h)
	}
	if (h.Capture == FramePointers) != walking.Load() {
		t.Errorf("says %v", h.Capture)
	}
}
