package stack

import (
	"fmt"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"
)

// testLooks finds g.sched and proves looks on goroutines that wait at known places.
func testLooks() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("the stacks of other goroutines are not read on %s", runtime.GOOS)
	}
	if s := os.Getenv("GODEBUG"); strings.Contains(s, "efence=") || strings.Contains(s, "harddecommit=") {
		return fmt.Errorf("the stacks of other goroutines are not read with GODEBUG=%s", s)
	}
	deadline := time.Now().Add(time.Second)
	var parked []sample
	end := make(chan struct{})
	defer close(end)
	for _, depth := range []int{0, 3, maxFrames + 8} {
		ready := make(chan sample)
		go parkAt(depth, ready, end)
		parked = append(parked, <-ready)
	}
	if !findSched(parked, deadline) {
		return fmt.Errorf("a parked goroutine's frame pointer is not found in the runtime's g")
	}
	looking.Store(true)
	learnReasons(deadline)
	return nil
}

// sample is a goroutine and the return addresses of its stack.
type sample struct {
	g   G
	key stackKey
	n   int
}

//go:noinline
func parkAt(depth int, ready chan<- sample, end <-chan struct{}) {
	if depth > 0 {
		parkAt(depth-1, ready, end)
		return
	}
	s := sample{g: CurrentG()}
	s.n, _, _ = walk(&s.key, 0, 0, 0)
	ready <- s
	<-end
}

// findSched sets the offsets of the only words in g which agree with all samples: sched.g, which is g's
// own address, and soon after it sched.bp (gobuf in runtime2.go).
func findSched(parked []sample, deadline time.Time) bool {
	found, proven := 0, layout
	for self := uintptr(32); self < gSize-48; self += 8 {
		if slices.ContainsFunc(parked, func(s sample) bool {
			return atomic.LoadUintptr((*uintptr)(unsafe.Add(s.g.p, self))) != uintptr(s.g.p)
		}) {
			continue
		}
		layout.self, layout.parked = self, 0
		for _, s := range parked {
			var v View
			s.g.lookUntil(&v, deadline, func() bool { return v.Doing == Parked })
			layout.parked = s.g.glance().pc
		}
		if f := runtime.FuncForPC(layout.parked); f == nil || f.Name() != "runtime.gopark" {
			continue
		}
		for layout.bp = self + 8; layout.bp <= self+40; layout.bp += 8 {
			if !slices.ContainsFunc(parked, func(s sample) bool { return !s.seen() }) {
				found++
				proven = layout
			}
		}
	}
	layout = proven
	return found == 1
}

// seen tells whether a look finds parkAt and its callers.
func (s *sample) seen() bool {
	var v View
	if s.g.look(&v); !v.whole {
		return false
	}
	want := s.key[:s.n]
	for i := 1; i+s.n <= v.n; i++ {
		if slices.Equal(v.pcs[i:i+s.n], want) {
			return entryOf(v.pcs[i-1]) == reflect.ValueOf(parkAt).Pointer()
		}
	}
	return false
}

// lookUntil looks again and again, as long as the goroutine is there.
func (g G) lookUntil(v *View, deadline time.Time, done func() bool) bool {
	for g.look(v); !done(); g.look(v) {
		if v.Doing == Unseen || v.Doing == Ended || time.Now().After(deadline) {
			return false
		}
		runtime.Gosched()
	}
	return true
}
