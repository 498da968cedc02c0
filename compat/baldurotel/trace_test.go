package baldurotel_test

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"go.opentelemetry.io/otel"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurotel"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// want is a span that is expected; attrs are beside those of all.
type want struct {
	name  string
	attrs map[string]any
}

// base are the attributes of every span on dsn.
func base(t *testing.T, dsn string) map[string]any {
	cfg := must(pq.NewConfig(dsn))
	if strings.HasPrefix(cfg.Host, "/") {
		t.Skip("needs TCP")
	}
	m := map[string]any{"db.system.name": "postgresql", "server.address": cfg.Host, "db.namespace": cfg.Database}
	if cfg.Port != 5432 {
		m["server.port"] = int64(cfg.Port)
	}
	return m
}

func checkSpans(t *testing.T, base map[string]any, got []*traces.Span, wants ...want) {
	t.Helper()
	names := func() (all []string) {
		for _, s := range got {
			all = append(all, s.Name)
		}
		return all
	}
	if len(got) != len(wants) {
		t.Errorf("got %q, want %d spans", names(), len(wants))
		return
	}
	slices.SortStableFunc(got, func(a, b *traces.Span) int { return int(int64(a.StartTimeUnixNano) - int64(b.StartTimeUnixNano)) })
	for i, w := range wants {
		s := got[i]
		attrs := maps.Clone(base)
		maps.Copy(attrs, w.attrs)
		if s.Name != w.name || s.Kind != traces.Span_SPAN_KIND_CLIENT || !maps.Equal(attributes(s.Attributes), attrs) {
			t.Errorf("got %q, %v, %v\nwant %q, %v", s.Name, s.Kind, attributes(s.Attributes), w.name, attrs)
		}
		wantCode := traces.Status_STATUS_CODE_UNSET
		if _, failed := attrs["error.type"]; failed {
			wantCode = traces.Status_STATUS_CODE_ERROR
		}
		if s.Status.GetCode() != wantCode || s.Status.GetMessage() != "" || len(s.Events) != 0 {
			t.Errorf("%s: status %v, events %v", s.Name, s.Status, s.Events)
		}
		if s.EndTimeUnixNano < s.StartTimeUnixNano || time.Since(time.Unix(0, int64(s.StartTimeUnixNano))) > time.Hour {
			t.Errorf("%s: from %d to %d", s.Name, s.StartTimeUnixNano, s.EndTimeUnixNano)
		}
	}
}

func query(summary, text string) map[string]any {
	return map[string]any{"db.query.summary": summary, "db.query.text": text}
}

func plus(m map[string]any, kvs ...string) map[string]any {
	m = maps.Clone(m)
	for i := 0; i < len(kvs); i += 2 {
		m[kvs[i]] = kvs[i+1]
	}
	return m
}

func operation(name string) map[string]any { return map[string]any{"db.operation.name": name} }

