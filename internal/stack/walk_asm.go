//go:build gc && !purego && (amd64 || arm64)

package stack

import "unsafe"

const haveWalk = true

// walk follows frame pointers from fp and takes each frame's return address, innermost first, until
// there are maxFrames or the next pointer fails a check. It returns the number of addresses, their
// fingerprint, and that next pointer: 0 at the end of a goroutine's stack. It writes the addresses to
// key unless that is nil.
//
// A pointer is followed only if it is above the one before it (lo for the first), at most hi-16,
// and a multiple of 8: so nothing outside (lo, hi) is ever read, and a chain cannot loop.
// hi = 0 stands for the caller's own frame pointer and stack. The bounds are arguments for the sake
// of the fuzz test; they cannot be fetched by one call and used by another, because the stack may
// move between the two.
//
//go:noescape
func walk(key *stackKey, fp, lo, hi uintptr) (n int, h fingerprint, rest uintptr)

// getg returns the runtime's g of the calling goroutine.
func getg() unsafe.Pointer

// bounds returns the stack pointer and the bounds of the stack, g.stack in runtime2.go. It is for
// the self-test: walk relies on the upper one.
func bounds() (lo, sp, hi uintptr)

// fence makes no load after it come before one that precedes it.
func fence()
