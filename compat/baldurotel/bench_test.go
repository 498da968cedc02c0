package baldurotel_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"

	lognoop "go.opentelemetry.io/otel/log/noop"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurotel"
)

// nullDB is a driver that does nothing.
type nullDB struct{}
type nullConn struct{ driver.Conn }

func exampleDB() nullDB { return nullDB{} }

func (nullDB) Connect(context.Context) (driver.Conn, error) { return nullConn{}, nil }
func (nullDB) Driver() driver.Driver                        { return nil }
func (nullConn) Close() error                               { return nil }
func (nullConn) ResetSession(context.Context) error         { return nil }
func (nullConn) IsValid() bool                              { return true }
func (nullConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}

// BenchmarkExec: importing this package costs a pool nothing that does not ask
// for it ("off" beside "raw"); what it costs one that does.
func BenchmarkExec(b *testing.B) {
	noop := []baldurotel.Option{baldurotel.WithTracerProvider(tracenoop.NewTracerProvider()), baldurotel.WithMeterProvider(metricnoop.NewMeterProvider()), baldurotel.WithLoggerProvider(lognoop.NewLoggerProvider())}
	sdk := func(s sdktrace.Sampler) []baldurotel.Option {
		return append(noop[:len(noop):len(noop)], baldurotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSampler(s))),
			baldurotel.WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))))
	}
	for _, c := range []struct {
		name string
		open func() *sql.DB
	}{
		{"raw", func() *sql.DB { return sql.OpenDB(nullDB{}) }},
		{"off", func() *sql.DB { return baldur.OpenDB(nullDB{}) }},
		{"noop", func() *sql.DB { return baldur.OpenDB(nullDB{}, baldurotel.With(noop...)) }},
		{"sdk,never", func() *sql.DB { return baldur.OpenDB(nullDB{}, baldurotel.With(sdk(sdktrace.NeverSample())...)) }},
		{"sdk,always", func() *sql.DB { return baldur.OpenDB(nullDB{}, baldurotel.With(sdk(sdktrace.AlwaysSample())...)) }},
	} {
		b.Run("otel="+c.name, func(b *testing.B) {
			db := c.open()
			defer db.Close()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := db.Exec("DELETE FROM orders WHERE id = $1"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
