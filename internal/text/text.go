// Package text makes foreign text fit to be shown: names, labels, queries and
// errors that come from outside of this module. It is the only place that does.
package text

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// unsafe tells whether a character does something to a terminal or a line beside
// showing itself: controls, line separators, what turns the direction of the text,
// and what has no width.
func unsafe(r rune) bool {
	switch {
	case r < 0x7f:
		return r < ' '
	case r < 0xa0, r == '\u00ad', r == '\u061c', r == '\u180e', '\u200b' <= r && r <= '\u200f', '\u2028' <= r && r <= '\u202e',
		'\u2060' <= r && r <= '\u206f', r == '\ufeff', '\ufff9' <= r && r <= '\ufffb', 0xe0000 <= r && r <= 0xe007f:
		return true
	}
	return false
}

// plain tells whether a text is printable ASCII, as most is.
func plain(s string, lines bool) bool {
	for i := range len(s) {
		if c := s[i]; c >= 0x7f || c < ' ' && !(lines && (c == '\n' || c == '\t')) {
			return false
		}
	}
	return true
}

// Clean makes a text safe to stand in a line: what is not is replaced.
func Clean(s string) string { return clean(s, false) }

// Lines is Clean for a text of several lines: it keeps their ends, and tabs.
func Lines(s string) string { return clean(s, true) }

func clean(s string, lines bool) string {
	if plain(s, lines) {
		return s
	}
	if lines {
		s = strings.ReplaceAll(s, "\r\n", "\n")
	}
	return strings.Map(func(r rune) rune {
		if unsafe(r) && !(lines && (r == '\n' || r == '\t')) {
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
}

// JSON escapes what is unsafe in a JSON text, which keeps its meaning. Controls
// below U+0020 and invalid UTF-8 are not in one.
func JSON(b []byte) []byte {
	if bytes.IndexFunc(b, func(r rune) bool { return r >= 0x7f && unsafe(r) }) < 0 {
		return b
	}
	var out bytes.Buffer
	for _, r := range string(b) {
		switch {
		case r < 0x7f || !unsafe(r):
			out.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.Bytes()
}

// More stands at the end of a text that was cut.
const More = " …"

// Head is the beginning of s as valid UTF-8 of n bytes at most. No character is cut
// in two. For what ends in More see Cut.
func Head(s string, n int) string {
	head, _ := head(s, n)
	return head
}

// Cut is Head, with More where s is longer.
func Cut(s string, n int) string {
	head, whole := head(s, n)
	if !whole {
		head += More
	}
	return head
}

func head(s string, n int) (head string, whole bool) {
	head = strings.ToValidUTF8(start(s, n), "\ufffd")
	valid := len(head)
	head = start(head, n) // U+FFFD is longer than the byte that it replaces
	return head, len(s) <= n && len(head) == valid
}

// start is n bytes of s at most, and less by the part of a character at their end.
func start(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := n; i >= 0 && i > n-utf8.UTFMax; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i]
		}
	}
	return s[:n] // no character is as long
}

// OneLine is a text on one line, clean, of n characters at most, and with More where
// it is longer. Of white space one blank is left.
func OneLine(s string, n int) string {
	if len(s) > 8*n {
		s = start(s, 8*n) + More // the rest is not looked at, whatever its length
	}
	s = Clean(strings.Join(strings.Fields(s), " "))
	if r := []rune(s); len(r) > n {
		return strings.TrimSuffix(string(r[:n]), " ") + More
	}
	return s
}

// Word is a text as a word of a line or a cell of a table: quoted, as Go does, if it is
// empty, has blanks, or is not clean.
func Word(s string) string {
	if s == "" || Clean(s) != s || strings.ContainsFunc(s, func(r rune) bool { return r == '"' || r == ' ' || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// Short rounds a duration to what a person wants to read: 350ms, 42s, 6m12s, 1h40m,
// 3d4h.
func Short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < 100*time.Minute:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// Plural is a number of things.
func Plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
