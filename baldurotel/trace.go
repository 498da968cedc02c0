package baldurotel

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"
	"time"

	"github.com/XSAM/otelsql"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/embedded"

	"github.com/baldur-go/baldur/internal/hook"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/text"
)

// trackQueries puts otelsql around a connector.
//
// otelsql is told to make the spans that the conventions have, but what it would
// put on them (the method's name, the text with its literals, errors' messages)
// is not theirs, in part cannot be changed by its options, and comes after the
// sampler has decided. So it is given a tracer of ours, which is told the method
// and the query in the place of the name, and makes name and attributes of them.
// Its metric has the method's name where the operation's belongs; ours is
// recorded by the spans.
func trackQueries(inner driver.Connector, t *tracer) driver.Connector {
	d := otelsql.WrapDriver(oneConnector{inner},
		otelsql.WithTracerProvider(tracerProvider{tracer: t}),
		otelsql.WithMeterProvider(noop.NewMeterProvider()),
		otelsql.WithSpanNameFormatter(formatName),
		otelsql.WithSpanOptions(otelsql.SpanOptions{
			DisableErrSkip:       true,
			DisableQuery:         true,
			OmitConnResetSession: true,
			OmitRows:             true,
			OmitConnectorConnect: true,
			SpanFilter:           wanted,
		}))
	c, err := d.(driver.DriverContext).OpenConnector("")
	if err != nil {
		otel.Handle(err)
		return inner
	}
	return c
}

// oneConnector is a driver by which otelsql comes to a connector.
type oneConnector struct{ driver.Connector }

func (o oneConnector) Open(string) (driver.Conn, error)               { return o.Connect(context.Background()) }
func (o oneConnector) OpenConnector(string) (driver.Connector, error) { return o.Connector, nil }

// wanted: not the queries of baldur's own, nor each row of a COPY.
func wanted(ctx context.Context, method otelsql.Method, query string, args []driver.NamedValue) bool {
	if method == otelsql.MethodStmtExec && len(args) > 0 {
		verb, _, _ := strings.Cut(strings.TrimSpace(query[:min(len(query), 100)]), " ")
		if strings.EqualFold(verb, "COPY") {
			return false
		}
	}
	return !hook.IsOwn(ctx)
}

// What tracer.Start is told in the place of a name: the operation's name, or
// querySign and the query.
const querySign = "\x00"

func formatName(_ context.Context, method otelsql.Method, query string) string {
	switch method {
	case otelsql.MethodConnBeginTx:
		return "BEGIN"
	case otelsql.MethodTxCommit:
		return "COMMIT"
	case otelsql.MethodTxRollback:
		return "ROLLBACK"
	case otelsql.MethodConnPrepare:
		return "PREPARE" + querySign + query[:min(len(query), maxScan+1)]
	}
	return querySign + query[:min(len(query), maxScan+1)]
}

type tracerProvider struct {
	embedded.TracerProvider
	tracer *tracer
}

func (p tracerProvider) Tracer(string, ...trace.TracerOption) trace.Tracer { return p.tracer }

// tracer makes the spans of one pool's queries.
type tracer struct {
	embedded.Tracer
	inner     trace.Tracer
	duration  dbconv.ClientOperationDuration
	attrs     []attribute.KeyValue // of every span
	target    string               // of an operation without a text
	queryText bool
	known     descriptions
}

func newTracer(c *config, queryText bool) *tracer {
	t := &tracer{
		inner:     c.tracers.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		attrs:     []attribute.KeyValue{semconv.DBSystemNamePostgreSQL},
		queryText: queryText,
	}
	var err error
	t.duration, err = dbconv.NewClientOperationDuration(c.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL)),
		metric.WithExplicitBucketBoundaries(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10))
	if err != nil {
		otel.Handle(err)
	}
	if address := text.Cut(c.server.address, maxPath); address != "" {
		t.attrs = append(t.attrs, semconv.ServerAddress(address))
		if port := c.server.port; port != 0 && port != 5432 {
			t.attrs = append(t.attrs, semconv.ServerPort(port))
		}
		t.target = address
	}
	if ns := text.Cut(c.namespace, maxName); ns != "" {
		t.attrs = append(t.attrs, semconv.DBNamespace(ns))
		t.target = ns
	}
	return t
}

// Start starts the span of what formatName has written.
func (t *tracer) Start(ctx context.Context, what string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	s := &span{tracer: t, start: time.Now()}
	op, query, isQuery := strings.Cut(what, querySign)
	s.attrs = append(make([]attribute.KeyValue, 0, len(t.attrs)+4), t.attrs...)
	var name, queryText string
	if isQuery {
		d := t.known.of(query)
		name, queryText = d.summary, d.text
	}
	switch {
	case op != "":
		name = strings.TrimSuffix(op+" "+t.target, " ")
		s.attrs = append(s.attrs, semconv.DBOperationName(op))
	case name != "":
		s.attrs = append(s.attrs, semconv.DBQuerySummary(name))
	case t.target != "":
		name = t.target
	default:
		name = semconv.DBSystemNamePostgreSQL.Value.AsString()
	}
	attrs := s.attrs
	if queryText != "" && t.queryText {
		attrs = append(attrs, semconv.DBQueryText(queryText)) // too varied for a metric
	}
	s.ctx, s.Span = t.inner.Start(ctx, name, trace.WithTimestamp(s.start), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attrs...))
	return s.ctx, s
}

// span is the span of a call of the driver, of which otelsql sets the status.
type span struct {
	trace.Span
	tracer *tracer
	ctx    context.Context // with the span, for the exemplar
	start  time.Time
	attrs  []attribute.KeyValue // of the metric
}

// RecordError notes what is told of an error. An event with its message would
// quote arguments: invalid input syntax for type integer: "…".
func (s *span) RecordError(err error, _ ...trace.EventOption) {
	n := len(s.attrs)
	if state, ok := pqconn.SQLState(err); ok {
		s.attrs = append(s.attrs, semconv.DBResponseStatusCode(state), semconv.ErrorTypeKey.String(state))
	} else {
		s.attrs = append(s.attrs, semconv.ErrorTypeKey.String(errorType(s.ctx, err)))
	}
	s.SetAttributes(s.attrs[n:]...)
}

func (s *span) End(...trace.SpanEndOption) {
	end := time.Now()
	s.Span.End(trace.WithTimestamp(end))
	if s.tracer.duration.Enabled(s.ctx) {
		s.tracer.duration.RecordSet(s.ctx, end.Sub(s.start).Seconds(), attribute.NewSet(s.attrs...))
	}
}

// errorType names an error without an SQLSTATE. After the end of ctx that is the
// cause, whatever the driver makes of it (baldur has cut its socket, perhaps).
func errorType(ctx context.Context, err error) string {
	for _, e := range []error{err, ctx.Err()} {
		switch {
		case errors.Is(e, context.Canceled):
			return "context.Canceled"
		case errors.Is(e, context.DeadlineExceeded):
			return "context.DeadlineExceeded"
		}
	}
	if errors.Is(err, driver.ErrBadConn) {
		return "driver.ErrBadConn"
	}
	return text.Cut(semconv.ErrorType(err).Value.AsString(), maxName)
}
