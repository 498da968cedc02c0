package tsc

import (
	"runtime"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	t.Logf("%s/%s, trusted: %v", runtime.GOOS, runtime.GOARCH, Trusted(time.Now()))
	if !Trusted(time.Now()) {
		t.Skip("nothing is said of a counter that is not trusted")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, from := time.Now(), Read()
	for time.Since(began) < 10*time.Millisecond {
	}
	if ns := 1e7 / float64(Read()-from); ns < 0.1 || ns > 10 {
		t.Errorf("a tick of %v ns", ns)
	}
}

// Only the kernel's time can be compared with the kernel's counter.
func TestOtherTime(t *testing.T) {
	if Trusted(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Error("a bubble's time is taken for the kernel's")
	}
}
