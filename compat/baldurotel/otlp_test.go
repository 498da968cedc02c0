package baldurotel_test

import (
	"bytes"
	"context"
	"database/sql"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurotel"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// receiver is an OTLP receiver over HTTP.
type receiver struct {
	*httptest.Server
	t testing.TB

	mu      sync.Mutex // guards the fields below
	raw     bytes.Buffer
	spans   []*traces.Span
	scopes  map[string]string // of the spans: name → schema URL
	records []*logs.LogRecord
}

func newReceiver(t testing.TB) *receiver {
	r := &receiver{t: t, scopes: map[string]string{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.raw.Write(body)
	switch req.URL.Path {
	case "/v1/traces":
		var m coltrace.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &m); err != nil {
			r.t.Error(err)
		}
		for _, rs := range m.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				r.scopes[ss.Scope.Name] = ss.SchemaUrl
				r.spans = append(r.spans, ss.Spans...)
			}
		}
	case "/v1/logs":
		var m collogs.ExportLogsServiceRequest
		if err := proto.Unmarshal(body, &m); err != nil {
			r.t.Error(err)
		}
		for _, rl := range m.ResourceLogs {
			for _, sl := range rl.ScopeLogs {
				r.records = append(r.records, sl.LogRecords...)
			}
		}
	default:
		r.t.Errorf("request for %s", req.URL.Path)
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// telemetry is an OpenTelemetry SDK that exports to a receiver.
type telemetry struct {
	*receiver
	tracers *sdktrace.TracerProvider
	meters  *sdkmetric.MeterProvider
	loggers *sdklog.LoggerProvider
	metrics *sdkmetric.ManualReader
}

func newTelemetry(t testing.TB) *telemetry {
	r := newReceiver(t)
	traceExporter := must(otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(r.URL+"/v1/traces")))
	logExporter := must(otlploghttp.New(t.Context(), otlploghttp.WithEndpointURL(r.URL+"/v1/logs")))
	reader := sdkmetric.NewManualReader()
	o := &telemetry{
		receiver: r,
		tracers:  sdktrace.NewTracerProvider(sdktrace.WithBatcher(traceExporter)),
		meters:   sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
		loggers:  sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(logExporter))),
		metrics:  reader,
	}
	t.Cleanup(func() {
		ctx := context.Background()
		for _, shutdown := range []func(context.Context) error{o.tracers.Shutdown, o.meters.Shutdown, o.loggers.Shutdown} {
			if err := shutdown(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	return o
}

// with is the Option that tells of a pool here.
func (o *telemetry) with(opts ...baldurotel.Option) baldur.Option {
	return baldurotel.With(append([]baldurotel.Option{
		baldurotel.WithTracerProvider(o.tracers),
		baldurotel.WithMeterProvider(o.meters),
		baldurotel.WithLoggerProvider(o.loggers),
	}, opts...)...)
}

// open opens a pool that is told of.
func (o *telemetry) open(dsn string, opts ...baldur.Option) *sql.DB {
	db := must(baldur.Open(dsn, append([]baldur.Option{o.with()}, opts...)...))
	o.t.Cleanup(func() { _ = db.Close() })
	return db
}

// inSpan calls f in a span of the application's and returns that.
func (o *telemetry) inSpan(f func(ctx context.Context)) trace.SpanContext {
	ctx, span := o.tracers.Tracer("app").Start(o.t.Context(), "request")
	defer span.End()
	f(ctx)
	return span.SpanContext()
}

// take returns what was received since the last time, the application's own
// spans left out.
func (o *telemetry) take() (spans []*traces.Span, records []*logs.LogRecord) {
	o.t.Helper()
	if err := o.tracers.ForceFlush(o.t.Context()); err != nil {
		o.t.Error("traces: ", err)
	}
	if err := o.loggers.ForceFlush(o.t.Context()); err != nil {
		o.t.Error("logs: ", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.spans {
		if s.Name != "request" {
			spans = append(spans, s)
		}
	}
	records = o.records
	o.spans, o.records = nil, nil
	return spans, records
}

// exported returns every byte that was received.
func (o *telemetry) exported() string {
	o.take()
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.raw.String()
}

// collect returns the metrics of baldurotel by their names.
func (o *telemetry) collect() map[string]metricdata.Metrics {
	o.t.Helper()
	var rm metricdata.ResourceMetrics
	if err := o.metrics.Collect(o.t.Context(), &rm); err != nil {
		o.t.Error(err)
	}
	all := map[string]metricdata.Metrics{}
	for _, sm := range rm.ScopeMetrics {
		if sm.Scope.Name != "github.com/baldur-go/baldur/baldurotel" {
			o.t.Errorf("metrics of %s", sm.Scope.Name)
		}
		for _, m := range sm.Metrics {
			all[m.Name] = m
		}
	}
	return all
}

// attributes makes values of attributes.
func attributes(kvs []*common.KeyValue) map[string]any {
	m := map[string]any{}
	for _, kv := range kvs {
		switch v := kv.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			m[kv.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			m[kv.Key] = v.IntValue
		case *common.AnyValue_DoubleValue:
			m[kv.Key] = v.DoubleValue
		default:
			m[kv.Key] = kv.Value
		}
	}
	return m
}

// eventually waits for what has no event to wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not so after 30 s", what)
		}
	}
}
