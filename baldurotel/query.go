package baldurotel

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/baldur-go/baldur/internal/sqltext"
	"github.com/baldur-go/baldur/internal/text"
)

// descriptions keeps what describe has made of short texts, the first so many: a
// program has some hundred, and a description costs more than a span.
type descriptions struct {
	m sync.Map // query → description
	n atomic.Int32
}

type description struct{ summary, text string }

// maxScan is how much of a query's text is looked at, in bytes.
const maxScan = 16 << 10

// Room for this many texts, of this many bytes.
const (
	maxKept     = 1000
	maxKeptText = 1 << 10
)

func (d *descriptions) of(query string) description {
	if known, ok := d.m.Load(query); ok {
		return known.(description)
	}
	var made description
	made.summary, made.text = describe(query)
	if len(query) <= maxKeptText && d.n.Load() < maxKept {
		if _, known := d.m.LoadOrStore(strings.Clone(query), made); !known {
			d.n.Add(1)
		}
	}
	return made
}

// describe makes of a query's text what may be told of it: a summary, "" if
// there is nothing to say, and the text. It is told as it is if it has
// parameters and carries no secret, and else without literals and comments.
func describe(query string) (summary, told string) {
	cut := len(query) > maxScan
	all := tokens(query[:min(len(query), maxScan)])
	s := summarize(all)
	if s.asIs && !cut && !sqltext.CarriesSecret(query) {
		told = query
	} else if told = redact(all); cut {
		told += text.More
	}
	return text.Cut(strings.TrimSpace(s.out.String()), maxName), text.Cut(told, maxText)
}

// A lexeme is a token with the keyword that it is; "": none of ours.
type lexeme struct {
	sqltext.Token
	key string
}

func tokens(query string) []lexeme {
	all := make([]lexeme, 0, 32+len(query)/8)
	for l := (sqltext.Lexer{Rest: query}); ; {
		t := l.Next()
		if t.Kind == sqltext.End {
			return all
		}
		x := lexeme{Token: t}
		if t.Kind == sqltext.Word {
			x.key = keyword(t.Text)
		}
		all = append(all, x)
	}
}

// redact writes tokens without literals and comments. In SET x TO y and ALTER … SET
// x = y, a name is a literal too.
func redact(all []lexeme) string {
	var b strings.Builder
	var verb string
	var set, value bool
	for _, t := range all {
		if b.Len() > maxText {
			break
		}
		if verb == "" && t.Kind != sqltext.Space {
			verb = t.key
			if verb == "" {
				verb = "?"
			}
		}
		isName := t.Kind == sqltext.Word || t.Kind == sqltext.Quoted
		switch {
		case t.Kind == sqltext.Literal, t.Kind == sqltext.Unclear, t.key == "TRUE", t.key == "FALSE", value && isName:
			b.WriteByte('?')
		case t.Kind == sqltext.Space && !sqltext.IsSpace(t.Text[0]):
			b.WriteByte(' ')
		default:
			b.WriteString(t.Text)
		}
		switch {
		case t.Text == ";":
			verb, set, value = "", false, false
		case t.key == "SET":
			set = verb == "SET" || verb == "ALTER"
		case set && (t.Text == "=" || t.key == "TO"):
			value = true
		}
	}
	return b.String()
}

// A summary is that of the conventions: operations and their targets, in the order
// and the spelling of the text.
type summary struct {
	out  strings.Builder
	asIs bool // a single statement of a kind that may have parameters, and with some
}

func (s *summary) add(word string) {
	if s.out.Len() <= maxName { // clean cuts it
		s.out.WriteString(word)
		s.out.WriteByte(' ')
	}
}

// A level is what is known within a pair of brackets.
type level struct {
	query bool // it is one: its FROM is followed by targets, unlike extract(… FROM …)'s
	list  bool // after FROM: a target follows each comma
}

