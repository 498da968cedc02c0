//go:build unix

package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/lack"
	"github.com/baldur-go/baldur/internal/pgserver"
	"github.com/baldur-go/baldur/internal/pgtest"
)

const patience = 60 * time.Second // on a busy machine

func TestMain(m *testing.M) { pgtest.Main(m) }

var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "baldur-example-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "httpserver")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		return "", errors.New(err.Error() + "\n" + string(out))
	}
	program, err := os.ReadFile(path)
	return string(program), err
})

// A server is a run of the example.
type server struct {
	t      *testing.T
	cmd    *exec.Cmd
	url    string
	stdout bytes.Buffer
	ended  chan error

	mu  sync.Mutex // guards the field below
	log strings.Builder
}

// start runs the example until the end of the test.
func start(t *testing.T, env []string, args ...string) *server {
	t.Helper()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "httpserver")
	if err := os.WriteFile(path, []byte(program), 0o700); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, cmd: exec.Command(path, append(args, "--addr=127.0.0.1:0")...), ended: make(chan error, 1)}
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Stdout = &s.stdout
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			s.mu.Lock()
			s.log.WriteString(lines.Text() + "\n")
			s.mu.Unlock()
		}
		s.ended <- s.cmd.Wait()
	}()
	t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	s.until("it serves", func() bool {
		if m := regexp.MustCompile(`orders=(http://\S+)/orders`).FindStringSubmatch(s.said()); m != nil {
			s.url = m[1]
		}
		if strings.Contains(s.said(), pgserver.ErrNoPostgres.Error()) {
			lack.Of(t, "PostgreSQL", s.said())
		}
		return s.url != ""
	})
	return s
}

func (s *server) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// until polls a condition.
func (s *server) until(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-s.ended:
			s.t.Fatalf("the server has ended (%v) before %s:\n%s", err, what, s.said())
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("not within %v: %s\n%s", patience, what, s.said())
		}
	}
}

func (s *server) get(path string) string {
	s.t.Helper()
	res, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		s.t.Fatalf("GET %s: %s, %v\n%s", path, res.Status, err, body)
	}
	return string(body)
}

// terminate sends SIGTERM, upon which the server ends, with status 0.
func (s *server) terminate() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Fatalf("after SIGTERM: %v\n%s", err, s.said())
		}
	case <-time.After(patience):
		s.t.Fatalf("it has not ended %v after SIGTERM\n%s", patience, s.said())
	}
}

// report is what the test reads of report.json.
type report struct {
	Pools []struct {
		Report struct {
			Tracked        int      `json:"tracked"`
			SuspectedLeaks []holder `json:"suspected_leaks"`
			LongHeld       []holder `json:"long_held"`
			Leases         []struct {
				BackendPID int `json:"backend_pid"`
			} `json:"leases"`
		} `json:"report"`
	} `json:"pools"`
}

type holder struct {
	Label      string         `json:"label"`
	StackTrace []baldur.Frame `json:"stack_trace"`
}

func (s *server) report() (r report) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.get("/debug/baldur/report.json")), &r); err != nil {
		s.t.Fatal(err)
	}
	if len(r.Pools) != 1 {
		s.t.Fatalf("%d pools", len(r.Pools))
	}
	return r
}

const leaks = 3

