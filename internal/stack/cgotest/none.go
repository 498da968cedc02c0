//go:build !cgo

package cgotest

// Available tells whether this build has cgo.
const Available = false

// Call calls f.
func Call(f func()) { f() }
