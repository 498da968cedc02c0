//go:build unix

package pqconn

import "syscall"

// CanPeek tells whether Peek and AwaitReadable work here.
const CanPeek = true

// Peek reads what has arrived, and leaves it there.
func Peek(rc syscall.RawConn, b []byte) (n int, hungUp bool, err error) {
	var e error
	err = rc.Control(func(fd uintptr) { n, e = peek(fd, b) })
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

// AwaitReadable waits until there is something to read, or the peer has hung up,
// and reads nothing. It returns false where the read deadline came first.
func AwaitReadable(rc syscall.RawConn) bool {
	ready := false
	err := rc.Read(func(fd uintptr) bool {
		var b [1]byte
		_, err := peek(fd, b[:])
		ready = err != syscall.EAGAIN && err != syscall.EINTR
		return ready
	})
	return ready && err == nil
}

func peek(fd uintptr, b []byte) (n int, err error) {
	n, _, err = syscall.Recvfrom(int(fd), b, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n, err
}
