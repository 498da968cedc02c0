package modproxy

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// leaves are the modules that the root's tests need: no module of theirs is in a user's.
var leaves = []string{
	"github.com/DATA-DOG/go-sqlmock",
	"github.com/anishathalye/porcupine",
	"github.com/petermattis/goid",
	"go.uber.org/goleak",
	"pgregory.net/rapid",
}

func publish(t *testing.T) *Published {
	t.Helper()
	p, err := Publish("../..", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Unpublish(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (p *Published) mustGo(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := p.Go(dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestUser: a program that requires the root alone has lib/pq and leaves, and builds.
func TestUser(t *testing.T) {
	p := publish(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "go.mod"), "module example.com/user\n\ngo 1.26.0\n")
	write(t, filepath.Join(dir, "main.go"), `package main

import (
	"database/sql"
	"fmt"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurhttp"
	"github.com/baldur-go/baldur/baldurtest"
)

var _ = baldurtest.VerifyNone

func main() {
	db, err := sql.Open("baldur-pq", "host=/nowhere")
	fmt.Println(err, baldurhttp.Handler() != nil, baldur.TrackerOf(db) != nil)
}
`)
	p.mustGo(t, dir, "get", ours+"@"+p.Version)
	got := strings.Fields(p.mustGo(t, dir, "list", "-m", "-f", "{{.Path}}", "all"))
	want := slices.Concat([]string{"example.com/user", ours, "github.com/lib/pq"}, leaves)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("its modules are\n%q\nwant\n%q", got, want)
	}
	if out := p.mustGo(t, dir, "run", "."); out != "<nil> true true\n" {
		t.Errorf("it says %q", out)
	}
}

// TestUsers: nothing of a program that begins to use baldur changes but the version of
// lib/pq, and of Go. All that it requires is what its go.mod says; the other
// modules are stubs.
func TestUsers(t *testing.T) {
	p := publish(t)
	programs, err := filepath.Glob("testdata/users/*.mod")
	if err != nil || len(programs) < 3 {
		t.Fatal(programs, err)
	}
	requirement := regexp.MustCompile(`(?m)^\s*(?:require )?([^\s/]\S+) (v\S+)(?: // indirect)?$`)
	for _, program := range programs {
		t.Run(strings.TrimSuffix(filepath.Base(program), ".mod"), func(t *testing.T) {
			mod, err := os.ReadFile(program)
			if err != nil {
				t.Fatal(err)
			}
			requirements := func(mod string) map[string]string {
				versions := map[string]string{}
				for _, m := range requirement.FindAllStringSubmatch(mod, -1) {
					versions[m[1]] = m[2]
				}
				return versions
			}
			stubs := t.TempDir()
			was := requirements(string(mod))
			for module, version := range was {
				if module != "github.com/lib/pq" { // which is there in full
					stub(t, stubs, module, version)
				}
			}
			dir := t.TempDir()
			write(t, filepath.Join(dir, "go.mod"), string(mod))
			alone := *p
			alone.Env = append(slices.Clone(p.Env), "GOFLAGS=-modcacherw -buildvcs=false", "GOMODCACHE="+t.TempDir(),
				strings.Replace(p.Env[1], "GOPROXY=", "GOPROXY="+fileURL(stubs)+",", 1))
			alone.mustGo(t, dir, "get", ours+"@"+p.Version)
			mod, err = os.ReadFile(filepath.Join(dir, "go.mod"))
			if err != nil {
				t.Fatal(err)
			}
			is := requirements(string(mod))
			if is[ours] != p.Version {
				t.Errorf("baldur is %q", is[ours])
			}
			delete(is, ours)
			delete(is, "github.com/lib/pq")
			delete(was, "github.com/lib/pq")
			if !maps.Equal(is, was) {
				for module, version := range is {
					if was[module] != version {
						t.Errorf("%s %s was %q", module, version, was[module])
					}
				}
				for module := range was {
					if is[module] == "" {
						t.Errorf("%s is gone", module)
					}
				}
			}
		})
	}
}

// stub publishes a module that requires nothing.
func stub(t *testing.T, proxy, module, version string) {
	t.Helper()
	escaped := regexp.MustCompile(`[A-Z]`).ReplaceAllStringFunc(module, func(s string) string { return "!" + strings.ToLower(s) })
	dir := filepath.Join(proxy, filepath.FromSlash(escaped), "@v")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "list"), version+"\n")
	write(t, filepath.Join(dir, version+".info"), fmt.Sprintf(`{"Version":%q}`, version))
	write(t, filepath.Join(dir, version+".mod"), "module "+module+"\n\ngo 1.21\n")
}

// TestCommand: what the README says to those who have no checkout.
func TestCommand(t *testing.T) {
	p := publish(t)
	dir := t.TempDir()
	want := "baldur " + p.Version + " (lib/pq "
	if out := p.mustGo(t, dir, "run", ours+"/cmd/baldur@"+p.Version, "version"); !strings.HasPrefix(out, want) {
		t.Errorf("go run says %q, want %q…", out, want)
	}
	p.Env = append(p.Env, "GOBIN="+dir)
	p.mustGo(t, dir, "install", ours+"/cmd/baldur@"+p.Version)
	name := "baldur"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	if out, err := exec.Command(filepath.Join(dir, name), "version").Output(); err != nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("what go install made says %q, %v, want %q…", out, err, want)
	}
}

// TestAlone: each module builds, is vetted and passes its tests with the others'
// releases, without the workspace, which unifies versions.
func TestAlone(t *testing.T) {
	if os.Getenv("BALDUR_ALONE") == "" {
		t.Skip("BALDUR_ALONE=1 compiles all that the modules need, and has CI run it")
	}
	p := publish(t)
	for _, m := range p.Modules {
		t.Run(m.Dir, func(t *testing.T) {
			dir := filepath.Join(p.Dir, m.Dir)
			p.mustGo(t, dir, "mod", "tidy")
			p.mustGo(t, dir, "vet", "./...")
			if m.Dir != "." { // the root requires none of the others
				p.mustGo(t, dir, "test", "-short", "./...")
			}
		})
	}
}

// TestSetVersion: of our modules only, in either form.
func TestSetVersion(t *testing.T) {
	file := filepath.Join(t.TempDir(), "go.mod")
	write(t, file, `module github.com/baldur-go/baldur/examples

require github.com/baldur-go/baldur v0.1.0

require (
	github.com/baldur-go/baldur/baldurotel v0.1.0 // indirect
	github.com/baldur-go/baldurish v0.1.0
)
`)
	if err := setVersion(file, "v0.2.0"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const want = `module github.com/baldur-go/baldur/examples

require github.com/baldur-go/baldur v0.2.0

require (
	github.com/baldur-go/baldur/baldurotel v0.2.0 // indirect
	github.com/baldur-go/baldurish v0.1.0
)
`
	if string(got) != want {
		t.Errorf("it is\n%s", got)
	}
}

func TestFileURL(t *testing.T) {
	for path, want := range map[string]string{"/a/b": "file:///a/b", "/a b/%": "file:///a%20b/%25", "C:/a b": "file:///C:/a%20b"} {
		if got := fileURL(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}
