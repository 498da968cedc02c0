package compat

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// requirements are the modules that this one requires itself, with their versions,
// and sqlc, of which there is only what it has generated.
func requirements(t *testing.T) map[string]string {
	t.Helper()
	out, err := exec.Command("go", "mod", "edit", "-json").Output()
	check(t, err)
	var mod struct {
		Require []struct {
			Path, Version string
			Indirect      bool
		}
	}
	check(t, json.Unmarshal(out, &mod))
	versions := map[string]string{}
	for _, r := range mod.Require {
		if !r.Indirect && !slices.ContainsFunc(tools, func(p string) bool { return r.Path == p || strings.HasPrefix(r.Path, p+"/") }) {
			versions[r.Path] = r.Version
		}
	}
	generated := regexp.MustCompile(`(?m)^//   sqlc (v\S+)$`).FindSubmatch(must(os.ReadFile("internal/sqlcdb/db.go")))
	versions["github.com/sqlc-dev/sqlc"] = string(generated[1])
	return versions
}

// tools are what the tests themselves need, which no program opens a pool with.
var tools = []string{"github.com/baldur-go/baldur", "github.com/google/pprof", "go.opentelemetry.io", "google.golang.org/protobuf", "pgregory.net/rapid"}

// TestDocs: the table has every library with the version that is tested here, no
// other, and opens each as a test does.
func TestDocs(t *testing.T) {
	var tests strings.Builder
	for _, name := range append(must(filepath.Glob("*_test.go")), must(filepath.Glob("testdata/*/*_test.go"))...) {
		if name != "docs_test.go" {
			tests.Write(must(os.ReadFile(name)))
		}
	}
	span, tested := regexp.MustCompile("`([^`]+)`"), regexp.MustCompile("`([^`]+)` (v[0-9][0-9.]*)")
	told := map[string]string{}
	for line := range strings.Lines(string(must(os.ReadFile("../docs/compatibility.md")))) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || !strings.Contains(cells[2], "`") {
			continue // of no library
		}
		for _, m := range tested.FindAllStringSubmatch(cells[2], -1) {
			told[m[1]] = m[2]
		}
		opens := span.FindAllStringSubmatch(cells[3], -1)
		if len(opens) == 0 {
			t.Errorf("the table does not say how to open %s", cells[1])
		}
		for _, m := range opens {
			if code, _, _ := strings.Cut(m[1], "…"); !strings.Contains(tests.String(), code) {
				t.Errorf("no test has %s, which the table says", m[1])
			}
		}
	}
	if want := requirements(t); !maps.Equal(told, want) {
		t.Errorf("the table has the versions\n%v\nand go.mod has\n%v", told, want)
	}
}
