package baldurotel_test

import (
	"context"
	"database/sql"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurotel"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func takeConn(ctx context.Context, db *sql.DB) *sql.Conn { return must(db.Conn(ctx)) }

// TestLeak: a leak is told once, as a log record in the trace that took the
// connection and as a span with a link to it; and once when it is back.
func TestLeak(t *testing.T) {
	o := newTelemetry(t)
	db := must(baldur.Open(pgtest.SocketDSN(t), o.with(baldurotel.WithLeakInterval(5*time.Millisecond)), baldur.WithPoolName("shop"), baldur.WithLeakThreshold(50*time.Millisecond)))
	defer db.Close()
	var c *sql.Conn
	var pid int64
	app := o.inSpan(func(ctx context.Context) {
		c = takeConn(ctx, db)
		if err := c.QueryRowContext(ctx, "SELECT pg_backend_pid() WHERE 'literal-secret' <> ''").Scan(&pid); err != nil {
			t.Fatal(err)
		}
	})
	var spans []*traces.Span
	var records []*logs.LogRecord
	more := func() {
		s, r := o.take()
		spans, records = append(spans, s...), append(records, r...)
	}
	more()
	spans = nil // of the query
	eventually(t, "the leak is told", func() bool { more(); return len(records) > 0 && len(spans) > 0 })
	released := time.Now()
	_ = c.Close()
	eventually(t, "the return is told", func() bool { more(); return len(records) > 1 })
	before := len(records)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_ = baldur.TrackerOf(db).Watch(ctx, 50*time.Millisecond, func(baldur.LeakReport) {}) // time for a second telling
	if more(); len(records) != before || len(records) != 2 || len(spans) != 1 {
		t.Fatalf("got %d records, %d spans", len(records), len(spans))
	}

	traceID, spanID := app.TraceID(), app.SpanID()
	for i, want := range []struct {
		event    string
		severity logs.SeverityNumber
		text     string
		body     string
	}{
		{"baldur.connection.leak", logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN", "connection 1 of pool shop is held for "},
		{"baldur.connection.leak.returned", logs.SeverityNumber_SEVERITY_NUMBER_INFO, "INFO", "connection 1 of pool shop, which looked leaked, is back after "},
	} {
		r := records[i]
		if r.EventName != want.event || r.SeverityNumber != want.severity || r.SeverityText != want.text || !strings.HasPrefix(r.Body.GetStringValue(), want.body) {
			t.Errorf("got %v", r)
		}
		if !slices.Equal(r.TraceId, traceID[:]) || !slices.Equal(r.SpanId, spanID[:]) || r.Flags != uint32(app.TraceFlags()) {
			t.Errorf("%s is of %x, %x, %d, want %v", r.EventName, r.TraceId, r.SpanId, r.Flags, app)
		}
		if at := time.Unix(0, int64(r.TimeUnixNano)); i == 0 && at.After(released) || time.Since(at) > time.Hour {
			t.Errorf("%s at %v, released at %v", r.EventName, at, released)
		}
		a := attributes(r.Attributes)
		keys := []string{"baldur.connection.backend_pid", "baldur.connection.held_seconds", "baldur.connection.id", "baldur.connection.kind", "baldur.connection.state", "baldur.connection.verdict",
			"code.file.path", "code.function.name", "code.line.number", "code.stacktrace", "db.client.connection.pool.name", "db.query.text"}
		if i == 1 {
			keys = slices.DeleteFunc(keys, func(k string) bool { return k == "baldur.connection.state" || k == "baldur.connection.verdict" })
		} else if a["baldur.connection.state"] != "idle" {
			t.Errorf("state %v", a["baldur.connection.state"])
		}
		if got := slices.Sorted(maps.Keys(a)); !slices.Equal(got, keys) {
			t.Errorf("%s has %q, want %q", r.EventName, got, keys)
		}
		held, _ := a["baldur.connection.held_seconds"].(float64)
		if held < 0.05 || held > 60 || a["baldur.connection.id"] != int64(1) || a["baldur.connection.kind"] != "conn" || a["baldur.connection.backend_pid"] != pid ||
			a["db.client.connection.pool.name"] != "shop" || a["db.query.text"] != "SELECT pg_backend_pid() WHERE ? <> ?" || !isHere(a, "takeConn") {
			t.Errorf("%s has %v", r.EventName, a)
		}
	}
	s := spans[0]
	if s.Name != "baldur.connection.leak" || len(s.ParentSpanId) != 0 || slices.Equal(s.TraceId, traceID[:]) || len(s.Links) != 1 ||
		!slices.Equal(s.Links[0].TraceId, traceID[:]) || !slices.Equal(s.Links[0].SpanId, spanID[:]) || !isHere(attributes(s.Attributes), "takeConn") {
		t.Errorf("got %v", s)
	}
	if strings.Contains(o.exported(), "literal-secret") {
		t.Error("a literal was exported")
	}
}

// TestLeakUnknown: what is not known is absent, and there is no link to nothing.
func TestLeakUnknown(t *testing.T) {
	o := newTelemetry(t)
	db := must(baldur.Open(pgtest.SocketDSN(t), o.with(baldurotel.WithLeakInterval(5*time.Millisecond)), baldur.WithPoolName("shop"),
		baldur.WithLeakThreshold(10*time.Millisecond), baldur.WithCapture(baldur.CaptureOff), baldur.WithQueryText(false)))
	defer db.Close()
	c := must(db.Conn(t.Context()))
	defer c.Close()
	var records []*logs.LogRecord
	var spans []*traces.Span
	eventually(t, "the leak is told", func() bool { spans, records = o.take(); return len(records) > 0 })
	keys := []string{"baldur.connection.backend_pid", "baldur.connection.held_seconds", "baldur.connection.id", "baldur.connection.state", "baldur.connection.verdict", "db.client.connection.pool.name"}
	if got := slices.Sorted(maps.Keys(attributes(records[0].Attributes))); !slices.Equal(got, keys) {
		t.Errorf("got %q, want %q", got, keys)
	}
	if len(spans) != 0 || len(records[0].TraceId) != 0 {
		t.Errorf("got %v, %v", spans, records)
	}
}

// TestHostile: whatever the strings are, the export works, and is small.
func TestHostile(t *testing.T) {
	o := newTelemetry(t)
	const evil = "a\n\r\t\"'`\\</script><b>&\xff\xfe\xc3(\u2028%s{{.}}"
	long := strings.Repeat(evil, 1<<20/len(evil))
	dsn := with(t, pgtest.SocketDSN(t), "application_name", "a\n\"'</script>%s"+strings.Repeat("x", 1000))
	db := must(baldur.Open(dsn, baldur.WithPoolName(long), baldur.WithLeakThreshold(10*time.Millisecond),
		o.with(baldurotel.WithLeakInterval(5*time.Millisecond), baldurotel.WithServer(long, 1), baldurotel.WithNamespace(long), baldurotel.WithCheckoutSpans())))
	defer db.Close()
	queries := []string{
		evil,
		long,
		"SELECT '" + strings.ReplaceAll(evil, "'", "''") + "'",
		"SELECT '" + strings.Repeat("x", 1<<20) + "'",
		"SELECT 1 AS \"" + strings.ReplaceAll(evil, `"`, `""`) + "\"",
		"SELECT $1::text FROM \"" + strings.ReplaceAll(long, `"`, `""`) + "\"",
		"SELECT 1 /* " + long + " */",
		"SELECT 1" + strings.Repeat(", 1", 1000),
	}
	c := must(db.Conn(t.Context()))
	o.inSpan(func(ctx context.Context) {
		for _, q := range queries {
			if strings.Contains(q, "$1") {
				_, _ = c.ExecContext(ctx, q, evil)
				continue
			}
			_, _ = c.ExecContext(ctx, q)
		}
	})
	spans, records := o.take()
	if len(spans) != len(queries) {
		t.Errorf("%d spans of %d queries", len(spans), len(queries))
	}
	if err := c.Close(); err != nil { // one of the errors may have ended it
		t.Log(err)
	}
	c = must(db.Conn(context.Background()))
	eventually(t, "a leak is told", func() bool {
		s, r := o.take()
		spans, records = append(spans, s...), append(records, r...)
		return len(records) > 0
	})
	_ = c.Close()
	check := func(kvs []*common.KeyValue) {
		for _, kv := range kvs {
			if s, ok := kv.Value.Value.(*common.AnyValue_StringValue); ok && (len(s.StringValue) > 3*(4<<10)+3 || !utf8.ValidString(s.StringValue)) {
				t.Errorf("%s has %d bytes", kv.Key, len(s.StringValue))
			}
		}
	}
	for _, s := range spans {
		check(s.Attributes)
		if len(s.Name) > 3*255+3 {
			t.Errorf("a name of %d bytes", len(s.Name))
		}
	}
	for _, r := range records {
		check(r.Attributes)
		if n := len(r.Body.GetStringValue()); n > 3*(4<<10) {
			t.Errorf("a body of %d bytes", n)
		}
	}
	if n := len(o.exported()); n > 300<<10 {
		t.Errorf("%d bytes were exported", n)
	}
	all := o.collect()
	for k := range sums(t, all["db.client.connection.count"]) {
		if len(k) > 3*255+200 || !utf8.ValidString(k) {
			t.Errorf("pool name of %d bytes", len(k))
		}
	}
	for _, p := range histogram(t, all["db.client.operation.duration"]) {
		for _, kv := range p.Attributes.ToSlice() {
			if s := kv.Value.AsString(); len(s) > 3*1024+3 || !utf8.ValidString(s) {
				t.Errorf("%s has %d bytes", kv.Key, len(s))
			}
		}
	}
}