// TestLeak: the leak shows wherever the example says that it does.
func TestLeak(t *testing.T) {
	dsn := pgtest.DSN(t)
	s := start(t, []string{"DATABASE_URL=" + dsn}, "--leak", "--quorum", "--threshold=300ms")
	for range leaks {
		if got := s.get("/orders"); !strings.HasPrefix(got, "order 1 of customer 1\n") || strings.Count(got, "\n") != 10 {
			t.Errorf("the orders: %q", got)
		}
	}

	s.until("the leaks are reported", func() bool { return len(s.report().Pools[0].Report.SuspectedLeaks) == leaks })
	for _, h := range s.report().Pools[0].Report.SuspectedLeaks {
		if f := h.StackTrace[0]; f.Function != "main.listOrders" || filepath.Base(f.File) != "main.go" {
			t.Errorf("the call site is %v", f)
		}
	}
	s.until("the lease's connection is told", func() bool { l := s.report().Pools[0].Report.Leases; return len(l) == 1 && l[0].BackendPID != 0 })
	if n := len(s.report().Pools[0].Report.LongHeld); n != 0 {
		t.Errorf("%d connections of the pool are long held", n)
	}
	if page := s.get("/debug/baldur/"); !strings.Contains(page, "3 suspected leaks") || !strings.Contains(page, "main.listOrders") {
		t.Errorf("the page does not show the leaks:\n%s", page)
	}
	metrics := s.get("/metrics")
	for _, want := range []string{`baldur_suspected_connections{db_name="shop"} 3`, `baldur_leaks_total{db_name="shop"} 3`, `go_sql_max_open_connections{db_name="shop"} 10`} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
	if top := pprof(t, "-top", "-sample_index=connections", s.url+"/debug/baldur/profile"); !regexp.MustCompile(`(?m)^ +3 .* main\.listOrders$`).MatchString(top) {
		t.Errorf("pprof -top:\n%s", top)
	}
	s.until("the leaks are logged", func() bool {
		return len(regexp.MustCompile(`(?m)WARN baldur: suspected connection leak pool=shop code.function.name=main.listOrders .*trace_id=`).FindAllString(s.said(), -1)) == leaks
	})
	s.until("the job is done", func() bool { return strings.Contains(s.said(), "INFO job done times=1 ") })

	s.terminate()
	wantSignals(t, s.stdout.Bytes())

	// The lease is free, and not only after its 10 s.
	db, err := sql.Open("baldur-pq", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	q, err := baldur.NewPGQuorum(db, "test", baldur.WithLeaseName("httpserver"))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if region, held, err := q.CurrentPrimary(t.Context()); held || err != nil {
		t.Errorf("after the end %q is primary: %v, %v", region, held, err)
	}
}

// wantSignals looks at what OpenTelemetry has been told.
func wantSignals(t *testing.T, stdout []byte) {
	t.Helper()
	type signal struct {
		Name        string // of a span
		SpanContext struct{ TraceID string }
		EventName   string // of a log record
		TraceID     string

		ScopeMetrics []struct{ Metrics []struct{ Name string } }
	}
	requests := map[string]bool{} // their traces
	var spans, events, metrics []string
	var all []signal
	for d := json.NewDecoder(bytes.NewReader(stdout)); ; {
		var s signal
		if err := d.Decode(&s); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("stdout: %v", err)
		}
		all = append(all, s)
		if s.Name != "" {
			spans = append(spans, s.Name)
		}
		if s.Name == "GET /orders" {
			requests[s.SpanContext.TraceID] = true
		}
		for _, scope := range s.ScopeMetrics {
			for _, m := range scope.Metrics {
				metrics = append(metrics, m.Name)
			}
		}
	}
	for _, s := range all {
		if s.EventName == "baldur.connection.leak" {
			events = append(events, s.EventName)
			if !requests[s.TraceID] {
				t.Errorf("a leak is in trace %s, which is none of a request", s.TraceID)
			}
		}
	}
	if len(requests) != leaks || len(events) != leaks {
		t.Errorf("%d traces of requests, and %d leaks; want %d", len(requests), len(events), leaks)
	}
	for _, want := range []string{"SELECT httpserver_orders", "baldur.connection.leak"} {
		if !slices.Contains(spans, want) {
			t.Errorf("no span %s in %q", want, spans)
		}
	}
	for _, want := range []string{"db.client.connection.count", "db.client.connection.use_time", "db.client.operation.duration"} {
		if !slices.Contains(metrics, want) {
			t.Errorf("no metric %s in %q", want, metrics)
		}
	}
}

// TestNoLeak: without the flag there is none, and without a DSN a server is
// started, of which nothing is left.
func TestNoLeak(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "baldur-example-") // the server's user cannot enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := start(t, []string{"DATABASE_URL=", "TMPDIR=" + dir})
	for range 30 { // of a pool of 10
		s.get("/orders")
	}
	s.until("all connections are back", func() bool { return s.report().Pools[0].Report.Tracked == 0 })
	s.terminate()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func pprof(t *testing.T, args ...string) string {
	t.Helper()
	tool, err := exec.Command("go", "tool", "-n", "pprof").Output()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(strings.TrimSpace(string(tool)), args...)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir(), "HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("pprof %s: %v\n%s", args, err, out)
	}
	return string(out)
}
