package sqltext

import "strings"

// A Kind of token.
type Kind byte

// The kinds.
const (
	End     Kind = iota
	Space        // or a comment
	Word         // a keyword or a name
	Quoted       // a name in double quotes
	Literal      // a string or a number
	Param        // $1
	Other        // one byte of anything else
	Unclear      // the rest of the text, which can be read in two ways or does not end
)

// A Token is a stretch of the text.
type Token struct {
	Kind Kind
	Text string
}

// A Lexer cuts a text into PostgreSQL's tokens (section 4.1 of its manual).
type Lexer struct{ Rest string }

func (l *Lexer) take(kind Kind, n int) Token {
	if n < 0 || n > len(l.Rest) {
		kind, n = Unclear, len(l.Rest)
	}
	t := Token{kind, l.Rest[:n]}
	l.Rest = l.Rest[n:]
	return t
}

// Next returns the next token.
func (l *Lexer) Next() Token {
	s := l.Rest
	if s == "" {
		return Token{}
	}
	switch c := s[0]; {
	case IsSpace(c):
		n := 1
		for n < len(s) && IsSpace(s[n]) {
			n++
		}
		return l.take(Space, n)
	case strings.HasPrefix(s, "--"):
		if n := strings.IndexAny(s, "\r\n"); n >= 0 {
			return l.take(Space, n)
		}
		return l.take(Space, len(s))
	case strings.HasPrefix(s, "/*"):
		return l.take(Space, commentEnd(s))
	case c == '\'':
		return l.take(Literal, stringEnd(s, 0, false))
	case c == '"':
		return l.take(Quoted, quotedEnd(s))
	case c == '$':
		return l.dollar()
	case isDigit(c) || c == '.' && len(s) > 1 && isDigit(s[1]):
		n := 1
		for n < len(s) && (isWord(s[n]) || s[n] == '.' || (s[n] == '+' || s[n] == '-') && (s[n-1] == 'e' || s[n-1] == 'E')) {
			n++
		}
		return l.take(Literal, n)
	case isWord(c):
		n := 1
		for n < len(s) && (isWord(s[n]) || s[n] == '$') {
			n++
		}
		if n == 1 && len(s) > 1 && s[1] == '\'' && strings.IndexByte("eEbBxXnN", c) >= 0 {
			return l.take(Literal, stringEnd(s, 1, c == 'e' || c == 'E'))
		}
		if n == 1 && (c == 'u' || c == 'U') && strings.HasPrefix(s[1:], "&'") {
			return l.take(Literal, stringEnd(s, 2, false))
		}
		return l.take(Word, n)
	}
	return l.take(Other, 1)
}

// dollar is a parameter, a string in dollar quotes, or the sign.
func (l *Lexer) dollar() Token {
	s := l.Rest
	n := 1
	if n < len(s) && isDigit(s[n]) {
		for n < len(s) && isDigit(s[n]) {
			n++
		}
		return l.take(Param, n)
	}
	for n < len(s) && isWord(s[n]) {
		n++
	}
	if n == len(s) || s[n] != '$' {
		return l.take(Other, 1)
	}
	tag := s[:n+1]
	end := strings.Index(s[len(tag):], tag)
	if end < 0 {
		return l.take(Unclear, len(s))
	}
	return l.take(Literal, len(tag)+end+len(tag))
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

// IsSpace tells whether a byte is white space.
func IsSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isWord(c byte) bool {
	return c == '_' || isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
