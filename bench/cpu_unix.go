//go:build unix

package main

import (
	"syscall"
	"time"
)

// measureCPU is the CPU time that this process has used: the server's, which is
// a process of its own, is not in it.
func measureCPU() time.Duration {
	var u syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
