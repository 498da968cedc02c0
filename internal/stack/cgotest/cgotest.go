//go:build cgo

// Package cgotest lets the tests of package stack be called back from C: test files cannot use cgo
// themselves.
package cgotest

/*
#include <stdint.h>

extern void stackCgotestCallback(uintptr_t);

static void callBack(int depth, uintptr_t handle) {
	volatile char frame[64];
	frame[0] = (char)depth;
	if (depth > 0) {
		callBack(depth - 1, handle);
		frame[1] = frame[0];
		return;
	}
	stackCgotestCallback(handle);
}
*/
import "C"

import "runtime/cgo"

// Available tells whether this build has cgo.
const Available = true

// Call calls f from a function in C, a few C frames down.
func Call(f func()) {
	h := cgo.NewHandle(f)
	defer h.Delete()
	C.callBack(3, C.uintptr_t(h))
}

//export stackCgotestCallback
func stackCgotestCallback(handle C.uintptr_t) { cgo.Handle(handle).Value().(func())() }
