package baldur

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestBlockingTreeShapes: a queue is no explosion, and a circle is no endless loop.
func TestBlockingTreeShapes(t *testing.T) {
	node := func(pid int, by ...int) *BlockingNode {
		return &BlockingNode{Backend: Backend{PID: pid}, BlockedBy: by}
	}
	var shape func([]*BlockingNode) string
	shape = func(nodes []*BlockingNode) string {
		var parts []string
		for _, n := range nodes {
			s := fmt.Sprint(n.PID)
			if len(n.Blocks) > 0 {
				s += "(" + shape(n.Blocks) + ")"
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, " ")
	}
	queue := []*BlockingNode{node(1)}
	for i := 2; i <= 60; i++ {
		n := node(i)
		for j := 1; j < i; j++ {
			n.BlockedBy = append(n.BlockedBy, j)
		}
		queue = append(queue, n)
	}
	if tree := blockingTree(queue); len(tree) != 1 || len(tree[0].Blocks) != 59 {
		t.Error(shape(tree))
	}
	for _, c := range []struct {
		nodes []*BlockingNode
		want  string
	}{
		{[]*BlockingNode{node(1, 2), node(2, 1)}, "1(2)"},
		{[]*BlockingNode{node(1, 2), node(2, 1), node(3, 2)}, "1(2(3))"},
		{[]*BlockingNode{node(0), node(5, 0)}, "0(5)"},
		{[]*BlockingNode{node(1, 9)}, "1"},
		{[]*BlockingNode{node(1), node(2), node(3, 1, 2), node(4, 3)}, "1(3(4)) 2"},
	} {
		if got := shape(blockingTree(c.nodes)); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

func TestParseTimeout(t *testing.T) {
	for s, want := range map[string]time.Duration{"0": 0, "1ms": time.Millisecond, "5s": 5 * time.Second, "2min": 2 * time.Minute, "3h": 3 * time.Hour, "1d": 24 * time.Hour, "": 0, "x": 0} {
		if got := parseTimeout(s); got != want {
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
		got, err := quoteTable(name)
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
		parts, err := splitIdentifier(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, part := range m[1:] {
			switch {
			case part == "" && i == len(parts):
			case part == "" || unquote(t, part) != parts[i] || len(parts[i]) > maxIdentifier:
				t.Errorf("%q became %q", name, got)
			}
		}
		if strings.IndexFunc(got, func(r rune) bool { return r > 0x7f }) >= 0 {
			t.Errorf("%q became %q, which depends on the client_encoding", name, got)
		}
	})
}
