//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestQuorumStatus(t *testing.T) {
	server := pgtest.Server(t)
	t.Setenv(pgtest.EnvDSN, server.DSN("postgres"))
	dsn := pgtest.DSN(t)
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exec := func(query string) {
		t.Helper()
		if _, err := db.Exec(query); err != nil {
			t.Fatal(err)
		}
	}
	password := passwordOf(t, dsn)
	// status returns what it prints below the line with server and time.
	status := func(exit int, args ...string) string {
		t.Helper()
		p := start(t, []string{envDSN + "=" + dsn}, append([]string{"quorum", "status"}, args...)...)
		stdout := p.ends(exit)
		if strings.Contains(stdout+p.errors(), password) {
			t.Error("the password is printed")
		}
		if exit == 2 {
			return p.errors()
		}
		if p.errors() != "" {
			t.Errorf("and on stderr: %s", p.errors())
		}
		head, body, ok := strings.Cut(stdout, "\n\n")
		if want := baldurTarget(t, dsn) + ", 20"; !ok || !strings.HasPrefix(head, want) {
			t.Errorf("begins with %q, want %q", head, want)
		}
		return body
	}

	const noTable = "There is no table baldur_lease here: no lease was ever taken in this database.\n"
	if got := status(0); got != noTable {
		t.Errorf("without a table: %s", got)
	}
	if got := status(1, "--lease", "x"); got != noTable {
		t.Errorf("without a table: %s", got)
	}
	var there bool
	if err := db.QueryRow("SELECT to_regclass('baldur_lease') IS NOT NULL").Scan(&there); err != nil || there {
		t.Fatalf("status has made the table: %v, %v", there, err)
	}

	if err := baldur.MigrateQuorum(context.Background(), db); err != nil {
		t.Fatal(err)
	}
	if got, want := status(0), "There are no leases: nobody has ever been a candidate for one.\n"; got != want {
		t.Errorf("without leases: %s", got)
	}
	if got, want := status(1, "--lease", "x y"), "There is no lease \"x y\": nobody has ever been a candidate for it.\n"; got != want {
		t.Errorf("without the lease: %s", got)
	}

	exec(`INSERT INTO baldur_lease (name, epoch, lease_id, region, ttl_ms, acquired_at, renewed_at, expires_at) VALUES
		('nightly', 4294967299, 'ID', 'eu-central', 600000, now() - interval '90 s', now(), now() + interval '10 min'),
		('old', 4294967300, 'ID', 'us', 10000, '2020-02-03 04:05:06', '2020-02-03 05:05:06', now() - interval '3 days 2 hours'),
		('released', 4294967301, NULL, 'us', 10000, now() - interval '3 hours', now(), now() - interval '2 hours'),
		('new', 4294967296, NULL, NULL, 0, NULL, NULL, 'epoch')`)
	if body := status(0); strings.Count(body, "\n") != 5 || !strings.Contains(body, "\nold       expired  us          4294967300  2020-02-03 ") {
		t.Errorf("prints\n%s", body)
	}
	// With --lease the exit status tells.
	for name, exit := range map[string]int{"nightly": 0, "old": 1, "released": 1, "new": 1} {
		if body := status(exit, "--lease", name); strings.Count(body, "\n") != 2 || !strings.Contains(body, "\n"+name+" ") {
			t.Errorf("--lease %s prints\n%s", name, body)
		}
	}

	var report statusReport
	p := start(t, nil, "quorum", "status", "--json", dsn)
	if err := json.Unmarshal([]byte(p.ends(0)), &report); err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, l := range report.Leases {
		states = append(states, string(l.State))
	}
	if !report.Table || report.Standby || report.Target != baldurTarget(t, dsn) || !slices.Equal(states, []string{"free", "held", "expired", "free"}) {
		t.Errorf("JSON: %+v", report)
	}
	l := report.Leases[1]
	if left := l.Until.Sub(report.Now); l.Name != "nightly" || l.Region != "eu-central" || l.Epoch != 4294967299 || l.TTL != 600 || left < 9*time.Minute || left > 10*time.Minute || report.Now.Sub(l.Since) < 90*time.Second {
		t.Errorf("JSON: %+v", l)
	}

	t.Run("watch", func(t *testing.T) {
		p := start(t, nil, "quorum", "status", "--watch", "--lease", "new", "--json", dsn)
		lines := bufio.NewScanner(p.stdout)
		next := func() (l leaseStatus) {
			t.Helper()
			var r statusReport
			if !lines.Scan() || json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &r) != nil || len(r.Leases) != 1 {
				t.Fatalf("watch prints %q; %s", lines.Text(), p.errors())
			}
			return r.Leases[0]
		}
		if l := next(); l.State != baldur.LeaseFree || l.Epoch != 0 {
			t.Errorf("first: %+v", l)
		}
		exec("UPDATE baldur_lease SET lease_id = 'ID', region = 'moon', epoch = epoch + 1, acquired_at = now(), expires_at = now() + interval '1 hour' WHERE name = 'new'")
		if l := next(); l.State != baldur.LeaseHeld || l.Region != "moon" {
			t.Errorf("then: %+v", l)
		}
		exec("UPDATE baldur_lease SET expires_at = now() + interval '2 hours' WHERE name = 'new'") // a renewal is no news
		exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		exec("UPDATE baldur_lease SET expires_at = now() WHERE name = 'new'")
		if l := next(); l.State != baldur.LeaseExpired {
			t.Errorf("then: %+v", l)
		}
		p.cmd.Process.Signal(syscall.SIGINT)
		p.ends(0)
	})

	t.Run("without rights", func(t *testing.T) {
		exec("CREATE ROLE clerk LOGIN PASSWORD 's3cret'")
		clerk := strings.Replace(dsn, "postgres:"+password, "clerk:s3cret", 1)
		p := start(t, nil, "quorum", "status", clerk)
		p.ends(2)
		if said := p.errors(); !strings.Contains(said, "the role needs SELECT on baldur_lease") || strings.Contains(said, "s3cret") || strings.Count(said, "\n") != 1 {
			t.Error(said)
		}
		exec("GRANT SELECT ON baldur_lease TO clerk") // and no more
		start(t, nil, "quorum", "status", clerk).ends(0)
	})
}

