//go:build !unix

package pqconn

import "syscall"

// CanPeek tells whether Peek and AwaitReadable work here.
const CanPeek = false

// Peek is not known here.
func Peek(syscall.RawConn, []byte) (n int, hungUp bool, err error) { return 0, false, nil }

// AwaitReadable is not known here.
func AwaitReadable(syscall.RawConn) bool { return false }
