package stack

import (
	"runtime"
	"sync"
	"testing"
)

// restore returns a function that undoes Disable.
func restore() func() {
	w, l, k, h := walking.Load(), living.Load(), looking.Load(), health.Load()
	return func() { walking.Store(w); living.Store(l); looking.Store(k); health.Store(h) }
}

func TestDisable(t *testing.T) {
	defer restore()()
	gs, end := park(1)
	defer end()
	// One line, so that the path is the same.
	var sites [2]*Site
	for i := range sites {
		if i == 1 {
			Disable()
		}
		sites[i] = Capture(0)
	}
	if h := Self(); h.Capture != Callers || h.Liveness || h.Looks || h.Reason == "" {
		t.Errorf("%+v", h)
	}
	if served(sites[1]) || len(sites[1].Frames()) != len(sites[0].Frames()) {
		t.Errorf("served by the walk: %v\n%s", served(sites[1]), list(sites[1].Frames()))
	}
	var v View
	if s, d := gs[0].State(), gs[0].Look(&v); s != Unknown || d != Unseen {
		t.Errorf("%v, %v", s, d)
	}
	if g := CurrentG(); g.p != nil || g.ID() != slowG().ID() || g.State() != Unknown || g.Look(&v) != Unseen {
		t.Errorf("%+v", g)
	}
	if f := sites[1].Fate(0, &v); f != Undecided {
		t.Error(f)
	}
}

// TestDisableConcurrent is for the race detector.
func TestDisableConcurrent(t *testing.T) {
	defer restore()()
	gs, end := park(1)
	defer end()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var v View
			for Self().Reason == "" {
				sinkLen.Add(int64(len(Capture(0).Frames())))
				CurrentG()
				gs[0].State()
				gs[0].Look(&v)
				runtime.Gosched()
			}
		})
	}
	runtime.Gosched()
	Disable()
	wg.Wait()
}