// TestSpans: each way to use a connection, as it arrives at an OTLP receiver.
func TestSpans(t *testing.T) {
	o := newTelemetry(t)
	dsn := pgtest.DSN(t)
	base := base(t, dsn)
	ns := base["db.namespace"].(string)
	db := o.open(dsn)
	for _, c := range []struct {
		name  string
		f     func(ctx context.Context) error
		wants []want
	}{
		{"ping", db.PingContext, nil},
		{"exec", func(ctx context.Context) error {
			_, err := db.ExecContext(ctx, "CREATE TABLE orders (id int PRIMARY KEY, state text)")
			return err
		}, []want{{"CREATE TABLE orders", query("CREATE TABLE orders", "CREATE TABLE orders (id int PRIMARY KEY, state text)")}}},
		{"exec with arguments", func(ctx context.Context) error {
			_, err := db.ExecContext(ctx, "INSERT INTO orders VALUES ($1, $2)", 1, "argument-secret")
			return err
		}, []want{{"INSERT orders", query("INSERT orders", "INSERT INTO orders VALUES ($1, $2)")}}},
		{"query", func(ctx context.Context) error {
			rows, err := db.QueryContext(ctx, "SELECT id FROM orders WHERE state <> 'literal-secret'")
			if err != nil {
				return err
			}
			for rows.Next() {
			}
			return rows.Close()
		}, []want{{"SELECT orders", query("SELECT orders", "SELECT id FROM orders WHERE state <> ?")}}},
		{"transaction", func(ctx context.Context) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "DELETE FROM orders WHERE id = $1", 2); err != nil {
				return err
			}
			return tx.Commit()
		}, []want{{"BEGIN " + ns, operation("BEGIN")}, {"DELETE orders", query("DELETE orders", "DELETE FROM orders WHERE id = $1")}, {"COMMIT " + ns, operation("COMMIT")}}},
		{"rollback", func(ctx context.Context) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			return tx.Rollback()
		}, []want{{"BEGIN " + ns, operation("BEGIN")}, {"ROLLBACK " + ns, operation("ROLLBACK")}}},
		{"statement", func(ctx context.Context) error {
			st, err := db.PrepareContext(ctx, "SELECT state FROM orders WHERE id = $1")
			if err != nil {
				return err
			}
			defer st.Close()
			return st.QueryRowContext(ctx, 1).Scan(new(string))
		}, []want{
			{"PREPARE " + ns, plus(operation("PREPARE"), "db.query.text", "SELECT state FROM orders WHERE id = $1")},
			{"SELECT orders", query("SELECT orders", "SELECT state FROM orders WHERE id = $1")}}},
		{"copy", func(ctx context.Context) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }()
			st, err := tx.PrepareContext(ctx, pq.CopyIn("orders", "id", "state"))
			if err != nil {
				return err
			}
			for i := range 100 {
				if _, err := st.ExecContext(ctx, 10+i, "copied-secret"); err != nil {
					return err
				}
			}
			if _, err := st.ExecContext(ctx); err != nil {
				return err
			}
			return tx.Commit()
		}, []want{{"BEGIN " + ns, operation("BEGIN")},
			{"PREPARE " + ns, plus(operation("PREPARE"), "db.query.text", `COPY "orders" ("id", "state") FROM STDIN`)},
			{`COPY "orders"`, query(`COPY "orders"`, `COPY "orders" ("id", "state") FROM STDIN`)},
			{"COMMIT " + ns, operation("COMMIT")}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var err error
			app := o.inSpan(func(ctx context.Context) { err = c.f(ctx) })
			if err != nil {
				t.Fatal(err)
			}
			spans, _ := o.take()
			checkSpans(t, base, spans, c.wants...)
			for _, s := range spans {
				if id := app.TraceID(); string(s.TraceId) != string(id[:]) {
					t.Errorf("%s is in trace %x, want %s", s.Name, s.TraceId, id)
				}
				if id := app.SpanID(); string(s.ParentSpanId) != string(id[:]) {
					t.Errorf("%s has parent %x, want %s", s.Name, s.ParentSpanId, id)
				}
			}
		})
	}
	if url := o.scopes["github.com/baldur-go/baldur/baldurotel"]; url != semconv.SchemaURL {
		t.Errorf("schema %q", url)
	}
	all := o.exported()
	for _, secret := range []string{"argument-secret", "literal-secret", "copied-secret", must(pq.NewConfig(dsn)).Password} {
		if secret == "" || strings.Contains(all, secret) {
			t.Errorf("%q was exported", secret)
		}
	}
}

