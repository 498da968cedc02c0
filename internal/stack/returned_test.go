package stack

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// A rest is where a goroutine stops, to be looked at from another.
type rest struct{ at, next chan G }

func newRest() rest { return rest{make(chan G), make(chan G)} }

//go:noinline
func (r rest) here() {
	r.at <- CurrentG()
	<-r.next
}

// look waits until somebody rests and returns what a look at it shows.
func (r rest) look() (G, *View) {
	g := <-r.at
	for {
		v := await(g, Parked)
		if v.Reason() == "chan receive" {
			return g, v
		}
	}
}

func (r rest) leave() { r.next <- G{} }

// frameOf returns the frame of a site whose function's name ends so.
func frameOf(t *testing.T, s *Site, suffix string) int {
	t.Helper()
	i := slices.IndexFunc(s.Frames(), func(f Frame) bool { return strings.HasSuffix(f.Function, suffix) })
	if i < 0 {
		t.Fatalf("no %s in\n%s", suffix, list(s.Frames()))
	}
	return i
}

var taken *Site

//go:noinline
func takeHere() { taken = Capture(0) }

func takeInlined() { takeHere() }

//go:noinline
func takeAndRest(r rest) { takeHere(); r.here() }

//go:noinline
func takeTwice(r rest) {
	for range 2 {
		takeAndRest(r)
	}
}

//go:noinline
func takeInlinedAndRest(r rest) {
	takeInlined()
	r.here()
}

func takeThen(r rest, at bool) {
	if at {
		takeHere()
	} else {
		r.here()
	}
}

//go:noinline
func takeThenRestInlined(r rest, at bool) {
	if at {
		takeThen(r, true)
		takeThen(r, false)
	} else {
		for at := range 2 {
			takeThen(r, at == 0) // one inlined call
		}
	}
}

func TestFate(t *testing.T) {
	needLooks(t)
	for _, c := range []struct {
		name string
		f    func(r rest)
		of   map[string]Fate
	}{
		{"in it", takeAndRest, map[string]Fate{".takeHere": Returned, ".takeAndRest": MaybeActive}},
		{"in its caller", func(r rest) { takeAndRestNot(r); r.here() }, map[string]Fate{".takeHere": Returned, ".takeAndRestNot": Returned}},
		{"deeper", takeAndDive, map[string]Fate{".takeHere": Returned, ".takeAndDive": MaybeActive}},
		{"inlined and left", takeInlinedAndRest, map[string]Fate{".takeInlined": Returned, ".takeInlinedAndRest": MaybeActive}},
		{"two inlined calls", func(r rest) { takeThenRestInlined(r, true) }, map[string]Fate{".takeThen": Returned, ".takeThenRestInlined": MaybeActive}},
		{"one inlined call", func(r rest) { takeThenRestInlined(r, false) }, map[string]Fate{".takeThen": MaybeActive, ".takeThenRestInlined": MaybeActive}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRest()
			var g G
			go func() { g = CurrentG(); c.f(r) }()
			_, v := r.look()
			s := taken
			for suffix, want := range c.of {
				i := frameOf(t, s, suffix)
				if got := s.Fate(i, v); got != want {
					t.Errorf("%s: %v, want %v\n%s\nnow\n%s", suffix, got, want, list(s.Frames()), list(v.Frames()))
				}
			}
			if got := s.Fate(len(s.Frames())-1, v); got != MaybeActive {
				t.Errorf("the base: %v", got)
			}
			for _, i := range []int{-1, len(s.Frames())} {
				if got := s.Fate(i, v); got != Undecided {
					t.Errorf("frame %d: %v", i, got)
				}
			}
			if got := Other().Fate(0, v); got != Undecided {
				t.Errorf("of Other: %v", got)
			}
			r.leave()
			if got := s.Fate(0, await(g, Ended)); got != Returned {
				t.Errorf("after the goroutine's end: %v", got)
			}
			if got := s.Fate(0, &View{Doing: Running}); got != Undecided {
				t.Errorf("running: %v", got)
			}
		})
	}
}

//go:noinline
func takeAndRestNot(rest) { takeHere() }

//go:noinline
func takeAndDive(r rest) { takeHere(); recurseThen(50, r.here) }

// TestFateLoop: a function that is called again at the same place may be the same call as far as the
// stack tells; at another place it is not.
func TestFateLoop(t *testing.T) {
	needLooks(t)
	r := newRest()
	go takeTwice(r)
	_, v := r.look()
	first := taken
	if got := first.Fate(frameOf(t, first, ".takeAndRest"), v); got != MaybeActive {
		t.Error(got)
	}
	r.leave()
	_, v = r.look()
	if got := first.Fate(frameOf(t, first, ".takeAndRest"), v); got != MaybeActive || taken != first {
		t.Error("the second call: ", got)
	}
	r.leave()
}

// TestFateDeep: what is deeper than a key or a view is not judged.
func TestFateDeep(t *testing.T) {
	needLooks(t)
	r := newRest()
	go recurseThen(maxFrames, func() { takeAndRest(r) })
	_, v := r.look()
	if got := taken.Fate(0, v); got != Undecided {
		t.Error("the site: ", got)
	}
	r.leave()
	go func() { takeHere(); recurseThen(viewFrames, r.here) }()
	_, v = r.look()
	if got := taken.Fate(0, v); got != Undecided || v.Whole() {
		t.Errorf("the view: %v, whole %v", got, v.Whole())
	}
	r.leave()
}

// TestFateRandom: on random paths, every frame that is active is said to be maybe active. Those of a
// path that was left are said to have returned, except where the new path is the same.
func TestFateRandom(t *testing.T) {
	needLooks(t)
	n := 600
	if testing.Short() {
		n = 100
	}
	rng := rand.New(rand.NewPCG(1, 9))
	var fates [2][3]int // active or left
	random := func() *path {
		p := &path{steps: make([]byte, 1+rng.IntN(8))}
		for i := range p.steps {
			p.steps[i] = byte(rng.UintN(256))
		}
		return p
	}
	for range n {
		p, inner, after := random(), random(), random()
		r := newRest()
		done := make(chan struct{})
		var g G
		var s *Site
		var frames []Frame
		go func() {
			defer close(done)
			p.run(func() {
				g, s = CurrentG(), Capture(0)
				frames = s.Frames()
				inner.run(r.here)
			})
			after.run(r.here)
		}()
		for left := range 2 {
			now, v := r.look()
			if now == g {
				for i, f := range frames {
					fate := s.Fate(i, v)
					fates[left][fate]++
					if left == 0 && fate == Returned {
						t.Errorf("seed 1: %s:%d has not returned: path %v, then %v\n%s\nnow\n%s", f.Function, f.Line, p.names(), inner.names(), list(frames), list(v.Frames()))
					}
				}
			}
			r.leave()
		}
		<-done
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("active: %v, left: %v (undecided, maybe active, returned)", fates[0], fates[1])
	if fates[0][MaybeActive] == 0 || fates[1][Returned] == 0 {
		t.Error("nothing was decided")
	}
}
