package baldurotel_test

import (
	"context"
	"database/sql"
	"runtime"
	"slices"
	"testing"
	"time"
	"weak"

	"github.com/lib/pq"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurotel"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// sums returns the data points of an UpDownCounter by their attributes.
func sums(t *testing.T, m metricdata.Metrics) map[string]int64 {
	t.Helper()
	s, ok := m.Data.(metricdata.Sum[int64])
	if !ok || s.IsMonotonic {
		t.Errorf("%s is a %T, want an UpDownCounter", m.Name, m.Data)
	}
	points := map[string]int64{}
	for _, p := range s.DataPoints {
		points[p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Value
	}
	return points
}

func histogram(t *testing.T, m metricdata.Metrics) []metricdata.HistogramDataPoint[float64] {
	t.Helper()
	h, ok := m.Data.(metricdata.Histogram[float64])
	if !ok {
		t.Fatalf("%s is a %T, want a histogram", m.Name, m.Data)
	}
	return h.DataPoints
}

func wantPoints(t *testing.T, m metricdata.Metrics, want map[string]int64) {
	t.Helper()
	got := sums(t, m)
	if len(got) != len(want) {
		t.Errorf("%s: got %v, want %v", m.Name, got, want)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: got %v, want %v", m.Name, got, want)
		}
	}
}

const named = "db.client.connection.pool.name="

func TestMetrics(t *testing.T) {
	o := newTelemetry(t)
	dsn := pgtest.DSN(t)
	db := o.open(dsn, baldur.WithPoolName("shop"))
	if m := sums(t, o.collect()["db.client.connection.count"]); len(m) != 2 || m[named+`shop,db.client.connection.state=used`] != 0 {
		t.Errorf("before the first connection: %v", m)
	}

	var held *sql.Conn
	begin, taken := time.Now(), time.Time{} // it goes out in between
	app := o.inSpan(func(ctx context.Context) {
		held = must(db.Conn(ctx))
		taken = time.Now()
		must(held.ExecContext(ctx, "CREATE TABLE t (id int)"))
		_, err := held.ExecContext(ctx, "SELECT nothing")
		if err == nil {
			t.Error("no error")
		}
		tx := must(held.BeginTx(ctx, nil))
		_ = tx.Rollback()
	})
	all := o.collect()
	if _, ok := all["db.client.connection.max"]; ok {
		t.Error("an unlimited pool has a max")
	}
	db.SetMaxOpenConns(1)
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		must(db.Exec("SELECT 1"))
	}()
	eventually(t, "one waits", func() bool { return db.Stats().WaitCount == 1 })
	all = o.collect()
	wantPoints(t, all["db.client.connection.count"], map[string]int64{
		named + "shop,db.client.connection.state=idle": 0, named + "shop,db.client.connection.state=used": 1,
	})
	wantPoints(t, all["db.client.connection.max"], map[string]int64{named + "shop": 1})
	wantPoints(t, all["db.client.connection.pending_requests"], map[string]int64{named + "shop": 1})
	least := time.Since(taken)
	_ = held.Close()
	most := time.Since(begin)
	<-waited
	all = o.collect()
	wantPoints(t, all["db.client.connection.count"], map[string]int64{
		named + "shop,db.client.connection.state=idle": 1, named + "shop,db.client.connection.state=used": 0,
	})
	wantPoints(t, all["db.client.connection.pending_requests"], map[string]int64{named + "shop": 0})

	create := histogram(t, all["db.client.connection.create_time"])
	if len(create) != 1 || create[0].Attributes.Encoded(attribute.DefaultEncoder()) != named+"shop" || create[0].Count != 1 || create[0].Sum <= 0 || create[0].Sum > 10 {
		t.Errorf("create_time: %+v", create)
	}
	use := histogram(t, all["db.client.connection.use_time"])
	if len(use) != 1 || use[0].Attributes.Encoded(attribute.DefaultEncoder()) != named+"shop" || use[0].Count != 2 || use[0].Bounds[len(use[0].Bounds)-1] != 1800 {
		t.Fatalf("use_time: %+v", use)
	}
	longest, ok := use[0].Max.Value()
	if !ok || longest < least.Seconds() || longest > most.Seconds() {
		t.Errorf("use_time %v, want %v to %v", longest, least, most)
	}
	traceID, spanID := app.TraceID(), app.SpanID()
	if !slices.ContainsFunc(use[0].Exemplars, func(e metricdata.Exemplar[float64]) bool {
		return slices.Equal(e.TraceID, traceID[:]) && slices.Equal(e.SpanID, spanID[:])
	}) {
		t.Errorf("no exemplar of %v: %+v", traceID, use[0].Exemplars)
	}
	if !slices.ContainsFunc(create[0].Exemplars, func(e metricdata.Exemplar[float64]) bool { return slices.Equal(e.TraceID, traceID[:]) }) {
		t.Errorf("no exemplar of %v: %+v", traceID, create[0].Exemplars)
	}

	// Of the operations: the attributes of their spans without the text.
	base := base(t, dsn)
	want := map[attribute.Distinct]uint64{}
	for kvs, n := range map[*[]attribute.KeyValue]uint64{
		{attribute.String("db.query.summary", "CREATE TABLE t")}: 1,
		{attribute.String("db.query.summary", "SELECT"), attribute.String("db.response.status_code", "42703"), attribute.String("error.type", "42703")}: 1,
		{attribute.String("db.query.summary", "SELECT")}:    1,
		{attribute.String("db.operation.name", "BEGIN")}:    1,
		{attribute.String("db.operation.name", "ROLLBACK")}: 1,
	} {
		attrs := *kvs
		for k, v := range base {
			switch v := v.(type) {
			case string:
				attrs = append(attrs, attribute.String(k, v))
			case int64:
				attrs = append(attrs, attribute.Int64(k, v))
			}
		}
		set := attribute.NewSet(attrs...)
		want[set.Equivalent()] = n
	}
	points := histogram(t, all["db.client.operation.duration"])
	for _, p := range points {
		if want[p.Attributes.Equivalent()] != p.Count || p.Sum <= 0 {
			t.Errorf("operation.duration: %d of %s", p.Count, p.Attributes.Encoded(attribute.DefaultEncoder()))
		}
	}
	if len(points) != len(want) {
		t.Errorf("operation.duration: %d points, want %d", len(points), len(want))
	}

	// Names, units and descriptions are the conventions', and there are no others.
	type instrument interface {
		Name() string
		Unit() string
		Description() string
	}
	instruments := []instrument{dbconv.ClientConnectionCountObservable{}, dbconv.ClientConnectionMaxObservable{}, dbconv.ClientConnectionPendingRequestsObservable{},
		dbconv.ClientConnectionCreateTime{}, dbconv.ClientConnectionUseTime{}, dbconv.ClientOperationDuration{}}
	for _, i := range instruments {
		if m := all[i.Name()]; m.Unit != i.Unit() || m.Description != i.Description() {
			t.Errorf("%s: got %q, %q", i.Name(), m.Unit, m.Description)
		}
	}
	if len(all) != len(instruments) {
		t.Errorf("got %d metrics", len(all))
	}

	// A closed pool is no longer observed.
	_ = db.Close()
	all = o.collect()
	for _, name := range []string{"db.client.connection.count", "db.client.connection.max", "db.client.connection.pending_requests"} {
		if m, ok := all[name]; ok && len(sums(t, m)) > 0 {
			t.Errorf("closed: %s is %v", name, sums(t, m))
		}
	}
}

