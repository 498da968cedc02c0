package sqltext_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/baldur-go/baldur/internal/sqltext"
)

func TestSafe(t *testing.T) {
	for _, c := range []struct {
		query, want string
		limit       int
	}{
		{"", "", 10},
		{"SELECT 'a'", "SELECT 'a'", 10},
		{"SELECT 'a'", "SELECT 'a …", 9},
		{"SELECT 'é'", "SELECT ' …", 9},
		{"SELECT 'a'", " …", 0},
		{"ALTER ROLE r PASSWORD 's'", "ALTER ROLE r PASSWORD ?", 100},
		{"ALTER ROLE r PASSWORD 's'", "ALTER ROLE r PASSWORD ? …", 23}, // a literal that does not end
		{"/* 's' */ ALTER ROLE r -- s\nPASSWORD $x$s$x$", "  ALTER ROLE r  \nPASSWORD ?", 100},
		{"SELECT 1 -- postgres://u:s@h/d", "SELECT ?  ", 100},
		{"SELECT 1" + strings.Repeat(" ", 100) + "; ALTER ROLE r PASSWORD 's'", "SELECT ? …", 8}, // the secret is in the rest
	} {
		if got := sqltext.Safe(c.query, c.limit); got != c.want {
			t.Errorf("%q, %d: got %q, want %q", c.query, c.limit, got, c.want)
		}
	}
}

func TestCarriesSecret(t *testing.T) {
	for query, want := range map[string]bool{
		"SELECT * FROM orders": false, "SELECT version(), now()": false, "SELECT 'http://example.com/a@b'": false, "SELECT options FROM cars": false,
		"SELECT url FROM t WHERE url = 'https://host:80/x'":       false,
		"alter role r PassWord 'x'":                               true,
		"DO $$ BEGIN EXECUTE 'CREATE SUBSCRIPTION s'; END $$":     true,
		"SELECT dblink('x')":                                      true,
		"SELECT pgp_sym_encrypt($1, $2)":                          true,
		"CREATE USER MAPPING FOR u SERVER s OPTIONS (user 'x')":   true,
		"ALTER FOREIGN TABLE t OPTIONS (ADD a 'b')":               true,
		"SELECT 'postgres://user:x@host/db'":                      true,
		"SELECT 'http://a/', 'postgres://user:x@host'":            true,
		strings.Repeat(" ", 16<<10) + "ALTER ROLE r PASSWORD 'x'": false, // beyond what is looked at, and what anybody keeps
		strings.Repeat("x", 16<<10-len("secret")) + "secret":      true,
	} {
		if got := sqltext.CarriesSecret(query); got != want {
			t.Errorf("%.100q: %v", query, got)
		}
	}
}

// FuzzSafe: what is told is bounded and text, and of a query with a secret no string of
// any kind is told.
func FuzzSafe(f *testing.F) {
	for _, q := range []string{"", "SELECT 1", "ALTER ROLE r PASSWORD 's'", `SELECT E'\'x', "a""b", U&'x', $a$x$a$, $1 -- c`, "/* /* */ */ x", "'a\\'b'", "\xff'", "SELECT 'é"} {
		f.Add(q, "s3cret", uint8(20))
	}
	f.Fuzz(func(t *testing.T, query, secret string, limit uint8) {
		got := sqltext.Safe(query, int(limit))
		if body, cut := strings.CutSuffix(got, " …"); len(got) > int(limit) && (!cut || len(body) > int(limit)) {
			t.Errorf("%d bytes of %q: %q", limit, query, got)
		}
		if utf8.ValidString(query) && !utf8.ValidString(got) {
			t.Errorf("of %q: %q", query, got)
		}
		if strings.ContainsAny(secret, `'\$`) || len(secret) < 3 || strings.Contains(query, secret) || strings.Contains("ALTER ROLE r PASSWORD ?  … $x$", secret) {
			return
		}
		for _, literal := range []string{"'" + secret + "'", "$x$" + secret + "$x$", "E'" + secret + "'", "/*" + strings.ReplaceAll(strings.ReplaceAll(secret, "*", ""), "/", "") + "*/"} {
			if got := sqltext.Safe("ALTER ROLE r PASSWORD "+literal+" "+query, 1000); strings.Contains(got, secret) {
				t.Errorf("of %s it tells %q", literal, got)
			}
		}
	})
}
