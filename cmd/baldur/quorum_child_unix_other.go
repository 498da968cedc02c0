//go:build unix && !linux

package main

import "syscall"

// killWithParent does nothing: only Linux, and FreeBSD in its own way, kill the
// child of a process that was killed.
func killWithParent(*syscall.SysProcAttr) {}
