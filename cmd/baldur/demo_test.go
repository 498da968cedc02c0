//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/lack"
	"github.com/baldur-go/baldur/internal/pgserver"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// patience is how long a test waits for what must happen, on a busy machine.
const patience = 60 * time.Second

var binary string // of this command

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "baldur-cmd-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "baldur")
	build := []string{"build", "-o", binary}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		build = append(build, "-race")
	}
	if out, err := exec.Command("go", append(build, ".")...).CombinedOutput(); err != nil {
		panic(fmt.Sprintf("go build: %v\n%s", err, out))
	}
	pgtest.Main(m)
}

// A program is a run of the binary. It is killed at the end of the test, and
// must have left nothing behind by then.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	dir    string        // its temporary directory
	stdout io.ReadCloser // to be read by the test
	said   chan string   // the lines of stderr

	mu     sync.Mutex // guards the fields below
	stderr strings.Builder
}

// start runs the binary with a temporary directory of its own, in a process
// group of its own, as a shell does.
func start(t *testing.T, env []string, args ...string) *program {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "baldur-cmd-") // the server's user cannot enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: exec.Command(binary, args...), dir: dir, said: make(chan string, 100)}
	p.cmd.Env = append(os.Environ(), "TMPDIR="+dir, envDSN+"=", "GORACE=atexit_sleep_ms=10")
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if p.stdout, err = p.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	go func() {
		defer close(p.said)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.mu.Lock()
			p.stderr.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			p.said <- lines.Text()
		}
	}()
	return p
}

func (p *program) errors() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// until waits for a line on stderr that begins with the given words.
func (p *program) until(words string) {
	p.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case line, ok := <-p.said:
			if strings.HasPrefix(line, "baldur: "+words) {
				return
			}
			if !ok {
				p.skipWithoutPostgres()
				p.t.Fatalf("the program ended before it said %q:\n%s", words, p.errors())
			}
		case <-timeout:
			p.t.Fatalf("the program does not say %q:\n%s", words, p.errors())
		}
	}
}

// interrupt is Ctrl-C, which reaches the whole group.
func (p *program) interrupt() {
	p.t.Helper()
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil {
		p.t.Fatal(err)
	}
}

// wait returns what the program has printed, and how it ended.
func (p *program) wait() (stdout string, state *os.ProcessState) {
	p.t.Helper()
	kill := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	out, err := io.ReadAll(p.stdout)
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		p.t.Fatal(err)
	}
	for range p.said { // to its end, before Wait closes the pipe
	}
	p.cmd.Wait()
	if !kill.Stop() {
		p.t.Errorf("the program does not end")
	}
	return string(out), p.cmd.ProcessState
}

// ends is wait for a program that is to end with a status.
func (p *program) ends(status int) (stdout string) {
	p.t.Helper()
	stdout, state := p.wait()
	if state.ExitCode() != status {
		if state.ExitCode() == exitFailure {
			p.skipWithoutPostgres()
		}
		p.t.Errorf("the program ended with %v, want exit status %d:\n%s", state, status, p.errors())
	}
	return stdout
}

func (p *program) skipWithoutPostgres() {
	p.t.Helper()
	if !strings.Contains(p.errors(), pgserver.ErrNoPostgres.Error()) {
		return
	}
	lack.Of(p.t, "PostgreSQL", p.errors())
}

// leavesNothing checks that no process and no directory is left of a program.
func (p *program) leavesNothing() {
	p.t.Helper()
	if pids := processesIn(p.dir); pids != nil {
		p.t.Errorf("processes are left: %v", pids)
	}
	if files, err := os.ReadDir(p.dir); err != nil || len(files) > 0 {
		p.t.Errorf("left in the temporary directory: %v (%v)", files, err)
	}
}

// processesIn returns the processes that work in dir, as all of a PostgreSQL
// server do, or have its name in their arguments. It knows of none but on Linux.
func processesIn(dir string) (pids []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		cwd, _ := os.Readlink(proc + "/cwd")
		args, _ := os.ReadFile(proc + "/cmdline")
		if strings.HasPrefix(cwd, dir) || bytes.Contains(args, []byte(dir)) {
			pids = append(pids, filepath.Base(proc))
		}
	}
	return pids
}

