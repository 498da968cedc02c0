package pgtest

import "testing"

// TestLintSQL: each line of refused has one fault, and what is accepted has none.
func TestLintSQL(t *testing.T) {
	for _, query := range []string{
		`SELECT now()`,
		`SELECT pg_try_advisory_lock(42::pg_catalog.int8)`,
		`SELECT pg_catalog.pg_try_advisory_lock(42)`,
		`SELECT pg_catalog.pg_try_advisory_lock(-42)`,
		`SELECT pg_catalog.set_config('a'::pg_catalog.text, 'b', true)`,
		`SELECT pg_catalog.set_config('a'::pg_catalog.text, NULL, true)`,
		`SELECT pg_catalog.pg_sleep(0.5)`,
		`SELECT public.now()`,
		`SELECT "public".now()`,
		`SELECT "now"()`,
		`SELECT a = b`,
		`SELECT a FROM t WHERE x = 1::pg_catalog.int4`,
		`SELECT a <> ALL (b)`,
		`SELECT a || b`,
		`SELECT a - b`,
		`SELECT a -1`,
		`SELECT 2 * x`,
		`SELECT x * 2`,
		`SELECT - x`,
		`SELECT x OPERATOR(public.=) y`,
		`SELECT x OPERATOR(=) y`,
		`SELECT x IN (1, 2)`,
		`SELECT x NOT IN (SELECT y FROM z)`,
		`SELECT x BETWEEN y AND z`,
		`SELECT x LIKE y`,
		`SELECT x ILIKE y`,
		`SELECT x SIMILAR TO y`,
		`SELECT x IS DISTINCT FROM y`,
		`SELECT x IS NOT DISTINCT FROM y`,
		`SELECT CASE x WHEN y THEN z END`,
		`SELECT NULLIF(x, y)`,
		`SELECT a FROM x JOIN y USING (a)`,
		`SELECT a FROM x NATURAL JOIN y`,
		`SELECT x::text`,
		`SELECT x::int`,
		`SELECT x::public.text`,
		`SELECT x::"text"`,
		`SELECT CAST(x AS pg_catalog.text)`,
		`SELECT interval '1 ms'`,
		`SELECT text 'x'`,
		`SELECT x FROM pg_locks`,
		`SELECT x FROM a JOIN pg_stat_activity s ON true`,
		`UPDATE t SET a = b + c`,
		`UPDATE t SET a = b, c = d WHERE e = f`,
		`UPDATE t SET a = greatest(b, (SELECT c WHERE d = e))`,
		`CREATE TABLE t (a text)`,
		`CREATE TABLE IF NOT EXISTS "s".t (a pg_catalog.text, b bigint)`,
		`CREATE TABLE t (a pg_catalog.text DEFAULT now())`,
		`WITH x AS (SELECT now()) SELECT 1::pg_catalog.int4 FROM x`,
		`SELECT 'it''s', now()`,
		`SELECT E'\'', now()`,
		`SELECT /* now() */ now() -- now()`,
	} {
		if got := LintSQL(query); len(got) != 1 {
			t.Errorf("%s: %d faults: %q", query, len(got), got)
		}
	}
	for _, query := range []string{
		`SELECT pg_catalog.now()`,
		`SELECT pg_catalog.count(*) FILTER (WHERE a OPERATOR(pg_catalog.=) ANY ('{a,b}'::pg_catalog.text[])) FROM pg_catalog.pg_locks l`,
		`SELECT pg_catalog.pg_try_advisory_lock('-42'::pg_catalog.int8)`,
		`SELECT coalesce(x, 0), greatest(a, -1), 'it''s now()', "now()"."a"`,
		`SELECT *, t.* FROM (VALUES (1, -2)) AS t(a, b)`,
		`SELECT EXTRACT(epoch FROM a) OPERATOR(pg_catalog.*) 1000`,
		`SELECT x OPERATOR(pg_catalog.<>) (-1), CASE WHEN a IS NULL THEN 1 ELSE 2 END`,
		`SELECT pg_catalog.set_config('a'::pg_catalog.text, pg_catalog.current_setting('b'::pg_catalog.text), true)`,
		`SET LOCAL lock_timeout = '1s'; SET TRANSACTION ISOLATION LEVEL READ COMMITTED`,
		`UPDATE "s".t l SET a = b, c = (SELECT d FROM e), f = pg_catalog.now() FROM g WHERE a OPERATOR(pg_catalog.=) b RETURNING l.*`,
		`WITH g AS MATERIALIZED (SELECT 1), h(a, b) AS (SELECT 1, 2) SELECT a FROM g, h ORDER BY a`,
		`INSERT INTO "public".t (a, b) VALUES (1, 'x') ON CONFLICT (a) DO UPDATE SET b = excluded.b`,
		`CREATE TABLE IF NOT EXISTS "s".t (a pg_catalog.text COLLATE "C" PRIMARY KEY, b pg_catalog.int8 NOT NULL DEFAULT 0, PRIMARY KEY (a, b))`,
		`LOCK TABLE "s".t IN SHARE MODE; LISTEN "x"; COMMENT ON TABLE t IS 'now()'`,
	} {
		if got := LintSQL(query); len(got) != 0 {
			t.Errorf("%s: %q", query, got)
		}
	}
}
