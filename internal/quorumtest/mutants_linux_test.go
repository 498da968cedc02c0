package quorumtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baldur-go/baldur/internal/pgtest"
)

// edit replaces a text of a file of package baldur that must be there once.
type edit struct{ file, old, new string }

// mutants are the mistakes that others have made, seeded into baldur.
var mutants = []struct {
	name     string
	scenario string
	edits    []edit
}{
	{"deadline counted from the reply", "late reply", []edit{{
		"quorum_pg.go",
		"if !q.extend(t, sent) {",
		"if !q.extend(t, received) {",
	}}},
	{"now() for clock_timestamp()", "old transaction", []edit{{
		"quorum_sql.go",
		`"{expiry}", "pg_catalog.clock_timestamp() {+}`,
		`"{expiry}", "pg_catalog.now() {+}`,
	}}},
	{"release of whatever there is", "release carried out late", []edit{{
		"quorum_sql.go",
		"lease_id = NULL, expires_at = pg_catalog.clock_timestamp()\n\tFROM g WHERE l.name {=} {name} AND l.lease_id {=} {id} AND l.epoch {=} {epoch}::pg_catalog.int8",
		"lease_id = NULL, expires_at = pg_catalog.clock_timestamp()\n\tFROM g WHERE l.name {=} {name}",
	}}},
	{"renew and release by region", "release carried out late", []edit{{
		"quorum_sql.go",
		"expires_at = {expiry}\n\tFROM g WHERE l.name {=} {name} AND l.lease_id {=} {id} AND l.epoch {=} {epoch}::pg_catalog.int8",
		"expires_at = {expiry}\n\tFROM g WHERE l.name {=} {name} AND l.region {=} {region}",
	}, {
		"quorum_sql.go",
		"lease_id = NULL, expires_at = pg_catalog.clock_timestamp()\n\tFROM g WHERE l.name {=} {name} AND l.lease_id {=} {id} AND l.epoch {=} {epoch}::pg_catalog.int8",
		"lease_id = NULL, expires_at = pg_catalog.clock_timestamp()\n\tFROM g WHERE l.name {=} {name} AND l.region {=} {region}",
	}}},
	{"lease id of the region", "two of one region", []edit{{
		"quorum_pg.go",
		"id: rand.Text(),",
		`id: cfg.region + rand.Text()[:0],`,
	}}},
	{"fence by a plain SELECT", "paused in a guarded transaction", []edit{{
		"quorum_fence.go",
		"{condition} FOR KEY SHARE OF l",
		"{condition}",
	}}},
	{"no unique index", "paused in a guarded transaction", []edit{{
		"quorum_migrate.go",
		"CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {table} (name, epoch)",
		"SELECT",
	}, {
		"quorum_table.go",
		"case !t.fence:",
		"case false:",
	}, {
		"quorum_sql.go",
		"AND CASE WHEN EXISTS (",
		"AND CASE WHEN true OR EXISTS (",
	}}},
	{"belief ended by a timer", "holder stopped and resumed", []edit{{
		"quorum_term.go",
		"return t != nil && q.now() < t.deadline",
		"return t != nil",
	}}},
	{"no quarantine after a failover", "lost takeover", []edit{{
		"quorum_witness.go",
		"if w.suspect || w.row.forgotten() {",
		"if false && (w.suspect || w.row.forgotten()) {",
	}}},
	{"table by search_path", "role with a search_path", []edit{{
		"quorum_table.go",
		"WHERE c.relname::pg_catalog.text {=} {table} OR c.relname::pg_catalog.text {=} {usual}",
		"WHERE c.oid {=} pg_catalog.to_regclass({table})::pg_catalog.oid",
	}, {
		"quorum_table.go",
		"AND {mark} {<>} ''::pg_catalog.text AND",
		"AND false AND",
	}, {
		"quorum_table.go",
		`pgsql.QuoteIdentifier(cmp.Or(spec.schema, defaultSchema)) + "." + pgsql.QuoteIdentifier(spec.table)`,
		`cmp.Or(pq.QuoteIdentifier(spec.table), defaultSchema)`,
	}}},
	{"acquire in an open transaction", "connection in a transaction", []edit{{
		"quorum_link.go",
		`"BEGIN ISOLATION LEVEL READ COMMITTED%s; SET`,
		`"/*%s*/ SET`,
	}, {
		"quorum_link.go",
		"%s; COMMIT\"",
		"%s\"",
	}, {
		"quorum_link.go",
		"if err == nil && status != 'I' {",
		"if false {",
	}, {
		"quorum_link.go",
		"if pqconn.TxStatus(Unwrap(dc.(driver.Conn))) != 'I' {",
		"if false {",
	}, {
		"quorum_sql.go",
		"if err == nil && !own && l.pq {",
		"if false {",
	}}},
	{"no bound on the server", "table locked", []edit{{
		"quorum_link.go",
		`SET LOCAL lock_timeout = %d; SET LOCAL statement_timeout = %d;"+`,
		`/*%d %d*/"+`,
	}}},
}

