//go:build unix && !linux

package pgserver

import "syscall"

func setParentDeathSignal(*syscall.SysProcAttr, endSignal) {}
