package baldurprom

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/baldur-go/baldur"
)

func newQuorumMetric(kind prometheus.ValueType, name, help string, value func(baldur.QuorumStats) float64) metric[baldur.QuorumStats] {
	return newMetric(kind, name, help, value, "lease", "region")
}

const unknown = -1 // is not exported

var quorumMetrics = []metric[baldur.QuorumStats]{
	newQuorumMetric(gauge, "baldur_quorum_is_primary", "1 if this process is the primary, else 0.",
		func(q baldur.QuorumStats) float64 {
			if q.IsPrimary {
				return 1
			}
			return 0
		}),
	newQuorumMetric(gauge, "baldur_quorum_epoch", "Epoch of this process's hold of the lease; absent if it is not primary.",
		func(q baldur.QuorumStats) float64 {
			if !q.IsPrimary {
				return unknown
			}
			return float64(q.Epoch)
		}),
	newQuorumMetric(gauge, "baldur_quorum_belief_remaining_seconds", "How much longer this process believes that it is primary without a renewal; absent if it is not.",
		func(q baldur.QuorumStats) float64 {
			if !q.IsPrimary {
				return unknown
			}
			return q.Remaining.Seconds()
		}),
	newQuorumMetric(counter, "baldur_quorum_elections_total", "Elections won by this process.",
		func(q baldur.QuorumStats) float64 { return float64(q.Elections) }),
	newQuorumMetric(counter, "baldur_quorum_renewals_total", "Renewals of the lease that were confirmed.",
		func(q baldur.QuorumStats) float64 { return float64(q.Renewals) }),
	newQuorumMetric(counter, "baldur_quorum_renew_seconds_total", "Time from the sending of renewals to their confirmation.",
		func(q baldur.QuorumStats) float64 { return q.RenewTotal.Seconds() }),
	newQuorumMetric(gauge, "baldur_quorum_takeover_wait_seconds", "For how long the lease was watched before the last election won; absent before one.",
		func(q baldur.QuorumStats) float64 {
			if q.Elections == 0 {
				return unknown
			}
			return q.TakeoverWait.Seconds()
		}),
	newQuorumMetric(gauge, "baldur_quorum_clock_gap_seconds", "For how long the machine was suspended in this hold of the lease.",
		func(q baldur.QuorumStats) float64 { return q.ClockGap.Seconds() }),
	newQuorumMetric(counter, "baldur_quorum_guard_rejections_total", "Transactions that were refused since this process was not primary, or fenced.",
		func(q baldur.QuorumStats) float64 { return float64(q.GuardRejections) }),
}

var (
	quorumLosses = prometheus.NewDesc("baldur_quorum_losses_total", "Holds of the lease that have ended, by reason.",
		[]string{"db_name", "lease", "region", "reason"}, nil)
	quorumErrors = prometheus.NewDesc("baldur_quorum_request_errors_total", "Requests to the witness that failed: of unknown result (unanswered), or refused.",
		[]string{"db_name", "lease", "region", "class"}, nil)
)

func collectQuorums(ch chan<- prometheus.Metric, leases []baldur.QuorumStats, pool string) {
	regions := map[string]names{} // of each lease
	for _, q := range leases {
		lease := label(q.Lease)
		if regions[lease] == nil {
			regions[lease] = names{}
		}
		region := regions[lease].own(q.Region)
		for _, m := range quorumMetrics {
			if v := m.value(q); v >= 0 {
				ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, pool, lease, region)
			}
		}
		for reason, n := range q.Losses {
			ch <- prometheus.MustNewConstMetric(quorumLosses, counter, float64(n), pool, lease, region, string(reason))
		}
		for class, n := range map[string]int64{"unanswered": q.Unanswered, "refused": q.Refused} {
			ch <- prometheus.MustNewConstMetric(quorumErrors, counter, float64(n), pool, lease, region, class)
		}
	}
}
