//go:build unix

package pqconn

import "syscall"

// CanPeek tells whether Peek works here.
const CanPeek = true

// Peek reads what has arrived, and leaves it there.
func Peek(rc syscall.RawConn, b []byte) (n int, hungUp bool, err error) {
	var e error
	err = rc.Control(func(fd uintptr) {
		n, _, e = syscall.Recvfrom(int(fd), b, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	switch {
	case err != nil:
		return 0, false, err
	case e == syscall.EAGAIN || e == syscall.EINTR:
		return 0, false, nil
	case e != nil:
		return 0, false, e
	}
	return n, n == 0, nil
}
