package quorumtest

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/baldur-go/baldur/internal/pgserver"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// serverClock is a server's wall clock: the file that testdata/clock.c reads.
type serverClock struct {
	t    testing.TB
	file *os.File
}

// clockedServer starts a server whose clock can be stepped; the clock is nil if
// there is no C compiler.
//
// libfaketime would do the same, but for a server whose processes are killed: it
// takes a semaphore that they all share (in fstat, too), and who is killed keeps it.
func clockedServer(t testing.TB, settings ...string) (*pgserver.Server, *serverClock) {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("there is no C compiler (Debian: apt-get install gcc libc6-dev)")
		}
		t.Log("there is no C compiler: the server's clock is not stepped")
		return pgtest.Server(t, settings...), nil
	}
	dir, err := os.MkdirTemp("/tmp", "baldur-clock-") // t.TempDir is closed to the server's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	library := filepath.Join(dir, "clock.so")
	if out, err := exec.Command(cc, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, "testdata/clock.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	clock := &serverClock{t: t}
	if clock.file, err = os.OpenFile(filepath.Join(dir, "clock"), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = clock.file.Close() })
	clock.set(0, false)
	env := []string{"LD_PRELOAD=" + library, "CLOCK_FILE=" + clock.file.Name()}
	return pgtest.ServerEnv(t, env, settings...), clock
}

// set steps the clock, and has it go at the right rate or twice as fast. A write
// of eight bytes is seen at once.
func (c *serverClock) set(ahead time.Duration, double bool) {
	since := int64(0)
	if double {
		since = time.Now().UnixNano()
	}
	for i, n := range []int64{int64(ahead), since} {
		if _, err := c.file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(n)), int64(8*i)); err != nil {
			c.t.Fatal(err)
		}
	}
}
