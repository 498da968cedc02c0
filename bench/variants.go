package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"

	xsam "github.com/XSAM/otelsql"
	"github.com/ngrok/sqlmw"
	nhat "go.nhat.io/otelsql"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/baldur-go/baldur"
)

// A variant is one way to wrap a driver.
type variant struct {
	name   string
	open   func(target) (*sql.DB, error)
	settle func() // waits for work that was put off; may be nil
}

// A target is the driver to wrap.
type target struct {
	driver.Connector
	dsn string // of lib/pq; empty: the null driver
}

// variants returns them all: the bare driver first, which the others are
// divided by, and once more, as the control.
func variants() []variant {
	never, always := newSDK(trace.NeverSample()), newSDK(trace.AlwaysSample())
	return []variant{
		{name: "raw", open: openRaw},
		{name: "raw again (control)", open: openRaw},
		{name: "**baldur**", open: openBaldur(baldur.CaptureFull)},
		{name: "baldur, sites", open: openBaldur(baldur.CaptureSites)},
		{name: "baldur, off", open: openBaldur(baldur.CaptureOff)},
		{name: "`runtime.Callers` at checkout", open: openNoting(noteCallers)},
		{name: "`runtime.Stack` and a timer at checkout", open: openNoting(noteText)},
		{name: "ngrok/sqlmw, null interceptor", open: openSqlmw},
		{name: "XSAM/otelsql, no provider", open: openXSAM()},
		{name: "XSAM/otelsql, SDK, never sampled", open: openXSAM(never.options()...)},
		{name: "XSAM/otelsql, SDK, always sampled", open: openXSAM(always.options()...), settle: always.settle},
		{name: "nhat/otelsql, no provider", open: openNhat},
	}
}

func openRaw(t target) (*sql.DB, error) { return sql.OpenDB(t.Connector), nil }

func openBaldur(mode baldur.Capture) func(target) (*sql.DB, error) {
	return func(t target) (*sql.DB, error) {
		if t.dsn != "" {
			return baldur.Open(t.dsn, baldur.WithCapture(mode))
		}
		return baldur.OpenDB(t.Connector, baldur.WithCapture(mode)), nil
	}
}

func openNoting(note func(*notingConn)) func(target) (*sql.DB, error) {
	return func(t target) (*sql.DB, error) { return sql.OpenDB(noting{t.Connector, note}), nil }
}

func openSqlmw(t target) (*sql.DB, error) {
	return openDriver(sqlmw.Driver(connectorDriver{t.Connector}, sqlmw.NullInterceptor{}))
}

func openNhat(t target) (*sql.DB, error) {
	return openDriver(nhat.Wrap(connectorDriver{t.Connector}))
}

func openDriver(d driver.Driver) (*sql.DB, error) {
	dc, ok := d.(driver.DriverContext)
	if !ok {
		return nil, fmt.Errorf("%T has no OpenConnector", d)
	}
	c, err := dc.OpenConnector("")
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(c), nil
}

func openXSAM(options ...xsam.Option) func(target) (*sql.DB, error) {
	return func(t target) (*sql.DB, error) { return xsam.OpenDB(t.Connector, options...), nil }
}

// sdk is OpenTelemetry's, with an exporter that throws the spans away.
type sdk struct {
	traces  *trace.TracerProvider
	metrics *metric.MeterProvider
}

type discard struct{}

func (discard) ExportSpans(context.Context, []trace.ReadOnlySpan) error { return nil }
func (discard) Shutdown(context.Context) error                          { return nil }

func newSDK(s trace.Sampler) sdk {
	return sdk{
		trace.NewTracerProvider(trace.WithSampler(s), trace.WithBatcher(discard{})),
		metric.NewMeterProvider(metric.WithReader(metric.NewManualReader())),
	}
}

func (s sdk) options() []xsam.Option {
	return []xsam.Option{xsam.WithTracerProvider(s.traces), xsam.WithMeterProvider(s.metrics)}
}

// settle exports what is in the batcher's queue, so that it does not do so while
// another variant is measured.
func (s sdk) settle() { _ = s.traces.ForceFlush(context.Background()) }
