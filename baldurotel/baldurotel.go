// Package baldurotel tells OpenTelemetry what baldur knows: spans of the
// queries, metrics of the pool, and a log record for each leaked connection, by
// the semantic conventions 1.43.0.
//
// To import it is enough for the DSN to ask for it, with the global providers:
//
//	import _ "github.com/baldur-go/baldur/baldurotel"
//
//	db, err := sql.Open("baldur-pq", dsn+" baldur_otel=on") // in a URL: &baldur_otel=on
//
// With providers of its own a program says so in Go, for lib/pq and for any
// other connector:
//
//	db, err := baldur.Open(dsn, baldurotel.With(baldurotel.WithTracerProvider(tp)))
//	db := baldur.OpenDB(connector, baldurotel.With())
//
// A pool without either has nothing of this in its path.
//
// # Spans
//
// Each query, exec, prepare, begin, commit and rollback has a span of kind
// CLIENT in the caller's trace. XSAM/otelsql makes them, between baldur and the
// driver; the names and attributes are the conventions':
//
//   - The name is db.query.summary ("SELECT orders"); where there is no text, the
//     operation and its target ("COMMIT shop").
//   - db.system.name; server.address, and server.port if it is not 5432.
//   - db.namespace is the database, and the first schema of a search_path in the
//     DSN: as it was at the connect, since the server does not tell of a SET.
//   - db.query.text is the text as it is if it has parameters ($1), else with every
//     literal and comment replaced or left out. It ends after 4 KiB. With
//     baldur.WithQueryText(false) it is absent. Arguments are nowhere.
//   - db.operation.name where it is known without a look at the text: BEGIN,
//     COMMIT, ROLLBACK, PREPARE. The conventions for PostgreSQL forbid to take it,
//     or db.collection.name, from the text.
//   - After an error: db.response.status_code is the SQLSTATE, and so is error.type.
//     Without one error.type is "context.Canceled", "context.DeadlineExceeded",
//     "driver.ErrBadConn" or the type of the error. The error's message may
//     quote arguments and is not told.
//
// There is none for pings, resets, the reading of rows, the rows of a COPY and
// the queries of baldur's own. An error met while rows are read is in no span.
// A span of a query ends when its first rows are there.
//
// # Metrics
//
// Of the pool, with db.client.connection.pool.name (see baldur.WithPoolName):
//
//	db.client.connection.count             {connection}  with db.client.connection.state: idle, used
//	db.client.connection.max               {connection}  not of an unlimited pool
//	db.client.connection.pending_requests  {request}     goroutines that wait for a connection
//	db.client.connection.create_time       s             of connects that succeeded
//	db.client.connection.use_time          s             from the taking to the return, exact
//	baldur.connection.context_ended        {checkout}    ended by their ctx, with baldur.connection.closed: no, unknown (see baldur.ContextEnded)
//
// use_time has the trace that took the connection as its exemplar. max and
// pending_requests need the *sql.DB: of a pool from plain sql.Open there are
// none before baldur.TrackerOf has been called with it, and count is absent
// while it cannot be told (see [baldur.Tracker.Connections]).
//
// And db.client.operation.duration, s, for each span, sampled or not, with the
// attributes of the span but for db.query.text and server.address's port 5432.
//
// Not emitted: wait_time and timeouts, since a driver is not called by those who
// wait, and database/sql has only the sum of the waits; idle.max and idle.min,
// since database/sql does not tell the first and has no second;
// response.returned_rows, since the driver does not see who stops reading.
//
// # Leases
//
// Of each quorum on the pool that is in use (see [baldur.Tracker.Quorums]), with
// db.client.connection.pool.name, baldur.quorum.lease and baldur.quorum.region,
// which is this process's; a second one of both ends in #2:
//
//	baldur.quorum.primary           {primary}    UpDownCounter  1 or 0; the sum over all processes is 1 at most
//	baldur.quorum.epoch             {epoch}      Gauge    of the hold; not if not primary
//	baldur.quorum.belief_remaining  s            Gauge    until the belief ends; not if not primary
//	baldur.quorum.elections         {election}   Counter  won
//	baldur.quorum.losses            {loss}       Counter  with baldur.quorum.loss.reason: see [baldur.LossReason]
//	baldur.quorum.renewals          {renewal}    Counter  confirmed
//	baldur.quorum.renew_time        s            Counter  from sending to confirmation, of all renewals
//	baldur.quorum.request.errors    {error}      Counter  with error.type: unanswered (of unknown result), refused
//	baldur.quorum.takeover_wait     s            Gauge    before the last election that was won; not before one
//	baldur.quorum.clock_gap         s            Gauge    for how long the machine was suspended in this hold
//	baldur.quorum.guard.rejections  {rejection}  Counter  by RequirePrimary and Seal.Require
//
// An epoch is above 2^32: it is exported as an integer, and a backend that keeps
// float64 has it exact up to 2^53, two million failovers of the witness later.
// The figures end when the PGQuorum is stopped or closed.
//
// # Leaks
//
// A connection that a report lists as a suspected leak is told once, in a log
// record with the event name "baldur.connection.leak", of severity WARN, in the
// trace that took it; and once more when it is back, as
// "baldur.connection.leak.returned", INFO. Attributes: the pool's name,
// baldur.connection.id, .held_seconds, .kind, .state; code.function.name,
// code.file.path, code.line.number, code.stacktrace of the taking; and, if
// known, db.query.text and baldur.connection.backend_pid. If the taking was in a
// trace there is also a span "baldur.connection.leak" with a link to it, in a
// trace of its own: the other may have ended long ago.
//
// Strings are valid UTF-8 and of bounded length, whatever they were.
package baldurotel

