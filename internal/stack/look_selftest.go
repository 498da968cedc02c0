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
	var parked []sample
	end := make(chan struct{})
	defer close(end)
	for _, depth := range []int{0, 3, maxFrames + 8} {
		ready := make(chan sample)
		go parkAt(depth, ready, end)
		parked = append(parked, <-ready)
	}
	if !findSched(parked) {
		return fmt.Errorf("a parked goroutine's frame pointer is not found in the runtime's g")
	}
	looking.Store(true)
	learnReasons()
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
func findSched(parked []sample) bool {
	found := 0
	for self := uintptr(32); self < gSize-48; self += 8 {
		if slices.ContainsFunc(parked, func(s sample) bool {
			return atomic.LoadUintptr((*uintptr)(unsafe.Add(s.g.p, self))) != uintptr(s.g.p)
		}) {
			continue
		}
		for bp := self + 8; bp <= self+40; bp += 8 {
			was := layout
			layout.self, layout.bp = self, bp
			if slices.ContainsFunc(parked, func(s sample) bool { return !s.seen() }) {
				layout = was
			} else {
				found++
			}
		}
	}
	return found == 1
}

// seen tells whether a look finds parkAt and its callers.
func (s *sample) seen() bool {
	var v View
	if !s.g.lookUntil(&v, func() bool { return v.Doing == Parked }) || !v.whole {
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

// lookUntil looks again and again, for no longer than a second.
func (g G) lookUntil(v *View, done func() bool) bool {
	for start := time.Now(); ; runtime.Gosched() {
		v.Doing = g.look(v)
		if done() {
			return true
		}
		if v.Doing != Moved && v.Doing != Running && v.Doing != Parked || time.Since(start) > time.Second {
			return false
		}
	}
}
