//go:build unix

package pgserver

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/lack"
)

// deadline is how long a test waits for what must happen, on a busy machine.
const deadline = 30 * time.Second

// scratch makes a temporary directory for the servers of a test that the
// server's user can enter, as it cannot t.TempDir.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(cmp.Or(MemoryDir(), "/tmp"), "pgs-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	makeTemplate() // elsewhere
	t.Setenv("TMPDIR", dir)
	return dir
}

// template is that of start's servers. TestMain removes it.
var template Template

var makeTemplate = sync.OnceFunc(func() {
	if s, err := Start(context.Background(), Config{Dir: MemoryDir(), Template: &template}); err == nil {
		_ = s.Stop()
	} // or the test's own start says why
})

// start starts a copy of template that is stopped at the end of the test. A machine
// without PostgreSQL skips the test, except in CI.
func start(t testing.TB, cfg Config) *Server {
	t.Helper()
	makeTemplate()
	cfg.Template = &template
	return startNew(t, cfg)
}

// startNew is start without template.
func startNew(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := Start(context.Background(), cfg)
	if errors.Is(err, ErrNoPostgres) {
		lack.Of(t, "PostgreSQL", err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// query returns the one value that a query on a new connection gives.
func query(dsn, query string) (string, error) {
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return "", err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	var value string
	err = db.QueryRowContext(ctx, query).Scan(&value)
	return value, err
}

func mustQuery(t testing.TB, dsn, q string) string {
	t.Helper()
	value, err := query(dsn, q)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return value
}

// eventually waits until ok, for what gives no event.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v: not so: %s", deadline, what)
		}
	}
}

