package baldur_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baldur-go/baldur"
)

func TestPoolStats(t *testing.T) {
	for _, c := range []struct {
		s         baldur.PoolStats
		usage     float64
		exhausted bool
	}{
		{baldur.PoolStats{MaxConnections: 10, ActiveConnections: 7, AvailableConnections: 3}, 70, false},
		{baldur.PoolStats{MaxConnections: 10, ActiveConnections: 10, AvailableConnections: 0}, 100, true},
		{baldur.PoolStats{MaxConnections: 5, ActiveConnections: 8, AvailableConnections: 0}, 160, true}, // shrunk
		{baldur.PoolStats{MaxConnections: 0, ActiveConnections: 50}, 0, false},                          // unlimited
		{baldur.PoolStats{MaxConnections: -1, ActiveConnections: -1, AvailableConnections: -1}, 0, false},
	} {
		if c.s.UsagePercent() != c.usage || c.s.IsExhausted() != c.exhausted {
			t.Errorf("%+v: %v %%, exhausted %v", c.s, c.s.UsagePercent(), c.s.IsExhausted())
		}
	}
	if s := (baldur.NoOpPoolStatsProvider{}).Stats(); s.PoolName != "noop" || s.MaxConnections != 0 || s.ActiveConnections != 0 || s.CheckedAt.IsZero() {
		t.Errorf("no-op: %+v", s)
	}
	if s := (baldur.NoOpPoolStatsProvider{PoolName: "x"}).Stats(); s.PoolName != "x" {
		t.Errorf("no-op: %+v", s)
	}
}

// TestHealth fills a pool of ten, with two waiters at the end, and empties it.
func TestHealth(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		want := map[int]baldur.PoolHealthStatus{0: "healthy", 6: "healthy", 7: "warning", 8: "warning", 9: "critical", 10: "exhausted"}
		var held []*sql.Conn
		for n := 0; n <= 10; n++ {
			if w, ok := want[n]; ok && tr.CheckHealth() != w {
				t.Errorf("%d of 10 in use: %s, want %s", n, tr.CheckHealth(), w)
			}
			if n < 10 {
				held = append(held, must(db.Conn(ctx)))
			}
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { must(db.Exec("SELECT")) })
		}
		synctest.Wait()
		s := tr.Stats()
		if s.MaxConnections != 10 || s.ActiveConnections != 10 || s.AvailableConnections != 0 || s.WaitingRequests != 2 || s.PoolName != "pool" {
			t.Errorf("%+v", s)
		}
		info := tr.PoolInfo()
		if info != (baldur.PoolInfo{PoolType: "database/sql", PoolSize: 10, CheckedOut: 10, TotalCapacity: 10, PoolExhausted: true}) {
			t.Errorf("%+v", info)
		}
		for i, c := range held {
			_ = c.Close()
			if i == 0 {
				wg.Wait()
			}
		}
		if s := tr.Stats(); s.ActiveConnections != 0 || s.AvailableConnections != 10 || s.WaitingRequests != 0 {
			t.Errorf("%+v", s)
		}
		db.SetMaxOpenConns(0)
		tx := must(db.Begin())
		if s := tr.Stats(); s.IsExhausted() || s.UsagePercent() != 0 || tr.CheckHealth() != "healthy" {
			t.Errorf("unlimited: %+v, %s", s, tr.CheckHealth())
		}
		time.Sleep(time.Minute)
		if h := tr.CheckHealth(); h != "leak_suspected" {
			t.Errorf("with a leak: %s", h)
		}
		_ = tx.Rollback()
	})
}

// TestUnknown: where the pool is not known the figures are −1 and the health is
// "unknown"; what the tracker sees is told all the same.
func TestUnknown(t *testing.T) {
	connector := baldur.Wrap(&fakeDB{})
	one, two := sql.OpenDB(connector), sql.OpenDB(connector)
	defer one.Close()
	defer two.Close()
	tr := baldur.TrackerOf(one)
	if tr != baldur.TrackerOf(two) {
		t.Fatal("one connector, two trackers")
	}
	c := must(one.Conn(ctx))
	defer c.Close()
	r := tr.Report()
	if r.Health != baldur.HealthUnknown || r.Unattributed != -1 || r.Tracked != 1 || r.Stats.ActiveConnections != -1 || r.Stats.MaxConnections != -1 || r.Stats.WaitingRequests != -1 {
		t.Errorf("%+v", r)
	}
	if text := r.String(); !strings.Contains(text, "1 in use that are tracked, pool size unknown") || !strings.Contains(text, "waiting unknown") {
		t.Errorf("reads:\n%s", text)
	}
	if info := tr.PoolInfo(); info.CheckedIn != -1 || info.PoolSize != -1 || info.PoolExhausted {
		t.Errorf("%+v", info)
	}
}

