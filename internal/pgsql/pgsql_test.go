package pgsql

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestParseTimeout(t *testing.T) {
	for s, want := range map[string]time.Duration{"0": 0, "1ms": time.Millisecond, "5s": 5 * time.Second, "2min": 2 * time.Minute, "3h": 3 * time.Hour, "1d": 24 * time.Hour, "": 0, "x": 0} {
		if got := ParseTimeout(s); got != want {
			t.Errorf("%q is %v, want %v", s, got, want)
		}
	}
}

var (
	quotedTable   = regexp.MustCompile(`^((?:U&)?"(?:[^"\x00]|"")+")(?:\.((?:U&)?"(?:[^"\x00]|"")+"))?$`)
	unicodeEscape = regexp.MustCompile(`\\\\|\\\+[0-9a-f]{6}`)
)

// unquote is what PostgreSQL takes a quoted identifier for (the manual's 4.1.1).
func unquote(t *testing.T, quoted string) string {
	text, unicode := strings.CutPrefix(quoted, "U&")
	text = strings.ReplaceAll(text[1:len(text)-1], `""`, `"`)
	if !unicode {
		return text
	}
	return unicodeEscape.ReplaceAllStringFunc(text, func(escape string) string {
		if escape == `\\` {
			return `\`
		}
		n, err := strconv.ParseInt(escape[2:], 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		return string(rune(n))
	})
}

// FuzzQuoteTable: whatever the name, what comes out is one or two quoted
// identifiers and nothing else, and says what went in.
func FuzzQuoteTable(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", `"a"."b"`, "x; drop table y", `x"; drop table y; --`, "a..b", `"`, `""`, `"""`, `""""`, `"a""b".c`, "a\x00b", "a\xff", "таблица", strings.Repeat("x", 200), `"a.b"`, `"a" .b`, "a\n.b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, err := QuoteTable(name)
		if err != nil {
			if got != "" {
				t.Errorf("%q: %q and %v", name, got, err)
			}
			return
		}
		m := quotedTable.FindStringSubmatch(got)
		if m == nil {
			t.Fatalf("%q became %q", name, got)
		}
		parts, err := SplitIdentifier(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, part := range m[1:] {
			switch {
			case part == "" && i == len(parts):
			case part == "" || unquote(t, part) != parts[i] || len(parts[i]) > MaxIdentifier:
				t.Errorf("%q became %q", name, got)
			}
		}
		if strings.IndexFunc(got, func(r rune) bool { return r > 0x7f }) >= 0 {
			t.Errorf("%q became %q, which depends on the client_encoding", name, got)
		}
	})
}
