package baldurhttp

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// pprofTool is the path of the real tool: "go tool" would be a process around
// it, which does not end it when it is killed.
var pprofTool = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "pprof").Output()
	return strings.TrimSpace(string(out)), err
})

func pprofCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	tool, err := pprofTool()
	if err != nil {
		t.Fatalf("go tool -n pprof: %v", err)
	}
	cmd := exec.Command(tool, args...)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir(), "HOME="+t.TempDir())
	return cmd
}

func pprof(t *testing.T, args ...string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := pprofCommand(t, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("pprof %s: %v\n%s%s", args, err, out, stderr.String())
	}
	return string(out)
}

// TestPprof: the real tool, on a program that leaks.
func TestPprof(t *testing.T) {
	if !stack.Self().Liveness {
		t.Skip("no liveness in this build: ", stack.Self().Reason)
	}
	leakingPool(t)
	url := serve(t) + "profile"
	const row = `(?m)^ +%v +[\d.]+% +[\d.]+% +%v +[\d.]+%  \S+\.`
	matches := func(text, pattern string) {
		t.Helper()
		if !regexp.MustCompile(pattern).MatchString(text) {
			t.Errorf("no %s in\n%s", pattern, text)
		}
	}
	rowOf := func(value, function string) string {
		return strings.ReplaceAll(row, "%v", value) + function + "$"
	}

	top := pprof(t, "-top", url)
	matches(top, "(?m)^Type: held$")
	matches(top, rowOf(`[\d.]+m?s`, "leakRows"))
	matches(top, rowOf(`[\d.]+m?s`, "leakTx"))
	if strings.Contains(top, "database/sql") || strings.Contains(top, "baldur.(*") {
		t.Errorf("the driver's frames are in\n%s", top)
	}
	held := pprof(t, "-top", "-sample_index=held", url)
	matches(held, rowOf(`[\d.]+m?s`, "leakRows"))
	connections := pprof(t, "-top", "-sample_index=connections", url)
	matches(connections, "(?m)^Type: connections$")
	matches(connections, rowOf("2", "leakRows"))
	matches(connections, rowOf("1", "leakTx"))
	suspects := pprof(t, "-top", "-sample_index=connections", "-tagfocus=verdict=suspected|abandoned", url)
	matches(suspects, `nodes accounting for 3, 75.00% of 4 total`)
	long := pprof(t, "-top", "-sample_index=connections", "-tagfocus=idle=1h:", url)
	matches(long, `nodes accounting for 0, 0% of 4 total`)

	tags := pprof(t, "-tags", "-sample_index=connections", url)
	for _, pattern := range []string{
		`(?m)^ *pool: Total 4 .*\n +4 .*: shop$`,
		`(?m)^ *verdict: Total 4 .*\n +2 .*: abandoned\n +1 .*: long_held\n +1 .*: suspected$`,
		`(?m)^ *goroutine_state: Total 4 .*\n +2 .*\n +2 .*$`,
		`(?m)^ +2 .*: exited$`,
		`(?m)^ +2 .*: rows_open$`,
		`(?m)^ +1 .*: idle_in_transaction$`,
		`(?m)^ *label: Total 1 .*\n +1 .*: listens for jobs$`,
		`(?m)^ *backend_pid: Total 4 `,
		`(?m)^ *goroutine: Total 4 `,
		`(?m)^ +2 .*: SELECT id FROM generate_series\(1, 1000\) id$`,
	} {
		matches(tags, pattern)
	}
	raw := pprof(t, "-raw", url)
	matches(raw, `(?m)^connections/count held/nanoseconds\[dflt\]$`)
	matches(raw, `(?m)^Comment: 3 suspected leaks \(2 of goroutines that have exited\); pool shop: exhausted, 4 of 4 in use, 0 waiting$`)
	matches(raw, `(?m)^ +\d+: 0x0 M=1 github.com/baldur-go/baldur/baldurhttp.leakRows /.*/main_test.go:\d+:0 s=0$`)
}

// TestFlameGraph: pprof's own page of the profile.
func TestFlameGraph(t *testing.T) {
	leakingPool(t)
	url := serve(t) + "profile"
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	addr := l.Addr().String()
	l.Close()
	cmd := pprofCommand(t, "-http="+addr, "-no_browser", url)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Kill()
		<-ended
	}()
	page, err := poll("http://"+addr+"/ui/flamegraph", ended)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	for _, want := range []string{"baldurhttp.leakRows", "baldurhttp.leakTx", "held"} {
		if !strings.Contains(page, want) {
			t.Errorf("the flame graph has no %s", want)
		}
	}
}

// poll gets a page of a server that is starting.
func poll(url string, ended chan error) (string, error) {
	for end := time.Now().Add(time.Minute); ; {
		res, err := http.Get(url)
		if err == nil {
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if res.StatusCode != http.StatusOK {
				err = errors.New(res.Status)
			}
			return string(body), err
		}
		if time.Now().After(end) {
			return "", err
		}
		select {
		case err := <-ended:
			ended <- err
			return "", errors.Join(errors.New("the tool has ended"), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestWriteProfile: the profile without the handler, in a file.
func TestWriteProfile(t *testing.T) {
	leakingPool(t)
	file := filepath.Join(t.TempDir(), "baldur.pb.gz")
	f := must(os.Create(file))
	if err := errors.Join(WriteProfile(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	if top := pprof(t, "-top", "-sample_index=connections", file); !strings.Contains(top, "leakRows") {
		t.Errorf("%s", top)
	}
}
