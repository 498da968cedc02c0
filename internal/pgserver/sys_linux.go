package pgserver

import "syscall"

func setParentDeathSignal(attr *syscall.SysProcAttr, sig endSignal) { attr.Pdeathsig = sig }
