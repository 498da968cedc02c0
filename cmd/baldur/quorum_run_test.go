//go:build unix

package main

import (
	"bufio"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// The environment of a worker.
const (
	envWorkerLog  = "BALDUR_TEST_WORKER_LOG"
	envWorkerDeaf = "BALDUR_TEST_WORKER_DEAF"
)

// init is the command that the tests run, in a process of its own, if that is
// what it is started for: TestMain would take a while.
func init() {
	if name := os.Getenv(envWorkerLog); name != "" {
		work(name)
	}
}

// work writes to a file, every millisecond, that it lives. On SIGUSR1 it ends
// with status 7; on SIGTERM and SIGINT with 0, unless it is deaf.
func work(name string) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1)
	note := func(what string) {
		fmt.Fprintln(f, os.Getenv("BALDUR_REGION"), os.Getenv("BALDUR_EPOCH"), int64(baldur.BootTime()), what)
	}
	note("begin")
	fmt.Println("worker of", os.Getenv("BALDUR_LEASE"))
	if os.Getenv(envDSN) != "" {
		note("sees the DSN")
	}
	tooLong := time.After(2 * patience) // it is left behind by a test that fails
	for beat := time.NewTicker(time.Millisecond); ; {
		select {
		case <-tooLong:
			panic("nobody has ended the worker")
		case s := <-signals:
			note(s.String())
			if os.Getenv(envWorkerDeaf) == "" {
				note("end")
				os.Exit(map[os.Signal]int{syscall.SIGUSR1: 7}[s])
			}
		case <-beat.C:
			note("beat")
		}
	}
}

// note is a line of a worker. Its time is by a clock that all processes share.
type note struct {
	region string
	epoch  int64
	at     time.Duration
	what   string
}

// workers is what the workers of a test have written.
type workers struct {
	t        *testing.T
	file     string
	programs []*program
}

func newWorkers(t *testing.T) *workers {
	return &workers{t: t, file: filepath.Join(t.TempDir(), "log")}
}

// run starts a baldur quorum run of a worker.
func (w *workers) run(dsn, region string, env []string, flags ...string) *program {
	w.t.Helper()
	return w.runCommand(dsn, region, env, flags, os.Args[0])
}

func (w *workers) runCommand(dsn, region string, env, flags []string, command ...string) *program {
	w.t.Helper()
	args := slices.Concat([]string{"quorum", "run", "--lease", "the lease", "--region", region}, flags, []string{"--"}, command)
	p := start(w.t, append([]string{envDSN + "=" + dsn, envWorkerLog + "=" + w.file}, env...), args...)
	w.programs = append(w.programs, p)
	return p
}

// said returns what the programs have said on stderr.
func (w *workers) said() (all string) {
	for _, p := range w.programs {
		all += fmt.Sprintf("%q: %s\n", p.cmd.Args[6:], p.errors())
	}
	return all
}

func (w *workers) notes() (notes []note) {
	w.t.Helper()
	f, err := os.Open(w.file)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var n note
		if _, err := fmt.Sscan(lines.Text(), &n.region, &n.epoch, &n.at, &n.what); err != nil {
			continue // cut off by a SIGKILL, or not written to its end yet
		}
		n.what = strings.SplitN(lines.Text(), " ", 4)[3]
		notes = append(notes, n)
	}
	return notes
}

// of returns the notes of a region.
func (w *workers) of(region string) []note {
	return slices.DeleteFunc(w.notes(), func(n note) bool { return n.region != region })
}

// until waits for a note, and returns it.
func (w *workers) until(region, what string, more ...func(note) bool) note {
	w.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, n := range w.of(region) {
			if n.what == what && (more == nil || more[0](n)) {
				return n
			}
		}
	}
	w.t.Fatalf("no worker of region %s has noted %q; said was:\n%s", region, what, w.said())
	return note{}
}

