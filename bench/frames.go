package main

import "math/rand/v2"

//go:generate go run gen.go

// A frame is one of 64 functions with frames of different sizes: it goes on
// along the path and calls f at its end.
//
// They are many because a recursion flatters runtime.Callers: it looks up each
// return address in tables, and a recursion has one, which stays in its cache.
type frame = func(path []uint8, f func())

// descend calls f from n frames further down.
func descend(n int, f func()) {
	rng := rand.New(rand.NewPCG(uint64(n), 0))
	path := make([]uint8, n-1)
	for i := range path {
		path[i] = uint8(rng.IntN(frameCount))
	}
	frames[rng.IntN(frameCount)](path, f)
}

// sitePaths returns n different paths of two frames.
func sitePaths(n int) [][]uint8 {
	side := 1
	for side*side < n {
		side *= 2
	}
	paths := make([][]uint8, 0, n)
	for i := range n {
		paths = append(paths, []uint8{uint8(i / side), uint8(i % side)})
	}
	return paths
}
