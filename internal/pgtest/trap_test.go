//go:build unix

package pgtest

import (
	"database/sql"
	"slices"
	"strings"
	"testing"
)

// TestTrap: what is not pg_catalog's by name is stepped on, on each path that has
// the trap in it, and the other connection is as any.
func TestTrap(t *testing.T) {
	for path, queries := range map[string][]string{
		"trap, pg_catalog": {
			"SELECT now()", "SELECT pg_try_advisory_lock(1::pg_catalog.int8)", "SELECT 1 = 1", "SELECT 'a'::text", "SELECT count(*) FROM pg_catalog.pg_class",
			"SELECT concat('a', 1)", "SELECT 'a' || 'b'", "SELECT pid FROM pg_locks", "SELECT 1 IN (1)", "SELECT 'a' LIKE 'b'", "SELECT 1 IS DISTINCT FROM 2",
			"SELECT 2 * interval '1 s'", "SELECT * FROM generate_series(1, 2)", "SELECT pg_terminate_backend(1)",
		},
		"pg_catalog, trap": {
			"SELECT pg_try_advisory_lock(1)", "SELECT pg_sleep(0.5)", "SELECT pg_sleep(1)", "SELECT 2 * interval '1 s'", "SELECT abs(1) + coalesce(nullif(1, 2), 1) * interval '1 s'",
		},
		`"$user", public, trap`: {"SELECT pg_try_advisory_lock(1)", "SELECT 2 * interval '1 s'"},
	} {
		dsn, plain := Trap(t, path)
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, query := range queries {
			if _, err := db.Exec(query); err == nil {
				t.Errorf("%s: %s: not stepped on", path, query)
			}
		}
		if _, err := db.Exec("SELECT pg_catalog.pg_try_advisory_lock(1::pg_catalog.int8), 1 OPERATOR(pg_catalog.+) 1"); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if v := value(t, plain, "SELECT count(*) || current_setting('search_path') FROM pg_class WHERE relname = 'pg_class'"); v != `2"$user", public` {
			t.Errorf("%s: the other connection: %s", path, v)
		}
	}
}

func TestRecord(t *testing.T) {
	for _, dsn := range []string{DSN(t), SocketDSN(t)} {
		dsn, recording := Record(t, dsn)
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, args := range [][]any{nil, {1}} {
			if _, err := db.Exec("SELECT 1"+strings.Repeat(" + $1", len(args)), args...); err != nil {
				t.Fatal(err)
			}
		}
		if got := recording.Statements(); !slices.Equal(got, []string{"SELECT 1", "SELECT 1 + $1"}) {
			t.Errorf("%q", got)
		}
		if got := recording.Statements(); len(got) != 0 {
			t.Errorf("%q", got)
		}
	}
}
