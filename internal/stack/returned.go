package stack

import (
	"runtime"
	"slices"
)

// Fate is what has become of a call.
type Fate uint8

const (
	Undecided   Fate = iota // cannot be told
	MaybeActive             // has not returned, or the same callers have made the same call again
	Returned                // has returned, for certain
)

func (f Fate) String() string { return [...]string{"undecided", "maybe active", "returned"}[f] }

// Fate tells whether the call whose frame was s.Frames()[frame] when the site was captured has returned,
// given a look at the goroutine that captured it. It compares the two stacks from their base. While a
// call lasts, its callers' return addresses stay where they are, and above them lies a frame of the
// called function, at whatever line. If one of them differs, the call has returned.
//
// It is Undecided unless the goroutine is Parked, or has Ended, and both stacks are known down to
// their base: the site's has at most 32 physical frames, the goroutine's at most 128, and there is
// no C in them; nor a fault that became a panic, whose frames may be incomplete (see agree).
func (s *Site) Fate(frame int, v *View) Fate {
	if v.Doing == Ended {
		return Returned
	}
	if v.Doing != Parked || !v.whole || frame < 0 {
		return Undecided
	}
	then, level := s.physical(frame)
	if then == nil {
		return Undecided
	}
	now := v.pcs[:v.n]
	callers := s.key[len(s.key)-level:] // the frame itself is the one before
	switch {
	case now[len(now)-1] != s.key[len(s.key)-1]:
		return Undecided // the two must have runtime.goexit in common
	case len(now) > level && slices.Equal(now[len(now)-level:], callers) && sameCall(then, now[len(now)-level-1]):
		return MaybeActive
	case v.calls("runtime.sigpanic"):
		return Undecided
	}
	return Returned
}

// physical returns the logical frames of a physical frame in the site's key, from the one asked for
// outwards, and how many physical frames there are outside of it. It is nil where that is not known.
func (s *Site) physical(frame int) (outwards []runtime.Frame, level int) {
	shown := 0 // as in agree
	for i, pc := range s.key {
		all := expand(pc)
		for j, f := range all {
			if shown < len(s.pcs) && f.PC+1 == s.pcs[shown] {
				if shown == frame {
					return all[j:], len(s.key) - 1 - i
				}
				shown++
			}
		}
	}
	return nil, 0
}

// sameCall tells whether the call of then's innermost logical frame may be active at a return address
// in the same physical place on the stack. Whatever that frame is inlined in must be where it was:
// each inlined call has one address of its own.
func sameCall(then []runtime.Frame, pc uintptr) bool {
	now := expand(pc)
	if len(now) < len(then) {
		return false
	}
	now = now[len(now)-len(then):]
	for i := range then {
		a, b := then[i], now[i]
		if a.Entry != b.Entry || a.Function != b.Function || i > 0 && a.PC != b.PC {
			return false
		}
	}
	return true
}

// expand returns the logical frames at a return address, innermost first.
func expand(pc uintptr) (frames []runtime.Frame) {
	it := runtime.CallersFrames([]uintptr{pc, 0}) // see agree
	for {
		f, more := it.Next()
		frames = append(frames, f)
		if !more {
			return frames
		}
	}
}
