package main

import "syscall"

// killWithParent has the kernel kill the child when we die, also by SIGKILL.
func killWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
