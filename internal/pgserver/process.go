package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// process is a postmaster with its children.
type process struct {
	pid  int
	log  *serverLog
	cmd  *exec.Cmd
	gone chan struct{} // closed when the postmaster and all its children are gone
}

// startProcess starts a postmaster and returns when it accepts connections.
func startProcess(ctx context.Context, h *home, env []string, path string, args ...string) (*process, error) {
	p := &process{log: &serverLog{ready: make(chan struct{})}, gone: make(chan struct{})}
	p.cmd = command(h, path, args...)
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.SysProcAttr = processAttributes(h.owner, quit)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log

	started := make(chan error)
	go func() {
		// Linux signals the child when the *thread* that started it ends,
		// so this goroutine keeps its thread as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		// Wait returns when the log is at its end, hence when the last
		// process that could write to it is gone: an event for "all gone",
		// which no process table gives.
		p.cmd.Wait()
		close(p.gone)
	}()
	if err := <-started; err != nil {
		return nil, startError(h, path, err)
	}
	p.pid = p.cmd.Process.Pid

	select {
	case <-p.log.ready:
		return p, nil
	case <-p.gone:
		return nil, fmt.Errorf("%s did not start (%s):\n%s", path, p.cmd.ProcessState, p.log)
	case <-ctx.Done():
		err := fmt.Errorf("%s was not ready in time: %w\n%s", path, context.Cause(ctx), p.log)
		return nil, errors.Join(err, p.end(kill, stopTimeout))
	}
}

func (p *process) exited() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// end sends the signal and waits until the processes are gone.
func (p *process) end(sig endSignal, timeout time.Duration) error {
	for _, sig := range []endSignal{sig, quit, kill} {
		sendSignal(p.cmd.Process, sig)
		select {
		case <-p.gone:
			return nil
		case <-time.After(timeout):
		}
	}
	return fmt.Errorf("server process %d is not gone %v after SIGKILL", p.pid, timeout)
}

// run runs a program to its end.
func run(ctx context.Context, h *home, path string, args ...string) error {
	// See startProcess about the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := command(h, path, args...)
	cmd.SysProcAttr = processAttributes(h.owner, kill)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		return startError(h, path, err)
	}
	stopKilling := context.AfterFunc(ctx, func() { killGroup(cmd.Process) })
	defer stopKilling()
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w\n%s", path, err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

// command prepares a program that runs in the server's directory, which it
// holds the lock of: while one process is left nobody takes the directory for stale.
func command(h *home, path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = h.dir
	cmd.ExtraFiles = []*os.File{h.lock}
	cmd.Env = environment()
	return cmd
}

// environment is ours without what would steer PostgreSQL, and with a fixed
// language: the log is read.
func environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(env, "LC_ALL=C", "TZ=UTC")
}

func startError(h *home, path string, err error) error {
	if errors.Is(err, os.ErrPermission) && h.owner != nil {
		return h.owner.cannotRun(path, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// serverLog keeps the end of a server's log and sees when the server is ready.
type serverLog struct {
	ready chan struct{} // closed when the server accepts connections

	mu      sync.Mutex // guards the fields below
	tail    []byte
	isReady bool
}

const (
	readyMessage   = "database system is ready to accept connections"
	standbyMessage = "database system is ready to accept read-only connections"
	logTail        = 64 << 10
)

func (l *serverLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, b...)
	if !l.isReady && (bytes.Contains(l.tail, []byte(readyMessage)) || bytes.Contains(l.tail, []byte(standbyMessage))) {
		l.isReady = true
		close(l.ready)
	}
	if len(l.tail) > 2*logTail {
		l.tail = append([]byte(nil), l.tail[len(l.tail)-logTail:]...)
	}
	return len(b), nil
}

func (l *serverLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(bytes.TrimSpace(l.tail))
}
