// Package text makes foreign text fit to be shown: names, labels, queries and
// errors that come from outside of this module. It is the only place that does.
package text

import (
	"bytes"
	"fmt"
	"strings"
	"time"
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

const more = " …"

// Cut makes s valid UTF-8 of n bytes at most, and a mark where it was longer.
func Cut(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "\ufffd")
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.ToValidUTF8(s[:n], "\ufffd") + more
}

// OneLine is a text on one line, clean, and cut after n bytes.
func OneLine(s string, n int) string {
	if len(s) > 8*n+8 {
		s = Cut(s, 8*n)
	}
	return Cut(Clean(strings.Join(strings.Fields(s), " ")), n)
}

// Short rounds a duration to what a person wants to read: 350ms, 42s, 6m12s.
func Short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// Plural is a number of things.
func Plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