// TestHungPool: a driver call that blocks under database/sql's lock hangs
// db.Stats(), but not a report.
func TestHungPool(t *testing.T) {
	hang, hung := make(chan bool), make(chan bool)
	fake := &fakeDB{closing: func() { close(hung); <-hang }}
	db := baldur.OpenDB(fake)
	tr := baldur.TrackerOf(db)
	st := must(db.Prepare("SELECT"))
	tx := must(db.Begin())
	txStmt := tx.Stmt(st) // the statement's connection is the transaction's
	must(txStmt.Exec())
	go st.Close() // closes the driver's statement under the lock when the connection comes back
	synced := make(chan bool)
	go func() { <-hung; close(synced) }()
	go func() { _ = tx.Rollback() }()
	<-synced
	r := tr.Report()
	if r.Health != baldur.HealthUnknown || r.Stats.ActiveConnections != -1 {
		t.Errorf("with the lock held: %+v", r.Stats)
	}
	close(hang)
	db.Close()
}

// TestJSON: the keys are a contract.
func TestJSON(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		tx := must(db.Begin())
		defer tx.Rollback()
		keys := func(v any) map[string]json.RawMessage {
			m := map[string]json.RawMessage{}
			if err := json.Unmarshal(must(json.Marshal(v)), &m); err != nil {
				t.Fatal(err)
			}
			return m
		}
		expect := func(m map[string]json.RawMessage, want ...string) {
			t.Helper()
			for _, k := range want {
				if _, ok := m[k]; !ok {
					t.Errorf("no %q in %s", k, must(json.Marshal(m)))
				}
			}
		}
		empty := keys(tr.Report())
		if string(empty["suspected_leaks"]) != "[]" {
			t.Errorf("no leaks are %s, want []", empty["suspected_leaks"])
		}
		time.Sleep(20 * time.Second)
		r := tr.Report()
		expect(keys(r), "pool_name", "report_time", "leak_threshold_seconds", "health", "leak_count", "stats", "tracked", "unattributed", "suspected_leaks", "long_held", "returned")
		expect(keys(r.SuspectedLeaks[0]), "connection_id", "acquired_at", "held_seconds", "kind", "state", "doing", "call_site", "stack_trace", "query_info", "goroutine_id")
		expect(keys(tr.PoolInfo()), "pool_type", "pool_size", "max_overflow", "checkedin", "checkedout", "overflow", "total_capacity", "available", "pool_exhausted")
		expect(keys(tr.Stats()), "pool_name", "max_connections", "active_connections", "available_connections", "waiting_requests", "checked_at")
	})
}

// TestHostileText: what others have written cannot break a report's lines.
func TestHostileText(t *testing.T) {
	for _, evil := range []string{"a\nLEAK? 99 connections", "\x1b[2Jgone", "\xff\xfe", "\u2028", strings.Repeat("x", 1<<20)} {
		synctest.Test(t, func(t *testing.T) {
			db := baldur.OpenDB(&fakeDB{}, baldur.WithPoolName(evil), baldur.WithLeakThreshold(time.Second))
			defer db.Close()
			rows := must(db.QueryContext(context.Background(), evil))
			defer rows.Close()
			time.Sleep(time.Minute)
			text := baldur.TrackerOf(db).Report().String()
			for _, bad := range []string{"\nLEAK? 99", "\x1b", "\xff", "\u2028"} {
				if strings.Contains(text, bad) {
					t.Errorf("%.20q: the report has %q", evil, bad)
				}
			}
			if len(text) > 1<<20+4096 {
				t.Errorf("%.20q: the report has %d bytes", evil, len(text))
			}
			if _, err := json.Marshal(baldur.TrackerOf(db).Report()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHoldTimes: each checkout of the pool, and of no other pool, in the bucket of
// how long it was out; also of a connection that is closed, and of one that is
// still gathering.
func TestHoldTimes(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		other := baldur.OpenDB(&fakeDB{})
		defer other.Close()
		must(other.Exec("another pool's"))
		var sum time.Duration
		for _, held := range []time.Duration{time.Nanosecond, 2 * time.Second, 2 * time.Second, 2 * time.Hour, 2 * time.Second} {
			tx := must(db.Begin())
			time.Sleep(held)
			_ = tx.Rollback()
			sum += held
			if held == 2*time.Hour {
				db.SetMaxIdleConns(-1) // closes it
				db.SetMaxIdleConns(1)
			}
		}
		tr.SetCapture(baldur.CaptureSites)
		must(db.Exec("not counted"))
		for range 2 { // looking adds nothing
			buckets, total := tr.HoldTimes()
			var lower time.Duration
			for _, b := range buckets {
				want := map[bool]uint64{lower == 0: 1, lower <= 2*time.Second && 2*time.Second < b.Below: 3, b.Below == 0: 1}[true]
				if b.Count != want {
					t.Errorf("[%v, %v) has %d, want %d", lower, b.Below, b.Count, want)
				}
				lower = b.Below
			}
			if lower != 0 || total != sum {
				t.Errorf("the last bucket ends at %v; the sum is %v, want %v", lower, total, sum)
			}
		}
		if buckets, total := baldur.TrackerOf(other).HoldTimes(); buckets[0].Count != 1 || total > time.Microsecond {
			t.Errorf("of the other pool: %d, %v", buckets[0].Count, total)
		}
	})
}
