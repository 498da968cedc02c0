package compat

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// testWith runs the tests of a package of which files are added or replaced, and checks that all that are named
// have passed, or were skipped for want of what the machine lacks. Baldur is that of this checkout, and the
// requirements are the workspace's, or this module's where there is none.
func testWith(t *testing.T, pkg string, files map[string]string, tests []string, flags ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and runs a program of tests")
	}
	dir := t.TempDir()
	overlay := map[string]string{}
	for name, by := range files {
		overlay[must(filepath.Abs(name))] = must(filepath.Abs(by))
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	check(t, os.WriteFile(overlayFile, must(json.Marshal(map[string]any{"Replace": overlay})), 0o600))
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("go", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	args := []string{"test", "-v", "-count=1", "-overlay=" + overlayFile, "-run=^(" + strings.Join(tests, "|") + ")$"}
	if workspace := strings.TrimSpace(run("env", "GOWORK")); workspace == "" || workspace == "off" {
		modFile := filepath.Join(dir, "go.mod") // in which baldur can be replaced
		for _, name := range []string{"go.mod", "go.sum"} {
			check(t, os.WriteFile(filepath.Join(dir, name), must(os.ReadFile(name)), 0o600))
		}
		run("mod", "edit", "-replace=github.com/baldur-go/baldur="+must(filepath.Abs("..")), modFile)
		args = append(args, "-modfile="+modFile)
	}
	out := run(append(append(args, flags...), pkg)...)
	t.Log(out)
	for _, name := range tests {
		if !strings.Contains(out, "\n--- PASS: "+name+" ") && !strings.Contains(out, "\n--- SKIP: "+name+" ") { // for want of a server
			t.Errorf("%s has not run", name)
		}
	}
}

// TestRootOnPgx runs the tests of baldur's own in which the driver matters, with pgx in its place.
func TestRootOnPgx(t *testing.T) {
	testWith(t, "github.com/baldur-go/baldur", map[string]string{"../pgx_test.go": "testdata/root/pgx_test.go"}, []string{
		"TestCase14Bouncer", "TestCase14Lost", "TestChaosPgx", "TestConnectors", "TestDirtyConnections", "TestDirtySessions", "TestQuorumNames", "TestQuorumOtherDriver", "TestTrappedNames",
	}, "-skip=^TestQuorumNames$/baldur-pq$")
}