// TestMutants: a scenario finds no fault with baldur, and finds the mistake that
// was seeded.
func TestMutants(t *testing.T) {
	if raceDetector {
		t.Skip("the mutants are built without the race detector: this test would do the same twice")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	server := pgtest.Server(t, "synchronous_commit=on")
	databases := 0
	play := func(t *testing.T, scenario, bin string) (found problems, asMeant bool) {
		databases++
		on := server
		if scenario == "lost takeover" {
			on = pgtest.Server(t, "synchronous_commit=on") // it does not survive
		}
		c := newCluster(t, on, fmt.Sprintf("mutant%d", databases), bin)
		asMeant = scenarios[scenario](c)
		return c.finish().check(!c.lossy), asMeant
	}
	// They are built beside the scenarios, one after the other.
	built := make([]chan string, len(mutants))
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range mutants {
		built[i] = make(chan string, 1)
	}
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		for i, m := range mutants {
			if t.Context().Err() != nil { // those that were asked for have run
				return
			}
			bin := filepath.Join(dir, fmt.Sprintf("mutant%d", i))
			if err := buildMutant(root, bin, m.edits); err != nil {
				t.Errorf("%s: %v", m.name, err)
			} else {
				built[i] <- bin
			}
			close(built[i])
		}
	}()
	good := map[string]bool{}
	for i, m := range mutants {
		if !good[m.scenario] {
			good[m.scenario] = true
			t.Run("unchanged/"+m.scenario, func(t *testing.T) {
				for range 8 {
					found, asMeant := play(t, m.scenario, self(t))
					found.report(t)
					if asMeant {
						return
					}
				}
				t.Error("the scenario did not come about")
			})
		}
		t.Run(m.name, func(t *testing.T) {
			bin := <-built[i]
			if bin == "" {
				t.FailNow()
			}
			// Processes may meet in another way than the scenario means them to.
			for range 8 {
				if found, _ := play(t, m.scenario, bin); len(found) > 0 {
					t.Logf("caught: %s", found[0])
					return
				}
			}
			t.Error("not caught")
		})
	}
}

// buildMutant builds this test program, as which the clients run, on baldur with
// the edits.
func buildMutant(root, bin string, edits []edit) error {
	texts := map[string]string{}
	for _, e := range edits {
		path := filepath.Join(root, e.file)
		if _, ok := texts[path]; !ok {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			texts[path] = string(text)
		}
		if n := strings.Count(texts[path], e.old); n != 1 {
			return fmt.Errorf("%s has %d times, and must have once: %s", e.file, n, e.old)
		}
		texts[path] = strings.Replace(texts[path], e.old, e.new, 1)
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for path, text := range texts {
		to := bin + "-" + filepath.Base(path)
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return err
		}
		overlay.Replace[path] = to
	}
	content, err := json.Marshal(overlay)
	if err != nil {
		return err
	}
	if err := os.WriteFile(bin+".json", content, 0o644); err != nil {
		return err
	}
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-overlay", bin+".json", "-o", bin, "./internal/quorumtest")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}
