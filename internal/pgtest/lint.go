package pgtest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// LintSQL says what in a text of SQL another schema of the search_path, or a
// temporary table, could change the meaning of (the class of CVE-2018-1058): a
// function, an operator, a type or a system view that is not pg_catalog's by name,
// syntax that stands for an operator (IN, LIKE, JOIN … USING), and a literal as a
// function's argument without its type.
//
// It knows no more grammar than that takes; what it does not know it refuses.
func LintSQL(query string) (faults []string) {
	l := linter{tokens: tokenize(query)}
	l.run()
	return l.faults
}

type token struct {
	kind byte // 'w' a word, '"' a quoted identifier, 's' a string, 'n' a number, 'o' an operator, else the character
	text string
}

var tokenPattern = regexp.MustCompile(`(?s)^(?:` + strings.Join([]string{
	`(\s+|--[^\n]*|/\*.*?\*/)`,
	`([eE]'(?:[^'\\]|\\.|'')*'|(?:[uU]&|[bBxXnN])?'(?:[^']|'')*'|\$\$.*?\$\$)`,
	`((?:[uU]&)?"(?:[^"]|"")*")`,
	`([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+)`,
	`([A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*)`,
	`(::|:=|=>|[-+*/<>=~!@#%^&|` + "`" + `?]+)`,
}, "|") + `)`)

func tokenize(query string) (tokens []token) {
	for query != "" {
		m := tokenPattern.FindStringSubmatch(query)
		if m == nil {
			tokens, query = append(tokens, token{query[0], query[:1]}), query[1:]
			continue
		}
		query = query[len(m[0]):]
		switch {
		case m[2] != "":
			tokens = append(tokens, token{'s', m[2]})
		case m[3] != "":
			tokens = append(tokens, token{'"', m[3]})
		case m[4] != "":
			tokens = append(tokens, token{'n', m[4]})
		case m[5] != "":
			tokens = append(tokens, token{'w', strings.ToLower(m[5])})
		case m[6] != "":
			tokens = append(tokens, token{'o', m[6]})
		}
	}
	return tokens
}

var (
	// Words that may stand before a parenthesis or a string and are no names.
	// What of them looks like a function means pg_catalog's by the grammar.
	grammarWords = strings.Fields(`
		all and any array as asc between by case cast check coalesce conflict current_schema default desc distinct do else end except
		exists extract fetch filter for from greatest group having if ilike in insert intersect into is isnull join key lateral least like limit
		local materialized not notify notnull null nullif of offset on or order over overlay partition position primary references
		returning row select session set similar some substring table then to trim union unique update using values when where with within xor`)

	// A relation's columns may follow its name in parentheses.
	relationWords = strings.Fields(`into table references exists on`)
)

type linter struct {
	tokens []token
	faults []string

	inSet map[int]bool // by depth: within the assignments of SET
}

func (l *linter) at(i int) token {
	if i < 0 || i >= len(l.tokens) {
		return token{}
	}
	return l.tokens[i]
}

func (l *linter) word(i int, words ...string) bool {
	return l.at(i).kind == 'w' && slices.Contains(words, l.at(i).text)
}

func (l *linter) fault(i int, format string, args ...any) {
	from, to := max(0, i-3), min(len(l.tokens), i+4)
	var near []string
	for _, t := range l.tokens[from:to] {
		near = append(near, t.text)
	}
	l.faults = append(l.faults, fmt.Sprintf(format, args...)+" near "+strings.Join(near, " "))
}

// name tells whether token i ends a name, and whether that is pg_catalog's.
func (l *linter) name(i int) (is, catalog, qualified bool) {
	t := l.at(i)
	is = t.kind == '"' || t.kind == 'w' && !slices.Contains(grammarWords, t.text)
	if l.at(i-1).kind == '.' {
		return t.kind == '"' || t.kind == 'w', l.word(i-2, "pg_catalog"), true
	}
	return is, false, false
}

