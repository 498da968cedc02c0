//go:build !unix

package baldur

import "syscall"

const canPeek = false // candidates poll

func awaitReadable(syscall.RawConn) bool { return false }
