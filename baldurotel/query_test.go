package baldurotel

import (
	"strings"
	"testing"

	"github.com/baldur-go/baldur/internal/sqltext"
	"unicode/utf8"
)

func TestDescribe(t *testing.T) {
	for _, c := range []struct{ query, summary, text string }{
		// The conventions' own examples.
		{"SELECT *\nFROM   wuser_table\nWHERE  username = 'jdoe'", "SELECT wuser_table", "SELECT *\nFROM   wuser_table\nWHERE  username = ?"},
		{"INSERT INTO shipping_details (order_id, address) SELECT order_id, address FROM orders WHERE order_id = 7", "INSERT shipping_details SELECT orders",
			"INSERT INTO shipping_details (order_id, address) SELECT order_id, address FROM orders WHERE order_id = ?"},
		{"SELECT * FROM songs, artists WHERE songs.artist_id = artists.id", "SELECT songs artists", "SELECT * FROM songs, artists WHERE songs.artist_id = artists.id"},
		{"SELECT order_date FROM (SELECT * FROM orders o JOIN customers c ON o.customer_id = c.customer_id) x", "SELECT SELECT orders customers",
			"SELECT order_date FROM (SELECT * FROM orders o JOIN customers c ON o.customer_id = c.customer_id) x"},
		{`SELECT * FROM "song list"`, `SELECT "song list"`, `SELECT * FROM "song list"`},

		// With parameters the text is told as it is.
		{"select a from b where c = $1 and d = 'on' -- why", "select b", "select a from b where c = $1 and d = 'on' -- why"},
		{"UPDATE public.t SET a = $1 FROM other.u WHERE t.id = u.id", "UPDATE public.t other.u", "UPDATE public.t SET a = $1 FROM other.u WHERE t.id = u.id"},
		{"PREPARE p AS SELECT $1, 'secret'", "PREPARE SELECT", "PREPARE p AS SELECT $1, ?"},
		{"SELECT $1; SELECT 'secret'", "SELECT SELECT", "SELECT $1; SELECT ?"},
		{"SELECT '$1', 'secret'", "SELECT", "SELECT ?, ?"},
		{"DO $do$ BEGIN PERFORM $1, 'secret'; END $do$", "DO", "DO ?"},

		// Literals in all their forms, and comments.
		{`SELECT E'a\'secret', U&'\0061', B'01', x'1F', N'x', 'it''s', $$secret$$, $t$ 'x' $$ $t$, 1.5e-3, .5, 0x1F, 1_000, TRUE, false, NULL, date '2020-01-01'`, "SELECT",
			"SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, date ?"},
		{"SELECT 1 /* secret /* nested */ secret */ -- secret\nFROM t", "SELECT t", "SELECT ?    \nFROM t"},
		{`SELECT 'a\' OR secret='`, "SELECT", "SELECT ?"}, // two readings
		{`SELECT 'C:\dir', secret FROM t`, "SELECT t", "SELECT ?, secret FROM t"},
		{"SELECT 'secret", "SELECT", "SELECT ?"},
		{"SELECT $x$secret$y$", "SELECT", "SELECT ?"},
		{"SELECT 1 /* secret", "SELECT", "SELECT ? ?"},
		{`SELECT "secret`, "SELECT", "SELECT ?"},
		{"SET app.token TO secret, \"secret\"", "SET", "SET app.token TO ?, ?"},
		{"ALTER ROLE bob SET app.token = secret; UPDATE t SET a = b", "ALTER ROLE bob UPDATE t", "ALTER ROLE bob SET app.token = ?; UPDATE t SET a = b"},
		{"CREATE USER bob PASSWORD 'secret'", "CREATE USER bob", "CREATE USER bob PASSWORD ?"},
		{"NOTIFY ch, 'secret'", "NOTIFY", "NOTIFY ch, ?"},

		// Operations and targets.
		{"WITH x AS (DELETE FROM a USING b, c WHERE a.id = b.id RETURNING *), y AS MATERIALIZED (SELECT 1) INSERT INTO d SELECT * FROM x", "DELETE a b c SELECT INSERT d SELECT x", ""},
		{"WITH x AS (SELECT 1) UPDATE t SET a = 1", "SELECT UPDATE t", ""},
		{"INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET a = excluded.a", "INSERT t", ""},
		{"MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (1)", "MERGE t u", ""},
		{"SELECT a FROM t FOR UPDATE OF t", "SELECT t", ""},
		{"SELECT extract(year FROM d), trim(both 'x' FROM s), a IS DISTINCT FROM b FROM t", "SELECT t", ""},
		{"SELECT * FROM generate_series(1, 3) g, LATERAL (SELECT 1) l, ONLY a.b.c JOIN d USING (id), e", "SELECT SELECT a.b.c d e", ""},
		{"(SELECT 1 FROM a) UNION ALL (SELECT 2 FROM b) ORDER BY 1, x", "SELECT a SELECT b", ""},
		{"EXPLAIN (ANALYZE, BUFFERS) UPDATE t SET a = 1", "EXPLAIN UPDATE t", ""},
		{"EXPLAIN ANALYZE SELECT 1 FROM t", "EXPLAIN SELECT t", ""},
		{`COPY "t" ("a") FROM STDIN`, `COPY "t"`, ""},
		{"COPY (SELECT a FROM t) TO STDOUT", "COPY SELECT t", ""},
		{"CREATE TABLE IF NOT EXISTS s.t (a int)", "CREATE TABLE s.t", ""},
		{"CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", "CREATE INDEX i", ""},
		{"CREATE INDEX ON t (a)", "CREATE INDEX", ""},
		{"CREATE OR REPLACE VIEW v AS SELECT 1 FROM t", "CREATE VIEW v SELECT t", ""},
		{"CREATE POLICY p ON t FOR SELECT USING (true)", "CREATE", ""},
		{"DECLARE c CURSOR FOR SELECT 1 FROM t", "DECLARE SELECT t", ""},
		{"TRUNCATE TABLE ONLY t", "TRUNCATE t", ""},
		{"LOCK TABLE t", "LOCK t", ""},
		{"VACUUM (FULL) t", "VACUUM", ""},
		{"CALL p(1)", "CALL p", ""},
		{"SELECT 1;;SELECT 2", "SELECT SELECT", ""},
		{"GRANT SELECT ON t TO bob", "GRANT", ""},
		{"BEGIN", "BEGIN", "BEGIN"},
		{"-- name: x\nSELECT 1", "SELECT", ""},
		{"hunter2", "", "hunter2"}, // the text itself is the program's
		{"", "", ""},
		{"   ", "", "   "},
		{";", "", ";"},
		{"SELECT '\xff\xfe' FROM \"\xff\"", "SELECT \"\uFFFD\"", "SELECT ? FROM \"\uFFFD\""},
	} {
		summary, text := describe(c.query)
		if summary != c.summary || c.text != "" && text != c.text {
			t.Errorf("%q: got %q, %q\nwant %q, %q", c.query, summary, text, c.summary, c.text)
		}
	}
}

