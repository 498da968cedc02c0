package stack

import (
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
)

// walking tells whether Capture may use walk. Set by init and Disable only.
var walking atomic.Bool

// Capture returns the site of the calling goroutine's stack, whose innermost frame is Capture's
// caller. It is never nil. It does not allocate for a path that has been seen before. One path has
// a site for each tag that it is captured with.
//
// A deferred or go'd Capture has the runtime's frame for its caller.
//
//go:noinline
func Capture(tag uint32) *Site {
	if !walking.Load() {
		return captureCallers(3, tag) // skip runtime.Callers, captureCallers, Capture
	}
	n, h, rest := walk(nil, 0, 0, 0)
	h.b ^= spread(tag)
	if rest == 0 || n == maxFrames {
		if e := sites.walked.find(h); e != nil && e.site != nil {
			return e.site
		}
	}
	// Once more: the stack is the same but for where it lies.
	var key stackKey
	n, h, rest = walk(&key, 0, 0, 0)
	h.b ^= spread(tag)
	return miss(key[:n], h, rest, tag)
}

// spread makes a tag part of a fingerprint.
func spread(tag uint32) uint64 { return uint64(tag) * 0x9E3779B97F4A7C15 }

// miss serves the paths that Capture cannot: new ones, and those the walk cannot be trusted with.
//
//go:noinline
func miss(key []uintptr, h fingerprint, rest uintptr, tag uint32) *Site {
	const skip = 4 // runtime.Callers, the function that calls it, miss, Capture
	whole := rest == 0
	if !whole && len(key) < maxFrames {
		// The chain leaves the goroutine's stack: a callback from C, whose frames lie elsewhere
		// and whose Go callers the key lacks.
		return captureCallers(skip, tag)
	}
	if e := sites.walked.find(h); e != nil {
		if e.site == nil {
			return captureCallers(skip, tag)
		}
		return e.site
	}
	if sites.full.Load() {
		return &other
	}
	pcs := callers(skip)
	covered, ok := agree(key, whole, pcs)
	site := &Site{tag: tag, pcs: slices.Clone(pcs[:covered])}
	if whole {
		site.key = slices.Clone(key)
	}
	if s := intern(&sites.walked, h, site, ok); s != nil {
		return s
	}
	return captureCallers(skip, tag)
}

// captureCallers returns the site of the innermost 32 logical frames as runtime.Callers has them.
func captureCallers(skip int, tag uint32) *Site {
	var key stackKey
	n := runtime.Callers(skip, key[:])
	h := fingerprintOf(key[:n])
	h.b ^= spread(tag)
	if e := sites.called.find(h); e != nil {
		return e.site
	}
	if sites.full.Load() {
		return &other
	}
	return intern(&sites.called, h, &Site{tag: tag, pcs: slices.Clone(key[:n])}, true)
}

// callers returns the innermost logical frames, enough for the physical frames of a key and whatever
// was inlined in them. If it is not, the site has fewer frames.
func callers(skip int) []uintptr {
	pcs := make([]uintptr, 8*maxFrames)
	return pcs[:runtime.Callers(skip, pcs)]
}

// agree tells whether a walk's return addresses are the whole truth about a stack, by comparing
// them with what runtime.Callers found on the same stack, and how many of those logical frames they
// cover: all of them, or those of the physical frames in key if the walk was cut short.
//
// It decides whether key identifies its path for all time. Frames can be missing from a chain of
// frame pointers (assembly without a frame that calls Go), but which ones depends on the functions
// in the chain alone: a key that was right once always is. The exceptions are a signal that became
// a panic (the chain does not tell whether the faulting function had a frame) and C that calls Go.
//
// Frames of key that runtime.Callers leaves out do no harm: wrappers, and the runtime's and
// reflect's own (elideWrapperCalling in traceback.go).
func agree(key []uintptr, whole bool, callers []uintptr) (covered int, ok bool) {
	// The zero at the end is never shown, but without a successor Next would not expand the
	// last address's inlined frames (symtab.go).
	it := runtime.CallersFrames(append(slices.Clone(key), 0))
	for more := true; more; {
		var f runtime.Frame
		f, more = it.Next()
		if f.Function == "runtime.sigpanic" || strings.HasPrefix(f.Function, "runtime.cgocallback") {
			return covered, false
		}
		if covered < len(callers) && f.PC+1 == callers[covered] {
			covered++
		}
	}
	if whole {
		return covered, covered == len(callers)
	}
	// A frame that is missing ends the agreement early. Every second frame may be a wrapper.
	return covered, covered >= maxFrames/2
}
