//go:build !linux

package main

// pin does nothing: see pin_linux.go.
func pin(int) (unpin func()) { return func() {} }