// sites returns the lines of the shop with a comment that begins with mark, as
// "shop/orders.go:16".
func sites(t *testing.T, mark string) (lines []string) {
	t.Helper()
	files, err := filepath.Glob("internal/shop/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if strings.Contains(line, " // "+mark+":") {
				lines = append(lines, fmt.Sprintf("shop/%s:%d", filepath.Base(file), i+1))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

var (
	accusation = regexp.MustCompile(`(?m)^LEAK.*?(shop/\w+\.go:\d+)`)
	takenAt    = regexp.MustCompile(` taken at (shop/\w+\.go:\d+)`)
)

// wantAccused checks the text of the demo.
func wantAccused(t *testing.T, text string) {
	t.Helper()
	var accused []string
	for _, m := range accusation.FindAllStringSubmatch(text, -1) {
		accused = append(accused, m[1])
	}
	slices.Sort(accused)
	if want := sites(t, "leak"); len(want) != 4 || !slices.Equal(accused, want) {
		t.Errorf("accused are %v, want %v:\n%s", accused, want, text)
	}
	_, honest, _ := strings.Cut(text, "not accused")
	var listed []string
	for _, m := range takenAt.FindAllStringSubmatch(honest, -1) {
		listed = append(listed, m[1])
	}
	slices.Sort(listed)
	if want := sites(t, "honest"); len(want) != 3 || !slices.Equal(slices.Compact(listed), want) {
		t.Errorf("long-held and not accused are %v, want %v:\n%s", listed, want, text)
	}
}

func TestDemo(t *testing.T) {
	p := start(t, nil)
	stdout := p.ends(0)
	p.leavesNothing()
	wantAccused(t, stdout)
	for _, want := range []string{
		"6 suspected leaks", "of 10 in use", "3 connections taken at",
		"-\tdb, err := sql.Open(\"postgres\", dsn)\n+\tdb, err := sql.Open(\"baldur-pq\", dsn)",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the demo does not say %q:\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout+p.errors(), "\x1b") {
		t.Errorf("there are control codes, and no terminal:\n%q", stdout+p.errors())
	}
	if lines := strings.Count(p.errors(), "\n"); lines < 3 || lines > 8 {
		t.Errorf("progress took %d lines:\n%s", lines, p.errors())
	}
}

func TestDemoJSON(t *testing.T) {
	p := start(t, nil, "demo", "--json")
	stdout := p.ends(0)
	p.leavesNothing()
	type holder struct {
		CallSite struct {
			Function, File string
			Line           int
		} `json:"call_site"`
		StackTrace []any  `json:"stack_trace"`
		Kind       string `json:"kind"`
	}
	var report struct {
		PoolName  string `json:"pool_name"`
		LeakCount int    `json:"leak_count"`
		Stats     struct {
			Max    int `json:"max_connections"`
			Active int `json:"active_connections"`
		}
		Suspected []holder `json:"suspected_leaks"`
		LongHeld  []holder `json:"long_held"`
	}
	decoder := json.NewDecoder(strings.NewReader(stdout))
	if err := decoder.Decode(&report); err != nil {
		t.Fatalf("%v in:\n%s", err, stdout)
	}
	if rest, _ := io.ReadAll(io.MultiReader(decoder.Buffered())); len(bytes.TrimSpace(rest)) > 0 {
		t.Errorf("there is more than the report: %q", rest)
	}
	at := func(holders []holder) (lines []string) {
		for _, h := range holders {
			lines = append(lines, fmt.Sprintf("shop/%s:%d", filepath.Base(h.CallSite.File), h.CallSite.Line))
			if len(h.StackTrace) == 0 || h.Kind == "unknown" {
				t.Errorf("a stack of %d frames, kind %q: %v", len(h.StackTrace), h.Kind, h)
			}
		}
		slices.Sort(lines)
		return slices.Compact(lines)
	}
	if got, want := at(report.Suspected), sites(t, "leak"); !slices.Equal(got, want) {
		t.Errorf("accused are %v, want %v", got, want)
	}
	if got, want := at(report.LongHeld), sites(t, "honest"); !slices.Equal(got, want) {
		t.Errorf("long-held are %v, want %v", got, want)
	}
	if report.PoolName != "orders" || report.LeakCount != 6 || len(report.Suspected) != 6 || report.Stats.Max != 10 || report.Stats.Active < 9 {
		t.Errorf("report: %+v", report)
	}
	if !strings.Contains(stdout, "\n  \"") {
		t.Errorf("the JSON is not indented:\n%.200s", stdout)
	}
}

func TestInterrupt(t *testing.T) {
	for _, moment := range []string{"looking", "initialising", "starting", "running"} {
		t.Run(moment, func(t *testing.T) {
			p := start(t, nil)
			p.until(moment)
			p.interrupt()
			if stdout := p.ends(exitInterrupted); stdout != "" {
				t.Errorf("printed %q", stdout)
			}
			p.leavesNothing()
			if said := p.errors(); !strings.HasSuffix(said, "baldur: interrupted\n") {
				t.Errorf("the last line on stderr is another one:\n%s", said)
			}
		})
	}
	t.Run("reporting", func(t *testing.T) {
		p := start(t, nil)
		if _, err := p.stdout.Read(make([]byte, 1)); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		p.interrupt()
		_, state := p.wait()
		if code := state.ExitCode(); code != 0 && code != exitInterrupted {
			p.skipWithoutPostgres()
			t.Errorf("ended with %v:\n%s", state, p.errors())
		}
		p.leavesNothing()
	})
	t.Run("terminate", func(t *testing.T) {
		p := start(t, nil, "demo", "--json")
		p.until("running")
		p.cmd.Process.Signal(syscall.SIGTERM)
		p.ends(exitInterrupted)
		p.leavesNothing()
	})
}

func TestNobodyReads(t *testing.T) {
	p := start(t, nil)
	p.stdout.Close()
	p.ends(exitFailure)
	p.leavesNothing()
	if strings.Contains(p.errors(), "broken pipe") {
		t.Errorf("the reader knows that it is gone:\n%s", p.errors())
	}
}

// role starts a server and returns the administrator's DSN and that of a role
// that may do no more than make a schema. Its password is "s3cret".
func role(t *testing.T) (server *pgserver.Server, dsn string, admin *sql.DB) {
	t.Helper()
	server, err := pgserver.Start(context.Background(), pgserver.Config{})
	if errors.Is(err, pgserver.ErrNoPostgres) {
		lack.Of(t, "PostgreSQL", err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	admin, err = sql.Open("postgres", server.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	if _, err := admin.Exec("CREATE ROLE clerk LOGIN PASSWORD 's3cret'; GRANT CREATE ON DATABASE postgres TO clerk"); err != nil {
		t.Fatal(err)
	}
	return server, "postgres://clerk:s3cret@" + server.Addr() + "/postgres?sslmode=disable", admin
}

// wantNoTrace checks that nothing is left in a server.
func wantNoTrace(t *testing.T, admin *sql.DB) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		var schemas, tables, sessions int
		err := admin.QueryRow(`SELECT
			(SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'baldur%'),
			(SELECT count(*) FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE rolname = 'clerk'),
			(SELECT count(*) FROM pg_stat_activity WHERE usename = 'clerk')`).Scan(&schemas, &tables, &sessions)
		if err != nil {
			t.Fatal(err)
		}
		if schemas+tables+sessions == 0 {
			return
		}
		// A session ends after its client has gone.
		if schemas+tables > 0 || time.Now().After(end) {
			t.Fatalf("left in the server: %d schemas, %d tables, %d sessions", schemas, tables, sessions)
		}
	}
}

func TestOwnServer(t *testing.T) {
	server, dsn, admin := role(t)
	host, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, dsn string) *program {
		p := start(t, []string{envDSN + "=" + dsn})
		t.Cleanup(func() {
			if strings.Contains(p.errors(), "s3cret") {
				t.Errorf("the password was printed:\n%s", p.errors())
			}
		})
		return p
	}
	for name, dsn := range map[string]string{
		"URL":       dsn + "&search_path=public&baldur_leak_threshold=1h",
		"key=value": "user=clerk password=s3cret sslmode=disable dbname=postgres search_path=public host=" + host + " port=" + port + " application_name=",
	} {
		t.Run(name, func(t *testing.T) {
			p := run(t, dsn)
			stdout := p.ends(0)
			wantAccused(t, stdout)
			p.leavesNothing()
			wantNoTrace(t, admin)
			if strings.Contains(p.errors(), "initialising") {
				t.Errorf("a server was started:\n%s", p.errors())
			}
		})
	}
	for _, moment := range []string{"connecting", "running"} {
		t.Run("interrupt while "+moment, func(t *testing.T) {
			p := run(t, dsn)
			p.until(moment)
			p.interrupt()
			p.ends(exitInterrupted)
			wantNoTrace(t, admin)
		})
	}
	for name, test := range map[string]struct{ dsn, want string }{
		"wrong password": {strings.Replace(dsn, "s3cret", "s3cret2", 1), "password authentication failed"},
		"no URL":         {"postgres://clerk:s3cret%zz@localhost/", "not a valid URL"},
		"no DSN":         {"s3cret", "missing"},
		"unknown":        {dsn + "&baldur_colour=s3cret", "baldur_colour"},
	} {
		t.Run(name, func(t *testing.T) {
			p := run(t, test.dsn)
			if stdout := p.ends(exitFailure); stdout != "" {
				t.Errorf("printed %q", stdout)
			}
			if said := p.errors(); !strings.Contains(said, test.want) || !strings.Contains(said, envDSN+": ") {
				t.Errorf("the error does not say %q of %s:\n%s", test.want, envDSN, said)
			}
		})
	}
	t.Run("forbidden", func(t *testing.T) {
		if _, err := admin.Exec("REVOKE CREATE ON DATABASE postgres FROM clerk"); err != nil {
			t.Fatal(err)
		}
		p := run(t, dsn)
		p.ends(exitFailure)
		if said := p.errors(); !strings.Contains(said, "permission denied") {
			t.Errorf("the error does not say that permission was denied:\n%s", said)
		}
	})
}

// A gate is a TCP proxy that can stop to pass anything on, as a broken network does.
type gate struct {
	listener net.Listener
	closed   chan struct{}
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	g := &gate{listener, make(chan struct{})}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			t.Cleanup(func() { client.Close(); server.Close() })
			go g.pass(server, client)
			go g.pass(client, server)
		}
	}()
	return g
}

func (g *gate) pass(to, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-g.closed: // and so nothing else, not even the end
			return
		default:
		}
		if _, e := to.Write(buf[:n]); err != nil || e != nil {
			to.Close()
			return
		}
	}
}

// The clean-up hangs for 10 s in a network that has broken; a second Ctrl-C
// does not wait for that.
func TestSecondInterrupt(t *testing.T) {
	server, dsn, _ := role(t)
	g := newGate(t, server.Addr())
	p := start(t, []string{envDSN + "=" + strings.Replace(dsn, server.Addr(), g.listener.Addr().String(), 1)})
	p.until("running")
	close(g.closed)
	p.interrupt()
	p.until("cleaning up")
	began := time.Now()
	p.interrupt()
	_, state := p.wait()
	if status, ok := state.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGINT {
		t.Errorf("ended with %v, want by the signal:\n%s", state, p.errors())
	}
	if took := time.Since(began); took > leaveTimeout/2 {
		t.Errorf("it took %v", took)
	}
}

// A server that accepts and then says nothing.
func TestSilentServer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	p := start(t, []string{envDSN + "=postgres://" + listener.Addr().String() + "/x?sslmode=disable"})
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p.interrupt()
	p.ends(exitInterrupted)
}
