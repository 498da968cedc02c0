package stack

import (
	"iter"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
)

// DefaultMaxSites is the cap on the number of sites unless SetMaxSites changes it.
const DefaultMaxSites = 16384

// Frame is one logical frame of a call path: an inlined call has a frame of its own.
type Frame struct {
	Function string // import path and name, as runtime.Frame has it
	File     string // as compiled: absolute, or relative to the module with -trimpath
	Line     int    // of the call, from 1; 0 if unknown
}

// Site is one distinct call path. There is one object per path for the life of the process, so a
// site can be compared by pointer, and what is known about a path is kept in it.
type Site struct {
	Holds   Hist          // how long connections that were checked out here were held
	Accused atomic.Uint64 // leaks reported; counted by the user of this package

	id     uint64
	tag    uint32
	pcs    []uintptr // as runtime.Callers has them
	key    []uintptr // return addresses of the physical frames down to the goroutine's base; nil: unknown
	frames atomic.Pointer[[]Frame]
}

// ID returns a number that is stable within this process: 1, 2, 3, … in the order in which the
// sites were first seen, and 0 for Other.
func (s *Site) ID() uint64 { return s.id }

// Tag returns what Capture was called with.
func (s *Site) Tag() uint32 { return s.tag }

// GoStatement returns the function and the place of the go statement whose call is this goroutine's
// first function, where that is known. For a call with arguments, a receiver included, the compiler
// makes a function of its own, "main.serve.gowrap1"; runtime.Callers does not show it.
func (s *Site) GoStatement() (Frame, bool) {
	if len(s.key) < 2 {
		return Frame{}, false
	}
	// The last address is in runtime.goexit, the one before it in the first function. Of the address
	// itself a Func tells what was inlined there; its Entry is not in that.
	entry := entryOf(s.key[len(s.key)-2])
	f := runtime.FuncForPC(entry)
	i := strings.LastIndex(f.Name(), ".gowrap")
	if i < 0 {
		return Frame{}, false
	}
	file, line := f.FileLine(entry)
	return Frame{f.Name()[:i], file, line}, true
}

// Frames returns the logical frames, innermost first: the caller of Capture, its caller, and so on
// to the start of the goroutine, or to the innermost 32 physical frames of a deeper stack. It is
// empty for Other. The first call resolves the names (some 5 µs), later ones return the same slice,
// which callers must not modify.
func (s *Site) Frames() []Frame {
	if f := s.frames.Load(); f != nil {
		return *f
	}
	f := resolve(s.pcs)
	s.frames.CompareAndSwap(nil, &f)
	return *s.frames.Load()
}

func resolve(pcs []uintptr) []Frame {
	if len(pcs) == 0 {
		return nil
	}
	frames := make([]Frame, 0, len(pcs))
	it := runtime.CallersFrames(pcs)
	for {
		f, more := it.Next()
		frames = append(frames, Frame{f.Function, f.File, f.Line})
		if !more {
			return frames
		}
	}
}

var other Site

// Other returns the site that stands for every call path which was first seen after the cap on the
// number of sites was reached. It has no frames.
func Other() *Site { return &other }

// sites holds every site, under fingerprints of two kinds.
var sites = struct {
	walked table // by the return addresses that walk found
	called table // by the program counters that runtime.Callers found
	full   atomic.Bool

	mu  sync.Mutex // guards the fields below and all insertions
	max int
	all []*Site
}{max: DefaultMaxSites}

func init() {
	sites.walked.init()
	sites.called.init()
}

// SetMaxSites caps the number of sites at n, from 0; those which exist already remain. Above the
// cap, call paths that have not been seen before yield Other, at the price of a hit. A site takes
// 1 to 1.3 kB, and about as much again once Frames has been called. Safe for concurrent use.
func SetMaxSites(n int) {
	sites.mu.Lock()
	defer sites.mu.Unlock()
	sites.max = n
	sites.full.Store(sites.walked.used+sites.called.used >= n)
}

// All yields the sites that exist at the time of the call, by rising ID, without Other.
func All() iter.Seq[*Site] {
	return func(yield func(*Site) bool) {
		sites.mu.Lock()
		all := sites.all // only ever appended to
		sites.mu.Unlock()
		for _, s := range all {
			if !yield(s) {
				return
			}
		}
	}
}

// intern returns the site of a fingerprint in t, which becomes made if there is none. If trusted is
// false, it records that the walk must not be used on this path, and returns nil.
func intern(t *table, h fingerprint, made *Site, trusted bool) *Site {
	sites.mu.Lock()
	defer sites.mu.Unlock()
	if e := t.find(h); e != nil {
		return e.site // another goroutine was faster
	}
	if sites.full.Load() {
		return &other
	}
	e := &entry{fingerprint: h}
	if trusted {
		made.id = uint64(len(sites.all)) + 1
		e.site = made
		sites.all = append(sites.all, e.site)
	}
	t.insertLocked(e)
	sites.full.Store(sites.walked.used+sites.called.used >= sites.max)
	return e.site
}