func TestQuorumStatusText(t *testing.T) {
	now := time.Date(2026, 11, 24, 16, 25, 30, 0, time.Local)
	r := statusReport{Target: "db:5432/orders", Now: now, Table: true, Standby: true, Leases: []leaseStatus{
		{Name: "new", State: baldur.LeaseFree},
		{Name: "nightly", State: baldur.LeaseHeld, Region: "eu-central", Epoch: 4294967299, Since: now.Add(-319 * time.Second), Until: now.Add(7640 * time.Millisecond)},
		{Name: "old", State: baldur.LeaseExpired, Region: "zürich", Epoch: 1, Since: now.Add(-50 * time.Hour), Until: now.Add(-25 * time.Hour)},
		{Name: "\x1b[31m\n", State: baldur.LeaseFree, Region: "a b", Epoch: 2, Since: now.Add(-3 * time.Hour), Until: now},
	}}
	want := `db:5432/orders, ` + now.Format("2006-01-02 15:04:05 MST") + ` (a standby: this may be out of date)

LEASE         STATE    REGION      EPOCH       SINCE                        UNTIL
new           free     -           -           -                            -
nightly       held     eu-central  4294967299  16:20:11 (5m19s ago)         16:25:37 (in 7.6s)
old           expired  zürich      1           2026-11-22 14:25 (2d2h ago)  2026-11-23 15:25 (25h0m ago)
"\x1b[31m\n"  free     "a b"       2           13:25:30 (3h0m ago)          16:25:30 (0s ago)
`
	if got := r.text(false); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
	plain := strings.NewReplacer("\x1b[1m", "", "\x1b[2m", "", "\x1b[32m", "", "\x1b[33m", "", "\x1b[0m", "").Replace(r.text(true))
	if plain != want {
		t.Errorf("in colour:\n%q", plain)
	}
}

func baldurTarget(t *testing.T, dsn string) string {
	t.Helper()
	db, err := sql.Open(baldur.DriverName, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	return baldur.TrackerOf(db).PoolName()
}
