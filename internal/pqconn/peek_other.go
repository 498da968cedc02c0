//go:build !unix

package pqconn

import "syscall"

// CanPeek tells whether Peek works here.
const CanPeek = false

// Peek is not known here.
func Peek(syscall.RawConn, []byte) (n int, hungUp bool, err error) { return 0, false, nil }
