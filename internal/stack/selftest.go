package stack

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"
)

// Mode is a way of capturing stacks.
type Mode uint8

const (
	Callers       Mode = iota // runtime.Callers: 1 to 2 µs a capture
	FramePointers             // the walk: some 50 ns a capture
)

func (m Mode) String() string { return [...]string{"runtime.Callers", "frame pointers"}[m] }

// Health is the outcome of the self-test that runs when the process starts.
type Health struct {
	Capture  Mode
	Liveness bool   // G.State can tell Alive from Exited, and CurrentG is fast
	Looks    bool   // G.Look can tell where a goroutine is
	Reason   string // why one of the three is not available; else empty
}

var health atomic.Pointer[Health]

// Self tells which capture is in use and whether liveness and looks are available, and why not.
func Self() Health { return *health.Load() }

// Disable makes this package read neither stacks nor the runtime's g from now on, as if the self-test had
// failed: Capture uses runtime.Callers, CurrentG a stack dump's first line, at a microsecond each,
// G.State says Unknown and G.Look Unseen. It is for a program that must rule this package out, and
// belongs before the first use: a G from before does not equal one of the same goroutine from after.
// Safe for concurrent use.
func Disable() {
	walking.Store(false)
	living.Store(false)
	looking.Store(false)
	health.Store(&Health{Reason: "disabled by the program"})
}

func init() {
	var h Health
	h.test()
	health.Store(&h)
}

// test tests, and turns on what has passed.
func (h *Health) test() {
	if !haveWalk {
		h.Reason = "no assembly for " + runtime.Compiler + "/" + runtime.GOARCH + " in this build"
		return
	}
	var reasons []string
	note := func(err error) (ok bool) {
		if err != nil {
			reasons = append(reasons, err.Error())
		}
		return err == nil
	}
	if note(testWalk()) {
		walking.Store(true)
		h.Capture = FramePointers
	}
	h.Liveness = note(findLayout())
	if h.Capture == FramePointers && h.Liveness {
		h.Looks = note(testLooks())
	}
	h.Reason = strings.Join(reasons, "; ")
}

// testWalk compares walks with runtime.Callers.
func testWalk() error {
	if lo, sp, hi := bounds(); sp < lo || sp >= hi || hi-lo > 1<<30 {
		return fmt.Errorf("the runtime's g does not start with the bounds of the stack")
	}
	for _, depth := range []int{1, 2, maxFrames + 8} {
		if !nest(depth) {
			return fmt.Errorf("at depth %d the walk differs from runtime.Callers", depth)
		}
	}
	return nil
}

// nest makes the walk pass through plain calls, closures, and interface calls.
//
//go:noinline
func nest(depth int) (ok bool) {
	if depth > 0 {
		func() { ok = viaPointer.nest(depth - 1) }()
		return ok
	}
	return compare()
}

type nester interface{ nest(int) bool }

type deeper struct{}

func (deeper) nest(depth int) bool { return nest(depth) }

// An interface that holds a pointer reaches a value's method by way of a wrapper.
var viaPointer nester = &deeper{}

// compare walks as Capture does, and tells whether runtime.Callers agrees.
//
//go:noinline
func compare() bool {
	var key stackKey
	n, h, rest := walk(&key, 0, 0, 0)
	m, again, _ := walk(nil, 0, 0, 0)
	covered, ok := agree(key[:n], rest == 0, callers(3)) // skip runtime.Callers, callers, compare
	return ok && covered > 0 && m == n && h == again && h == fingerprintOf(key[:n]) && (rest == 0 || n == maxFrames)
}

// findLayout finds the offsets in g by looking for the numbers of three goroutines, and proves
// them on a goroutine that ends.
func findLayout() error {
	id, ok := idOffset()
	if !ok {
		return fmt.Errorf("the goroutine's number is not found in the runtime's g")
	}
	// The status, the lock of the profiler, and the number have been neighbours since Go 1.4.
	layout.id, layout.status = id, id-8
	living.Store(true)
	if !testLayout() {
		living.Store(false)
		return fmt.Errorf("the goroutine's status is not found in the runtime's g")
	}
	return nil
}

// gSize bytes from the start of a g are looked at: less than any version's size since Go 1.4.
const gSize = 256

// idOffset returns the only offset at which each of three goroutines has its own number.
func idOffset() (offset uintptr, ok bool) {
	var found [gSize / 8]int
	look := func() {
		p, id := getg(), slowG().id
		for i := range found {
			if atomic.LoadUint64((*uint64)(unsafe.Add(p, i*8))) == id {
				found[i]++
			}
		}
	}
	look()
	for range 2 {
		done := make(chan struct{})
		go func() { look(); close(done) }()
		<-done
	}
	for i, n := range found {
		if n == 3 {
			if ok || i == 0 {
				return 0, false
			}
			offset, ok = uintptr(i)*8, true
		}
	}
	return offset, ok
}

// testLayout tells whether a goroutine is seen alive while it runs and while it waits, and exited
// once it is gone. The end of a goroutine cannot be waited for, so this yields until it is seen, for
// no longer than a second.
func testLayout() bool {
	self := CurrentG()
	status := atomic.LoadUint32((*uint32)(unsafe.Add(self.p, layout.status))) &^ gScan
	if status != gRunning || self.State() != Alive {
		return false
	}
	ready, end := make(chan G), make(chan struct{})
	go func() { ready <- CurrentG(); <-end }()
	g := <-ready
	if g.id == self.id || g.State() != Alive {
		return false
	}
	close(end)
	for start := time.Now(); g.State() == Alive && time.Since(start) < time.Second; {
		runtime.Gosched()
	}
	return g.State() == Exited && self.State() == Alive
}
