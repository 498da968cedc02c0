//go:build !unix

package leasepg

import "syscall"

const canPeek = false // candidates poll

func awaitReadable(syscall.RawConn) bool { return false }
