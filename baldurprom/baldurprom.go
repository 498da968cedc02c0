// Package baldurprom exports the pools of a program to Prometheus.
//
//	prometheus.MustRegister(baldurprom.NewCollector())
//
// There are two families. go_sql_* are the figures of database/sql, under the
// names, with the help and the label of client_golang's
// collectors.NewDBStatsCollector, so that dashboards for it go on to work.
// baldur_* are what only the tracker knows: see [NewCollector].
//
// Each has the label db_name, the pool's name. No call site is ever a label:
// their number has no bound. Which line leaks is told by the report, the log and
// package baldurhttp.
package baldurprom

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

// An Option sets one thing about a collector.
type Option func(*collector)

// WithTrackers exports the pools of these trackers. The default is all pools that
// are open in the program at the time of a scrape: [baldur.Trackers]. A nil
// tracker, as TrackerOf returns for a pool that is not baldur's, is left out.
//
// Two collectors do not go into one registry: give all trackers to one.
func WithTrackers(trackers ...*baldur.Tracker) Option {
	return func(c *collector) {
		c.trackers = func() []*baldur.Tracker { return trackers }
	}
}

// WithoutDBStats leaves go_sql_* out, for a program that has them from
// collectors.NewDBStatsCollector; with both, registering the second is an error.
func WithoutDBStats() Option {
	return func(c *collector) { c.dbStats = false }
}

// NewCollector returns a collector of the go_sql_* metrics and these:
//
//	baldur_accused_connections           gauge    leaked for certain: see [baldur.Verdict]
//	baldur_suspected_connections         gauge    out, and unused for the leak threshold
//	baldur_long_held_connections         gauge    out for that long, but in use or labelled
//	baldur_tracked_connections           gauge    out, with a holder that is known
//	baldur_unattributed_connections      gauge    out, but not seen; absent where unknown
//	baldur_waiting_requests              gauge    for a connection; absent where unknown
//	baldur_oldest_holder_age_seconds     gauge    0 if no connection is out
//	baldur_leak_threshold_seconds        gauge
//	baldur_leaks_total                   counter  checkouts that have been accused or suspected
//	baldur_context_ended_total           counter  checkouts that the end of their ctx has ended
//	baldur_not_closed_total              counter  those that were surely not closed: see [baldur.ContextEnded]
//	baldur_dirty_returns_total           counter  what WithReturnAudit has found
//	baldur_connection_use_seconds        histogram
//
// The holders that are over the threshold are baldur_suspected_connections and
// baldur_long_held_connections together.
//
// baldur_leaks_total counts a checkout when a report first suspects it, and a
// scrape is such a report. A leak that came and went between two is not counted.
//
// baldur_connection_use_seconds is how long connections were out, counted when
// they come back. It is exact: bounds are powers of two in nanoseconds, at which
// [baldur.Tracker.HoldTimes] divides. [baldur.CaptureFull], the default, is what
// makes it count.
//
// Of each lease of a quorum that is in use, with the labels lease and region, which
// is this process's:
//
//	baldur_quorum_is_primary               gauge    1, or 0; the sum over all processes is 1 at most
//	baldur_quorum_epoch                    gauge    of the hold; absent if not primary
//	baldur_quorum_belief_remaining_seconds gauge    until the belief ends; absent if not primary
//	baldur_quorum_elections_total          counter  won
//	baldur_quorum_losses_total             counter  with reason: see [baldur.LossReason]
//	baldur_quorum_renewals_total           counter  confirmed
//	baldur_quorum_renew_seconds_total      counter  from sending to confirmation, of all renewals
//	baldur_quorum_request_errors_total     counter  with class: unanswered (of unknown result) or refused
//	baldur_quorum_takeover_wait_seconds    gauge    before the last election that was won; absent before one
//	baldur_quorum_clock_gap_seconds        gauge    for how long the machine was suspended in this hold
//	baldur_quorum_guard_rejections_total   counter  by RequirePrimary and Seal.Require
//
// An epoch is above 2^32, and exact in a sample up to 2^53, which a witness gets
// to by two million failovers. A lease is gone from here when its PGQuorum is
// stopped or closed, with its counters.
//
// A scrape takes no connection and waits for none. It makes a report of each
// pool, some 5 µs for each connection that is out, and calls the functions of
// OnConnectionReleased as any report does. A pool whose driver hangs under
// database/sql's lock costs it up to 200 ms, and its figures are absent.
//
// A name that is long or not valid UTF-8, which would fail the whole scrape, is
// cut and mended, and told from others by a hash. Of two that are the same, the
// second one ends in #2.
func NewCollector(opts ...Option) prometheus.Collector {
	c := &collector{trackers: baldur.Trackers, dbStats: true}
	for _, o := range opts {
		o(c)
	}
	return c
}

type collector struct {
	trackers func() []*baldur.Tracker
	dbStats  bool
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range poolMetrics {
		ch <- m.desc
	}
	for _, m := range quorumMetrics {
		ch <- m.desc
	}
	ch <- quorumLosses
	ch <- quorumErrors
	ch <- useTime
	if c.dbStats {
		for _, m := range dbMetrics {
			ch <- m.desc
		}
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	var seen []*baldur.Tracker
	names := names{}
	for _, t := range c.trackers() {
		if t == nil || slices.Contains(seen, t) {
			continue
		}
		seen = append(seen, t)
		c.collectPool(ch, t, names.own(t.PoolName())) // a closed pool and its successor may have the same
	}
}

func (c *collector) collectPool(ch chan<- prometheus.Metric, t *baldur.Tracker, name string) {
	p := poolState{report: t.Report(), leaks: t.LeaksTotal()}
	if holders := t.Holders(); len(holders) > 0 {
		p.oldest = holders[0].Held
	}
	_, p.dirty = t.DirtyReturns()
	for _, m := range poolMetrics {
		if v := m.value(p); v >= 0 { // baldur's "unknown" is −1
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, name)
		}
	}
	ch <- useTimes(t, name)
	collectQuorums(ch, p.report.Leases, name)
	if !c.dbStats {
		return
	}
	if stats, ok := t.DBStats(); ok {
		for _, m := range dbMetrics {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(stats), name)
		}
	}
}

// names are labels' values in use.
type names map[string]bool

// own makes a name a label's value that is not in use yet.
func (n names) own(name string) string {
	value := label(name)
	for i := 2; n[value]; i++ {
		value = label(name) + "#" + strconv.Itoa(i)
	}
	n[value] = true
	return value
}

const maxLabel = 128 // bytes

// label makes a name a label's value.
func label(name string) string {
	if text.Head(name, maxLabel) == name {
		return name
	}
	h := fnv.New64a()
	h.Write([]byte(name))
	return fmt.Sprintf("%s~%016x", text.Head(name, maxLabel), h.Sum64())
}

// useTimes makes a histogram of every fourth of baldur's bounds from 16 µs to
// 73 min: the powers of 4 ns. Holds are whole nanoseconds and below a bound, so
// the bound that Prometheus includes is one less.
func useTimes(t *baldur.Tracker, name string) prometheus.Metric {
	const shortest = 16 * time.Microsecond
	holds, total := t.HoldTimes()
	buckets := map[float64]uint64{}
	var n uint64
	for _, b := range holds {
		n += b.Count
		if b.Below >= shortest && powerOf4(b.Below) {
			buckets[(b.Below - 1).Seconds()] = n
		}
	}
	return prometheus.MustNewConstHistogram(useTime, n, total.Seconds(), buckets, name)
}

func powerOf4(d time.Duration) bool { return d&(d-1) == 0 && d&0x5555555555555555 != 0 }
