// Package pgsql makes text of SQL: identifiers and settings.
package pgsql

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/lib/pq"
)

// MaxIdentifier is NAMEDATALEN-1. PostgreSQL cuts longer names, and could so find
// another table (the manual's 4.1.1).
const MaxIdentifier = 63

// QuoteTable quotes the name of a table, or of a schema and a table, written as
// SplitIdentifier takes it.
func QuoteTable(name string) (string, error) {
	parts, err := SplitIdentifier(name)
	switch {
	case err != nil:
		return "", fmt.Errorf("baldur: table name %.80q: %w", name, err)
	case len(parts) > 2:
		return "", fmt.Errorf("baldur: table name %.80q: it has %d parts; there are a schema and a table at most", name, len(parts))
	}
	for i, p := range parts {
		switch {
		case p == "":
			return "", fmt.Errorf("baldur: table name %.80q: a part of it is empty", name)
		case len(p) > MaxIdentifier:
			return "", fmt.Errorf("baldur: table name %.80q: a part of it has %d bytes; PostgreSQL takes %d", name, len(p), MaxIdentifier)
		}
		parts[i] = QuoteIdentifier(p)
	}
	return strings.Join(parts, "."), nil
}

// QuoteIdentifier quotes an identifier in ASCII, which means the same whatever the
// session's client_encoding is (the manual's 4.1.1).
func QuoteIdentifier(name string) string {
	quoted := pq.QuoteIdentifier(name)
	var b strings.Builder
	for _, r := range strings.ReplaceAll(quoted, `\`, `\\`) {
		if r < utf8.RuneSelf {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\+%06x`, r)
		}
	}
	if b.Len() == len(quoted) {
		return quoted
	}
	return "U&" + b.String()
}

// SplitIdentifier splits a name at its dots. A part in double quotes is read as SQL
// reads it; any other is taken as it stands.
func SplitIdentifier(name string) ([]string, error) {
	switch {
	case name == "":
		return nil, fmt.Errorf("it is empty")
	case !utf8.ValidString(name):
		return nil, fmt.Errorf("it is not valid UTF-8")
	case strings.IndexByte(name, 0) >= 0:
		return nil, fmt.Errorf("it has a zero byte")
	}
	var parts []string
	for rest := name; ; rest = rest[1:] {
		var part string
		if strings.HasPrefix(rest, `"`) {
			var ok bool
			if part, rest, ok = quotedPart(rest); !ok {
				return nil, fmt.Errorf("a double quote is not closed")
			}
			if rest != "" && rest[0] != '.' {
				return nil, fmt.Errorf("there is something after a part in double quotes")
			}
		} else {
			end := strings.IndexByte(rest, '.')
			if end < 0 {
				end = len(rest)
			}
			part, rest = rest[:end], rest[end:]
			if strings.Contains(part, `"`) {
				return nil, fmt.Errorf(`there is a double quote within a part; write it as "a""b"`)
			}
		}
		parts = append(parts, part)
		if rest == "" {
			return parts, nil
		}
	}
}

// quotedPart reads a part in double quotes from the start of s.
func quotedPart(s string) (part, rest string, ok bool) {
	var b strings.Builder
	for s = s[1:]; ; {
		end := strings.IndexByte(s, '"')
		if end < 0 {
			return "", "", false
		}
		b.WriteString(s[:end])
		s = s[end+1:]
		if !strings.HasPrefix(s, `"`) {
			return b.String(), s, true
		}
		b.WriteByte('"')
		s = s[1:]
	}
}
