//go:build gc && !purego

#include "textflag.h"

// func walk(key *[32]uintptr, fp, lo, hi uintptr) (n int, h fingerprint, rest uintptr)
//
// A leaf of 0 bytes saves neither LR nor the frame pointer, so R29 is still Capture's.
// NOSPLIT assembly is neither preempted nor is its stack moved (preempt.go).
TEXT ·walk(SB), NOSPLIT, $0-64
	MOVD key+0(FP), R0
	MOVD fp+8(FP), R1
	MOVD lo+16(FP), R2
	MOVD hi+24(FP), R3
	CBNZ R3, start
	MOVD R29, R1
	MOVD RSP, R2
	SUB  $16, R2        // Capture's frame pointer is stored just below its RSP
	MOVD 8(g), R3       // g.stack.hi (runtime2.go); g is R28 in either ABI

start:
	SUB  $16, R3        // the last place for a frame pointer and a return address
	MOVD $0, R4
	MOVD $0x9E3779B97F4A7C15, R5
	MOVD R5, R6
	MOVD $0, R9

loop:
	CMP  R2, R1         // the stack grows down: callers' frames are higher
	BLS  done
	CMP  R3, R1
	BHI  done
	TST  $7, R1
	BNE  done
	MOVD 8(R1), R7      // the return address sits above the saved frame pointer
	CBZ  R0, hash
	MOVD R7, (R0)(R4<<3)

hash:
	EOR  R7, R6         // in the shadow of the next load
	UMULH R5, R6, R8
	MUL  R5, R6
	ADD  R8, R9
	MOVD R1, R2
	MOVD (R1), R1
	ADD  $1, R4
	CMP  $32, R4
	BNE  loop

done:
	MOVD R4, n+32(FP)
	MOVD R6, h_a+40(FP)
	MOVD R9, h_b+48(FP)
	MOVD R1, rest+56(FP)
	RET

// func getg() unsafe.Pointer
TEXT ·getg(SB), NOSPLIT, $0-8
	MOVD g, ret+0(FP)
	RET

// func bounds() (lo, sp, hi uintptr)
TEXT ·bounds(SB), NOSPLIT, $0-24
	MOVD 0(g), R0
	MOVD R0, lo+0(FP)
	MOVD RSP, R0
	MOVD R0, sp+8(FP)
	MOVD 8(g), R0
	MOVD R0, hi+16(FP)
	RET

// func fence()
TEXT ·fence(SB), NOSPLIT, $0-0
	DMB $0x9 // ISHLD
	RET
