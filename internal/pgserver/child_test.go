//go:build unix

package pgserver

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// envChild makes the test program a program that holds a server; its value
// says what it does about signals.
const envChild = "BALDUR_PGSERVER_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(envChild); mode != "" {
		if err := child(mode); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	status := m.Run()
	if err := template.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// child starts a server as cmd/baldur does, says so, and holds it until a
// signal or the end of its input.
func child(mode string) error {
	ctx := context.Background()
	if mode == "handles signals" {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt)
		defer stop()
	}
	s, err := Start(ctx, Config{Progress: func(what string) { fmt.Println(what) }})
	if err != nil {
		return err
	}
	defer s.Stop()
	fmt.Println("pid", s.PostmasterPID())
	if mode == "panics" {
		go panic("as the test wants")
	}
	<-ctx.Done()
	return nil
}

// startChild starts a child in a process group of its own, as a shell does,
// and waits until it has said something that begins with the given words.
func startChild(t *testing.T, mode, until string) (child *exec.Cmd, said string) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), envChild+"="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for lines := bufio.NewScanner(output); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), until) {
			go io.Copy(io.Discard, output)
			return cmd, lines.Text()
		}
	}
	t.Fatalf("the child ended before it said %q", until)
	return nil, ""
}

// homeIn returns the one server directory in dir.
func homeIn(t *testing.T, dir string) string {
	t.Helper()
	homes, _ := filepath.Glob(filepath.Join(dir, homePrefix+"*"))
	if len(homes) != 1 {
		t.Fatalf("%s holds %q, want one server's directory", dir, homes)
	}
	return homes[0]
}

func TestInterrupt(t *testing.T) {
	dir := scratch(t)
	start(t, Config{}).Stop() // skips without a PostgreSQL
	for _, moment := range []string{"initialising", "starting", "pid"} {
		t.Run(moment, func(t *testing.T) {
			cmd, _ := startChild(t, "handles signals", moment)
			home := homeIn(t, dir)
			// Ctrl-C reaches the whole group.
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			if !noProcess(home) {
				t.Errorf("a process is left in %s", home)
			}
			wantEmpty(t, dir)
			if moment == "pid" && err != nil {
				t.Errorf("the child: %v", err)
			}
		})
	}
}

// A program that dies without clean-up leaves no process, and its directory
// is removed by the next server.
func TestSuddenDeath(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends a server whose program was killed")
	}
	dir := scratch(t)
	start(t, Config{}).Stop() // skips without a PostgreSQL
	for _, test := range []struct {
		name, mode, moment string
		signal             syscall.Signal
	}{
		{"killed during initdb", "plain", "initialising", syscall.SIGKILL},
		{"killed during start", "plain", "starting", syscall.SIGKILL},
		{"killed", "plain", "pid", syscall.SIGKILL},
		{"interrupt not handled", "plain", "pid", syscall.SIGINT},
		{"panic", "panics", "pid", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd, said := startChild(t, test.mode, test.moment)
			home := homeIn(t, dir)
			if test.signal != 0 {
				if err := syscall.Kill(-cmd.Process.Pid, test.signal); err != nil {
					t.Fatal(err)
				}
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("the child ended well")
			}
			eventually(t, "no process is left in "+home, func() bool { return noProcess(home) })
			var pid int
			if fmt.Sscanf(said, "pid %d", &pid); pid != 0 && alive(pid) {
				t.Errorf("postmaster %d is alive", pid)
			}
			if err := start(t, Config{}).Stop(); err != nil {
				t.Fatal(err)
			}
			wantEmpty(t, dir)
		})
	}
}