// noProcess says whether no process of the server in dir is left: each holds its lock.
func noProcess(dir string) bool {
	lock, err := lockDir(dir)
	if err == nil {
		lock.Close()
	}
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

// left returns what a directory holds.
func left(t testing.TB, dir string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir && !errors.Is(err, fs.ErrNotExist) {
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func empty(t testing.TB, dir string) bool { return len(left(t, dir)) == 0 }

func wantEmpty(t testing.TB, dir string) {
	t.Helper()
	if paths := left(t, dir); len(paths) > 0 {
		t.Errorf("left behind: %q", paths)
	}
}

// alive says whether a process runs. A dead one that process 1 has not yet
// collected, which takes some of them seconds, does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	dead := err == nil && bytes.Contains(stat, []byte(") Z "))
	return !dead && syscall.Kill(pid, 0) == nil
}

func TestStartAndStop(t *testing.T) {
	dir := scratch(t)
	var told []string
	s := startNew(t, Config{Progress: func(what string) { told = append(told, what) }})
	pid := s.PostmasterPID()

	for name, dsn := range map[string]string{"TCP": s.DSN("postgres"), "socket": s.SocketDSN("postgres")} {
		t.Run(name, func(t *testing.T) {
			if version := mustQuery(t, dsn, "SHOW server_version"); !strings.HasPrefix(version, s.Version()) {
				t.Errorf("the server's version is %q, Version says %q", version, s.Version())
			}
			if data := mustQuery(t, dsn, "SHOW data_directory"); data != s.DataDir() {
				t.Errorf("the server's directory is %q, DataDir says %q", data, s.DataDir())
			}
		})
	}
	if pid == 0 || !alive(pid) {
		t.Errorf("PostmasterPID says %d, which does not run", pid)
	}
	if !strings.HasPrefix(s.DataDir(), dir) {
		t.Errorf("DataDir is %s, outside of TMPDIR=%s", s.DataDir(), dir)
	}
	if fsync := mustQuery(t, s.DSN("postgres"), "SHOW fsync"); fsync != "off" {
		t.Errorf("fsync is %s by default", fsync)
	}
	if len(told) != 2 || !strings.Contains(told[0], s.Version()) {
		t.Errorf("Progress told %q", told)
	}
	if !strings.Contains(s.Log(), readyMessage) {
		t.Errorf("Log has no %q:\n%s", readyMessage, s.Log())
	}

	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if alive(pid) {
		t.Errorf("postmaster %d is alive after Stop", pid)
	}
	if pid := s.PostmasterPID(); pid != 0 {
		t.Errorf("PostmasterPID says %d after Stop", pid)
	}
	wantEmpty(t, dir)
	if err := s.Restart(context.Background()); err == nil {
		t.Error("a stopped server was restarted")
	}
}

func TestSettings(t *testing.T) {
	s := start(t, Config{Settings: map[string]string{
		"fsync": "on", "max_connections": "7", "application_name": "it's a test", "port": "1",
	}})
	for name, want := range map[string]string{"fsync": "on", "max_connections": "7"} {
		if got := mustQuery(t, s.DSN("postgres"), "SHOW "+name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func TestBadSetting(t *testing.T) {
	dir := scratch(t)
	start(t, Config{}) // skips without a PostgreSQL
	for range 2 {
		s, err := Start(context.Background(), Config{Template: &template, Settings: map[string]string{"no_such_setting": "1"}})
		if err == nil {
			s.Stop()
			t.Fatal("a server with an unknown setting started")
		}
		if !strings.Contains(err.Error(), "no_such_setting") {
			t.Errorf("the error does not name the setting: %v", err)
		}
	}
	if homes, _ := filepath.Glob(dir + "/" + homePrefix + "*"); len(homes) != 1 {
		t.Errorf("failed starts left directories: %d in all, want 1", len(homes))
	}
}

func TestCreateDatabase(t *testing.T) {
	s := start(t, Config{})
	const name = `odd " name`
	if err := s.CreateDatabase(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	for _, dsn := range []string{s.DSN(name), s.SocketDSN(name)} {
		if got := mustQuery(t, dsn, "SELECT current_database()"); got != name {
			t.Errorf("connected to database %q, want %q", got, name)
		}
	}
	err := s.CreateDatabase(t.Context(), name)
	if pqErr := new(pq.Error); !errors.As(err, &pqErr) || pqErr.Code != "42P04" {
		t.Errorf("creating a database twice: %v, want duplicate_database", err)
	}
}

// Other users of the machine can reach the port but not the socket.
func TestAccess(t *testing.T) {
	s := startNew(t, Config{})
	wrong := strings.Replace(s.DSN("postgres"), s.password, "wrong", 1)
	if _, err := query(wrong, "SELECT 1"); err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		t.Errorf("over TCP with a wrong password: %v", err)
	}
	for dir, want := range map[string]fs.FileMode{s.home.socketDir(): 0o700, s.DataDir(): 0o700, s.home.dir: 0o710} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode&^want != 0 {
			t.Errorf("%s has mode %o, want at most %o", dir, mode, want)
		}
	}
	if files, _ := filepath.Glob(s.home.dir + "/*"); len(files) != 2 {
		t.Errorf("the directory holds %q, want data and socket, and no password", files)
	}
}

func TestContextEnds(t *testing.T) {
	dir := scratch(t)
	start(t, Config{}).Stop() // skips without a PostgreSQL
	ctx, cancel := context.WithCancel(context.Background())
	s, err := Start(ctx, Config{Template: &template})
	if err != nil {
		t.Fatal(err)
	}
	pid := s.PostmasterPID()
	cancel()
	eventually(t, "the directory is gone", func() bool { return empty(t, dir) })
	if alive(pid) {
		t.Errorf("postmaster %d is alive", pid)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("Stop afterwards: %v", err)
	}
}

// The context ends at many points of the start.
func TestContextEndsDuringStart(t *testing.T) {
	dir := scratch(t)
	start(t, Config{}).Stop() // skips without a PostgreSQL
	for after := time.Duration(0); ; after += after/3 + 10*time.Millisecond {
		ctx, cancel := context.WithTimeout(context.Background(), after)
		s, err := Start(ctx, Config{})
		if err == nil {
			s.Stop()
			cancel()
			break // it was fast enough
		}
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("after %v: %v, want a deadline error", after, err)
		}
		if paths := left(t, dir); len(paths) > 0 {
			t.Fatalf("after %v: left behind: %q", after, paths)
		}
		if after > deadline {
			t.Fatal("the server never starts in time")
		}
	}
}

func TestCrashAndRestart(t *testing.T) {
	s := start(t, Config{Settings: map[string]string{"fsync": "on", "synchronous_commit": "on"}})
	dsn := s.DSN("postgres")
	mustQuery(t, dsn, "CREATE TABLE t(n int); INSERT INTO t VALUES (1); SELECT 1")
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ping(); err != nil { // leaves a connection open
		t.Fatal(err)
	}

	for round := 1; round <= 2; round++ {
		pid := s.PostmasterPID()
		if err := s.Crash(); err != nil {
			t.Fatal(err)
		}
		if alive(pid) || s.PostmasterPID() != 0 {
			t.Errorf("after Crash postmaster %d is alive (%v), PostmasterPID says %d", pid, alive(pid), s.PostmasterPID())
		}
		if _, err := query(dsn, "SELECT 1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("query after Crash: %v, want connection refused", err)
		}
		if err := s.Crash(); err != nil {
			t.Errorf("second Crash: %v", err)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := mustQuery(t, dsn, "SELECT count(*) FROM t"); n != "1" {
			t.Errorf("after Crash and Restart the table has %s rows, want 1", n)
		}
		if !strings.Contains(s.Log(), "automatic recovery in progress") {
			t.Errorf("Restart after Crash did not recover:\n%s", s.Log())
		}
	}

	pid := s.PostmasterPID()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.PostmasterPID() == pid || alive(pid) {
		t.Errorf("Restart kept postmaster %d", pid)
	}
	if strings.Contains(s.Log(), "recovery") {
		t.Errorf("Restart did not shut down cleanly:\n%s", s.Log())
	}
	mustQuery(t, dsn, "SELECT 1")
}

// A crash without a restart leaves nothing in the kernel either.
func TestStopAfterCrash(t *testing.T) {
	const table = "/proc/sysvipc/shm"
	if _, err := os.Stat(table); err != nil {
		t.Skip("the shared memory segments are not known here:", err)
	}
	dir := scratch(t)
	s := start(t, Config{})
	pidFile, err := os.ReadFile(s.DataDir() + "/postmaster.pid")
	if err != nil {
		t.Fatal(err)
	}
	segment := strings.Fields(strings.Split(string(pidFile), "\n")[6])[1]
	exists := func() bool {
		segments, err := os.ReadFile(table)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(segments)) {
			if fields := strings.Fields(line); fields[1] == segment {
				return true
			}
		}
		return false
	}
	if !exists() {
		t.Fatalf("segment %s of a running server is not in %s", segment, table)
	}
	if maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", s.PostmasterPID())); strings.Contains(string(maps), "/dev/shm/PostgreSQL") {
		t.Errorf("the server has shared memory that stays after a crash:\n%s", maps)
	}
	if err := s.Crash(); err != nil {
		t.Fatal(err)
	}
	if exists() {
		t.Errorf("segment %s is left", segment)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, dir)
}

// A postmaster that was halted, as fault tests do, can still be stopped.
func TestStopOfHalted(t *testing.T) {
	dir := scratch(t)
	s := start(t, Config{})
	if err := syscall.Kill(s.PostmasterPID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, dir)
}

// BenchmarkStart measures from nothing to the answer of the first query.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		s := startNew(b, Config{})
		mustQuery(b, s.DSN("postgres"), "SELECT 1")
		b.StopTimer()
		if err := s.Stop(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkStop(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		s := startNew(b, Config{})
		mustQuery(b, s.DSN("postgres"), "SELECT 1")
		b.StartTimer()
		if err := s.Stop(); err != nil {
			b.Fatal(err)
		}
	}
}

// A standby follows, until it is promoted to a new timeline.
func TestStandby(t *testing.T) {
	s := start(t, Config{})
	mustQuery(t, s.DSN("postgres"), "CREATE TABLE t(n int); INSERT INTO t VALUES (1); SELECT 1")
	standby, err := s.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer standby.Stop()
	mustQuery(t, s.DSN("postgres"), "INSERT INTO t VALUES (2); SELECT 1")
	eventually(t, "the standby has the second row", func() bool {
		return mustQuery(t, standby.DSN("postgres"), "SELECT count(*) FROM t") == "2"
	})
	if err := s.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	const timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
	if got := mustQuery(t, standby.DSN("postgres"), timeline); got != "00000002" {
		t.Errorf("the promoted standby is on timeline %s", got)
	}
	if err := standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := mustQuery(t, standby.DSN("postgres"), "INSERT INTO t VALUES (3); SELECT count(*) FROM t"); n != "3" {
		t.Errorf("the promoted standby has %s rows, want 3", n)
	}
}

func TestEnv(t *testing.T) {
	s := start(t, Config{Env: []string{"TZ=Asia/Tokyo"}})
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.PostmasterPID()))
	if err != nil {
		t.Skip("a process's environment is not known here:", err)
	}
	if !strings.HasSuffix(string(environ), "\x00TZ=Asia/Tokyo\x00") {
		t.Errorf("the server's environment is %q", environ)
	}
}
