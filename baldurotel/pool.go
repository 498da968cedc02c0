package baldurotel

import (
	"context"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

// The buckets of the histograms, in seconds. A connection may be held for an hour.
var (
	createBuckets = []float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10}
	useBuckets    = []float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800}
)

// pool tells of one pool: its metrics and its leaks.
type pool struct {
	c         *config
	queryText bool
	tracer    trace.Tracer
	meter     metric.Meter
	logger    log.Logger

	createTime dbconv.ClientConnectionCreateTime
	useTime    dbconv.ClientConnectionUseTime
	name       atomic.Pointer[poolName] // nil before opened

	stop func() // between opened and closed
}

// poolName is the pool's name in the forms that are needed for each checkout.
type poolName struct {
	attr   attribute.KeyValue
	set    attribute.Set
	record []metric.RecordOption
}

func newPool(c *config, queryText bool) *pool {
	p := &pool{
		c:         c,
		queryText: queryText,
		tracer:    c.tracers.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		meter:     c.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL)),
		logger:    c.loggers.Logger(scope, log.WithSchemaURL(semconv.SchemaURL)),
	}
	var err error
	if p.createTime, err = dbconv.NewClientConnectionCreateTime(p.meter, metric.WithExplicitBucketBoundaries(createBuckets...)); err != nil {
		otel.Handle(err)
	}
	if p.useTime, err = dbconv.NewClientConnectionUseTime(p.meter, metric.WithExplicitBucketBoundaries(useBuckets...)); err != nil {
		otel.Handle(err)
	}
	return p
}

// opened: the pool has come into use, under the name that it has now.
func (p *pool) opened(t *baldur.Tracker) {
	attr := semconv.DBClientConnectionPoolName(text.Cut(t.PoolName(), maxName))
	set := attribute.NewSet(attr)
	p.name.Store(&poolName{attr, set, []metric.RecordOption{metric.WithAttributeSet(set)}})
	var registered []metric.Registration
	for _, observe := range []func(*baldur.Tracker, attribute.KeyValue) (metric.Registration, error){p.observe, p.observeQuorums} {
		r, err := observe(t, attr)
		if err != nil {
			otel.Handle(err)
			continue
		}
		registered = append(registered, r)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if p.c.leakInterval > 0 {
		go func() { _ = t.Watch(ctx, p.c.leakInterval, p.leaks) }() // ends with the pool
	}
	p.stop = func() {
		cancel()
		for _, r := range registered {
			if err := r.Unregister(); err != nil {
				otel.Handle(err)
			}
		}
	}
}

// closed lets go of the tracker.
func (p *pool) closed() {
	if p.stop != nil {
		p.stop()
		p.stop = nil
	}
}

// observe registers what is read from the pool when metrics are collected.
func (p *pool) observe(t *baldur.Tracker, name attribute.KeyValue) (metric.Registration, error) {
	count, err := dbconv.NewClientConnectionCountObservable(p.meter)
	if err != nil {
		return nil, err
	}
	limit, err := dbconv.NewClientConnectionMaxObservable(p.meter)
	if err != nil {
		return nil, err
	}
	pending, err := dbconv.NewClientConnectionPendingRequestsObservable(p.meter)
	if err != nil {
		return nil, err
	}
	ended, err := p.meter.Int64ObservableCounter("baldur.connection.context_ended", metric.WithUnit("{checkout}"),
		metric.WithDescription("Checkouts that database/sql has ended because their ctx had ended, by whether the program had closed: no, or unknown."))
	if err != nil {
		return nil, err
	}
	closed := func(how string) metric.ObserveOption {
		return metric.WithAttributeSet(attribute.NewSet(name, attribute.String("baldur.connection.closed", how)))
	}
	notClosed, unknown := closed("no"), closed("unknown")
	state := func(s dbconv.ClientConnectionStateAttr) metric.ObserveOption {
		return metric.WithAttributeSet(attribute.NewSet(name, count.AttrClientConnectionState(s)))
	}
	named, idle, used := metric.WithAttributeSet(attribute.NewSet(name)), state(dbconv.ClientConnectionStateIdle), state(dbconv.ClientConnectionStateUsed)
	return p.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		if i, u, ok := t.Connections(); ok {
			o.ObserveInt64(count.Inst(), int64(i), idle)
			o.ObserveInt64(count.Inst(), int64(u), used)
		}
		var all, not int64
		for _, e := range t.ContextEnded() {
			all, not = all+int64(e.Count), not+int64(e.NotClosed)
		}
		if all > 0 {
			o.ObserveInt64(ended, not, notClosed)
			o.ObserveInt64(ended, all-not, unknown)
		}
		s := t.Stats()
		if s.MaxConnections > 0 {
			o.ObserveInt64(limit.Inst(), int64(s.MaxConnections), named)
		}
		if s.WaitingRequests >= 0 {
			o.ObserveInt64(pending.Inst(), int64(s.WaitingRequests), named)
		}
		return nil
	}, count.Inst(), limit.Inst(), pending.Inst(), ended)
}

func (p *pool) connected(ctx context.Context, took time.Duration) {
	if name := p.name.Load(); name != nil && p.createTime.Enabled(ctx) {
		p.createTime.Inst().Record(ctx, took.Seconds(), name.record...)
	}
}

func (p *pool) returned(r baldur.Return) {
	name := p.name.Load()
	if name == nil {
		return
	}
	ctx := context.Background()
	if r.Span.IsValid() {
		ctx = inTrace(r.Span)
	}
	if p.useTime.Enabled(ctx) {
		p.useTime.Inst().Record(ctx, r.Held.Seconds(), name.record...)
	}
	if p.c.checkoutSpans {
		_, s := p.tracer.Start(ctx, "baldur.connection.held", trace.WithTimestamp(r.AcquiredAt),
			trace.WithAttributes(name.attr, attribute.Int64("baldur.connection.id", r.ConnectionID)),
			trace.WithAttributes(codeAttributes(r.CallSite(), r.StackTrace())...))
		s.End(trace.WithTimestamp(r.AcquiredAt.Add(r.Held)))
	}
}
