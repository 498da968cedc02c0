package baldurprom_test

import (
	"database/sql"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurprom"
)

func newQuorum(t *testing.T, db *sql.DB, region string, opts ...baldur.QuorumOption) *baldur.PGQuorum {
	t.Helper()
	q := must(baldur.NewPGQuorum(db, region, opts...))
	t.Cleanup(func() { _ = q.Close() })
	return q
}

// lease is the value of a metric of this lease and region, and of this reason or
// class if it has one; −1 if there is none.
func (f families) lease(family string, want ...string) float64 {
	for _, m := range f[family].GetMetric() {
		var got []string
		for _, name := range []string{"db_name", "lease", "region", "reason", "class"} {
			for _, l := range m.GetLabel() {
				if l.GetName() == name {
					got = append(got, l.GetValue())
				}
			}
		}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			continue
		}
		if f[family].GetType() == dto.MetricType_COUNTER {
			return m.GetCounter().GetValue()
		}
		return m.GetGauge().GetValue()
	}
	return -1
}

// TestQuorum: a lease that is won, renewed, guarded, lost and refused, on a real server.
func TestQuorum(t *testing.T) {
	db := open(t)
	url := serve(t, baldurprom.NewCollector())
	for family := range scrape(t, url) {
		if strings.HasPrefix(family, "baldur_quorum_") {
			t.Errorf("without a quorum: %s", family)
		}
	}
	a, b := newQuorum(t, db, "eu-west"), newQuorum(t, db, "eu-west")
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
	f := scrape(t, url)
	for _, c := range []struct {
		family string
		labels []string
		a, b   float64 // −1: absent
	}{
		{"is_primary", nil, 1, 0},
		{"epoch", nil, float64(lease.Epoch), -1},
		{"elections_total", nil, 1, 0},
		{"renewals_total", nil, 2, 0},
		{"takeover_wait_seconds", nil, a.Stats().TakeoverWait.Seconds(), -1},
		{"clock_gap_seconds", nil, a.Stats().ClockGap.Seconds(), 0}, // some ns: of two clocks
		{"guard_rejections_total", nil, 0, 1},
		{"losses_total", []string{"expired"}, 0, 0},
		{"losses_total", []string{"fenced"}, 0, 0},
		{"losses_total", []string{"suspended"}, 0, 0},
		{"losses_total", []string{"released"}, 0, 0},
		{"losses_total", []string{"failover"}, 0, 0},
		{"request_errors_total", []string{"unanswered"}, 0, 0},
		{"request_errors_total", []string{"refused"}, 0, 0},
	} {
		for region, want := range map[string]float64{"eu-west": c.a, "eu-west#2": c.b} {
			if got := f.lease("baldur_quorum_"+c.family, append([]string{"shop", "primary", region}, c.labels...)...); got != want {
				t.Errorf("%s %v of %s is %v, want %v", c.family, c.labels, region, got, want)
			}
		}
	}
	if s := f.lease("baldur_quorum_renew_seconds_total", "shop", "primary", "eu-west"); s != a.Stats().RenewTotal.Seconds() || s <= 0 {
		t.Errorf("renewing took %v s", s)
	}
	if s := f.lease("baldur_quorum_belief_remaining_seconds", "shop", "primary", "eu-west"); s <= 0 || s > 9 {
		t.Errorf("the belief lasts %v s", s)
	}
	if s := f.lease("baldur_quorum_belief_remaining_seconds", "shop", "primary", "eu-west#2"); s != -1 {
		t.Errorf("b's belief lasts %v s", s)
	}
	checkMetrics(t, scrapeText(t, url))

	must(db.Exec("ALTER TABLE baldur_lease ADD CONSTRAINT never CHECK (false) NOT VALID"))
	if _, err := a.RenewLease(ctx); err == nil {
		t.Error("renewed what cannot be")
	}
	if err := a.ReleaseLease(ctx); err == nil {
		t.Error("released what cannot be")
	}
	f = scrape(t, url)
	if n := f.lease("baldur_quorum_request_errors_total", "shop", "primary", "eu-west", "refused"); n != 2 {
		t.Errorf("%v refusals", n)
	}
	if n, is := f.lease("baldur_quorum_losses_total", "shop", "primary", "eu-west", "released"), f.lease("baldur_quorum_is_primary", "shop", "primary", "eu-west"); n != 1 || is != 0 {
		t.Errorf("after the release: lost %v, primary %v", n, is)
	}
	if e := f.lease("baldur_quorum_epoch", "shop", "primary", "eu-west"); e != -1 {
		t.Errorf("after the release the epoch is %v", e)
	}
}

// TestHostileLease: no name breaks the scrape, or is mistaken for another's.
func TestHostileLease(t *testing.T) {
	db := open(t)
	url := serve(t, baldurprom.NewCollector())
	long := strings.Repeat("語", 66)
	regions := []string{"line\nbaldur_quorum_is_primary{lease=\"forged\"} 1\n", `quote"\`, "\x1b[2J\r\u2028", long, long + "1", "primary", "plain"}
	for _, r := range regions {
		q := newQuorum(t, db, r, baldur.WithLeaseName(r), baldur.WithLeaseTTL(time.Minute))
		if ok, err := q.TryAcquirePrimary(ctx); !ok || err != nil {
			t.Fatal(r, ok, err)
		}
	}
	text := scrapeText(t, url)
	if strings.Contains(text, "\nbaldur_quorum_is_primary{lease=\"forged") {
		t.Errorf("%s", text)
	}
	checkMetrics(t, text)
	seen := map[string]bool{}
	for _, m := range scrape(t, url)["baldur_quorum_is_primary"].GetMetric() {
		for _, l := range m.GetLabel() {
			if len(l.GetValue()) > 150 || strings.Contains(l.GetValue(), "#") {
				t.Errorf("label %q", l.GetValue())
			}
			seen[l.GetName()+" "+l.GetValue()] = true
		}
	}
	if len(seen) != 2*len(regions)+1 {
		t.Errorf("told apart: %v", seen)
	}
}
