package lease

import (
	"syscall"
	"time"
	"unsafe"
)

const (
	clockMonotonic = 1
	clockBoottime  = 7
)

// BootTime is the time since the machine booted, including the time for which it was
// suspended. Elsewhere than on Linux it is the clock of package time.
func BootTime() time.Duration { return readClock(clockBoottime) }

// bootGap is how far the clock that runs on in a suspended machine is ahead of the
// one that stops.
func bootGap() time.Duration { return readClock(clockBoottime) - readClock(clockMonotonic) }

func readClock(id uintptr) time.Duration {
	var ts syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0 // before Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}
