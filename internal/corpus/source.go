package main

import (
	"embed"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"reflect"
	"runtime"
	"strings"
)

// A program of the corpus is a function. Its name is the function's, what it is about is
// the function's comment, and the lines that leak are those that end in // LEAK, or, in
// a function that the program calls, in // LEAK and the program's name.
type program func(w *world) error

// A kind says what is expected of a program.
type kind string

const (
	leaks    kind = "leaking"              // accused or suspected at each marked line
	piles    kind = "piling up statements" // holds no connection: told in OpenStatements
	heals    kind = "ended by its ctx"     // a leak that comes back when its ctx ends
	stuck    kind = "stuck"                // a deadlock of pools: accused or suspected at each marked line
	honest   kind = "honest"               // never accused; it is called again and again
	thinking kind = "thinking"             // alive, and long without a use: never accused
	told     kind = "told"                 // a known false alarm: whether it is accused is told
)

// reported tells whether two reports decide on a program of the kind.
func (k kind) reported() bool { return k == leaks || k == stuck || k == piles }

var kinds = []kind{leaks, stuck, piles, heals, honest, thinking, told}

// An entry is a program and what its source says of it.
type entry struct {
	name, about string
	kind        kind
	run         program
	marks       []line
}

// A line is one of the corpus's own source.
type line struct {
	file string // without its folder
	line int
}

func (l line) String() string { return fmt.Sprintf("%s:%d", l.file, l.line) }

//go:embed *.go
var sources embed.FS

// corpus returns all programs, in the order of their lists.
func corpus() ([]entry, error) {
	docs, marks, err := read(sources)
	if err != nil {
		return nil, err
	}
	var all []entry
	for _, k := range kinds {
		for _, p := range programs[k] {
			full := runtime.FuncForPC(reflect.ValueOf(p).Pointer()).Name()
			name := full[strings.LastIndexByte(full, '.')+1:]
			about, ok := strings.CutPrefix(docs[name], name+" ")
			if !ok {
				return nil, fmt.Errorf("%s has no comment that begins with its name", name)
			}
			about, _, _ = strings.Cut(strings.Join(strings.Fields(about), " "), ". ")
			all = append(all, entry{name, strings.TrimSuffix(about, "."), k, p, marks[name]})
			if marked := len(marks[name]) > 0; marked != (k == leaks || k == heals || k == stuck || k == told) {
				return nil, fmt.Errorf("%s is %s, and has %d lines that are marked as leaks", name, k, len(marks[name]))
			}
			delete(docs, name)
			delete(marks, name)
		}
	}
	for name := range marks {
		return nil, fmt.Errorf("lines are marked as leaks of %s, which is no program of the corpus", name)
	}
	for name := range docs {
		return nil, fmt.Errorf("%s is in no list", name)
	}
	return all, nil
}

// read returns the comments of all functions that are programs, and the marked lines by
// the program.
func read(fs embed.FS) (docs map[string]string, marks map[string][]line, err error) {
	docs, marks = map[string]string{}, map[string][]line{}
	files, err := fs.ReadDir(".")
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		text, err := fs.ReadFile(f.Name())
		if err != nil {
			return nil, nil, err
		}
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, f.Name(), text, parser.ParseComments)
		if err != nil {
			return nil, nil, err
		}
		var funcs []*ast.FuncDecl
		for _, d := range tree.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				funcs = append(funcs, fn)
				if isProgram(fn) {
					docs[fn.Name.Name] = fn.Doc.Text()
				}
			}
		}
		for _, group := range tree.Comments {
			for _, c := range group.List {
				name, ok := strings.CutPrefix(c.Text, "// LEAK")
				if !ok {
					continue
				}
				at := set.Position(c.Pos())
				if name = strings.TrimSpace(name); name == "" {
					for _, fn := range funcs {
						if fn.Pos() <= c.Pos() && c.Pos() < fn.End() {
							name = fn.Name.Name
						}
					}
				}
				for _, name := range strings.Fields(name) {
					marks[name] = append(marks[name], line{path.Base(at.Filename), at.Line})
				}
			}
		}
	}
	return docs, marks, nil
}

// isProgram tells whether a function takes a *world alone, returns an error alone and
// has a comment.
func isProgram(fn *ast.FuncDecl) bool {
	t := fn.Type
	if fn.Recv != nil || fn.Doc == nil || len(t.Params.List) != 1 || t.Results == nil || len(t.Results.List) != 1 {
		return false
	}
	star, ok := t.Params.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	in, ok := star.X.(*ast.Ident)
	out, isErr := t.Results.List[0].Type.(*ast.Ident)
	return ok && in.Name == "world" && isErr && out.Name == "error"
}