func TestSpanErrors(t *testing.T) {
	o := newTelemetry(t)
	dsn := pgtest.DSN(t)
	base := base(t, dsn)
	ns := base["db.namespace"].(string)
	db := o.open(dsn)
	must(db.Exec("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)"))
	must(db.Exec("INSERT INTO t VALUES (1)"))
	o.take()
	state := func(m map[string]any, code string) map[string]any {
		return plus(m, "db.response.status_code", code, "error.type", code)
	}
	for _, c := range []struct {
		name  string
		f     func() error
		wants []want
	}{
		{"syntax", func() error { _, err := db.Exec("SELEC"); return err },
			[]want{{ns, state(map[string]any{"db.query.text": "SELEC"}, "42601")}}},
		{"argument", func() error { _, err := db.Exec("SELECT $1::int", "argument-secret"); return err },
			[]want{{"SELECT", state(query("SELECT", "SELECT $1::int"), "22P02")}}},
		{"prepare", func() error { _, err := db.Prepare("SELECT nothing"); return err },
			[]want{{"PREPARE " + ns, state(plus(operation("PREPARE"), "db.query.text", "SELECT nothing"), "42703")}}},
		{"commit", func() error {
			tx := must(db.Begin())
			must(tx.Exec("INSERT INTO t VALUES (1)"))
			return tx.Commit()
		}, []want{{"BEGIN " + ns, operation("BEGIN")}, {"INSERT t", query("INSERT t", "INSERT INTO t VALUES (?)")}, {"COMMIT " + ns, state(operation("COMMIT"), "23505")}}},
		{"timeout", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := db.ExecContext(ctx, "SELECT pg_sleep(60)")
			return err
		}, []want{{"SELECT", state(query("SELECT", "SELECT pg_sleep(?)"), "57014")}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.f() == nil {
				t.Fatal("no error")
			}
			spans, _ := o.take()
			checkSpans(t, base, spans, c.wants...)
		})
	}
	if strings.Contains(o.exported(), "argument-secret") {
		t.Error("an argument was exported")
	}
}

// TestDSN: the parameter alone, with the global providers.
func TestDSN(t *testing.T) {
	dsn := pgtest.DSN(t)
	base := base(t, dsn)
	o := newTelemetry(t)
	tracers, meters := otel.GetTracerProvider(), otel.GetMeterProvider()
	otel.SetTracerProvider(o.tracers)
	otel.SetMeterProvider(o.meters)
	defer func() {
		otel.SetTracerProvider(tracers)
		otel.SetMeterProvider(meters)
	}()
	db := must(sql.Open(baldur.DriverName, with(t, dsn, "baldur_otel", "on", "search_path", "sales, public", "baldur_query_text", "off")))
	defer db.Close()
	must(db.Exec("SELECT 1"))
	spans, _ := o.take()
	base["db.namespace"] = base["db.namespace"].(string) + "|sales"
	checkSpans(t, base, spans, want{"SELECT", map[string]any{"db.query.summary": "SELECT"}})
	if m := o.collect(); len(m) == 0 {
		t.Error("no metrics")
	}

	off := must(sql.Open(baldur.DriverName, with(t, dsn, "baldur_otel", "off")))
	defer off.Close()
	must(off.Exec("SELECT 1"))
	if spans, _ := o.take(); len(spans) != 0 {
		t.Errorf("off: %v", spans)
	}
}

// with adds parameters to a DSN, which may be a URL or not.
func with(t *testing.T, dsn string, kvs ...string) string {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" {
		for i := 0; i < len(kvs); i += 2 {
			dsn += " " + kvs[i] + "='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(kvs[i+1]) + "'"
		}
		return dsn
	}
	q := u.Query()
	for i := 0; i < len(kvs); i += 2 {
		q.Set(kvs[i], kvs[i+1])
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// TestWrapped: any connector, of which nothing is known but what is said.
func TestWrapped(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, c := range []struct {
		name string
		opts []baldurotel.Option
		base map[string]any
		tx   string
	}{
		{"nothing", nil, map[string]any{"db.system.name": "postgresql"}, "BEGIN"},
		{"all", []baldurotel.Option{baldurotel.WithServer("db.example", 6000), baldurotel.WithNamespace("shop|sales")},
			map[string]any{"db.system.name": "postgresql", "server.address": "db.example", "server.port": int64(6000), "db.namespace": "shop|sales"}, "BEGIN shop|sales"},
		{"server", []baldurotel.Option{baldurotel.WithServer("db.example", 5432)},
			map[string]any{"db.system.name": "postgresql", "server.address": "db.example"}, "BEGIN db.example"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newTelemetry(t)
			inner := must(pq.NewConnector(dsn))
			db := baldur.OpenDB(inner, o.with(c.opts...))
			defer db.Close()
			tx := must(db.Begin())
			must(tx.Exec("SELECT 1"))
			_ = tx.Rollback()
			spans, _ := o.take()
			if len(spans) > 0 {
				spans = spans[:min(2, len(spans))]
			}
			checkSpans(t, c.base, spans, want{c.tx, operation("BEGIN")}, want{"SELECT", query("SELECT", "SELECT ?")})
		})
	}
}