// TestMetricsOfPlainPool: what plain sql.Open has opened is known from its first connect on.
func TestMetricsOfPlainPool(t *testing.T) {
	o := newTelemetry(t)
	db := sql.OpenDB(baldur.Wrap(must(pq.NewConnector(pgtest.SocketDSN(t))), o.with(), baldur.WithPoolName("plain")))
	defer db.Close()
	db.SetMaxOpenConns(3)
	must(db.Exec("SELECT 1"))
	all := o.collect()
	wantPoints(t, all["db.client.connection.count"], map[string]int64{
		named + "plain,db.client.connection.state=idle": 1, named + "plain,db.client.connection.state=used": 0,
	})
	wantPoints(t, all["db.client.connection.max"], map[string]int64{named + "plain": 3})
	wantPoints(t, all["db.client.connection.pending_requests"], map[string]int64{named + "plain": 0})
}

// TestTwoPools: each has its name; one is closed, the other goes on.
func TestTwoPools(t *testing.T) {
	o := newTelemetry(t)
	dsn := pgtest.SocketDSN(t)
	option := o.with() // for both
	a := must(baldur.Open(dsn, option, baldur.WithPoolName("two")))
	b := must(baldur.Open(dsn, option, baldur.WithPoolName("two")))
	defer b.Close()
	must(b.Exec("SELECT 1"))
	count := sums(t, o.collect()["db.client.connection.count"])
	if len(count) != 4 || count[named+"two#2,db.client.connection.state=idle"] != 1 || count[named+"two,db.client.connection.state=idle"] != 0 {
		t.Errorf("got %v", count)
	}
	_ = a.Close()
	if count := sums(t, o.collect()["db.client.connection.count"]); len(count) != 2 || count[named+"two#2,db.client.connection.state=idle"] != 1 {
		t.Errorf("got %v", count)
	}
}

// TestClosedPoolIsFreed: nothing here keeps a closed pool alive.
func TestClosedPoolIsFreed(t *testing.T) {
	o := newTelemetry(t)
	db := must(baldur.Open(pgtest.SocketDSN(t), o.with(baldurotel.WithLeakInterval(time.Millisecond))))
	must(db.Exec("SELECT 1"))
	tracker := weak.Make(baldur.TrackerOf(db))
	o.collect()
	runtime.GC()
	if tracker.Value() == nil {
		t.Fatal("an open pool is freed")
	}
	_ = db.Close()
	db = nil
	eventually(t, "the pool is freed", func() bool { runtime.GC(); return tracker.Value() == nil })
	o.collect()
}
