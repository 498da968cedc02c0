// Package sqltext reads the text of SQL: its tokens, and what of it may be told.
package sqltext

import (
	"strings"

	"github.com/baldur-go/baldur/internal/text"
)

// Safe returns what may be told of a query's text: at most limit bytes of it, and
// where it carries a secret, without its literals and comments. The result does
// not keep a longer text in memory.
func Safe(query string, limit int) string {
	head, tail := query, ""
	if len(query) > limit {
		head, tail = text.Head(query, limit), text.More
	}
	if CarriesSecret(query) {
		return withoutLiterals(head) + tail
	}
	if tail != "" {
		return head + tail // a copy
	}
	return head
}

// lookahead is how much of a text is searched for what tells a secret.
const lookahead = 16 << 10

// CarriesSecret tells whether a text is of a kind that carries passwords, keys or
// conninfo: ALTER ROLE … PASSWORD, CREATE SUBSCRIPTION and SERVER, dblink's and
// pgcrypto's functions, and whatever names such a thing. It looks at the words,
// wherever they stand, since a statement may be inside of another's string.
func CarriesSecret(query string) bool {
	s := strings.ToLower(query[:min(len(query), lookahead)])
	for _, word := range secretWords {
		if strings.Contains(s, word) {
			return true
		}
	}
	// The conninfo of a foreign server, and a URL with a password.
	return strings.Contains(s, "options") && (strings.Contains(s, "server") || strings.Contains(s, "mapping") || strings.Contains(s, "foreign")) || hasUserinfo(s)
}

var secretWords = []string{
	"passw", "passphrase", "pwd", "secret", "credential", "token", "bearer", "apikey", "api_key", "api-key", "private_key", "access_key",
	"crypt", "gen_salt", "hmac", "digest", "pgp_", // pgcrypto's
	"dblink", "conninfo", "subscription",
}

// hasUserinfo tells whether there is a URL with a user's name and password in it.
func hasUserinfo(s string) bool {
	for {
		_, rest, ok := strings.Cut(s, "://")
		if !ok {
			return false
		}
		authority := rest
		if i := strings.IndexAny(rest, "/?# \t\r\n'\""); i >= 0 {
			authority = rest[:i]
		}
		if user, _, ok := strings.Cut(authority, "@"); ok && strings.Contains(user, ":") {
			return true
		}
		s = rest
	}
}

func withoutLiterals(query string) string {
	var b strings.Builder
	for l := (Lexer{query}); ; {
		switch t := l.Next(); {
		case t.Kind == End:
			return b.String()
		case t.Kind == Literal || t.Kind == Unclear:
			b.WriteByte('?')
		case t.Kind == Space && !IsSpace(t.Text[0]): // a comment
			b.WriteByte(' ')
		default:
			b.WriteString(t.Text)
		}
	}
}