func (l *linter) run() {
	l.inSet = map[int]bool{}
	depth := 0
	operatorDepth := 0 // within OPERATOR( )
	var calls []bool   // by depth: whether the parenthesis is a function's
	tables := map[int]bool{}
	for i, t := range l.tokens {
		switch {
		case t.kind == '(':
			depth++
			l.inSet[depth] = false
			is, catalog, qualified := l.name(i - 1)
			start := i - 1
			if qualified {
				start = i - 3
			}
			isCall := false
			switch {
			case l.word(i-1, "operator") && !qualified:
				operatorDepth = depth
				if !l.word(i+1, "pg_catalog") || l.at(i+2).kind != '.' {
					l.fault(i, "OPERATOR without pg_catalog")
				}
			case l.word(i-1, "nullif") && !qualified:
				l.fault(i, "NULLIF means any =")
			case l.word(i-1, "in") && !qualified:
				l.fault(i, "IN means any =")
			case l.word(i-1, "using") && !qualified:
				l.fault(i, "USING means any =")
			case !is:
			case l.word(start-1, relationWords...), l.word(start-1, "as"), l.isAlias(start):
			case l.word(start-1, "with", "recursive") || l.at(start-1).kind == ',' && l.word(l.closing(i)+1, "as"): // a CTE
			case l.at(start-1).text == "::" || l.word(start-1, "as"): // a type's modifier
			case catalog:
				isCall = true
			case qualified:
				l.fault(i, "function of another schema than pg_catalog")
			default:
				l.fault(i, "unqualified function")
			}
			calls = append(calls, isCall)
			tables[depth] = l.tableColumns(start)
			if tables[depth] {
				l.column(i + 1)
			}
		case t.kind == ')':
			if operatorDepth == depth {
				operatorDepth = 0
			}
			if depth > 0 {
				depth--
				calls = calls[:len(calls)-1]
			}
		case t.kind == ';':
			l.inSet[depth] = false
		case t.kind == ',' && tables[depth] && depth > 0:
			l.column(i + 1)
		case t.kind == 'o' && t.text == "::":
			if !l.word(i+1, "pg_catalog") || l.at(i+2).kind != '.' {
				l.fault(i, "cast to an unqualified type")
			}
		case t.kind == 'o' && (t.text == "=>" || t.text == ":="):
		case t.kind == 'o' && t.text == "*" && l.star(i):
		case t.kind == 'o' && (t.text == "-" || t.text == "+") && l.sign(i):
		case t.kind == 'o' && t.text == "=" && l.inSet[depth] && l.assigned(i):
		case t.kind == 'o' && operatorDepth == 0:
			l.fault(i, "unqualified operator %s", t.text)
		case t.kind == 'w' && l.at(i-1).kind != '.' && l.at(i+1).kind != '.':
			l.keyword(i, depth)
		}
		if (t.kind == 's' || t.kind == 'n' || t.kind == 'w' && t.text == "null") && len(calls) > 0 && calls[len(calls)-1] {
			first := i
			if l.at(i-1).kind == 'o' && l.sign(i-1) {
				first--
			}
			if slices.Contains([]byte("(,"), l.at(first-1).kind) && slices.Contains([]byte("),"), l.at(i+1).kind) {
				l.fault(i, "literal argument without a type")
			}
		}
		if t.kind == 's' && l.at(i-1).text != "::" {
			if is, catalog, _ := l.name(i - 1); is && !catalog {
				l.fault(i, "literal of an unqualified type")
			}
		}
	}
}

func (l *linter) keyword(i, depth int) {
	switch {
	case l.word(i, "between", "like", "ilike"), l.word(i, "similar") && l.word(i+1, "to"):
		l.fault(i, "%s means any operator", strings.ToUpper(l.at(i).text))
	case l.word(i, "natural") && l.word(i+1, "join", "left", "right", "inner", "full"):
		l.fault(i, "NATURAL JOIN means any =")
	case l.word(i, "distinct") && l.word(i+1, "from") && l.word(i-1, "is", "not"):
		l.fault(i, "IS DISTINCT FROM means any =")
	case l.word(i, "case") && !l.word(i+1, "when"):
		l.fault(i, "CASE x WHEN means any =")
	case l.word(i, "cast") && l.at(i+1).kind == '(':
		l.fault(i, "CAST: write :: and pg_catalog's name")
	case l.word(i, "set"):
		l.inSet[depth] = true
	case l.word(i, "where", "from", "returning", "select"):
		l.inSet[depth] = false
	}
	if l.word(i-1, "from", "join", "only") && strings.HasPrefix(l.at(i).text, "pg_") && l.at(i+1).kind != '(' {
		l.fault(i, "unqualified system view")
	}
}

// star tells whether a * is not an operator.
func (l *linter) star(i int) bool {
	return l.at(i-1).kind == '(' && l.at(i+1).kind == ')' || l.at(i-1).kind == '.' || l.at(i-1).kind == ',' || l.word(i-1, "select", "returning", "distinct")
}

// sign tells whether a - or + is a number's.
func (l *linter) sign(i int) bool {
	before := l.at(i - 1)
	return l.at(i+1).kind == 'n' && (before.kind == '(' || before.kind == ',' || before.kind == 'w' && slices.Contains(grammarWords, before.text))
}

// assigned tells whether an = is one of SET a = b, c = d.
func (l *linter) assigned(i int) bool {
	start := i - 1
	for l.at(start-1).kind == '.' {
		start -= 2
	}
	return l.word(start-1, "set", "local", "session") || l.at(start-1).kind == ','
}

// isAlias tells whether a name is another one's or a subquery's alias, whose
// columns follow.
func (l *linter) isAlias(i int) bool {
	before := l.at(i - 1)
	return before.kind == ')' || before.kind == '"'
}

// closing is the parenthesis that closes the one at i.
func (l *linter) closing(i int) int {
	for depth := 0; i < len(l.tokens); i++ {
		switch l.tokens[i].kind {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return i
}

// tableColumns tells whether a parenthesis after the name from start on is CREATE
// TABLE's.
func (l *linter) tableColumns(start int) bool {
	for ; l.word(start-1, "if", "not", "exists"); start-- {
	}
	return l.word(start-1, "table") && l.word(start-2, "create", "temp", "temporary", "unlogged")
}

// column checks the type of a column of CREATE TABLE.
func (l *linter) column(i int) {
	if l.word(i, "primary", "unique", "check", "constraint", "foreign", "exclude", "like") {
		return
	}
	if !l.word(i+1, "pg_catalog") || l.at(i+2).kind != '.' {
		l.fault(i, "column of an unqualified type")
	}
}
