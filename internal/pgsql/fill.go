package pgsql

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Fill fills in a statement: first what pairs has, placeholders and values in
// turn, then the operators. An operator that is not qualified is looked up along the
// search_path, like a function, and so is a type.
func Fill(statement string, pairs ...string) string {
	return operators.Replace(strings.NewReplacer(pairs...).Replace(statement))
}

var operators = func() *strings.Replacer {
	var pairs []string
	for _, op := range []string{"=", "<>", "<", "<=", ">", ">=", "+", "-", "*", "||", "<<", ">>"} {
		pairs = append(pairs, "{"+op+"}", "OPERATOR(pg_catalog."+op+")")
	}
	return strings.NewReplacer(pairs...)
}()

// Text is a string as an expression of type text. Of a statement's bytes only
// ASCII means the same whatever the session's client_encoding is; other text is
// sent as the digits of its UTF-8.
func Text(s string) string {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '\'' || c == '\\' || c == '{' {
			return "pg_catalog.convert_from(pg_catalog.decode('" + hex.EncodeToString([]byte(s)) + "'::pg_catalog.text, 'hex'::pg_catalog.text), 'UTF8'::pg_catalog.name)"
		}
	}
	return "'" + s + "'::pg_catalog.text"
}

// Hex has the server answer with the digits of an expression's UTF-8, for HexText.
func Hex(expression string) string {
	return "pg_catalog.encode(pg_catalog.convert_to(" + expression + ", 'UTF8'::pg_catalog.name), 'hex'::pg_catalog.text)"
}

// Lines is the one column of a query, as lines.
func Lines(query string) string {
	return Hex("(SELECT coalesce(pg_catalog.string_agg(l.line, pg_catalog.chr(10::pg_catalog.int4)), ''::pg_catalog.text) FROM (" + query + ") AS l(line))")
}

// HexText scans what Hex has made.
type HexText string

func (t *HexText) Scan(v any) error {
	var digits string
	switch v := v.(type) {
	case nil:
	case string:
		digits = v
	case []byte:
		digits = string(v)
	default:
		return fmt.Errorf("baldur: %T in place of text", v)
	}
	b, err := hex.DecodeString(digits)
	*t = HexText(b)
	return err
}

// Lines are what Lines has made.
func (t HexText) Lines() []string {
	if t == "" {
		return nil
	}
	return strings.Split(string(t), "\n")
}

// PlainIdentifier writes a quoted name in ASCII, for the reason that Text has.
func PlainIdentifier(quoted string) string {
	if strings.IndexFunc(quoted, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return quoted
	}
	parts, err := SplitIdentifier(quoted)
	if err != nil {
		return quoted
	}
	for i, p := range parts {
		parts[i] = QuoteIdentifier(p)
	}
	return strings.Join(parts, ".")
}

// Int is a number as a literal; without the quotes a negative one is an operator and a
// number.
func Int(n int64) string { return "'" + strconv.FormatInt(n, 10) + "'" }
