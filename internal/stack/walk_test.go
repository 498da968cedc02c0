//go:build (linux || darwin) && gc && !purego && (amd64 || arm64)

package stack

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"syscall"
	"testing"
	"unsafe"
)

// arena is a page between two that cannot be read.
type arena struct {
	mem  []byte
	base uintptr
}

func newArena(tb testing.TB) arena {
	page := os.Getpagesize()
	all, err := syscall.Mmap(-1, 0, 3*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		tb.Skip("no memory to map: ", err)
	}
	tb.Cleanup(func() { syscall.Munmap(all) })
	for _, guard := range [][]byte{all[:page], all[2*page:]} {
		if err := syscall.Mprotect(guard, syscall.PROT_NONE); err != nil {
			tb.Skip("no guard pages: ", err)
		}
	}
	mem := all[page : 2*page]
	return arena{mem, uintptr(unsafe.Pointer(&mem[0]))}
}

// word returns the 8 bytes at addr, and false if a single one of them is outside of the page.
func (a arena) word(addr uintptr) (uintptr, bool) {
	i := addr - a.base
	if i > uintptr(len(a.mem)-8) {
		return 0, false
	}
	return uintptr(binary.LittleEndian.Uint64(a.mem[i:])), true
}

// pointer makes of two bytes something to be tried as a frame pointer: mostly an address in the
// page, of any alignment, but also its ends, beyond them, and what is no address at all.
func (a arena) pointer(x uint16) uintptr {
	n := uintptr(len(a.mem))
	special := [...]uintptr{0, 1, 8, ^uintptr(0), ^uintptr(7), ^uintptr(15), 1 << 63, a.base - 8, a.base, a.base + n - 24,
		a.base + n - 16, a.base + n - 15, a.base + n - 8, a.base + n - 1, a.base + n, a.base + n + 8}
	switch {
	case x < uint16(len(special)):
		return special[x]
	case x < 0xE000: // a multiple of 8
		return a.base + uintptr(x)*8%n
	}
	return a.base + uintptr(x)%n
}

// model is the specification of walk.
func (a arena) model(t *testing.T, fp, lo, hi uintptr) (key stackKey, n int, rest uintptr) {
	for n < maxFrames && fp > lo && fp <= hi-16 && fp%8 == 0 {
		pc, ok1 := a.word(fp + 8)
		next, ok2 := a.word(fp)
		if !ok1 || !ok2 {
			t.Fatalf("the specification itself reads %#x, outside of the page at %#x", fp, a.base)
		}
		key[n] = pc
		n++
		lo, fp = fp, next
	}
	return key, n, fp
}

// try fills the page with data, pairs of bytes to words, and compares a walk with the model. A read
// outside of the page ends the process with a fault.
func (a arena) try(t *testing.T, data []byte, start, low, high uint16) {
	clear(a.mem)
	for i := 0; i+1 < len(data) && i*4+8 <= len(a.mem); i += 2 {
		binary.LittleEndian.PutUint64(a.mem[i*4:], uint64(a.pointer(binary.LittleEndian.Uint16(data[i:]))))
	}
	n := uintptr(len(a.mem))
	lo, hi := a.base-1, a.base+n
	if low%2 == 1 {
		lo += uintptr(low) % n
	}
	if high%2 == 1 {
		hi -= uintptr(high) % (n - 16)
	}
	fp := a.pointer(start)
	wantKey, wantN, wantRest := a.model(t, fp, lo, hi)
	var key stackKey
	got, h, rest := walk(&key, fp, lo, hi)
	if n, again, end := walk(nil, fp, lo, hi); n != got || again != h || end != rest {
		t.Errorf("from %#x in (%#x, %#x): %d frames, rest %#x, but without a key %d and %#x", fp, lo, hi, got, rest, n, end)
	}
	if key != wantKey || got != wantN || rest != wantRest || h != fingerprintOf(wantKey[:wantN]) {
		t.Errorf("from %#x in (%#x, %#x): %d frames, rest %#x, want %d frames, rest %#x", fp, lo, hi, got, rest, wantN, wantRest)
	}
}

func FuzzWalk(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint16(0), uint16(0))
	f.Add([]byte{20, 0, 3, 0, 24, 0, 3, 0}, uint16(8), uint16(0), uint16(0))
	a := newArena(f)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	f.Fuzz(func(t *testing.T, data []byte, start, low, high uint16) { a.try(t, data, start, low, high) })
}

// TestWalkRandom is the fuzz test's everyday sister. Half of the chains rise in small steps, so that
// they get far.
func TestWalkRandom(t *testing.T) {
	a := newArena(t)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	rng := rand.New(rand.NewPCG(1, 4))
	words := len(a.mem) / 8
	data := make([]byte, 2*words)
	for range 4000 {
		rising := rng.IntN(2) == 0
		for i := range words {
			x := uint16(rng.UintN(1 << 16))
			if rising && rng.IntN(40) > 0 {
				// The page repeats every so many words: stay below 0xE000, above the special values.
				x = uint16(words + (i+1+rng.IntN(8))%words)
			}
			binary.LittleEndian.PutUint16(data[2*i:], x)
		}
		a.try(t, data, uint16(words+rng.IntN(words)), uint16(rng.UintN(1<<16)), uint16(rng.UintN(1<<16)))
	}
}

// TestWalkBounds walks to the last place that may be read, and is stopped one word before it.
func TestWalkBounds(t *testing.T) {
	a := newArena(t)
	end := a.base + uintptr(len(a.mem))
	var key stackKey
	for _, c := range []struct {
		name       string
		fp, lo, hi uintptr
		n          int
	}{
		{"last", end - 16, a.base, end, 1},
		{"too high", end - 8, a.base, end, 0},
		{"first", a.base, a.base - 1, end, 1},
		{"at lo", a.base, a.base, end, 0},
		{"below", a.base - 8, a.base - 1, end, 0},
		{"unaligned", a.base + 4, a.base - 1, end, 0},
		{"nil", 0, a.base - 1, end, 0},
	} {
		if n, _, _ := walk(&key, c.fp, c.lo, c.hi); n != c.n {
			t.Errorf("%s: %d frames, want %d", c.name, n, c.n)
		}
	}
}
