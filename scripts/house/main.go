// Command house measures how a package's files hang together: how many there are,
// which of them refer to each other in circles, and what the package exports.
//
//	go run ./scripts/house [directory …]
package main

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	log.SetFlags(0)
	dirs := os.Args[1:]
	if len(dirs) == 0 {
		dirs = []string{"."}
	}
	for _, dir := range dirs {
		if err := measure(dir); err != nil {
			log.Fatal(err)
		}
	}
}

func measure(dir string) error {
	bp, err := build.ImportDir(dir, 0)
	if err != nil {
		return err
	}
	fset := token.NewFileSet()
	var files []*ast.File
	lines := 0
	for _, name := range bp.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, 0)
		if err != nil {
			return err
		}
		files = append(files, f)
		lines += fset.File(f.Pos()).LineCount()
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Selections: map[*ast.SelectorExpr]*types.Selection{}}
	cfg := types.Config{Importer: importer.ForCompiler(fset, "source", nil)}
	pkg, err := cfg.Check(bp.Name, fset, files, info)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d files (of this platform), %d lines, %d exported identifiers\n", dir, len(files), lines, exported(pkg))

	// A file refers to another by what is declared there: at package level, or as a
	// method or field.
	refs := map[string]map[string]bool{}
	for id, obj := range info.Uses {
		if obj.Pkg() != pkg {
			continue
		}
		if v, ok := obj.(*types.Var); ok && !v.IsField() && obj.Parent() != pkg.Scope() {
			continue // local
		}
		from, to := filepath.Base(fset.Position(id.Pos()).Filename), filepath.Base(fset.Position(obj.Pos()).Filename)
		if refs[from] == nil {
			refs[from] = map[string]bool{}
		}
		if from != to {
			refs[from][to] = true
		}
	}
	pairs := 0
	for a, to := range refs {
		for b := range to {
			if a < b && refs[b][a] {
				pairs++
			}
		}
	}
	fmt.Printf("%s: %d pairs of files refer to each other both ways\n", dir, pairs)
	for _, c := range circles(refs) {
		fmt.Printf("%s: a circle of %d files: %s\n", dir, len(c), strings.Join(c, " "))
	}
	return nil
}

// exported counts what a package offers by name: constants, variables, functions,
// types, their methods, and the fields of structs.
func exported(pkg *types.Package) (n int) {
	for _, name := range pkg.Scope().Names() {
		if !ast.IsExported(name) {
			continue
		}
		n++
		tn, ok := pkg.Scope().Lookup(name).(*types.TypeName)
		if !ok {
			continue
		}
		named := tn.Type().(*types.Named)
		for i := range named.NumMethods() {
			if named.Method(i).Exported() {
				n++
			}
		}
		switch u := named.Underlying().(type) {
		case *types.Struct:
			for i := range u.NumFields() {
				if u.Field(i).Exported() {
					n++
				}
			}
		case *types.Interface:
			for i := range u.NumExplicitMethods() {
				if u.ExplicitMethod(i).Exported() {
					n++
				}
			}
		}
	}
	return n
}

// circles returns the sets of files from each of which one comes to every other (the
// strongly connected components, by Tarjan), the largest first.
func circles(refs map[string]map[string]bool) (all [][]string) {
	index, low, on := map[string]int{}, map[string]int{}, map[string]bool{}
	var stack []string
	var visit func(v string)
	visit = func(v string) {
		index[v] = len(index) + 1
		low[v] = index[v]
		stack = append(stack, v)
		on[v] = true
		for w := range refs[v] {
			if index[w] == 0 {
				visit(w)
				low[v] = min(low[v], low[w])
			} else if on[w] {
				low[v] = min(low[v], index[w])
			}
		}
		if low[v] != index[v] {
			return
		}
		i := slices.Index(stack, v)
		c := slices.Sorted(slices.Values(stack[i:]))
		for _, w := range c {
			on[w] = false
		}
		stack = stack[:i]
		if len(c) > 1 {
			all = append(all, c)
		}
	}
	for v := range refs {
		if index[v] == 0 {
			visit(v)
		}
	}
	slices.SortFunc(all, func(a, b []string) int { return len(b) - len(a) })
	return all
}