import (
	"context"
	"database/sql/driver"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/log"
	logglobal "go.opentelemetry.io/otel/log/global"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/hook"
)

func init() { hook.OTel = func() baldur.Option { return With() } }

// scope is the name of the instrumentation.
const scope = "github.com/baldur-go/baldur/baldurotel"

// DefaultLeakInterval is how often a pool is looked at for leaks.
const DefaultLeakInterval = 10 * time.Second

type config struct {
	tracers       trace.TracerProvider
	meters        metric.MeterProvider
	loggers       log.LoggerProvider
	leakInterval  time.Duration
	checkoutSpans bool
	server        *server
	namespace     string
}

type server struct {
	address string
	port    int
}

// An Option sets one thing of what [With] does.
type Option func(*config)

// WithTracerProvider sets where spans go. Default: the global provider.
func WithTracerProvider(p trace.TracerProvider) Option {
	return func(c *config) { c.tracers = p }
}

// WithMeterProvider sets where metrics go. Default: the global provider.
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(c *config) { c.meters = p }
}

// WithLoggerProvider sets where log records go. Default: the global provider.
func WithLoggerProvider(p log.LoggerProvider) Option {
	return func(c *config) { c.loggers = p }
}

// WithLeakInterval sets how often the pool is looked at for leaks, by a goroutine
// that ends when the pool is closed. Default 10 s; 0 or below: never.
func WithLeakInterval(every time.Duration) Option {
	return func(c *config) { c.leakInterval = every }
}

// WithCheckoutSpans adds a span "baldur.connection.held" for each checkout, from
// the taking to the return, in the trace that took the connection. It is made at
// the return, under locks of database/sql's: the span processor must not block,
// as a synchronous one does. A connection that never comes back has none.
func WithCheckoutSpans() Option {
	return func(c *config) { c.checkoutSpans = true }
}

// WithServer sets server.address and server.port, where baldur has not parsed a
// DSN or one with several hosts. Port 0 is not told.
func WithServer(address string, port int) Option {
	return func(c *config) { c.server = &server{address, port} }
}

// WithNamespace sets db.namespace, database or database|schema, where baldur has
// not parsed a DSN.
func WithNamespace(namespace string) Option {
	return func(c *config) { c.namespace = namespace }
}

// With makes a pool tell OpenTelemetry. It includes [baldur.WithSpanContext] if
// that is not given.
func With(opts ...Option) baldur.Option {
	return baldur.WithHooks("opentelemetry", func(target baldur.Target) baldur.Hooks {
		c := config{leakInterval: DefaultLeakInterval}
		for _, o := range opts {
			o(&c)
		}
		if c.tracers == nil {
			c.tracers = otel.GetTracerProvider()
		}
		if c.meters == nil {
			c.meters = otel.GetMeterProvider()
		}
		if c.loggers == nil {
			c.loggers = logglobal.GetLoggerProvider()
		}
		if c.server == nil {
			c.server = &server{target.Address, target.Port}
		}
		if c.namespace == "" {
			c.namespace = namespace(target)
		}
		p := newPool(&c, target.QueryText)
		return baldur.Hooks{
			Connector: func(inner driver.Connector) driver.Connector {
				return trackQueries(inner, newTracer(&c, target.QueryText))
			},
			SpanContext: spanContext,
			Opened:      p.opened,
			Closed:      p.closed,
			Connected:   p.connected,
			Returned:    p.returned,
		}
	})
}

// namespace is {database}|{schema}, or what there is of it.
func namespace(target baldur.Target) string {
	if target.Database == "" || target.Schema == "" {
		return target.Database + target.Schema
	}
	return target.Database + "|" + target.Schema
}

func spanContext(ctx context.Context) baldur.SpanContext {
	sc := trace.SpanContextFromContext(ctx)
	return baldur.SpanContext{TraceID: sc.TraceID(), SpanID: sc.SpanID(), TraceFlags: byte(sc.TraceFlags())}
}

// inTrace is a ctx in the trace of a checkout.
func inTrace(s baldur.SpanContext) context.Context {
	return trace.ContextWithSpanContext(context.Background(), otelSpanContext(s))
}

func otelSpanContext(s baldur.SpanContext) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: s.TraceID, SpanID: s.SpanID, TraceFlags: trace.TraceFlags(s.TraceFlags)})
}
