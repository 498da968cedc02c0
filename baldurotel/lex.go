package baldurotel

import "strings"

// maxScan is how much of a query's text is looked at, in bytes.
const maxScan = 16 << 10

type tokenKind byte

const (
	tokenEnd     tokenKind = iota
	tokenSpace             // or a comment
	tokenWord              // a keyword or a name
	tokenQuoted            // a name in double quotes
	tokenLiteral           // a string or a number
	tokenParam             // $1
	tokenOther             // one byte of anything else
	tokenUnclear           // the rest of the text, which can be read in two ways or does not end
)

type token struct {
	kind tokenKind
	text string
}

// lexer cuts a text into PostgreSQL's tokens (section 4.1 of its manual).
type lexer struct{ rest string }

func (l *lexer) take(kind tokenKind, n int) token {
	if n < 0 || n > len(l.rest) {
		kind, n = tokenUnclear, len(l.rest)
	}
	t := token{kind, l.rest[:n]}
	l.rest = l.rest[n:]
	return t
}

func (l *lexer) next() token {
	s := l.rest
	if s == "" {
		return token{}
	}
	switch c := s[0]; {
	case isSpace(c):
		n := 1
		for n < len(s) && isSpace(s[n]) {
			n++
		}
		return l.take(tokenSpace, n)
	case strings.HasPrefix(s, "--"):
		if n := strings.IndexAny(s, "\r\n"); n >= 0 {
			return l.take(tokenSpace, n)
		}
		return l.take(tokenSpace, len(s))
	case strings.HasPrefix(s, "/*"):
		return l.take(tokenSpace, commentEnd(s))
	case c == '\'':
		return l.take(tokenLiteral, stringEnd(s, 0, false))
	case c == '"':
		return l.take(tokenQuoted, quotedEnd(s))
	case c == '$':
		return l.dollar()
	case isDigit(c) || c == '.' && len(s) > 1 && isDigit(s[1]):
		n := 1
		for n < len(s) && (isWord(s[n]) || s[n] == '.' || (s[n] == '+' || s[n] == '-') && (s[n-1] == 'e' || s[n-1] == 'E')) {
			n++
		}
		return l.take(tokenLiteral, n)
	case isWord(c):
		n := 1
		for n < len(s) && (isWord(s[n]) || s[n] == '$') {
			n++
		}
		if n == 1 && len(s) > 1 && s[1] == '\'' && strings.IndexByte("eEbBxXnN", c) >= 0 {
			return l.take(tokenLiteral, stringEnd(s, 1, c == 'e' || c == 'E'))
		}
		if n == 1 && (c == 'u' || c == 'U') && strings.HasPrefix(s[1:], "&'") {
			return l.take(tokenLiteral, stringEnd(s, 2, false))
		}
		return l.take(tokenWord, n)
	}
	return l.take(tokenOther, 1)
}

// dollar is a parameter, a string in dollar quotes, or the sign.
func (l *lexer) dollar() token {
	s := l.rest
	n := 1
	if n < len(s) && isDigit(s[n]) {
		for n < len(s) && isDigit(s[n]) {
			n++
		}
		return l.take(tokenParam, n)
	}
	for n < len(s) && isWord(s[n]) {
		n++
	}
	if n == len(s) || s[n] != '$' {
		return l.take(tokenOther, 1)
	}
	tag := s[:n+1]
	end := strings.Index(s[len(tag):], tag)
	if end < 0 {
		return l.take(tokenUnclear, len(s))
	}
	return l.take(tokenLiteral, len(tag)+end+len(tag))
}

// stringEnd is the end of a string whose quote is at s[at], −1 if there is none.
// A backslash escapes the quote if escapes; in a plain string it does so if the
// server's standard_conforming_strings is off, which is not known: −1 too.
func stringEnd(s string, at int, escapes bool) int {
	for i := at + 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if !escapes && i+1 < len(s) && s[i+1] == '\'' {
				return -1
			}
			if escapes {
				i++
			}
		case '\'':
			if i+1 < len(s) && s[i+1] == '\'' {
				i++
				continue
			}
			return i + 1
		}
	}
	return -1
}

func quotedEnd(s string) int {
	for i := 1; i < len(s); i++ {
		if s[i] == '"' {
			if i+1 < len(s) && s[i+1] == '"' {
				i++
				continue
			}
			return i + 1
		}
	}
	return -1
}

// commentEnd is the end of a comment; they nest.
func commentEnd(s string) int {
	depth := 0
	for i := 0; i+1 < len(s); i++ {
		switch s[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isWord(c byte) bool {
	return c == '_' || isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