func TestDescribeLong(t *testing.T) {
	for name, query := range map[string]string{
		"list":       "SELECT a FROM t WHERE b IN (" + strings.Repeat("12345678,", 1<<17) + "0)",
		"string":     "SELECT a FROM t WHERE b = '" + strings.Repeat("secret", 1<<18) + "'",
		"parameters": "SELECT a FROM t WHERE b IN (" + strings.Repeat("$1,", 1<<18) + "'secret')",
		"name":       "SELECT a FROM " + strings.Repeat("é", 1<<19),
		"tables":     "SELECT a FROM t" + strings.Repeat(", tab", 1<<18),
		"brackets":   "SELECT" + strings.Repeat("(", 1<<20),
		"comment":    "SELECT a FROM t /*" + strings.Repeat("secret/*", 1<<17),
		"invalid":    strings.Repeat("\xff", 1<<20),
		"nul":        strings.Repeat("\x00", 1<<20),
	} {
		summary, text := describe(query)
		const ellipsis, widest = 3, 3 // an invalid byte becomes three
		if len(summary) > widest*maxName+ellipsis || len(text) > widest*maxText+ellipsis || !utf8.ValidString(summary) || !utf8.ValidString(text) {
			t.Errorf("%s: summary of %d bytes, text of %d", name, len(summary), len(text))
		}
		if strings.Contains(text, "secret") || strings.Contains(text, "12345678") {
			t.Errorf("%s: %.200s", name, text)
		}
	}
}

// FuzzDescribe: whatever is told of a text is valid UTF-8 and bounded; and a
// literal put at the end of it, where the text before it leaves that open,
// is not told.
func FuzzDescribe(f *testing.F) {
	for _, s := range []string{"SELECT ", "'", `E'\`, "$a$ $", "/* /*", "--", `"`, "U&", "SELECT $1,", "\xff", "SET a ="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "topsecret") || strings.Contains(s, "$") {
			return // $1 lets the text through; $tag$ makes a name of a literal
		}
		summary, text := describe(s + " 'topsecret'")
		if len(summary) > 3*maxName+3 || len(text) > 3*maxText+3 || !utf8.ValidString(summary) || !utf8.ValidString(text) {
			t.Errorf("%q: %d, %d bytes", s, len(summary), len(text))
		}
		if l := (sqltext.Lexer{Rest: s}); quoteOpen(&l) {
			return
		}
		if strings.Contains(summary+text, "topsecret") {
			t.Errorf("%q: %q, %q", s, summary, text)
		}
	})
}

// quoteOpen tells that a text ends within quotes or in doubt, so that a quote
// after it would end a string and not begin one.
func quoteOpen(l *sqltext.Lexer) bool {
	for {
		switch l.Next().Kind {
		case sqltext.End:
			return false
		case sqltext.Unclear:
			return true
		}
	}
}

func BenchmarkDescribe(b *testing.B) {
	const query = "SELECT o.id, o.total, c.name FROM orders o JOIN customers c ON c.id = o.customer_id WHERE o.created_at > $1 AND o.state = 'open' ORDER BY o.id LIMIT 50"
	b.ReportAllocs()
	b.SetBytes(int64(len(query)))
	for b.Loop() {
		describe(query)
	}
}
