//go:build unix

package pgserver

import (
	"errors"
	"os"
	"syscall"
)

// endSignal is a way to end a postmaster (PostgreSQL manual, "Shutting Down the Server").
type endSignal = syscall.Signal

const (
	shutDown = syscall.SIGINT  // fast: clients are disconnected, everything is written out
	quit     = syscall.SIGQUIT // immediate: nothing is written, but all children are ended
	kill     = syscall.SIGKILL
)

// processAttributes gives a child its own process group, which Ctrl-C at the
// terminal does not reach, and its user.
func processAttributes(owner *account, onParentDeath endSignal) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if owner != nil {
		attr.Credential = &syscall.Credential{Uid: uint32(owner.uid), Gid: uint32(owner.gid)}
	}
	setParentDeathSignal(attr, onParentDeath)
	return attr
}

func sendSignal(p *os.Process, sig endSignal) {
	p.Signal(sig)
	p.Signal(syscall.SIGCONT) // a test may have stopped it
}

func killGroup(p *os.Process) { syscall.Kill(-p.Pid, syscall.SIGKILL) }

var errLocked = errors.New("directory is locked")

// lockDir opens and locks a directory of ours. The lock belongs to the open
// file, which children inherit, and ends with its last holder however that dies.
func lockDir(dir string) (*os.File, error) {
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	var opened, named syscall.Stat_t
	if err = syscall.Fstat(fd, &opened); err == nil && int(opened.Uid) != os.Geteuid() {
		err = os.ErrPermission // in a directory for all, another user's
	}
	if err == nil {
		if err = syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB); err == syscall.EWOULDBLOCK {
			err = errLocked
		}
	}
	if err == nil { // it may have been removed before it was locked
		err = syscall.Lstat(dir, &named)
		if err == nil && (opened.Dev != named.Dev || opened.Ino != named.Ino) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: dir, Err: err}
	}
	return f, nil
}
