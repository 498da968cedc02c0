package stack

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// toReason is the distance of g.waitreason from g.goid: goid, schedlink, waitsince, waitreason have
// been neighbours since Go 1.11. If they are not, learnReasons learns nothing.
const toReason = 24

// reasons are the names of values of g.waitreason, as runtime.Stack has them. Set by init only.
var reasons [256]string

// Reason tells what a parked goroutine waits for, in the words of a stack dump: "chan receive", "chan
// send", "select", "sleep", "sync.Mutex.Lock", "sync.RWMutex.RLock", "sync.RWMutex.Lock", "sync.WaitGroup.Wait",
// "sync.Cond.Wait", or "IO wait". It is empty for all else, and where it is not known.
func (v *View) Reason() string {
	if v.Doing != Parked {
		return ""
	}
	if r := reasons[v.reason]; r != "" {
		return r
	}
	if v.calls("internal/poll.runtime_pollWait") {
		return "IO wait"
	}
	return ""
}

// learnReasons has goroutines wait in each way, and looks what their g says. The numbers differ between
// versions of Go. They are not believed unless each way has its own and all are seen before the deadline.
func learnReasons(deadline time.Time) {
	var mu sync.Mutex
	var read, write sync.RWMutex // write is held by a reader
	var wg sync.WaitGroup
	var ends sync.WaitGroup
	cond := sync.NewCond(new(sync.Mutex))
	in, other, out := make(chan int), make(chan int), make(chan int, 1)
	var over atomic.Bool
	mu.Lock()
	read.Lock()
	write.RLock()
	wg.Add(1)
	out <- 0
	var learnt [256]string
	ok := true
	for _, way := range []struct {
		name string
		wait func()
	}{
		{"sleep", func() {
			for !over.Load() {
				time.Sleep(50 * time.Microsecond)
			}
		}},
		{"chan receive", func() { <-in }},
		{"chan send", func() { out <- 1 }},
		{"select", func() {
			select {
			case <-in:
			case <-other:
			}
		}},
		{"sync.Mutex.Lock", mu.Lock},
		{"sync.RWMutex.RLock", read.RLock},
		{"sync.RWMutex.Lock", write.Lock},
		{"sync.WaitGroup.Wait", wg.Wait},
		{"sync.Cond.Wait", func() {
			cond.L.Lock()
			for !over.Load() {
				cond.Wait()
			}
			cond.L.Unlock()
		}},
	} {
		var v View
		ready := make(chan G)
		ends.Go(func() { ready <- CurrentG(); way.wait() })
		// In between it may wait for the collector (gcAssistAlloc).
		ok = (<-ready).lookUntil(&v, deadline, func() bool { return v.Doing == Parked && !v.calls("runtime.gc") })
		if ok = ok && learnt[v.reason] == ""; !ok {
			break
		}
		learnt[v.reason] = way.name
	}
	close(in)
	<-out
	mu.Unlock()
	read.Unlock()
	write.RUnlock()
	wg.Done()
	cond.L.Lock()
	over.Store(true)
	cond.L.Unlock()
	cond.Broadcast()
	ends.Wait()
	if ok && learnt[0] == "" {
		reasons = learnt
	}
}

// calls tells whether a function whose name begins so is on the stack.
func (v *View) calls(prefix string) bool {
	return slices.ContainsFunc(v.Frames(), func(f Frame) bool { return strings.HasPrefix(f.Function, prefix) })
}
