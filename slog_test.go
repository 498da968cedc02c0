package baldur_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/stack"
)

// recorder is a handler that keeps the records.
type recorder struct {
	mu      sync.Mutex // guards the fields below
	records []record
}

type record struct {
	level   slog.Level
	message string
	attrs   map[string]any
	pc      uintptr
}

func (h *recorder) Enabled(context.Context, slog.Level) bool { return true }
func (h *recorder) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *recorder) WithGroup(string) slog.Handler            { return h }
func (h *recorder) Handle(_ context.Context, r slog.Record) error {
	rec := record{level: r.Level, message: r.Message, attrs: map[string]any{}, pc: r.PC}
	r.Attrs(func(a slog.Attr) bool {
		rec.attrs[a.Key] = a.Value.Any()
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records = append(h.records, rec)
	return nil
}

// take returns what has been recorded since the last call.
func (h *recorder) take() []record {
	h.mu.Lock()
	defer h.mu.Unlock()
	got := h.records
	h.records = nil
	return got
}

const (
	leakMessage  = "baldur: suspected connection leak"
	backMessage  = "baldur: suspected connection came back"
	moreLeaks    = "baldur: more suspected connection leaks"
	moreReturned = "baldur: more suspected connections came back"
)

// logging runs Log, a look a second, until the test's end.
func logging(t *testing.T, tr *baldur.Tracker) (*recorder, func()) {
	h := &recorder{}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- tr.Log(ctx, time.Second, slog.New(h)) }()
	return h, func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Log returned %v", err)
		}
	}
}

func TestLog(t *testing.T) {
	span := baldur.SpanContext{TraceID: [16]byte{15: 1}, SpanID: [8]byte{7: 2}}
	withSpan := baldur.WithSpanContext(func(context.Context) baldur.SpanContext { return span })
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		h, stop := logging(t, tr)
		defer stop()
		rows := must(db.Query("SELECT\n 'x'"))
		pass(9 * time.Second)
		if got := h.take(); len(got) != 0 {
			t.Fatalf("before the threshold: %v", got)
		}
		pass(5 * time.Minute)
		got := h.take()
		if len(got) != 1 || got[0].level != slog.LevelWarn || got[0].message != leakMessage || got[0].pc != 0 {
			t.Fatalf("a leak is told as %v", got)
		}
		a := got[0].attrs
		if held := a["held"].(time.Duration); held < 10*time.Second || held > 12*time.Second || a["idle"] == nil {
			t.Errorf("held for %v, idle for %v", held, a["idle"])
		}
		for key, want := range map[string]any{
			"pool": "shop", "kind": "query", "state": "rows_open", "query": "SELECT 'x'", "likely_missing": "Rows.Close, or Row.Scan",
			"trace_id": "00000000000000000000000000000001", "span_id": "0000000000000002", "goroutine_state": string(map[bool]baldur.Liveness{true: baldur.GoroutineAlive, false: baldur.GoroutineUnknown}[stack.Self().Liveness]),
		} {
			if a[key] != want {
				t.Errorf("%s is %v, want %v", key, a[key], want)
			}
		}
		if f := a["code.function.name"].(string); !strings.Contains(f, "TestLog") || filepath.Base(a["code.file.path"].(string)) != "slog_test.go" || a["code.line.number"].(int64) < 1 || a["goroutine"].(int64) < 1 {
			t.Errorf("taken by %v", a)
		}
		if _, ok := a["backend_pid"]; ok {
			t.Error("an unknown backend's pid is told")
		}

		rows.Close()
		pass(5 * time.Minute)
		got = h.take()
		if len(got) != 1 || got[0].level != slog.LevelInfo || got[0].message != backMessage {
			t.Fatalf("a return is told as %v", got)
		}
		b := got[0].attrs
		if held := b["held"].(time.Duration); held.Round(time.Second) != 5*time.Minute+9*time.Second {
			t.Errorf("was held for %v", held)
		}
		for _, key := range []string{"pool", "code.function.name", "code.file.path", "code.line.number", "goroutine", "trace_id", "kind"} {
			if b[key] != a[key] {
				t.Errorf("%s is %v at the return, was %v", key, b[key], a[key])
			}
		}
	}, withSpan, baldur.WithPoolName("shop"))
}

// TestLogLimits: a call site that leaks much is told of in few records, and each
// of its leaks is in one of them.
func TestLogLimits(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		db.SetMaxOpenConns(0)
		h, stop := logging(t, tr)
		var held []*sql.Tx
		leakMany := func(n int, every time.Duration) {
			for range n {
				held = append(held, must(db.Begin()))
				pass(every)
			}
		}
		count := func(records []record, message string) (n, counted int) {
			for _, r := range records {
				if r.message == message {
					n++
					c, _ := r.attrs["count"].(int64)
					counted += int(c)
				}
			}
			return n, counted
		}
		// A drip, one in two seconds for four minutes.
		leakMany(120, 2*time.Second)
		other := must(db.Query("SELECT"))
		pass(11 * time.Second)
		got := h.take()
		if n, _ := count(got, leakMessage); n < 4*3+1 || n > 5*3+1 {
			t.Errorf("%d records in full", n)
		}
		if i := slices.IndexFunc(got, func(r record) bool { return r.attrs["kind"] == "query" }); i < 0 {
			t.Error("the other call site is not told")
		}
		pass(2 * time.Minute)
		got = append(got, h.take()...)
		full, _ := count(got, leakMessage)
		more, counted := count(got, moreLeaks)
		if full+counted != 121 || more < 4 || more > 5 || len(got) != full+more {
			t.Errorf("%d in full, %d in %d that count; %d in all", full, counted, more, len(got))
		}
		// All come back, and Log ends in the same minute.
		for _, tx := range held {
			_ = tx.Rollback()
		}
		other.Close()
		pass(2 * time.Second)
		stop()
		got = h.take()
		full, _ = count(got, backMessage)
		more, counted = count(got, moreReturned)
		if full != 4 || more != 1 || counted != 117 || len(got) != 5 {
			t.Errorf("at the end: %d in full, %d in %d that count; %v", full, counted, more, got)
		}
		last := got[len(got)-1]
		if last.level != slog.LevelInfo || last.attrs["pool"] != "pool" || !strings.Contains(last.attrs["code.function.name"].(string), "TestLogLimits") || last.attrs["code.line.number"].(int64) == 0 {
			t.Errorf("the last one is %v", last)
		}
	})
}

