package baldurprom_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurprom"
	"github.com/baldur-go/baldur/internal/lack"
)

// TestScrape: a pool that is empty, as Prometheus sees it over HTTP.
func TestScrape(t *testing.T) {
	db := open(t, baldur.WithReturnAudit(1))
	url := serve(t, baldurprom.NewCollector())
	must(db.Exec("SELECT 1"))
	f := scrape(t, url)
	for family, want := range map[string]float64{
		"baldur_suspected_connections": 0, "baldur_long_held_connections": 0, "baldur_tracked_connections": 0, "baldur_unattributed_connections": 0,
		"baldur_waiting_requests": 0, "baldur_oldest_holder_age_seconds": 0, "baldur_leak_threshold_seconds": 0.1, "baldur_leaks_total": 0,
		"baldur_dirty_returns_total": 0, "go_sql_open_connections": 1, "go_sql_max_open_connections": 3, "go_sql_in_use_connections": 0,
	} {
		if got := f.value(family, "shop"); got != want {
			t.Errorf("%s is %v, want %v", family, got, want)
		}
	}

	must(db.Exec("BEGIN")) // comes back dirty
	rows := must(db.Query("SELECT 1"))
	tx := must(db.Begin())
	defer tx.Rollback()
	conn := must(db.Conn(ctx))
	defer conn.Close()
	if err := errors.Join(conn.PingContext(ctx), baldur.Label(conn, "expected")); err != nil {
		t.Fatal(err)
	}
	waitCtx, cancel := context.WithCancel(ctx)
	waited := make(chan error)
	go func() { waited <- db.PingContext(waitCtx) }()
	defer func() { cancel(); <-waited }()
	tr := baldur.TrackerOf(db)
	until(t, "a waiter and two leaks", func() bool {
		r := tr.Report()
		return r.Stats.WaitingRequests == 1 && r.LeakCount() == 2 && len(r.LongHeld) == 1
	})
	before := db.Stats()
	for range 3 { // a counter does not grow by being looked at
		f = scrape(t, url)
	}
	for family, want := range map[string]float64{
		"baldur_suspected_connections": 2, "baldur_long_held_connections": 1, "baldur_tracked_connections": 3, "baldur_unattributed_connections": 0,
		"baldur_waiting_requests": 1, "baldur_leaks_total": 2, "baldur_dirty_returns_total": 1, "go_sql_in_use_connections": 3, "go_sql_wait_count_total": 1,
	} {
		if got := f.value(family, "shop"); got != want {
			t.Errorf("%s is %v, want %v", family, got, want)
		}
	}
	if age := f.value("baldur_oldest_holder_age_seconds", "shop"); age < threshold.Seconds() || age > 30 {
		t.Errorf("the oldest is %v s old", age)
	}
	if after := db.Stats(); after.OpenConnections != before.OpenConnections || after.WaitCount != before.WaitCount {
		t.Errorf("the pool was %+v, and is %+v", before, after)
	}

	rows.Close()
	f = scrape(t, url)
	if n, all := f.value("baldur_suspected_connections", "shop"), f.value("baldur_leaks_total", "shop"); n != 1 || all != 2 {
		t.Errorf("after a return %v suspected, %v in all", n, all)
	}
}

// TestUseTime: each hold is in the histogram, in the bucket of how long it was.
func TestUseTime(t *testing.T) {
	db := fakePool(t, "use time")
	must(fakePool(t, "another").Conn(ctx)).Close()
	url := serve(t, baldurprom.NewCollector())
	before := scrape(t, url).of("baldur_connection_use_seconds", "use time").GetHistogram()
	const held = 20 * time.Millisecond
	for range 5 {
		conn := must(db.Conn(ctx))
		time.Sleep(held) // what is measured
		conn.Close()
	}
	scraped := scrape(t, url)
	after := scraped.of("baldur_connection_use_seconds", "use time").GetHistogram()
	if sum := after.GetSampleSum(); after.GetSampleCount() != 5 || sum < 5*held.Seconds() || sum > 60 || before.GetSampleCount() != 0 || before.GetSampleSum() != 0 {
		t.Errorf("%v after %v", after, before)
	}
	if n := scraped.of("baldur_connection_use_seconds", "another").GetHistogram().GetSampleCount(); n != 1 {
		t.Errorf("another pool has %d", n)
	}
	if len(after.GetBucket()) != 16 { // with +Inf
		t.Errorf("%d buckets: %v", len(after.GetBucket()), after)
	}
	for i, b := range after.GetBucket() {
		n := b.GetCumulativeCount() - before.GetBucket()[i].GetCumulativeCount()
		if b.GetUpperBound() < held.Seconds() && n != 0 || b.GetUpperBound() > 60 && n != 5 {
			t.Errorf("%d more of up to %v s", n, b.GetUpperBound())
		}
		if bound := time.Duration(math.Round(b.GetUpperBound() * 1e9)); !math.IsInf(b.GetUpperBound(), 1) && bound != 1<<(14+2*i)-1 {
			t.Errorf("bound %d is %v", i, b.GetUpperBound())
		}
	}
}

