//go:build !unix

package pgserver

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

type endSignal = syscall.Signal

const (
	shutDown = syscall.SIGINT
	quit     = syscall.SIGQUIT
	kill     = syscall.SIGKILL
)

func processAttributes(*account, endSignal) *syscall.SysProcAttr { return nil }

func sendSignal(p *os.Process, _ endSignal) { p.Kill() }

func killGroup(p *os.Process) { p.Kill() }

var errLocked = errors.New("directory is locked")

// lockDir is where Start ends on systems that can neither lock a directory nor
// end a process tree: a server there could stay behind.
func lockDir(string) (*os.File, error) {
	return nil, fmt.Errorf("a throw-away server on %s: %w; give the address of a running one", runtime.GOOS, errors.ErrUnsupported)
}
