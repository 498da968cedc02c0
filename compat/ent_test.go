package compat

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"entgo.io/ent/entc"
	"entgo.io/ent/entc/gen"
)

// TestEnt runs testdata/ent/ent_test.go in the place of this file, with the code that ent generates: 3,500 lines, which
// are not in the tree.
func TestEnt(t *testing.T) {
	const target = "internal/ent"
	files := map[string]string{"ent_test.go": "testdata/ent/ent_test.go"}
	dir := t.TempDir()
	check(t, entc.Generate("./"+target+"/schema", &gen.Config{Target: dir, Package: "github.com/baldur-go/baldur/compat/" + target}))
	check(t, fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files[filepath.Join(target, name)] = filepath.Join(dir, name)
		}
		return err
	}))
	testWith(t, ".", files, []string{"TestEnt", "TestEntName"}, "-vet=off") // it does not find directories that are not there
}
