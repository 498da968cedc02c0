package baldur_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// exporters are the packages on top of baldur that a program imports by name,
// with the modules that each may bring.
var exporters = map[string][]string{
	"baldurhttp": {"github.com/google/pprof/profile"},
	"baldurotel": {"github.com/XSAM/otelsql", "go.opentelemetry.io/", "github.com/go-logr/", "github.com/cespare/xxhash/"}, // but for OpenTelemetry's SDK
	"baldurprom": {"github.com/prometheus/", "github.com/beorn7/perks/", "github.com/cespare/xxhash/", "github.com/munnerz/goautoneg", "google.golang.org/protobuf/", "golang.org/x/sys/"},
}

// TestImports: imports go one way (cmd, baldurtest, baldurhttp, baldurotel, baldurprom →
// baldur → internal → the standard library), and a program that imports baldur gets lib/pq and nothing
// else.
func TestImports(t *testing.T) {
	const module = "github.com/baldur-go/baldur"
	deps := func(args ...string) []string {
		out, err := exec.Command("go", append([]string{"list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}"}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(out))
	}
	internal := func(p string) bool {
		return slices.Contains([]string{module + "/internal/stack", module + "/internal/tsc", module + "/internal/hook", module + "/internal/lease", module + "/internal/text", module + "/internal/sqltext"}, p)
	}
	for _, p := range deps(module) {
		ok := strings.HasPrefix(p, "github.com/lib/pq") || p == module || internal(p)
		if !ok {
			t.Errorf("the root package imports %s", p)
		}
	}
	for _, p := range deps(module + "/internal/...") {
		if p == module || strings.HasPrefix(p, module+"/") && !strings.HasPrefix(p, module+"/internal/") {
			t.Errorf("an internal package imports %s", p)
		}
	}
	for exporter, allowed := range exporters {
		for _, p := range deps(module + "/" + exporter) {
			ours := p == module || p == module+"/"+exporter || internal(p)
			if !ours && !strings.HasPrefix(p, "github.com/lib/pq") && !slices.ContainsFunc(allowed, func(a string) bool { return strings.HasPrefix(p, a) }) {
				t.Errorf("%s imports %s", exporter, p)
			}
			if strings.HasPrefix(p, "go.opentelemetry.io/otel/sdk") || strings.HasPrefix(p, "go.opentelemetry.io/otel/exporters") {
				t.Errorf("%s imports %s", exporter, p)
			}
		}
	}
	std, err := exec.Command("go", "list", "-deps", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, unwanted := range []string{"net/http", "testing", "html/template"} {
		if slices.Contains(strings.Fields(string(std)), unwanted) {
			t.Errorf("the root package imports %s", unwanted)
		}
	}
}
