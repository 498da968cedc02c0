//go:build !unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// child does not exist on systems where a command cannot be told to end, and
// its descendants be found.
type child struct{ exited chan struct{} }

func startChild(*exec.Cmd, chan<- os.Signal) (*child, error) {
	return nil, fmt.Errorf("running a command on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func (c *child) status() error                 { return nil }
func (c *child) signal(os.Signal)              {}
func (c *child) end(func() time.Duration) bool { return false }
