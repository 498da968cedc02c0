//go:build unix

package main

import (
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

// commandSignals are for a command, beside those that end us.
var commandSignals = []os.Signal{syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// A child is a command that runs in a process group of its own.
type child struct {
	cmd      *exec.Cmd
	terminal bool          // it was given the terminal
	exited   chan struct{} // closed when the command, but maybe not all of the group, has ended
}

// groupPoll is how often to look whether a group is gone, for which there is no event.
const groupPoll = 2 * time.Millisecond

// startChild starts a command. If we are in the terminal's foreground it is from
// now on, since it could not read from there otherwise, and Ctrl-C is for it. From
// before the start to its end signals has what is for the command.
func startChild(cmd *exec.Cmd, signals chan<- os.Signal) (*child, error) {
	c := &child{cmd: cmd, terminal: ownTerminal(), exited: make(chan struct{})}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Foreground: c.terminal, Ctty: int(os.Stdin.Fd())}
	killWithParent(cmd.SysProcAttr)
	// Who is stopped does not renew, and a command that is stopped hangs the
	// terminal. What is ignored stays so in the command.
	signal.Ignore(syscall.SIGTSTP)
	signal.Notify(signals, commandSignals...)
	started := make(chan error)
	go func() {
		// Linux signals the child when the *thread* that started it ends,
		// so this goroutine keeps its thread as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil && c.terminal {
			signal.Ignore(syscall.SIGTTOU) // which could stop us when we write
		}
		started <- err
		if err == nil {
			_ = cmd.Wait()
			c.takeTerminal()
			signal.Reset(commandSignals...)
			close(c.exited)
		}
	}()
	if err := <-started; err != nil {
		c.takeTerminal()
		signal.Reset(commandSignals...)
		return nil, err
	}
	return c, nil
}

// status is how the command has ended; nil: with 0.
func (c *child) status() error {
	code := c.cmd.ProcessState.ExitCode()
	if w, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		code = 128 + int(w.Signal())
	}
	if code == 0 {
		return nil
	}
	return exitStatus(code)
}

// signal signals the group.
func (c *child) signal(s os.Signal) {
	if err := syscall.Kill(-c.cmd.Process.Pid, s.(syscall.Signal)); err != nil && err != syscall.ESRCH {
		say("the command cannot be sent the signal %q: %v", s, err)
	}
}

// end ends all of the group, by SIGTERM, and by SIGKILL when no time is left,
// and returns when the command has ended.
func (c *child) end(left func() time.Duration) (killed bool) {
	if !c.alive() {
		return false
	}
	if left() > 0 {
		c.signal(syscall.SIGTERM)
		c.signal(syscall.SIGCONT) // it may be stopped
	}
	for c.alive() {
		if left() <= 0 {
			c.signal(syscall.SIGKILL)
			killed = true
			break
		}
		time.Sleep(groupPoll)
	}
	<-c.exited
	// Who was killed is gone in a moment; but a process that nobody waits for,
	// as in a container without an init, never looks so.
	for wait := time.Now().Add(time.Second); c.alive() && time.Now().Before(wait); {
		time.Sleep(groupPoll)
	}
	return killed
}

// alive tells whether the group has a process.
func (c *child) alive() bool {
	pid := c.cmd.Process.Pid
	select {
	case <-c.exited: // and waited for: what is left may be for us to wait for, as process 1
		_, _ = syscall.Wait4(-pid, nil, syscall.WNOHANG, nil)
	default:
	}
	return syscall.Kill(-pid, 0) != syscall.ESRCH
}

// ownTerminal tells whether stdin is a terminal, and we are in its foreground.
func ownTerminal() bool {
	var group int32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, os.Stdin.Fd(), syscall.TIOCGPGRP, uintptr(unsafe.Pointer(&group)))
	return errno == 0 && int(group) == syscall.Getpgrp()
}

// takeTerminal takes the terminal back, for whoever started us.
func (c *child) takeTerminal() {
	if !c.terminal {
		return
	}
	signal.Ignore(syscall.SIGTTOU)
	group := int32(syscall.Getpgrp())
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, os.Stdin.Fd(), syscall.TIOCSPGRP, uintptr(unsafe.Pointer(&group)))
	signal.Reset(syscall.SIGTTOU)
}