// apart checks that no two workers of different epochs have lived at once.
func (w *workers) apart() {
	w.t.Helper()
	var last note
	for _, n := range w.notes() { // in the order in which they were written
		if n.epoch < last.epoch {
			w.t.Fatalf("after %v there is %v: two workers at once", last, n)
		}
		last = n
	}
}

// wantSaid checks what a program has said on stderr, line by line.
func wantSaid(t *testing.T, p *program, want ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(p.errors(), "\n"), "\n")
	if len(lines) != len(want) {
		t.Errorf("said %q, want %d lines", lines, len(want))
		return
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, "baldur: "+want[i]) {
			t.Errorf("said %q, want %q", line, want[i])
		}
	}
}

const (
	saidPrimary = `primary of lease "the lease", epoch `
	saidWaiting = `waiting for lease "the lease", which region "`
	saidLost    = `lease "the lease" of epoch `
	saidKept    = `the command has ended; lease "the lease" is kept for another `
	saidKilled  = "the command did not end in time and was killed"
)

func TestQuorumRun(t *testing.T) {
	server := pgtest.Server(t)
	t.Setenv(pgtest.EnvDSN, server.DSN("postgres")) // which has a password

	t.Run("hand-over", func(t *testing.T) {
		w, dsn := newWorkers(t), pgtest.DSN(t)
		first := w.run(dsn, "first", nil)
		w.until("first", "begin")
		second := w.run(dsn, "second", nil)
		second.until(saidWaiting)
		first.cmd.Process.Signal(syscall.SIGUSR1)
		second.until(saidPrimary)
		primary := baldur.BootTime()
		begin, end := w.until("second", "begin"), w.until("first", "end")
		if stdout := first.ends(7); stdout != "worker of the lease\n" {
			t.Errorf("the command's output has become %q", stdout)
		}
		t.Logf("%v from the end of the command to another primary, whose command worked %v later", primary-end.at, begin.at-primary)
		if d := begin.at - end.at; d > baldur.DefaultLeaseTTL/2 {
			t.Errorf("it took %v", d)
		}
		second.cmd.Process.Signal(syscall.SIGTERM)
		w.until("second", "terminated")
		second.ends(0)
		w.apart()
		wantSaid(t, first, saidPrimary)
		wantSaid(t, second, saidWaiting, saidPrimary)
		for _, n := range w.notes() {
			if n.what == "sees the DSN" {
				t.Errorf("the command %s", n.what)
			}
		}
	})

	t.Run("killed", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("the command lives on")
		}
		const ttl = 2 * time.Second
		w, dsn := newWorkers(t), pgtest.DSN(t)
		first := w.run(dsn, "first", nil, "--ttl", ttl.String())
		w.until("first", "begin")
		second := w.run(dsn, "second", nil, "--ttl", ttl.String())
		second.until(saidWaiting)
		killed := baldur.BootTime()
		first.cmd.Process.Kill()
		second.until(saidPrimary)
		took := baldur.BootTime() - killed
		w.until("second", "begin")
		notes := w.of("first")
		last := notes[len(notes)-1]
		t.Logf("the command died %v after baldur, another was primary after %.2f TTL", last.at-killed, took.Seconds()/ttl.Seconds())
		if took > ttl*134/100 {
			t.Errorf("a successor after %v", took)
		}
		second.cmd.Process.Signal(syscall.SIGTERM)
		second.ends(0)
		w.apart()
	})

	// The network falls silent. The command does not care for SIGTERM; and it is
	// not the leader of its group, which SIGTERM ends.
	t.Run("lost", func(t *testing.T) {
		const ttl, grace = time.Second, 200 * time.Millisecond
		w := newWorkers(t)
		silent, proxy := pgtest.Proxy(t)
		direct := strings.Replace(silent, proxy.Addr(), server.Addr(), 1)
		flags := []string{"--ttl", ttl.String(), "--grace", grace.String()}
		first := w.runCommand(silent, "first", []string{envWorkerDeaf + "=1"}, flags, "sh", "-c", os.Args[0]+"; true")
		w.until("first", "begin")
		second := w.run(direct, "second", nil, flags...)
		second.until(saidWaiting)
		proxy.Freeze(faultproxy.Both)
		first.ends(75)
		begin := w.until("second", "begin")
		term := w.until("first", "terminated")
		notes := w.of("first")
		last := notes[len(notes)-1]
		t.Logf("lived for %v after SIGTERM, another began %v later", last.at-term.at, begin.at-last.at)
		if lived := last.at - term.at; lived < grace/2 || lived > grace+ttl/4 {
			t.Errorf("lived for %v after SIGTERM, want %v", lived, grace)
		}
		wantSaid(t, first, saidPrimary, "the lease cannot be renewed now: ", saidLost, saidKilled)
		second.cmd.Process.Signal(syscall.SIGINT)
		w.until("second", "interrupt")
		second.ends(0)
		w.apart()
	})

	t.Run("again", func(t *testing.T) {
		w := newWorkers(t)
		dsn, proxy := pgtest.Proxy(t)
		p := w.run(dsn, "only", nil, "--ttl", "1s", "--again")
		begin := w.until("only", "begin")
		proxy.Freeze(faultproxy.Both)
		w.until("only", "end")
		proxy.Unfreeze(faultproxy.Both)
		w.until("only", "begin", func(n note) bool { return n.epoch > begin.epoch })
		p.cmd.Process.Signal(syscall.SIGTERM)
		p.ends(0)
		w.apart()
	})

	// Nobody can help that the command lives on while baldur is stopped; but as
	// soon as it goes on, the command has no grace left.
	t.Run("stopped", func(t *testing.T) {
		const ttl = time.Second
		w, dsn := newWorkers(t), pgtest.DSN(t)
		first := w.run(dsn, "first", nil, "--ttl", ttl.String(), "--grace", "300ms")
		w.until("first", "begin")
		second := w.run(dsn, "second", nil, "--ttl", ttl.String())
		second.until(saidWaiting)
		first.cmd.Process.Signal(syscall.SIGSTOP)
		w.until("second", "begin")
		first.cmd.Process.Signal(syscall.SIGCONT)
		went := baldur.BootTime()
		first.ends(75)
		notes := w.of("first")
		for _, n := range notes {
			if n.what == "terminated" {
				t.Error("there was a grace")
			}
		}
		t.Logf("lived for %v after baldur went on", notes[len(notes)-1].at-went)
		if !strings.HasSuffix(first.errors(), "baldur: "+saidKilled+"\n") {
			t.Errorf("said %s", first.errors())
		}
		second.cmd.Process.Signal(syscall.SIGTERM)
		second.ends(0)
	})

	t.Run("left behind", func(t *testing.T) {
		w, dsn := newWorkers(t), pgtest.DSN(t)
		p := w.runCommand(dsn, "only", nil, nil, "sh", "-c", os.Args[0]+" & while ! [ -s $"+envWorkerLog+" ]; do sleep 0.01; done; exit 3")
		p.ends(3)
		if notes := w.notes(); notes[len(notes)-1].what != "end" {
			t.Errorf("ended with %q", notes[len(notes)-1].what)
		}
	})

	t.Run("waiting", func(t *testing.T) {
		w, dsn := newWorkers(t), pgtest.DSN(t)
		first := w.run(dsn, "first", nil)
		w.until("first", "begin")
		for _, wait := range []string{"0", "300ms"} {
			p := w.run(dsn, "second", nil, "--wait", wait)
			p.ends(1)
			if !strings.HasSuffix(p.errors(), fmt.Sprintf(": region \"first\" has it (epoch %d)\n", w.until("first", "begin").epoch)) {
				t.Error(p.errors())
			}
		}
		p := w.run(dsn, "second", nil)
		p.until(saidWaiting)
		p.cmd.Process.Signal(syscall.SIGTERM)
		p.ends(exitInterrupted)
		first.cmd.Process.Signal(syscall.SIGTERM)
		first.ends(0)
		if len(w.of("second")) > 0 {
			t.Error("the second command was run")
		}
		w.runCommand(dsn, "second", nil, []string{"--wait", "0"}, "true").ends(0)
	})

	// Case 15: what cron starts on a second node when the job of the first one is done.
	t.Run("hold at least", func(t *testing.T) {
		for name, test := range map[string]struct {
			command string
			status  int
		}{"done": {"true", 0}, "failed": {"exit 9", 9}} {
			t.Run(name, func(t *testing.T) {
				w, dsn := newWorkers(t), pgtest.DSN(t)
				began := time.Now()
				first := w.runCommand(dsn, "first", nil, []string{"--wait", "0", "--hold-at-least", "3s"}, "sh", "-c", test.command)
				first.until(saidKept)
				second := w.runCommand(dsn, "second", nil, []string{"--wait", "0", "--hold-at-least", "3s"}, "false")
				second.ends(1)
				wantSaid(t, second, `quorum run: lease "the lease" is not to be had now: region "first" has it`)
				first.ends(test.status)
				if d := time.Since(began); d < 3*time.Second {
					t.Errorf("held for %v", d)
				}
				w.runCommand(dsn, "second", nil, []string{"--wait", "0"}, "true").ends(0) // it was released
			})
		}
		// The second worker ends by itself, after more than the hold.
		w, dsn := newWorkers(t), pgtest.DSN(t)
		long := w.run(dsn, "long", nil, "--hold-at-least", "1ms")
		w.until("long", "beat")
		long.cmd.Process.Signal(syscall.SIGUSR1)
		long.ends(7)
		wantSaid(t, long, saidPrimary)
		w.runCommand(dsn, "none", nil, []string{"--hold-at-least", "1h"}, "/no/such").ends(127)
	})

	// A signal ends the hold at once, or what comes before it. The lease is not released; nor
	// is it free for ever to those who do not wait.
	t.Run("hold interrupted", func(t *testing.T) {
		const ttl = time.Second
		for _, again := range [][]string{nil, {"--again"}} {
			w, dsn := newWorkers(t), pgtest.DSN(t)
			flags := append([]string{"--ttl", ttl.String(), "--hold-at-least", "1h"}, again...)
			first := w.runCommand(dsn, "first", nil, flags, "sh", "-c", "exit 9")
			first.until(saidKept)
			first.cmd.Process.Signal(syscall.SIGTERM)
			first.ends(9)
			db, err := sql.Open("postgres", dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			for expired, deadline := false, time.Now().Add(patience); !expired; {
				if err := db.QueryRow("SELECT expires_at < now() FROM baldur_lease WHERE lease_id IS NOT NULL").Scan(&expired); err != nil || time.Now().After(deadline) {
					t.Fatal("it does not run out: ", err)
				}
			}
			second := w.run(dsn, "second", nil, slices.Concat([]string{"--wait", "0"}, flags)...)
			if begin := w.until("second", "begin"); !strings.Contains(second.errors(), saidPrimary) {
				t.Error(begin, second.errors())
			}
			second.cmd.Process.Signal(syscall.SIGTERM)
			second.ends(0)
			left := time.Now()
			w.runCommand(dsn, "third", nil, []string{"--ttl", ttl.String()}, "true").ends(0)
			if d := time.Since(left); d < ttl/2 {
				t.Errorf("free after %v", d)
			}
		}
	})

	// The lease is lost in the hold: the command has run.
	t.Run("hold lost", func(t *testing.T) {
		w := newWorkers(t)
		dsn, proxy := pgtest.Proxy(t)
		p := w.runCommand(dsn, "only", nil, []string{"--ttl", "1s", "--again", "--hold-at-least", "1h"}, "sh", "-c", "exit 9")
		p.until(saidKept)
		proxy.Freeze(faultproxy.Both)
		p.ends(9)
		if said := p.errors(); strings.Count(said, saidPrimary) != 1 || !strings.Contains(said, saidLost) {
			t.Error(said)
		}
	})

	t.Run("status", func(t *testing.T) {
		w, dsn := newWorkers(t), pgtest.DSN(t)
		for _, test := range []struct {
			command string
			status  int
		}{
			{"true", 0}, {"exit 9", 9}, {"kill -KILL $$", 137}, {"kill -TERM $$", 143},
		} {
			p := w.runCommand(dsn, "only", nil, nil, "sh", "-c", test.command)
			p.ends(test.status)
			wantSaid(t, p, saidPrimary)
		}
		w.runCommand(dsn, "only", nil, nil, "/no/such").ends(127)
		w.runCommand(dsn, "only", nil, nil, "/tmp").ends(126)
	})

	// What the server refuses is said, and the password is not.
	t.Run("refused", func(t *testing.T) {
		dsn := pgtest.DSN(t)
		for _, bad := range []string{
			strings.Replace(dsn, "//postgres:", "//postgres:wr0ng", 1),
			dsn + "&options=-crole%3Dpg_monitor", // which may not make the table
			strings.Replace(dsn, server.Addr(), "127.0.0.1:1", 1),
		} {
			w := newWorkers(t)
			p := w.run(bad, "only", nil, "--wait", "500ms", "--ttl", "1s")
			p.ends(1)
			wantSaid(t, p, "the lease cannot be looked at now: ", `quorum run: not primary of lease "the lease" within 500ms: `)
			p = w.run(bad, "only", nil, "--wait", "0")
			p.ends(1)
			wantSaid(t, p, `quorum run: lease "the lease" is not to be had now: `)
			if password := passwordOf(t, bad); strings.Contains(p.errors(), password) {
				t.Errorf("the password is said: %s", p.errors())
			}
			if w.notes() != nil {
				t.Error("the command was run")
			}
		}
	})
}

