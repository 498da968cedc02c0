package stack

import (
	"math/bits"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"unsafe"
)

// Doing is what a goroutine does.
type Doing uint8

const (
	Unseen    Doing = iota // looks are not available, or the runtime has a state that this package does not know
	Moved                  // it changed while it was looked at, or the collector looks at it: look again
	Running                // runs, or is about to
	Parked                 // waits in Go: for a channel, a lock, the network, a timer
	InSyscall              // in a system call or in C
	Ended                  // has ended
)

func (d Doing) String() string {
	return [...]string{"unseen", "moved", "running", "parked", "in a system call", "ended"}[d]
}

// viewFrames is the number of physical frames that a View has room for.
const viewFrames = 4 * maxFrames

// View is what one look at a goroutine has shown. It takes 1 kB and can be used again.
type View struct {
	Doing Doing

	reason uint8
	whole  bool // pcs go down to the goroutine's base
	n      int
	pcs    [viewFrames]uintptr // return addresses, innermost first
}

// looking tells whether Look may read other goroutines' stacks. Set by init, Disable and a fault only.
var looking atomic.Bool

// Look tells in v what the goroutine does and, if it is parked or in a system call, where. It takes
// no lock, stops nothing, waits for nothing, and does not allocate: 50 to 100 ns. What it saw was true
// at one moment during the call. Safe for concurrent use, each with its own View.
//
// A parked goroutine's stack can be woken, moved and freed while it is read. So all that is known of
// the goroutine is read before and after, the stack twice, and any difference is Moved.
//
// Nothing outside of the stack's bounds is read, which are those of one stack: both were the same
// twice, with the goroutine parked. And within them a read cannot fault, even if the stack has been
// freed meanwhile: on Linux the runtime never unmaps memory that held a stack. It goes back to the
// runtime's heap, and from there to the system by madvise, after which it reads as zeros
// (sysUnusedOS in mem_linux.go). GODEBUG settings that change this (efence, harddecommit) make
// looks unavailable, as do other systems: Windows decommits. Should a read fault all the same, the
// fault is caught and looks are off for good.
func (g G) Look(v *View) Doing {
	switch {
	case looking.Load():
		g.look(v)
	case g.State() == Exited:
		v.set(Ended)
	default:
		v.set(Unseen)
	}
	return v.Doing
}

func (g G) look(v *View) {
	if g.p == nil {
		v.set(Unseen)
		return
	}
	before := g.glance()
	v.set(before.doing(g.id))
	if v.Doing != InSyscall && (v.Doing != Parked || before.pc != layout.parked) {
		// What waits by other means than gopark was preempted for the collector, and its chain of frame
		// pointers may lack a frame, or is busy in the runtime, or waits for a coroutine.
		return
	}
	// Until the bounds are the same twice they may be of two stacks.
	if g.glance() != before || !before.plausible() || !v.readTwice(before) {
		v.set(Moved)
		return
	}
	fence()
	if g.glance() != before {
		v.set(Moved)
		return
	}
	v.reason = before.reason
}

// set empties the view.
func (v *View) set(d Doing) { v.Doing, v.reason, v.whole, v.n = d, 0, false, 0 }

// glance is what a g says of its goroutine.
type glance struct {
	status             uint32
	reason             uint8
	id                 uint64
	lo, hi, sp, pc, bp uintptr
}

func (g G) glance() glance {
	word := func(offset uintptr) uintptr { return atomic.LoadUintptr((*uintptr)(unsafe.Add(g.p, offset))) }
	return glance{
		status: atomic.LoadUint32((*uint32)(unsafe.Add(g.p, layout.status))),
		id:     atomic.LoadUint64((*uint64)(unsafe.Add(g.p, layout.id))), // after the status: see State
		reason: uint8(atomic.LoadUint32((*uint32)(unsafe.Add(g.p, layout.id+toReason)))),
		lo:     word(0),
		hi:     word(8),
		sp:     word(layout.self - 16),
		pc:     word(layout.self - 8),
		bp:     word(layout.bp),
	}
}

func (s *glance) doing(id uint64) Doing {
	status := s.status &^ gScan
	switch {
	case s.id != id || status == gDead || status == gDeadExtra:
		return Ended
	case status == gRunnable, status == gRunning, status == gCopying, status == gPreempted:
		return Running
	case status == gWaiting, status == gSyscall, status == gLeaked:
		if s.status&gScan != 0 {
			return Moved // the collector may be moving the stack to a smaller one
		}
		if status == gSyscall {
			return InSyscall
		}
		return Parked
	}
	return Unseen
}

// plausible tells whether the bounds are those of a stack (stackalloc in stack.go) with sp in it.
func (s *glance) plausible() bool {
	size := s.hi - s.lo
	return s.lo != 0 && s.lo < s.hi && bits.OnesCount64(uint64(size)) == 1 && size <= 1<<30 && s.lo < s.sp && s.sp < s.hi
}

// readTwice reads the stack, and tells whether it was the same twice.
func (v *View) readTwice(s glance) (ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil { // nothing here panics, so it was a fault
			h := Self()
			h.Looks, h.Reason = false, "a read of another goroutine's stack has failed"
			health.Store(&h)
			looking.Store(false)
			ok = false
		}
	}()
	n, h, rest := s.read(&v.pcs)
	m, again, end := s.read(nil)
	v.n, v.whole = n, rest == 0 && n > 0 // a goroutine that has not run yet has no frame
	return n == m && h == again && rest == end
}

// read walks the stack from the frame of the function in which the goroutine left the processor.
func (s *glance) read(pcs *[viewFrames]uintptr) (n int, h fingerprint, rest uintptr) {
	// On arm64, where a frame pointer is stored one word below the stack pointer, the first is sp-8.
	fp, lo := s.bp, max(s.sp-16, s.lo)
	for n < viewFrames {
		var key *stackKey
		if pcs != nil {
			key = (*stackKey)(pcs[n:])
		}
		m, part, next := walk(key, fp, lo, s.hi)
		n += m
		h = fingerprint{h.a*31 + part.a, h.b*31 + part.b}
		rest = next
		if m < maxFrames || next == 0 {
			break
		}
		fp, lo = next, fp
	}
	return n, h, rest
}

// Frames returns the logical frames of the last look, innermost first, the runtime's included; none
// unless the goroutine was in a system call or parked, and few of those parked have none: they wait for
// a coroutine (iter.Pull), or the runtime has stopped them for a moment. Names are resolved by each call, in some 5 µs.
func (v *View) Frames() []Frame {
	if v.n == 0 {
		return nil
	}
	frames := resolve(append(slices.Clone(v.pcs[:v.n]), 0)) // see agree
	return slices.DeleteFunc(frames, func(f Frame) bool { return f.File == "<autogenerated>" })
}

// Whole tells whether the frames go down to the goroutine's base. They do unless there are more than
// 128, or C has called Go.
func (v *View) Whole() bool { return v.whole }

// entryOf returns where the physical function begins that a return address is in.
func entryOf(pc uintptr) uintptr {
	if f := runtime.FuncForPC(pc - 1); f != nil {
		return f.Entry()
	}
	return 0
}

// ID identifies the stack that the last look has shown: two looks with the same ID have shown the
// same frames.
func (v *View) ID() [2]uint64 {
	h := fingerprintOf(v.pcs[:v.n])
	return [2]uint64{h.a, h.b}
}
