// Package stack records the full call stack of a goroutine in some 20 to 50 ns and without
// allocating, so that it can be done at every checkout of a connection, always.
//
// # Capture
//
// [Capture] follows the chain of frame pointers, a dozen lines of assembly for amd64 and arm64, at
// 1 ns a frame. The return addresses of the innermost 32 physical frames are hashed on the way, to a
// fingerprint of 128 bits. A table of all paths seen so far, read without a lock, leads from there to
// the path's [Site]. The first time a path is seen, [runtime.Callers] is called once and the site made. So a path has one object, names are
// resolved only for a report, and statistics per site come free.
//
// # What is exact
//
// [Site.Frames] equals what runtime.Callers and runtime.CallersFrames say at the same place, function
// by function and line by line, up to the frame at which a deep stack is cut. Beyond that:
//
//   - A path enters the table only if runtime.Callers agreed with the walk on it (agree).
//   - A walk that leaves the goroutine's stack before its end, as in a callback from C, is not used.
//   - Nor is a path on which C calls Go, or with a runtime.sigpanic: a fault in a function without a
//     frame hides the line of its caller.
//   - Two paths are told apart by their fingerprints alone. That any two of 16,384 paths share one has
//     a chance of 2^27 in 2^128, less than that of a fault in the memory they lie in. Comparing all the
//     addresses was tried: it takes 8 ns more, a tenth of what a checkout costs (they have just been
//     stored one by one, and a comparison that loads several at once waits for that), and 256 B a site.
//   - A stack of more than 32 physical frames yields the logical frames of those 32, no more.
//
// Paths that the walk does not serve get their site from runtime.Callers, at 1 to 2 µs, keyed by the
// innermost 32 logical frames. In a library built with -buildmode=c-shared or c-archive, that is
// whatever C calls; the goroutines which that starts are served by the walk as usual.
//
// # What is safe
//
// Capture's walk reads nothing but its own goroutine's stack. It is one assembly function without a
// preemption point, so the stack cannot move under it, and it follows a frame pointer only if that
// is higher than the one before, at most 16 bytes below the upper bound in the runtime's g, and a
// multiple of 8. A broken chain thus ends the walk; it cannot fault, loop, or leave the stack.
//
// [G.Look] reads another goroutine's stack, by the same function and within the same bounds: its comment
// says why that cannot fault either, on Linux. [Disable] rules it all out.
//
// # What is assumed of the runtime
//
// That frame pointers are kept; that g begins with the bounds of the stack; for [G], that g holds the
// goroutine's number with its status 8 bytes before; and for [G.Look], that it holds the frame pointer
// of a goroutine that is parked. The offsets are looked for, and all of it is tested when the process
// starts, in some 0.5 ms. Where a test fails, or there is no assembly (other architectures, other
// compilers, the build tag purego), Capture uses runtime.Callers, [G.State] says [Unknown] and Look
// [Unseen]: slower or less telling, never wrong. [Self] says which.
//
// # Liveness
//
// [CurrentG] names a goroutine; [G.State] tells later, from any goroutine, whether it has ended. It
// reads two words of the runtime's g, which is never freed, instead of stopping the world for a dump
// of all stacks (5 ms for 100 goroutines, 124 ms for 10,000).
//
// # Where a goroutine is
//
// [G.Look] tells what another goroutine does, and the frames and the reason if it waits ([View]), without
// stopping it, in 50 to 100 ns: for a holder of a connection that does not give it back. [Site.Fate] tells
// from that whether the call that took the connection has returned.
//
// # Memory
//
// A site takes 1 to 1.3 kB: its histogram and the rest 640 B, the program counters up to 256 B or a
// little more, the return addresses up to 256 B, its fingerprint and two slots of the table 56 B. Once
// Frames was called, 40 B a frame come on top. [SetMaxSites] caps the number, 16,384 by default (20 MB); paths first seen above the cap share
// the site [Other]. Nothing is ever freed: a path that was taken once is apt to be taken again.
package stack