// TestPGX: another driver, whose errors are of another type.
func TestPGX(t *testing.T) {
	o := newTelemetry(t)
	cfg := must(pgx.ParseConfig(pgtest.DSN(t)))
	db := baldur.OpenDB(stdlib.GetConnector(*cfg), o.with(baldurotel.WithNamespace(cfg.Database)))
	defer db.Close()
	base := map[string]any{"db.system.name": "postgresql", "db.namespace": cfg.Database}
	var n int
	if err := db.QueryRow("SELECT $1::int", 7).Scan(&n); err != nil || n != 7 {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := db.Exec("SELECT 1/0"); err == nil {
		t.Error("no error")
	}
	spans, _ := o.take()
	checkSpans(t, base, spans, want{"SELECT", query("SELECT", "SELECT $1::int")},
		want{"SELECT", plus(query("SELECT", "SELECT ?/?"), "db.response.status_code", "22012", "error.type", "22012")})
}

// TestCheckoutSpan: one for each checkout, as long as it was, where asked for.
func TestCheckoutSpan(t *testing.T) {
	o := newTelemetry(t)
	db := must(baldur.Open(pgtest.SocketDSN(t), o.with(baldurotel.WithCheckoutSpans()), baldur.WithPoolName("shop")))
	defer db.Close()
	app := o.inSpan(func(ctx context.Context) {
		c := must(db.Conn(ctx))
		must(c.ExecContext(ctx, "SELECT 1"))
		_ = c.Close()
	})
	spans, _ := o.take()
	i := slices.IndexFunc(spans, func(s *traces.Span) bool { return s.Name == "baldur.connection.held" })
	if len(spans) != 2 || i < 0 {
		t.Fatalf("got %v", spans)
	}
	held, query := spans[i], spans[1-i]
	if held.StartTimeUnixNano > query.StartTimeUnixNano || held.EndTimeUnixNano < query.EndTimeUnixNano || held.Kind != traces.Span_SPAN_KIND_INTERNAL {
		t.Errorf("held %v\nquery %v", held, query)
	}
	if id := app.SpanID(); string(held.ParentSpanId) != string(id[:]) {
		t.Errorf("parent %x, want %s", held.ParentSpanId, id)
	}
	a := attributes(held.Attributes)
	if a["db.client.connection.pool.name"] != "shop" || a["baldur.connection.id"] != int64(1) || !isHere(a, "TestCheckoutSpan") {
		t.Errorf("got %v", a)
	}
}

// isHere tells that code attributes name a function of these tests.
func isHere(a map[string]any, function string) bool {
	name, _ := a["code.function.name"].(string)
	file, _ := a["code.file.path"].(string)
	line, _ := a["code.line.number"].(int64)
	stack, _ := a["code.stacktrace"].(string)
	return strings.HasPrefix(name, "github.com/baldur-go/baldur/compat/baldurotel_test."+function) && strings.HasSuffix(file, "_test.go") &&
		strings.HasPrefix(stack, name+"\n\t"+file+":"+strconv.FormatInt(line, 10)+"\n") && line > 0
}

// TestSilentNetwork: the call ends with its ctx, and the span says so.
func TestSilentNetwork(t *testing.T) {
	o := newTelemetry(t)
	dsn, proxy := pgtest.Proxy(t)
	db := o.open(dsn, baldur.WithCancelGrace(200*time.Millisecond))
	if err := db.Ping(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	freeze(proxy)
	start := time.Now()
	_, err := db.ExecContext(ctx, "SELECT 1")
	if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second {
		t.Errorf("got %v after %v", err, took)
	}
	spans, _ := o.take()
	if len(spans) != 1 || attributes(spans[0].Attributes)["error.type"] != "context.DeadlineExceeded" {
		t.Errorf("got %v", spans)
	}
}