// TestLogSlow: looks further apart than a window tell all they have at once.
func TestLogSlow(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		h := &recorder{}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go tr.Log(ctx, time.Hour, slog.New(h))
		for range 8 {
			defer must(db.Begin()).Rollback()
		}
		pass(time.Hour)
		if got := h.take(); len(got) != 4 || got[3].message != moreLeaks || got[3].attrs["count"] != int64(5) {
			t.Errorf("%v", got)
		}
	})
}

func TestLogRefuses(t *testing.T) {
	db := baldur.OpenDB(&fakeDB{})
	defer db.Close()
	tr := baldur.TrackerOf(db)
	if err := tr.Log(ctx, time.Second, nil); err == nil || !strings.Contains(err.Error(), "logger is nil") {
		t.Errorf("no logger: %v", err)
	}
	if err := tr.Log(ctx, 0, slog.New(&recorder{})); err == nil || !strings.Contains(err.Error(), "Log: interval") {
		t.Errorf("no interval: %v", err)
	}
}

const hostile = "a\nlevel=ERROR msg=forged\r\x1b[31m\"'`<script>alert(1)</script>\xff\xfe\u2028\x00"

// TestLogHostile: whatever a name or a query holds, a leak is one line.
func TestLogHostile(t *testing.T) {
	long := hostile + strings.Repeat("x", 1<<20)
	for _, text := range []bool{false, true} {
		var out bytes.Buffer
		var h slog.Handler = slog.NewJSONHandler(&out, nil)
		if text {
			h = slog.NewTextHandler(&out, nil)
		}
		bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
			ctx, cancel := context.WithCancel(ctx)
			ended := make(chan error)
			go func() { ended <- tr.Log(ctx, time.Second, slog.New(h)) }()
			rows := must(db.Query("SELECT '" + long + "'"))
			pass(12 * time.Second)
			rows.Close()
			pass(2 * time.Second)
			cancel()
			<-ended
		}, baldur.WithPoolName(long))
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 2 {
			t.Fatalf("%d lines:\n%.2000s", len(lines), out.String())
		}
		for _, line := range lines {
			if len(line) > 4096 || !utf8.ValidString(line) || strings.ContainsAny(line, "\r\x1b\x00") {
				t.Errorf("text: %v; %d bytes: %.300q", text, len(line), line)
			}
			if text {
				if !strings.HasPrefix(line, "time=") || strings.Contains(line, "\" level=ERROR") {
					t.Errorf("a line reads %.300q", line)
				}
				continue
			}
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil || !strings.HasPrefix(m["pool"].(string), "a\ufffdlevel=ERROR") {
				t.Errorf("%v: %.300q", err, line)
			}
		}
	}
}

// TestQuiet: nothing is printed, or logged by slog's default, unasked. The test
// runs itself, as its own output is the testing package's.
func TestQuiet(t *testing.T) {
	const child = "BALDUR_TEST_QUIET"
	if os.Getenv(child) != "" {
		bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
			tx := must(db.Begin())
			time.Sleep(time.Minute)
			if tr.Report().LeakCount() != 1 {
				t.Error("no leak")
			}
			_ = tx.Rollback()
			_ = tr.CheckHealth()
		})
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestQuiet$")
	cmd.Env = append(os.Environ(), child+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "PASS" && !strings.HasPrefix(string(out), "PASS\ncoverage:") {
		t.Errorf("%v, printed:\n%s", err, out)
	}
}

// TestLeaksTotal: each checkout that a report has accused counts once.
func TestLeaksTotal(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		for i := range 3 {
			tx := must(db.Begin())
			time.Sleep(5 * time.Second)
			tr.Report()
			if n := tr.LeaksTotal(); n != i {
				t.Errorf("before the threshold: %d, want %d", n, i)
			}
			time.Sleep(6 * time.Second)
			tr.Report()
			must(tx.Exec("UPDATE")) // used again, so not suspected, and later it is
			tr.Report()
			time.Sleep(11 * time.Second)
			if r := tr.Report(); r.LeakCount() != 1 {
				t.Errorf("%v", r)
			}
			if n := tr.LeaksTotal(); n != i+1 {
				t.Errorf("after the threshold: %d, want %d", n, i+1)
			}
			_ = tx.Rollback()
			tr.Report()
		}
		if n := tr.LeaksTotal(); n != 3 {
			t.Errorf("%d in the end", n)
		}
	})
}

func TestDBStats(t *testing.T) {
	db := baldur.OpenDB(&fakeDB{})
	db.SetMaxOpenConns(3)
	tr := baldur.TrackerOf(db)
	defer must(db.Begin()).Rollback()
	if got, ok := tr.DBStats(); !ok || got != db.Stats() || got.InUse != 1 || got.MaxOpenConnections != 3 {
		t.Errorf("%+v, %v", got, ok)
	}
	db.Close()
	if got, ok := tr.DBStats(); ok || got != (sql.DBStats{}) {
		t.Errorf("of a closed pool: %+v, %v", got, ok)
	}
}
