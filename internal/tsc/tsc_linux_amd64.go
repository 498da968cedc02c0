//go:build gc && !purego

package tsc

import (
	"bytes"
	"os"
	"syscall"
	"time"
)

// Read reads the counter. The CPU may do so some tens of ns before or after the
// instructions around it.
func Read() uint64

// Trusted tells whether the kernel takes its own time from the counter at this
// moment, and now, which must be time.Now's, is the kernel's time: not that of
// a testing/synctest bubble. It takes some µs.
func Trusted(now time.Time) bool {
	var tv syscall.Timeval
	if syscall.Gettimeofday(&tv) != nil || now.Sub(time.Unix(tv.Unix())).Abs() > time.Minute {
		return false
	}
	source, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	return err == nil && string(bytes.TrimSpace(source)) == "tsc"
}
