//go:build (linux || darwin) && gc && !purego && (amd64 || arm64)

package stack

import (
	"syscall"
	"testing"
)

// TestLookSyscall looks at goroutines in a system call.
func TestLookSyscall(t *testing.T) {
	needLooks(t)
	var p [2]int
	if err := syscall.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	ready := make(chan G)
	go func() { ready <- CurrentG(); syscall.Read(p[0], make([]byte, 1)) }()
	g := <-ready
	v := await(g, InSyscall)
	if !v.Whole() || !v.calls("syscall.Read") || !v.calls("github.com/baldur-go/baldur/internal/stack.TestLookSyscall.func1") {
		t.Errorf("whole %v\n%s", v.Whole(), list(v.Frames()))
	}
	syscall.Close(p[1])
	await(g, Ended)
	syscall.Close(p[0])
}

// TestLookFault reads a page that cannot be read: the process must live, and looks be off.
func TestLookFault(t *testing.T) {
	needLooks(t)
	defer restore()()
	a := newArena(t)
	guard := a.base + uintptr(len(a.mem))
	var v View
	if v.readTwice(glance{lo: guard, hi: guard + 4096, sp: guard + 16, bp: guard + 64}) {
		t.Error("the page was read")
	}
	if h := Self(); h.Looks || h.Reason == "" || h.Capture != FramePointers || !h.Liveness {
		t.Errorf("%+v", h)
	}
	if d := CurrentG().Look(&v); d != Unseen || v.Whole() || len(v.Frames()) != 0 {
		t.Errorf("afterwards: %v", d)
	}
}
