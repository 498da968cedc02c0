//go:build gc && !purego

#include "textflag.h"

// func walk(key *[32]uintptr, fp, lo, hi uintptr) (n int, h fingerprint, rest uintptr)
//
// A frame of 0 bytes pushes no frame pointer, so BP is still Capture's.
// NOSPLIT assembly is neither preempted nor is its stack moved (preempt.go).
TEXT ·walk(SB), NOSPLIT, $0-64
	MOVQ  key+0(FP), DI
	MOVQ  fp+8(FP), BX
	MOVQ  lo+16(FP), SI
	MOVQ  hi+24(FP), R12
	TESTQ R12, R12
	JNE   start
	MOVQ  BP, BX
	MOVQ  SP, SI
	MOVQ  (TLS), AX      // g; R14 holds it in ABIInternal only (abi-internal.md)
	MOVQ  8(AX), R12     // g.stack.hi (runtime2.go)

start:
	SUBQ  $16, R12       // the last place for a frame pointer and a return address
	XORL  CX, CX
	MOVQ  $0x9E3779B97F4A7C15, R8
	MOVQ  R8, AX
	XORL  R11, R11

loop:
	CMPQ  BX, SI         // the stack grows down: callers' frames are higher
	JLS   done
	CMPQ  BX, R12
	JHI   done
	TESTQ $7, BX
	JNE   done
	MOVQ  8(BX), R9      // the return address sits above the saved frame pointer
	TESTQ DI, DI
	JEQ   hash
	MOVQ  R9, (DI)(CX*8)

hash:
	XORQ  R9, AX         // in the shadow of the next load
	MULQ  R8             // DX, AX
	ADDQ  DX, R11
	MOVQ  BX, SI
	MOVQ  (BX), BX
	INCQ  CX
	CMPQ  CX, $32
	JNE   loop

done:
	MOVQ CX, n+32(FP)
	MOVQ AX, h_a+40(FP)
	MOVQ R11, h_b+48(FP)
	MOVQ BX, rest+56(FP)
	RET

// func getg() unsafe.Pointer
TEXT ·getg(SB), NOSPLIT, $0-8
	MOVQ (TLS), AX
	MOVQ AX, ret+0(FP)
	RET

// func bounds() (lo, sp, hi uintptr)
TEXT ·bounds(SB), NOSPLIT, $0-24
	MOVQ (TLS), AX
	MOVQ 0(AX), CX
	MOVQ CX, lo+0(FP)
	MOVQ SP, sp+8(FP)
	MOVQ 8(AX), CX
	MOVQ CX, hi+16(FP)
	RET

// func fence()
//
// The processor keeps loads in order, and the compiler keeps them on their side of a call.
TEXT ·fence(SB), NOSPLIT, $0-0
	RET
