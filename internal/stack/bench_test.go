package stack

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/petermattis/goid"
)

// at calls f depth frames further down.
//
//go:noinline
func at(depth int, f func()) {
	if depth > 0 {
		at(depth-1, f)
		return
	}
	f()
}

// Results go to package variables so that no call is optimised away.
var (
	sinkSite  *Site
	sinkInt   int
	sinkID    int64
	sinkG     G
	sinkState State
	sinkFate  Fate
	sinkLen   atomic.Int64
)

// depths are of the whole stack, in physical frames: the walk stops at 32.
var depths = []int{8, 20, 32, 50}

// framework is the number of frames that are there at depth 0: the closure, at, the benchmark, two
// of package testing, and runtime.goexit.
const framework = 6

func BenchmarkCapture(b *testing.B) {
	for _, depth := range depths {
		b.Run(fmt.Sprint("depth=", depth), func(b *testing.B) {
			b.ReportAllocs()
			at(depth-framework, func() {
				for b.Loop() {
					sinkSite = Capture(0)
				}
			})
		})
	}
}

func BenchmarkCallers(b *testing.B) {
	for _, depth := range depths {
		b.Run(fmt.Sprint("depth=", depth), func(b *testing.B) {
			var pcs [32]uintptr
			b.ReportAllocs()
			at(depth-framework, func() {
				for b.Loop() {
					sinkInt = runtime.Callers(1, pcs[:])
				}
			})
		})
	}
}

// BenchmarkWalk is the part of Capture that depends on the depth.
func BenchmarkWalk(b *testing.B) {
	for _, depth := range depths {
		b.Run(fmt.Sprint("depth=", depth), func(b *testing.B) {
			at(depth-framework, func() {
				for b.Loop() {
					sinkInt, _, _ = walk(nil, 0, 0, 0)
				}
			})
		})
	}
}

// BenchmarkService compares the ways of capturing on a real stack, where runtime.Callers finds less
// in its caches than on a recursion.
func BenchmarkService(b *testing.B) {
	for _, bm := range []struct {
		name string
		f    func()
	}{
		{"Capture", func() { sinkSite = Capture(0) }},
		{"Callers", func() { var pcs [32]uintptr; sinkInt = runtime.Callers(1, pcs[:]) }},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			inService(b, func() {
				for b.Loop() {
					bm.f()
				}
			})
		})
	}
}

// BenchmarkSites captures at stacks 20 deep that differ in their innermost frames, in an order that
// no branch predictor learns.
func BenchmarkSites(b *testing.B) {
	for _, n := range []int{1, 16, 256, 4096} {
		b.Run(fmt.Sprint("n=", n), func(b *testing.B) {
			b.ReportAllocs()
			rng := uint32(1)
			at(20-framework-12, func() {
				for i := range uint32(n) {
					sinkSite = fork(i, 12)
				}
				for b.Loop() {
					rng = rng*1664525 + 1013904223
					sinkSite = fork(rng>>16&uint32(n-1), 12)
				}
			})
		})
	}
}

// BenchmarkSitesCalls is BenchmarkSites without the capture.
func BenchmarkSitesCalls(b *testing.B) {
	for _, n := range []int{1, 16, 256, 4096} {
		b.Run(fmt.Sprint("n=", n), func(b *testing.B) {
			rng := uint32(1)
			for b.Loop() {
				rng = rng*1664525 + 1013904223
				forkOnly(rng>>16&uint32(n-1), 12)
			}
		})
	}
}

// fork captures at a path of depth calls which is different for each of 2^depth values of bits.
//
//go:noinline
func fork(bits uint32, depth int) *Site {
	switch {
	case depth == 0:
		return Capture(0)
	case bits&1 == 0:
		return fork(bits>>1, depth-1)
	}
	return fork(bits>>1, depth-1)
}

//go:noinline
func forkOnly(bits uint32, depth int) *Site {
	switch {
	case depth == 0:
		return nil
	case bits&1 == 0:
		return forkOnly(bits>>1, depth-1)
	}
	return forkOnly(bits>>1, depth-1)
}

func BenchmarkCaptureParallel(b *testing.B) {
	b.RunParallel(func(pb *testing.PB) {
		at(20-framework, func() {
			for pb.Next() {
				if Capture(0) == nil {
					b.Error("nil")
				}
			}
		})
	})
}

func BenchmarkGoid(b *testing.B) {
	for b.Loop() {
		sinkID = goid.Get()
	}
}

func BenchmarkCurrentG(b *testing.B) {
	for b.Loop() {
		sinkG = CurrentG()
	}
}

func BenchmarkState(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprint("goroutines=", n), func(b *testing.B) {
			gs, end := park(n)
			defer end()
			i := 0
			for b.Loop() {
				sinkState = gs[i].State()
				if i += 7919; i >= n { // a stride, so that most looks are cache misses
					i %= n
				}
			}
		})
	}
}

// BenchmarkLook looks at a parked goroutine whose stack is so many frames deep.
func BenchmarkLook(b *testing.B) {
	needLooks(b)
	for _, depth := range depths {
		b.Run(fmt.Sprint("depth=", depth), func(b *testing.B) {
			ready, end := make(chan G), make(chan struct{})
			go recurseThen(depth-6, func() { ready <- CurrentG(); <-end })
			g := <-ready
			v := await(g, Parked)
			if v.n != depth {
				b.Fatal(v.n, " frames")
			}
			b.ReportAllocs()
			for b.Loop() {
				g.Look(v)
			}
			close(end)
		})
	}
}

// BenchmarkFate compares a site of 20 frames with a look.
func BenchmarkFate(b *testing.B) {
	needLooks(b)
	r := newRest()
	go recurseThen(10, func() { takeAndRest(r) })
	_, v := r.look()
	s := taken
	b.ReportAllocs()
	for b.Loop() {
		sinkFate = s.Fate(1, v)
	}
	r.leave()
}

// park starts n goroutines that wait until end is called.
func park(n int) (gs []G, end func()) {
	gs = make([]G, n)
	ready, stop := make(chan struct{}), make(chan struct{})
	for i := range gs {
		go func() {
			gs[i] = CurrentG()
			ready <- struct{}{}
			<-stop
		}()
	}
	for range gs {
		<-ready
	}
	return gs, func() { close(stop) }
}

func BenchmarkRecord(b *testing.B) {
	var h Hist
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			h.Record(200_000)
		}
	})
}

func BenchmarkReport(b *testing.B) {
	s := Capture(0)
	for b.Loop() {
		sinkInt = len(s.Frames())
	}
}