// TestCase15Bouncer (lease.md, case 15): what cron starts on a second node, through PgBouncer,
// when the job of the first one is done. In session mode each node needs a connection to the
// server, and one more for a look: where there is none the job is not run, and the error tells so.
func TestCase15Bouncer(t *testing.T) {
	t.Setenv(pgtest.EnvDSN, pgtest.Server(t).DSN("postgres"))
	flags := []string{"--wait", "0", "--hold-at-least", "3s"}
	for _, mode := range []string{"session", "transaction"} {
		for _, size := range []int{1, 2, 10} {
			t.Run(fmt.Sprint(mode, size), func(t *testing.T) {
				t.Parallel()
				dsn := pgtest.Bouncer(t, mode, fmt.Sprint("default_pool_size=", size))
				w := newWorkers(t)
				refused := func(p *program, why string) {
					t.Helper()
					p.ends(1)
					if said := p.errors(); !strings.Contains(said, `quorum run: lease "the lease" is not to be had now: `) || !strings.Contains(said, why) {
						t.Errorf("said %q, want %q in it", said, why)
					}
				}
				few := mode == "session" && size <= 2
				began := time.Now()
				first := w.runCommand(dsn, "first", nil, flags, "sh", "-c", "exit 9")
				if few && size == 1 {
					refused(first, "the pooler has no second connection to the server")
					return
				}
				first.until(saidKept)
				second := w.run(dsn, "second", nil, flags...)
				if few {
					refused(second, "the pooler has no second connection to the server")
				} else {
					refused(second, `: region "first" has it`)
				}
				first.ends(9)
				if d := time.Since(began); d < 3*time.Second {
					t.Errorf("held for %v", d)
				}
				w.runCommand(dsn, "second", nil, []string{"--wait", "0"}, "true").ends(0) // it was released
				if notes := w.notes(); notes != nil {
					t.Error("the job has run on the second node too")
				}
			})
		}
	}
}

// passwordOf returns the password in a DSN that is a URL.
func passwordOf(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("the DSN is not a URL")
	}
	password, ok := u.User.Password()
	if !ok || len(password) < 6 {
		t.Fatal("the DSN has no password that could be told from other text")
	}
	return password
}
