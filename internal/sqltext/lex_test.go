package sqltext_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/baldur-go/baldur/internal/sqltext"
)

var kinds = [...]string{"End", "Space", "Word", "Quoted", "Literal", "Param", "Other", "Unclear"}

func lex(query string) string {
	var b strings.Builder
	for l := (sqltext.Lexer{Rest: query}); ; {
		t := l.Next()
		if t.Kind == sqltext.End {
			return strings.TrimSuffix(b.String(), "|")
		}
		if t.Kind != sqltext.Space || !sqltext.IsSpace(t.Text[0]) {
			fmt.Fprintf(&b, "%s %s|", kinds[t.Kind], t.Text)
		}
	}
}

// TestLexer: after the manual's section 4.1.
func TestLexer(t *testing.T) {
	for query, want := range map[string]string{
		"":                                  "",
		" \t\r\n\f\v":                       "",
		"SELECT a1, _b$c FROM é":            "Word SELECT|Word a1|Other ,|Word _b$c|Word FROM|Word é",
		`"a b""c".d`:                        `Quoted "a b""c"|Other .|Word d`,
		`"a`:                                `Unclear "a`,
		"'a''b' 'c":                         "Literal 'a''b'|Unclear 'c",
		`'a\b' 'a\'b' x`:                    `Literal 'a\b'|Unclear 'a\'b' x`, // the server's standard_conforming_strings is not known
		`'a\' x`:                            `Unclear 'a\' x`,
		`E'a\'b\\' e'' x`:                   `Literal E'a\'b\\'|Literal e''|Word x`,
		`E'a\`:                              `Unclear E'a\`,
		"B'01' x'1F' N'a' U&'a' u":          "Literal B'01'|Literal x'1F'|Literal N'a'|Literal U&'a'|Word u",
		"ee'a'":                             "Word ee|Literal 'a'",
		"$1 $23a $$a$b$$ $x$'$$$x$":         "Param $1|Param $23|Word a|Literal $$a$b$$|Literal $x$'$$$x$",
		"$x$ $y$":                           "Unclear $x$ $y$",
		"a$1 $ $a":                          "Word a$1|Other $|Other $|Word a",
		"1 .5 1.5e-3 1e+5 0xFF 1_000 1+2 .": "Literal 1|Literal .5|Literal 1.5e-3|Literal 1e+5|Literal 0xFF|Literal 1_000|Literal 1|Other +|Literal 2|Other .",
		"a --b\nc --d":                      "Word a|Space --b|Word c|Space --d",
		"a/*b/*c*/d*/e /*f":                 "Word a|Space /*b/*c*/d*/|Word e|Unclear /*f",
		"a-/b::c":                           "Word a|Other -|Other /|Word b|Other :|Other :|Word c",
	} {
		if got := lex(query); got != want {
			t.Errorf("%q:\ngot  %s\nwant %s", query, got, want)
		}
	}
}

// FuzzLexer: the tokens are the text, none is empty, and nothing comes after the end.
func FuzzLexer(f *testing.F) {
	for _, s := range []string{"SELECT 1", "'", `E'\`, "$a$", "/*", "--", "é\xff", "1e", "u&'", `"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		l := sqltext.Lexer{Rest: query}
		var all strings.Builder
		for {
			token := l.Next()
			if token.Kind == sqltext.End {
				break
			}
			if token.Text == "" {
				t.Fatalf("an empty token of kind %s", kinds[token.Kind])
			}
			if token.Kind == sqltext.Unclear && l.Rest != "" {
				t.Errorf("after what is unclear there is %q", l.Rest)
			}
			all.WriteString(token.Text)
		}
		if all.String() != query || l.Rest != "" || l.Next() != (sqltext.Token{}) {
			t.Errorf("tokens are %q, left is %q", all.String(), l.Rest)
		}
	})
}
