//go:build !linux

package lease

import "time"

// BootTime is the time since this package was loaded, by the monotonic clock of
// package time. On Linux it includes the time for which the machine was suspended.
func BootTime() time.Duration { return time.Since(base) }

// bootGap is not known here.
func bootGap() time.Duration { return 0 }