func summarize(all []lexeme) *summary {
	sig := make([]lexeme, 0, len(all))
	params, unclear := false, false
	for _, t := range all {
		params = params || t.Kind == sqltext.Param
		unclear = unclear || t.Kind == sqltext.Unclear
		if t.Kind != sqltext.Space {
			sig = append(sig, t)
		}
	}
	s := new(summary)
	statements, takesParams := 0, false
	verb := "" // of the statement; "": none yet
	var stack []level
	var cur level
	at := func(i int) lexeme {
		if i < 0 || i >= len(sig) {
			return lexeme{}
		}
		return sig[i]
	}
	for i := 0; i < len(sig); i++ {
		t, prev := sig[i], at(i-1)
		switch {
		case t.Text == ";":
			verb, stack, cur = "", nil, level{}
		case t.Text == "(":
			stack, cur = append(stack, cur), level{}
		case t.Text == ")":
			cur = level{}
			if n := len(stack); n > 0 {
				cur, stack = stack[n-1], stack[:n-1]
			}
		case t.Text == ",":
			if cur.list {
				i = s.target(sig, i, true)
			}
		case verb == "":
			// What is no command may be anything, a password sent by mistake as well.
			statements++
			verb = "?"
			target, ok := commands[t.key]
			if !ok {
				continue
			}
			verb = t.key
			takesParams = target&canParams != 0
			cur.query = takesParams
			if verb != "WITH" { // its queries are the operations
				s.add(t.Text)
			}
			if target&hasObject != 0 {
				i = s.object(sig, i)
			}
			if target&hasTarget != 0 {
				i = s.target(sig, i, false)
			}
		case nested(verb, t, prev, at(i+1)):
			cur.query = true
			s.add(t.Text)
			if t.key == "UPDATE" {
				i = s.target(sig, i, false)
			}
		case !cur.query:
		case t.key == "FROM" && prev.key != "DISTINCT", t.key == "USING":
			cur.list = true
			i = s.target(sig, i, true)
		case t.key == "JOIN":
			i = s.target(sig, i, true)
		case t.key == "INTO":
			i = s.target(sig, i, false)
		case listEnds[t.key]:
			cur.list = false
		}
	}
	s.asIs = params && takesParams && statements == 1 && !unclear
	return s
}

// nested tells whether a word within a statement is an operation: not the UPDATE
// of FOR UPDATE, ON CONFLICT DO UPDATE or ON UPDATE.
func nested(verb string, t, prev, next lexeme) bool {
	if commands[verb]&hasQuery == 0 {
		return false
	}
	switch t.key {
	case "SELECT":
		return prev.key != "FOR" || verb != "CREATE" // of a policy
	case "INSERT", "MERGE":
		return next.key == "INTO"
	case "DELETE":
		return next.key == "FROM"
	case "UPDATE":
		return prev.Text == "(" || prev.Text == ")" || prev.key == "AS" || prev.key == "EXPLAIN" || prev.key == "ANALYZE" || prev.key == "VERBOSE"
	}
	return false
}

// target adds the name after sig[i], if there is one, and returns where it ends.
// In a FROM, what is followed by a bracket is a function.
func (s *summary) target(sig []lexeme, i int, from bool) int {
	j := i + 1
	for j < len(sig) && fillers[sig[j].key] {
		j++
	}
	var name string
	for ; j < len(sig) && (sig[j].Kind == sqltext.Quoted || sig[j].Kind == sqltext.Word); j += 2 {
		if name == "" && (commands[sig[j].key]&hasQuery != 0 || sig[j].key == "ON") {
			return i // ANALYZE; SELECT …, CREATE INDEX ON …
		}
		name += sig[j].Text
		if j+1 == len(sig) || sig[j+1].Text != "." {
			j++
			break
		}
		name += "."
	}
	if name == "" || from && j < len(sig) && sig[j].Text == "(" {
		return i
	}
	s.add(name)
	return j - 1
}

// object adds the kind and the name of what CREATE, ALTER or DROP is about.
func (s *summary) object(sig []lexeme, i int) int {
	for j := i + 1; j < len(sig) && j < i+6; j++ { // CREATE OR REPLACE TEMPORARY RECURSIVE VIEW
		if objects[sig[j].key] {
			s.add(sig[j].Text)
			return s.target(sig, j, false)
		}
		if sig[j].Kind != sqltext.Word {
			break
		}
	}
	return i
}
