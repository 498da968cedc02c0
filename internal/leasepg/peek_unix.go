//go:build unix

package leasepg

import "syscall"

const canPeek = true

// awaitReadable waits until there is something to read, or the peer has hung up,
// and reads nothing. It returns false where the read deadline came first.
func awaitReadable(rc syscall.RawConn) bool {
	ready := false
	err := rc.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		ready = err != syscall.EAGAIN && err != syscall.EINTR
		return ready
	})
	return ready && err == nil
}