// TestCompatible: go_sql_* are those of client_golang, by name, help, type, label
// and value.
func TestCompatible(t *testing.T) {
	db := open(t)
	db.SetMaxIdleConns(1)
	defer must(db.Begin()).Rollback()
	one, two := must(db.Conn(ctx)), must(db.Conn(ctx))
	waited := make(chan error)
	go func() { waited <- db.PingContext(ctx) }()
	until(t, "a waiter", func() bool { return db.Stats().WaitCount == 1 })
	one.Close()
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	two.Close()
	until(t, "quiet", func() bool { return db.Stats().InUse == 1 && db.Stats().MaxIdleClosed == 1 })

	want := scrape(t, serve(t, collectors.NewDBStatsCollector(db, "shop")))
	got := scrape(t, serve(t, baldurprom.NewCollector(baldurprom.WithTrackers(baldur.TrackerOf(db)))))
	if len(want) != 9 || want.value("go_sql_wait_count_total", "shop") != 1 || want.value("go_sql_wait_duration_seconds_total", "shop") == 0 {
		t.Fatalf("client_golang's are %v", want)
	}
	for name, family := range want {
		if got[name].String() != family.String() {
			t.Errorf("got  %v\nwant %v", got[name], family)
		}
		delete(got, name)
	}
	for name := range got {
		if !strings.HasPrefix(name, "baldur_") {
			t.Errorf("%s is not client_golang's", name)
		}
	}
}

// TestRegister: what goes together in a registry, and what is refused at once
// rather than at a scrape.
func TestRegister(t *testing.T) {
	a, b := fakePool(t, "a"), fakePool(t, "b")
	theirs := collectors.NewDBStatsCollector(a, "a")
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(baldurprom.NewCollector(baldurprom.WithoutDBStats()), theirs)
	for name := range scrape(t, serve(t, baldurprom.NewCollector(baldurprom.WithoutDBStats()))) {
		if strings.HasPrefix(name, "go_sql_") {
			t.Errorf("WithoutDBStats has %s", name)
		}
	}
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
	reg = prometheus.NewPedanticRegistry()
	reg.MustRegister(baldurprom.NewCollector())
	if reg.Register(theirs) == nil {
		t.Error("two collectors of go_sql_* are taken")
	}
	only := func(t *baldur.Tracker) prometheus.Collector {
		return baldurprom.NewCollector(baldurprom.WithTrackers(t))
	}
	reg = prometheus.NewPedanticRegistry()
	reg.MustRegister(only(baldur.TrackerOf(a)))
	if err := reg.Register(only(baldur.TrackerOf(b))); !errors.As(err, &prometheus.AlreadyRegisteredError{}) {
		t.Errorf("a second collector: %v", err)
	}
}

// TestTrackers: which pools are exported.
func TestTrackers(t *testing.T) {
	a, b := baldur.TrackerOf(fakePool(t, "a")), baldur.TrackerOf(fakePool(t, "b"))
	for _, c := range []struct {
		opts []baldurprom.Option
		want []string
	}{
		{nil, []string{"a", "b"}},
		{[]baldurprom.Option{baldurprom.WithTrackers(b)}, []string{"b"}},
		{[]baldurprom.Option{baldurprom.WithTrackers(nil, b, a, b)}, []string{"a", "b"}},
		{[]baldurprom.Option{baldurprom.WithTrackers()}, nil},
	} {
		f := scrape(t, serve(t, baldurprom.NewCollector(c.opts...)))
		for _, family := range []string{"baldur_tracked_connections", "baldur_connection_use_seconds"} {
			var got []string
			for _, m := range f[family].GetMetric() {
				got = append(got, m.GetLabel()[0].GetValue())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s: got %v, want %v", family, got, c.want)
			}
		}
	}
}

