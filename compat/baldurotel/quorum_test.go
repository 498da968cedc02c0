package baldurotel_test

import (
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// points are the values of a metric by their attributes, and what kind it is.
func points(t *testing.T, m metricdata.Metrics) (kind string, values map[string]float64) {
	t.Helper()
	values = map[string]float64{}
	switch d := m.Data.(type) {
	case metricdata.Gauge[int64]:
		kind, values = "gauge", byAttributes(d.DataPoints)
	case metricdata.Gauge[float64]:
		kind, values = "gauge", byAttributes(d.DataPoints)
	case metricdata.Sum[int64]:
		kind, values = map[bool]string{true: "counter", false: "updown"}[d.IsMonotonic], byAttributes(d.DataPoints)
	case metricdata.Sum[float64]:
		kind, values = map[bool]string{true: "counter", false: "updown"}[d.IsMonotonic], byAttributes(d.DataPoints)
	default:
		t.Errorf("%s is a %T", m.Name, m.Data)
	}
	return kind, values
}

func byAttributes[N int64 | float64](points []metricdata.DataPoint[N]) map[string]float64 {
	values := map[string]float64{}
	for _, p := range points {
		values[p.Attributes.Encoded(attribute.DefaultEncoder())] = float64(p.Value)
	}
	return values
}

// TestQuorumMetrics: of two candidates on a real server, to the letter.
func TestQuorumMetrics(t *testing.T) {
	ctx := t.Context()
	o := newTelemetry(t)
	db := o.open(pgtest.DSN(t), baldur.WithPoolName("shop"))
	newQuorum := func(region string) *baldur.PGQuorum {
		q := must(baldur.NewPGQuorum(db, region))
		t.Cleanup(func() { _ = q.Close() })
		return q
	}
	a, b := newQuorum("eu-west"), newQuorum("eu-west")
	for name := range o.collect() {
		if strings.HasPrefix(name, "baldur.quorum.") {
			t.Errorf("before the first use there is %s", name)
		}
	}
	if ok, err := a.TryAcquirePrimary(ctx); !ok || err != nil {
		t.Fatal(ok, err)
	}
	for range 2 {
		if ok, err := a.RenewLease(ctx); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if ok, err := b.TryAcquirePrimary(ctx); ok || err != nil {
		t.Fatal(ok, err)
	}
	tx := must(db.Begin())
	if _, err := b.RequirePrimary(ctx, tx); err == nil {
		t.Error("b is guarded")
	}
	_ = tx.Rollback()

	lease, _ := a.Lease()
	stats := a.Stats()
	all := o.collect()
	const first, second = "baldur.quorum.lease=primary,baldur.quorum.region=eu-west,db.client.connection.pool.name=shop", "baldur.quorum.lease=primary,baldur.quorum.region=eu-west#2,db.client.connection.pool.name=shop"
	both := func(x, y float64) map[string]float64 { return map[string]float64{first: x, second: y} }
	by := func(attr string, values ...string) map[string]float64 { // all are 0
		m := map[string]float64{}
		for _, v := range values {
			for _, of := range []string{first, second} {
				kvs := strings.Split(of, ",")
				if attr == "baldur.quorum.loss.reason" { // attributes are sorted
					kvs = []string{kvs[0], attr + "=" + v, kvs[1], kvs[2]}
				} else {
					kvs = append(kvs, attr+"="+v)
				}
				m[strings.Join(kvs, ",")] = 0
			}
		}
		return m
	}
	wants := map[string]struct {
		kind, unit string
		points     map[string]float64
	}{
		"baldur.quorum.primary":          {"updown", "{primary}", both(1, 0)},
		"baldur.quorum.epoch":            {"gauge", "{epoch}", map[string]float64{first: float64(lease.Epoch)}},
		"baldur.quorum.belief_remaining": {"gauge", "s", nil}, // below
		"baldur.quorum.elections":        {"counter", "{election}", both(1, 0)},
		"baldur.quorum.losses":           {"counter", "{loss}", by("baldur.quorum.loss.reason", "expired", "fenced", "suspended", "released", "failover")},
		"baldur.quorum.renewals":         {"counter", "{renewal}", both(2, 0)},
		"baldur.quorum.renew_time":       {"counter", "s", both(stats.RenewTotal.Seconds(), 0)},
		"baldur.quorum.request.errors":   {"counter", "{error}", by("error.type", "unanswered", "refused")},
		"baldur.quorum.takeover_wait":    {"gauge", "s", map[string]float64{first: stats.TakeoverWait.Seconds()}},
		"baldur.quorum.clock_gap":        {"gauge", "s", both(stats.ClockGap.Seconds(), 0)}, // some ns: of two clocks
		"baldur.quorum.guard.rejections": {"counter", "{rejection}", both(0, 1)},
	}
	for name, want := range wants {
		kind, got := points(t, all[name])
		if kind != want.kind || all[name].Unit != want.unit || all[name].Description == "" {
			t.Errorf("%s is a %s in %s: %q", name, kind, all[name].Unit, all[name].Description)
		}
		if name == "baldur.quorum.belief_remaining" {
			if left := got[first]; len(got) != 1 || left <= 0 || left > 9 {
				t.Errorf("%s: %v", name, got)
			}
			continue
		}
		if len(got) != len(want.points) {
			t.Errorf("%s: got %v, want %v", name, got, want.points)
		}
		for k, v := range want.points {
			if have, ok := got[k]; !ok || have != v {
				t.Errorf("%s: got %v, want %v", name, got, want.points)
			}
		}
	}
	for name := range all {
		if _, ok := wants[name]; !ok && strings.HasPrefix(name, "baldur.") {
			t.Errorf("%s is not described", name)
		}
	}

	// A loss and a refusal are counted; what is no more is not told; a closed one is gone.
	if err := a.ReleaseLease(ctx); err != nil {
		t.Fatal(err)
	}
	must(db.Exec("DROP TABLE baldur_lease"))
	if _, err := b.TryAcquirePrimary(ctx); err == nil {
		t.Error("acquired in no table")
	}
	all = o.collect()
	if _, got := points(t, all["baldur.quorum.losses"]); got["baldur.quorum.lease=primary,baldur.quorum.loss.reason=released,baldur.quorum.region=eu-west,db.client.connection.pool.name=shop"] != 1 {
		t.Errorf("losses: %v", got)
	}
	if _, got := points(t, all["baldur.quorum.request.errors"]); got[second+",error.type=refused"] != 1 {
		t.Errorf("errors: %v", got)
	}
	if m, ok := all["baldur.quorum.epoch"]; ok {
		t.Errorf("an epoch after the release: %+v", m)
	}
	_ = a.Close()
	_ = b.Close()
	for name, m := range o.collect() {
		if strings.HasPrefix(name, "baldur.quorum.") {
			t.Errorf("after the end there is %s: %+v", name, m)
		}
	}
}
