package main

import (
	"math/rand/v2"
	"runtime"
)

// A frame is one of 64 functions with frames of different sizes, each of which
// calls the next of a path.
//
// They are many because a recursion flatters runtime.Callers: it looks up each
// return address in tables, and a recursion has one, which stays in its cache.
// They call nothing that is inlined, which costs runtime.Callers more.
type frame func(path []uint8, of *steps)

// steps are what a path's numbers mean.
type steps [end + 1]frame

// end is the number, in a path, of what it leads to.
const end = 64

// leadingTo are the steps whose paths lead to f.
func leadingTo(f frame) *steps {
	t := &steps{end: f}
	copy(t[:], frames[:])
	return t
}

// descend calls f from n frames further down.
func descend(n int, f frame) {
	rng := rand.New(rand.NewPCG(uint64(n), 0))
	path := make([]uint8, n+1)
	for i := range n {
		path[i] = uint8(rng.IntN(end))
	}
	path[n] = end
	t := leadingTo(f)
	t[path[0]](path[1:], t)
}

// sitePaths returns n different paths of two frames.
func sitePaths(n int) [][]uint8 {
	side := 1
	for side*side < n {
		side *= 2
	}
	paths := make([][]uint8, 0, n)
	for i := range n {
		paths = append(paths, []uint8{uint8(i / side), uint8(i % side), end})
	}
	return paths
}

var frames = [end]frame{
	func(p []uint8, t *steps) { var a [8]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [120]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [24]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [136]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [40]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [152]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [56]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [168]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [72]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [184]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [88]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [200]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [104]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [8]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [120]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [24]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [136]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [40]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [152]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [56]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [168]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [72]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [184]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [88]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [200]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [104]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [8]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [120]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [24]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [136]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [40]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [152]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [56]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [168]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [72]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [184]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [88]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [200]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [104]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [8]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [120]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [24]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [136]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [40]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [152]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [56]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [168]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [72]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [184]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [88]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [200]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [104]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [8]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [120]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [24]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [136]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [40]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [152]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [56]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [168]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [72]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [184]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [88]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
	func(p []uint8, t *steps) { var a [200]byte; t[p[0]](p[1:], t); runtime.KeepAlive(&a) },
}
