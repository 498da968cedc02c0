package baldurprom

import (
	"database/sql"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/baldur-go/baldur"
)

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// metric is a family of one value for each T, of a pool or of a lease on it.
type metric[T any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(T) float64
}

func newMetric[T any](kind prometheus.ValueType, name, help string, value func(T) float64, labels ...string) metric[T] {
	return metric[T]{prometheus.NewDesc(name, help, append([]string{"db_name"}, labels...), nil), kind, value}
}

// poolState is what the tracker knows of a pool at a scrape.
type poolState struct {
	report baldur.LeakReport
	oldest time.Duration
	leaks  int
	dirty  int
}

var poolMetrics = []metric[poolState]{
	newMetric(gauge, "baldur_accused_connections", "Connections that are leaked for certain: lost, or part of a deadlock.",
		func(p poolState) float64 { return float64(len(p.report.Accused())) }),
	newMetric(gauge, "baldur_suspected_connections", "Connections that are out and have not been used for the leak threshold.",
		func(p poolState) float64 { return float64(len(p.report.SuspectedLeaks)) }),
	newMetric(gauge, "baldur_long_held_connections", "Connections that have been out for the leak threshold, but are in use or expected to be held.",
		func(p poolState) float64 { return float64(len(p.report.LongHeld)) }),
	newMetric(gauge, "baldur_tracked_connections", "Connections that are out and whose holder is known.",
		func(p poolState) float64 { return float64(p.report.Tracked) }),
	newMetric(gauge, "baldur_unattributed_connections", "Connections that are out and whose holder is not known.",
		func(p poolState) float64 { return float64(p.report.Unattributed) }),
	newMetric(gauge, "baldur_waiting_requests", "Goroutines that wait for a connection.",
		func(p poolState) float64 { return float64(p.report.Stats.WaitingRequests) }),
	newMetric(gauge, "baldur_oldest_holder_age_seconds", "How long the longest held connection has been out; 0 if none is.",
		func(p poolState) float64 { return p.oldest.Seconds() }),
	newMetric(gauge, "baldur_leak_threshold_seconds", "How long a connection must be out and unused before it is suspected.",
		func(p poolState) float64 { return p.report.LeakThreshold.Seconds() }),
	newMetric(counter, "baldur_leaks_total", "Checkouts that have been suspected of a leak, each once.",
		func(p poolState) float64 { return float64(p.leaks) }),
	newMetric(counter, "baldur_context_ended_total", "Checkouts that database/sql has ended because their ctx had ended.",
		func(p poolState) (n float64) {
			for _, e := range p.report.ContextEnded {
				n += float64(e.Count)
			}
			return n
		}),
	newMetric(counter, "baldur_not_closed_total", "Those of baldur_context_ended_total that the program had surely not closed.",
		func(p poolState) (n float64) {
			for _, e := range p.report.ContextEnded {
				n += float64(e.NotClosed)
			}
			return n
		}),
	newMetric(counter, "baldur_dirty_returns_total", "Connections that the return audit has found dirty; 0 while the audit is off.",
		func(p poolState) float64 { return float64(p.dirty) }),
}

var useTime = prometheus.NewDesc("baldur_connection_use_seconds", "How long connections were out, of the checkouts that have ended.", []string{"db_name"}, nil)

// dbMetrics are those of client_golang's collectors.NewDBStatsCollector, to the letter.
var dbMetrics = []metric[sql.DBStats]{
	newMetric(gauge, "go_sql_max_open_connections", "Maximum number of open connections to the database.",
		func(s sql.DBStats) float64 { return float64(s.MaxOpenConnections) }),
	newMetric(gauge, "go_sql_open_connections", "The number of established connections both in use and idle.",
		func(s sql.DBStats) float64 { return float64(s.OpenConnections) }),
	newMetric(gauge, "go_sql_in_use_connections", "The number of connections currently in use.",
		func(s sql.DBStats) float64 { return float64(s.InUse) }),
	newMetric(gauge, "go_sql_idle_connections", "The number of idle connections.",
		func(s sql.DBStats) float64 { return float64(s.Idle) }),
	newMetric(counter, "go_sql_wait_count_total", "The total number of connections waited for.",
		func(s sql.DBStats) float64 { return float64(s.WaitCount) }),
	newMetric(counter, "go_sql_wait_duration_seconds_total", "The total time blocked waiting for a new connection.",
		func(s sql.DBStats) float64 { return s.WaitDuration.Seconds() }),
	newMetric(counter, "go_sql_max_idle_closed_total", "The total number of connections closed due to SetMaxIdleConns.",
		func(s sql.DBStats) float64 { return float64(s.MaxIdleClosed) }),
	newMetric(counter, "go_sql_max_idle_time_closed_total", "The total number of connections closed due to SetConnMaxIdleTime.",
		func(s sql.DBStats) float64 { return float64(s.MaxIdleTimeClosed) }),
	newMetric(counter, "go_sql_max_lifetime_closed_total", "The total number of connections closed due to SetConnMaxLifetime.",
		func(s sql.DBStats) float64 { return float64(s.MaxLifetimeClosed) }),
}
