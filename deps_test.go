package baldur_test

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// imports is what each package may import itself beside the standard library:
// packages of this module by their path below it, and others by a prefix. Imports
// go one way: cmd, the exporters, baldur, internal packages, the standard library.
// A package that is not listed may import none.
var imports = map[string][]string{
	"": {"github.com/lib/pq", "internal/advisory", "internal/aside", "internal/callsite", "internal/checkout", "internal/clock", "internal/deadlock", "internal/evidence", "internal/hook", "internal/lease", "internal/leasepg", "internal/pgsession", "internal/pgsql", "internal/pqconn", "internal/sqlpool",
		"internal/sqltext", "internal/stack", "internal/text", "internal/wrap"},
	"baldurhttp":          {"", "internal/profile", "internal/text"},
	"baldurotel":          {"", "internal/hook", "internal/pqconn", "internal/sqltext", "internal/text", "github.com/XSAM/otelsql", "go.opentelemetry.io/"},
	"baldurprom":          {"", "internal/text", "github.com/prometheus/client_golang/prometheus"},
	"baldurtest":          {"", "internal/text"},
	"cmd/baldur":          {"", "cmd/baldur/internal/shop", "internal/leasepg", "internal/pgserver", "internal/text", "github.com/lib/pq"},
	"examples/httpserver": {"", "baldurhttp", "baldurotel", "baldurprom", "internal/pgserver", "go.opentelemetry.io/", "github.com/prometheus/client_golang/"},

	"internal/advisory":            {"internal/lockqueue", "internal/pgsession", "internal/pgsql", "internal/pqconn"},
	"internal/aside":               {"internal/stack"},
	"internal/callsite":            {"internal/stack"},
	"internal/checkout":            {"internal/clock", "internal/pqconn", "internal/stack"},
	"internal/clock":               {"internal/tsc"},
	"internal/deadlock":            {"internal/sqlpool"},
	"internal/evidence":            {"internal/callsite", "internal/checkout", "internal/stack"},
	"internal/leadershipmodel":     {"internal/lease"},
	"internal/leasepg":             {"internal/hook", "internal/lease", "internal/pgsession", "internal/pgsql", "internal/pqconn", "internal/sqlpool", "github.com/lib/pq"},
	"internal/pgserver":            {"github.com/lib/pq"},
	"internal/pgsession":           {"internal/pgsql", "internal/pqconn", "internal/sqlpool", "github.com/lib/pq"},
	"internal/pgsql":               {"github.com/lib/pq"},
	"internal/sqlpool":             {"internal/stack"},
	"internal/sqltext":             {"internal/text"},
	"internal/stack/cgotest":       {"C"},
	"internal/pqconn":              {"github.com/lib/pq"},
	"internal/pgserver/postgres18": {"internal/pgserver"},
	"internal/pgtest":              {"internal/faultproxy", "internal/lack", "internal/pgserver", "github.com/lib/pq"},
	"internal/transparency":        {""},
	"internal/wrap":                {"internal/checkout", "internal/pqconn"},
	"scripts/tidy":                 {"internal/modproxy"},
}

// nested are packages in modules of their own, which the root's module does not see without
// the workspace; others are those whose imports are other projects'.
var (
	nested = regexp.MustCompile(`^(baldurotel|baldurprom|cmd/baldur|examples)(/|$)`)
	others = regexp.MustCompile(`^(bench|compat)(/|$)`)
)

// modules is what a program gets with a package that it imports, beside lib/pq.
var modules = map[string][]string{
	"":           {},
	"baldurhttp": {},
	"baldurotel": {"github.com/XSAM/otelsql", "go.opentelemetry.io/", "github.com/go-logr/", "github.com/cespare/xxhash/"},
	"baldurprom": {"github.com/prometheus/", "github.com/beorn7/perks/", "github.com/cespare/xxhash/", "github.com/munnerz/goautoneg", "google.golang.org/protobuf/", "golang.org/x/sys/"},
}

// TestImports: each package imports what the table has, and a program that imports
// baldur gets lib/pq and nothing else.
func TestImports(t *testing.T) {
	const module = "github.com/baldur-go/baldur"
	list := func(args ...string) []string {
		out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	standard := list("std")
	alone := !slices.Contains(list(module+"/..."), module+"/baldurotel")
	allowed := func(p string, prefixes []string) bool {
		return slices.ContainsFunc(prefixes, func(a string) bool { return p == a || strings.HasSuffix(a, "/") && strings.HasPrefix(p, a) })
	}
	below := func(p string) string { return strings.TrimPrefix(strings.TrimPrefix(p, module), "/") }
	seen := map[string]bool{}
	for _, line := range list("-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, module+"/...") {
		p, rest, _ := strings.Cut(line, " ")
		if others.MatchString(below(p)) {
			continue
		}
		seen[below(p)] = true
		for _, dep := range strings.Fields(rest) {
			name := dep
			if dep == module || strings.HasPrefix(dep, module+"/") {
				name = below(dep)
			}
			if !slices.Contains(standard, dep) && !allowed(name, imports[below(p)]) {
				t.Errorf("%s imports %s", p, dep)
			}
		}
	}
	for p := range imports {
		if !seen[p] && !(alone && nested.MatchString(p)) {
			t.Errorf("%q is in the table, and there is no such package", p)
		}
	}
	for p, prefixes := range modules {
		if alone && nested.MatchString(p) {
			continue
		}
		for _, dep := range list("-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", strings.TrimSuffix(module+"/"+p, "/")) {
			ours := dep == module || strings.HasPrefix(dep, module+"/")
			if !ours && dep != "" && !strings.HasPrefix(dep, "github.com/lib/pq") && !slices.ContainsFunc(prefixes, func(a string) bool { return strings.HasPrefix(dep, a) }) {
				t.Errorf("%s brings %s", p, dep)
			}
			if strings.HasPrefix(dep, "go.opentelemetry.io/otel/sdk") || strings.HasPrefix(dep, "go.opentelemetry.io/otel/exporters") {
				t.Errorf("%s brings %s", p, dep)
			}
		}
	}
	all := list("-deps", module)
	for _, unwanted := range []string{"net/http", "testing", "html/template"} {
		if slices.Contains(all, unwanted) {
			t.Errorf("the root package imports %s", unwanted)
		}
	}
}
