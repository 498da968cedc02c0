package baldur_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// TestLeaseText: who has the lease, in a line, to the letter. What has expired
// since it was told is not known.
func TestLeaseText(t *testing.T) {
	now := time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC)
	told := func(state baldur.LeaseState, local bool, left time.Duration) baldur.QuorumEvent {
		return baldur.QuorumEvent{State: state, Local: local, Lease: baldur.QuorumLease{Region: "eu-east", Epoch: 1<<32 + 7, LeaseID: "x", ExpiresAt: now.Add(left)}}
	}
	for _, c := range []struct {
		stats baldur.QuorumStats
		want  string
	}{
		{baldur.QuorumStats{}, `unknown`},
		{baldur.QuorumStats{IsPrimary: true, Epoch: 5, Remaining: 90 * time.Second, Holder: told(baldur.LeaseHeld, false, time.Second)}, `primary here (eu-west), epoch 5, 1m30s left`},
		{baldur.QuorumStats{Holder: told(baldur.LeaseHeld, false, time.Second)}, `held by eu-east, epoch 4294967303`},
		{baldur.QuorumStats{Holder: told(baldur.LeaseHeld, true, time.Second)}, `held by eu-east, epoch 4294967303: this process, which no longer believes in it`},
		{baldur.QuorumStats{Holder: told(baldur.LeaseHeld, false, 0)}, `unknown; last heard of as held by eu-east, epoch 4294967303, until 2026-11-24T03:00:00Z`},
		{baldur.QuorumStats{Holder: told(baldur.LeaseExpired, false, -time.Second)}, `not renewed by eu-east, epoch 4294967303, when last heard of`},
		{baldur.QuorumStats{Holder: told(baldur.LeaseFree, false, -time.Second)}, `free, when last heard of`},
	} {
		c.stats.CheckedAt, c.stats.Lease, c.stats.Region = now, "primary", "eu-west"
		if got, want := c.stats.String(), `lease "primary": `+c.want; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	evil := "a\nLEAK? forged\r\x1b[2J\u0085\u2028\xff"
	for _, s := range []baldur.QuorumStats{
		{Lease: evil, Region: evil, IsPrimary: true},
		{Lease: evil, Holder: baldur.QuorumEvent{State: baldur.LeaseHeld, Lease: baldur.QuorumLease{Region: evil}}},
		{Lease: evil, CheckedAt: now.Add(-time.Hour), Holder: told(baldur.LeaseExpired, false, 0)},
	} {
		s.Holder.Lease.Region = evil
		if text := s.String(); strings.ContainsAny(text, "\n\r\x1b\u0085\u2028") || !utf8.ValidString(text) || !strings.Contains(text, "LEAK? forged") {
			t.Errorf("%q", text)
		}
		s.Region, s.Holder.Lease.Region = strings.Repeat("long", 1<<18), strings.Repeat("long", 1<<18)
		if n := len(s.String()); n > 1000 {
			t.Errorf("a line of %d bytes", n)
		}
		if _, err := json.Marshal(baldur.LeakReport{Leases: []baldur.QuorumStats{s}}); err != nil {
			t.Error(err)
		}
	}
}

// TestLeaseReport: the reports of two pools, of the primary and of a candidate,
// and what the JSON and the log have of it.
func TestLeaseReport(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	dbA, dbB := openPool(t, dsn), openPool(t, dsn)
	a, b := newQuorum(t, dbA, "eu-west"), newQuorum(t, dbB, "eu-east")
	if r := baldur.TrackerOf(dbA).Report(); r.Leases != nil || strings.Contains(r.String(), "\nlease") {
		t.Errorf("before its first use: %s", r)
	}
	if ok, err := a.TryAcquirePrimary(ctx); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := a.RenewLease(ctx); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := b.TryAcquirePrimary(ctx); ok || err != nil {
		t.Fatal(ok, err)
	}
	lease, _ := a.Lease()
	report := baldur.TrackerOf(dbA).Report()
	if len(report.Leases) != 1 || !report.Leases[0].IsPrimary || report.Leases[0].Epoch != lease.Epoch {
		t.Fatalf("%+v", report.Leases)
	}
	if line := report.Leases[0].String(); !strings.Contains(report.String(), "\n"+line+"\n") || !strings.HasPrefix(line, `lease "primary": primary here (eu-west), epoch 4294967297, `) {
		t.Errorf("%s", report)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("", "report", report)
	if !strings.Contains(log.String(), "primary here (eu-west)") {
		t.Errorf("%s", &log)
	}
	var doc struct {
		Leases []struct {
			Lease, Region string
			IsPrimary     bool    `json:"is_primary"`
			Epoch         int64   `json:"epoch"`
			Remaining     float64 `json:"remaining_seconds"`
			Elections     int64
			Renewals      int64
			RenewTotal    float64 `json:"renew_total_seconds"`
			Losses        map[baldur.LossReason]int64
			LastError     string `json:"last_error"`
			Holder        struct {
				State, Region string
				Epoch         int64
				AcquiredAt    *time.Time `json:"acquired_at"`
				Local         bool
			}
		}
	}
	text, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if l := doc.Leases[0]; l.Lease != "primary" || l.Region != "eu-west" || !l.IsPrimary || l.Epoch != lease.Epoch || l.Remaining <= 0 || l.Remaining > 9 ||
		l.Elections != 1 || l.Renewals != 1 || l.RenewTotal <= 0 || l.RenewTotal > 5 || len(l.Losses) != 5 || l.LastError != "" ||
		l.Holder.State != "held" || !l.Holder.Local || l.Holder.Region != "eu-west" || l.Holder.Epoch != lease.Epoch || l.Holder.AcquiredAt == nil || time.Since(*l.Holder.AcquiredAt) > time.Minute {
		t.Errorf("%s", text)
	}

	if line := baldur.TrackerOf(dbB).Report().Leases[0].String(); line != `lease "primary": held by eu-west, epoch 4294967297` {
		t.Error(line)
	}
	if err := a.ReleaseLease(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.CurrentPrimary(ctx); err != nil {
		t.Fatal(err)
	}
	if line := baldur.TrackerOf(dbB).Report().Leases[0].String(); line != `lease "primary": free, when last heard of` {
		t.Error(line)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if r := baldur.TrackerOf(dbA).Report(); r.Leases != nil {
		t.Errorf("of a closed quorum: %v", r.Leases)
	}
}
