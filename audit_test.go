package baldur_test

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func leakLock(db *sql.DB, query string) {
	_ = db.QueryRow(query).Scan(new(string))
}

func TestReturnAudit(t *testing.T) {
	db := must(baldur.Open(pgtest.SocketDSN(t), baldur.WithReturnAudit(1)))
	defer db.Close()
	db.SetMaxOpenConns(1)
	tr := baldur.TrackerOf(db)
	for i, c := range []struct {
		query, clean string
		tx, failed   bool
		locks        []string
		says         string
	}{
		{"SELECT pg_advisory_lock(42)::text", "SELECT pg_advisory_unlock_all()", false, false, []string{"42"}, "came back with advisory lock 42; taken by "},
		{"SELECT pg_advisory_lock_shared(-7)::text || pg_advisory_lock(1, 2)::text", "SELECT pg_advisory_unlock_all()", false, false, []string{"-7", "1,2"}, "advisory locks -7, 1,2"},
		{"BEGIN", "ROLLBACK", true, false, nil, "in an open transaction"},
		{"BEGIN; SELECT 1/0", "ROLLBACK", true, true, nil, "in a failed transaction"},
	} {
		leakLock(db, c.query)
		got, total := tr.DirtyReturns()
		if len(got) != i+1 || total != i+1 {
			t.Fatalf("%s: %d of %d told", c.query, len(got), total)
		}
		d := got[i]
		if d.OpenTransaction != c.tx || d.Failed != c.failed || !slices.Equal(d.AdvisoryLocks, c.locks) || d.Connection.QueryInfo != c.query {
			t.Errorf("%s: %+v", c.query, d)
		}
		if s := d.String(); !strings.Contains(s, c.says) || !strings.Contains(s, "leakLock (") || !strings.Contains(s, "audit_test.go:") {
			t.Errorf("%s: %s", c.query, s)
		}
		must(db.Exec(c.clean))
	}
	must(db.Exec("SELECT 1"))
	tx := must(db.Begin())
	must(tx.Exec("SELECT pg_advisory_xact_lock(42)"))
	_ = tx.Commit()
	_ = db.QueryRow("SELECT 1/0").Scan(new(int))
	if _, total := tr.DirtyReturns(); total != 4 {
		t.Errorf("clean returns are told: %d", total)
	}
	for range 2 {
		leakLock(db, "SELECT pg_advisory_lock(43)::text")
	}
	r := tr.Report()
	if r.DirtyTotal != 6 || len(r.DirtyReturns) != 5 || !slices.Equal(r.DirtyReturns[0].AdvisoryLocks, []string{"-7", "1,2"}) {
		t.Errorf("the report has %d: %v", r.DirtyTotal, r.DirtyReturns)
	}
	if text := r.String(); !strings.Contains(text, "\ncame back dirty, 6 in all; the latest:\n") || strings.Count(text, " came back with advisory lock 43; taken by ") != 2 {
		t.Errorf("%s", text)
	}
	var doc struct {
		Total int `json:"dirty_returns_total"`
		Dirty []struct {
			Connection struct {
				Query string `json:"query_info"`
			}
			Locks []string `json:"advisory_locks"`
		} `json:"dirty_returns"`
	}
	text := must(json.Marshal(r))
	if err := json.Unmarshal(text, &doc); err != nil || doc.Total != 6 || len(doc.Dirty) != 5 || doc.Dirty[4].Locks[0] != "43" || doc.Dirty[4].Connection.Query != "SELECT pg_advisory_lock(43)::text" {
		t.Errorf("%v, %s", err, text)
	}
}

// TestReturnAuditSamples: one in n returns is checked, and none if it is off; the
// check is a query of the inner connection's.
func TestReturnAuditSamples(t *testing.T) {
	for n, want := range map[int]int64{0: 0, 1: 30, 3: 10} {
		counter := &countingDriver{dsn: pgtest.DSN(t)}
		db := baldur.OpenDB(counter, baldur.WithReturnAudit(n))
		db.SetMaxOpenConns(1)
		if err := db.Ping(); err != nil {
			t.Fatal(err)
		}
		for range (3 - 1) * min(n, 1) { // to where counting begins anew
			must(db.Exec("SELECT 1"))
		}
		before := counter.writes.Load()
		for range 30 {
			must(db.Exec("SELECT 1"))
		}
		if got := counter.writes.Load() - before - 30; got != want {
			t.Errorf("1 in %d: %d checks in 30 returns", n, got)
		}
		db.Close()
	}
	// A driver that is not lib/pq's is let alone.
	db := baldur.OpenDB(&fakeDB{}, baldur.WithReturnAudit(1))
	defer db.Close()
	must(db.Exec("x"))

	_, err := baldur.Open("postgres://h/d?baldur_return_audit=x")
	wantError(t, err, "baldur_return_audit: want a number")
	_, err = baldur.Open("postgres://h/d", baldur.WithReturnAudit(-1))
	wantError(t, err, "must be 0 (off) or above")
}

// TestReturnAuditTrapped (security.md, H1): the check steps on nothing that others
// have put into the search_path.
func TestReturnAuditTrapped(t *testing.T) {
	for _, path := range []string{"trap, pg_catalog", "pg_catalog, trap"} {
		dsn, _ := pgtest.Trap(t, path)
		dsn, recording := pgtest.Record(t, dsn)
		db := must(baldur.Open(dsn, baldur.WithReturnAudit(1)))
		defer db.Close()
		db.SetMaxOpenConns(1)
		must(db.Exec("SELECT pg_catalog.pg_advisory_lock('-42'::pg_catalog.int8), pg_catalog.pg_advisory_lock(1::pg_catalog.int4, 2::pg_catalog.int4)"))
		got, _ := baldur.TrackerOf(db).DirtyReturns()
		if len(got) == 0 || !slices.Equal(got[len(got)-1].AdvisoryLocks, []string{"-42", "1,2"}) {
			t.Errorf("%s: %v", path, got)
		}
		for _, query := range recording.Statements() {
			for _, fault := range pgtest.LintSQL(query) {
				t.Errorf("%s: %s", query, fault)
			}
		}
	}
}

func ExampleTracker_DirtyReturns() {
	var db *sql.DB // opened with baldur.WithReturnAudit(100)
	latest, total := baldur.TrackerOf(db).DirtyReturns()
	fmt.Println(total, "in all")
	for _, d := range latest {
		fmt.Println(d) // connection 3 came back with advisory lock 42; taken by main.nightly (jobs/nightly.go:17)
	}
}
