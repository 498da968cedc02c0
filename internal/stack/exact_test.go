package stack

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
)

// look captures and asks runtime.Callers at the same line.
func look() (*Site, []Frame) {
	pcs := make([]uintptr, 4096)
	s, n := Capture(0), runtime.Callers(1, pcs)
	return s, resolve(pcs[:n])
}

// check returns what is wrong with a site, given what runtime.Callers said.
func check(s *Site, want []Frame) error {
	got := s.Frames()
	if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
		return fmt.Errorf("site %d differs from runtime.Callers:\n%s\nwant\n%s", s.ID(), list(got), list(want))
	}
	// A capped stack keeps 32 physical frames, of which every second can be a wrapper without a
	// logical frame.
	if len(got) < len(want) && len(got) < maxFrames/2 {
		return fmt.Errorf("site %d has %d frames of %d", s.ID(), len(got), len(want))
	}
	return nil
}

func list(frames []Frame) string {
	var b strings.Builder
	for _, f := range frames {
		fmt.Fprintf(&b, "\t%s:%d\n", f.Function, f.Line)
	}
	return b.String()
}

// served tells whether a site is found by the walk.
func served(s *Site) bool {
	slots := *sites.walked.slots.Load()
	for i := range slots {
		if e := slots[i].Load(); e != nil && e.site == s {
			return true
		}
	}
	return false
}

// visitPaths makes n random paths and visits each three times.
func visitPaths(t *testing.T, n int, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	distinct, mismatches := map[*Site]bool{}, 0
	for range n {
		p := &path{steps: make([]byte, 1+rng.IntN(14))}
		for i := range p.steps {
			p.steps[i] = byte(rng.UintN(256))
		}
		var first *Site
		var want []Frame
		for visit := range 3 {
			var s *Site
			p.run(func() { s, want = look() })
			if err := check(s, want); err != nil {
				mismatches++
				t.Errorf("seed %d, path %v, visit %d: %v", seed, p.names(), visit, err)
			}
			if visit == 0 {
				first = s
			}
			if s != first {
				t.Errorf("seed %d, path %v, visit %d: site %d, was %d", seed, p.names(), visit, s.ID(), first.ID())
			}
		}
		distinct[first] = true
		if fast := !slow(want); walking.Load() && fast && !served(first) {
			t.Errorf("path %v: site %d is not served by the walk\n%s", p.names(), first.ID(), list(first.Frames()))
		}
		if slow(first.Frames()) && served(first) {
			t.Errorf("path %v: site %d is served by the walk\n%s", p.names(), first.ID(), list(first.Frames()))
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d paths, %d sites, %d mismatches", n, len(distinct), mismatches)
	if len(distinct) < n*2/3 {
		t.Errorf("only %d sites of %d paths", len(distinct), n)
	}
}

func (p *path) names() []string {
	var names []string
	for _, s := range p.steps {
		names = append(names, ways[int(s)%len(ways)].name)
	}
	return names
}

// slow tells whether the walk must not serve a path: there is a fault in it, or a callback from C.
func slow(frames []Frame) bool {
	return slices.ContainsFunc(frames, func(f Frame) bool {
		return f.Function == "runtime.sigpanic" || strings.HasPrefix(f.Function, "runtime.cgocallback")
	})
}

func TestRandomPaths(t *testing.T) {
	n := 1500
	if testing.Short() {
		n = 200
	}
	visitPaths(t, n, 1)
}

// TestRandomPathsByCallers does the same without the walk.
func TestRandomPathsByCallers(t *testing.T) {
	defer walking.Store(walking.Load())
	walking.Store(false)
	visitPaths(t, 300, 2)
}

// TestEachWay visits each way alone and twice nested, at four depths around the cap.
func TestEachWay(t *testing.T) {
	for i, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			for _, steps := range [][]byte{{byte(i)}, {byte(i), byte(i)}} {
				for depth := range 4 * maxFrames / 3 {
					p := &path{steps: steps}
					for visit := range 2 {
						recurseThen(depth, func() {
							p.run(func() {
								s, want := look()
								if err := check(s, want); err != nil {
									t.Fatalf("depth %d, visit %d: %v", depth, visit, err)
								}
								if walking.Load() && depth == 0 && served(s) == w.slow {
									t.Errorf("served by the walk: %v", served(s))
								}
							})
						})
					}
				}
			}
		})
	}
}

//go:noinline
func recurseThen(depth int, f func()) {
	if depth > 0 {
		recurseThen(depth-1, f)
		return
	}
	f()
}

// TestFaultLines is the case for which paths with a fault must not be served by the walk: two lines
// of one function call a function without a frame, and the chains of frame pointers are equal.
func TestFaultLines(t *testing.T) {
	var at [2]*Site
	for range 3 {
		for line := range at {
			func() {
				defer func() {
					s, want := look()
					if err := check(s, want); err != nil {
						t.Error(err)
					}
					at[line] = s
					_ = recover()
				}()
				fault(nil, line)
			}()
		}
	}
	if at[0] == at[1] {
		t.Error("two lines share a site")
	}
}

// TestGrowingStacks captures in fresh goroutines whose stacks move several times on the way down,
// while the collector runs as often as it can and shrinks them.
func TestGrowingStacks(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	stop := make(chan struct{})
	var gc, wg sync.WaitGroup
	gc.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	for i := range 4 {
		wg.Go(func() {
			for round := range 4 {
				wait(func(done func()) {
					go func() { defer done(); dig(t, 40+10*i, round) }()
				})
			}
		})
	}
	wg.Wait()
	close(stop)
	gc.Wait()
}

//go:noinline
func dig(t *testing.T, depth, round int) {
	var frame [2048]byte
	if depth > 0 {
		dig(t, depth-1, round)
	}
	if depth%8 == round%8 {
		s, want := look()
		if err := check(s, want); err != nil {
			t.Error(err)
		}
	}
	runtime.KeepAlive(&frame)
}

func TestDeepRecursion(t *testing.T) {
	for _, depth := range []int{31, 32, 33, 100, 10_000} {
		recurseThen(depth, func() {
			s, want := look()
			if err := check(s, want[:min(len(want), 100)]); err != nil {
				t.Errorf("depth %d: %v", depth, err)
			}
			if len(s.Frames()) < maxFrames && len(s.Frames()) < len(want) {
				t.Errorf("depth %d: %d frames", depth, len(s.Frames()))
			}
		})
	}
}

// TestCapInlined makes sure that a site which was cut short ends with the whole of its last
// physical frame: level with what was inlined in it.
func TestCapInlined(t *testing.T) {
	for range 2 {
		level(200, func() {
			s, want := look()
			if err := check(s, want); err != nil {
				t.Error(err)
			}
			frames := s.Frames()
			if len(frames) < 2*maxFrames {
				t.Skip("nothing was inlined, or the walk is not used: ", len(frames))
			}
			if last := frames[len(frames)-1]; !strings.HasSuffix(last.Function, ".level") {
				t.Errorf("ends in the middle of a frame:\n%s", list(frames))
			}
		})
	}
}

//go:noinline
func level(depth int, f func()) {
	if depth == 0 {
		f()
		return
	}
	inLevel(depth, f)
}

func inLevel(depth int, f func())  { inLevel2(depth, f) }
func inLevel2(depth int, f func()) { level(depth-1, f) }

func TestService(t *testing.T) {
	for range 2 {
		inService(t, func() {
			s, want := look()
			if err := check(s, want); err != nil {
				t.Error(err)
			}
			if walking.Load() && !served(s) {
				t.Error("not served by the walk")
			}
		})
	}
}