// TestUnknown: what is not known is absent, not 0: here, of a pool that was
// closed while a connection was out, and of its successor of the same name.
func TestUnknown(t *testing.T) {
	old := fakePool(t, "shop")
	tr := baldur.TrackerOf(old)
	old.Close()
	f := scrape(t, serve(t, baldurprom.NewCollector(baldurprom.WithTrackers(tr, baldur.TrackerOf(fakePool(t, "shop"))))))
	if f.of("baldur_tracked_connections", "shop") == nil || f.of("baldur_tracked_connections", "shop#2") == nil {
		t.Fatalf("%v", f)
	}
	for name := range f {
		known := f.of(name, "shop") != nil
		if want := !strings.HasPrefix(name, "go_sql_") && name != "baldur_waiting_requests" && name != "baldur_unattributed_connections"; known != want {
			t.Errorf("of a closed pool, %s is there: %v", name, known)
		}
		if f.of(name, "shop#2") == nil {
			t.Errorf("of an open pool, %s is not there", name)
		}
	}
}

// TestHostile: no pool's name breaks the scrape, or is mistaken for another's.
func TestHostile(t *testing.T) {
	names := []string{
		"line\nbaldur_leaks_total{db_name=\"forged\"} 1\n", `quote"\`, "<script>", "\xff", "\xfe", "\x00\x1b[2J\r", "\u2028", "語",
		strings.Repeat("long", 1<<18), strings.Repeat("long", 1<<18) + "er", strings.Repeat("語", 100), strings.Repeat("\xff", 1<<20), "plain",
	}
	for _, name := range names {
		fakePool(t, name)
	}
	url := serve(t, baldurprom.NewCollector())
	text := scrapeText(t, url)
	if len(text) > 100_000 || !utf8.ValidString(text) || strings.Contains(text, "\nbaldur_leaks_total{db_name=\"forged") {
		t.Errorf("%d bytes: %.1000q", len(text), text)
	}
	checkMetrics(t, text)
	f := scrape(t, url)
	seen := map[string]bool{}
	for _, m := range f["baldur_leaks_total"].GetMetric() {
		pool := m.GetLabel()[0].GetValue()
		seen[pool] = true
		if strings.Contains(pool, "#") {
			t.Errorf("%q is told apart by its place, which changes", pool)
		}
	}
	if len(seen) != len(names) {
		t.Errorf("%d pools are told apart, want %d: %v", len(seen), len(names), seen)
	}
	for _, name := range []string{names[0], names[1], names[2], "語", "plain"} {
		if !seen[name] {
			t.Errorf("%q is not itself", name)
		}
	}
}

// TestPromtool: Prometheus's own linter finds nothing.
func TestPromtool(t *testing.T) {
	db := open(t)
	must(db.Exec("SELECT 1"))
	checkMetrics(t, scrapeText(t, serve(t, baldurprom.NewCollector())))
}

func checkMetrics(t *testing.T, text string) {
	t.Helper()
	cmd := exec.Command(promtool(t), "check", "metrics")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// promtool is the path of promtool, which is in Debian's package prometheus.
func promtool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		lack.Of(t, "promtool", "Debian: apt-get install prometheus")
	}
	return path
}

func BenchmarkScrape(b *testing.B) {
	for _, conns := range []int{0, 100} {
		b.Run(fmt.Sprint("held=", conns), func(b *testing.B) {
			db := baldur.OpenDB(fake{}, baldur.WithPoolName("bench"))
			defer db.Close()
			for range conns {
				defer must(db.Conn(ctx)).Close()
			}
			c := baldurprom.NewCollector()
			ch := make(chan prometheus.Metric, 100)
			for b.Loop() {
				c.Collect(ch)
				for len(ch) > 0 {
					<-ch
				}
			}
		})
	}
}
