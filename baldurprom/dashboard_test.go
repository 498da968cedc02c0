package baldurprom_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/baldur-go/baldur/baldurprom"
)

// TestDashboard: the Grafana dashboard asks for what the collector exports, in
// expressions that Prometheus understands.
func TestDashboard(t *testing.T) {
	db := open(t)
	if ok, err := newQuorum(t, db, "eu-west").TryAcquirePrimary(ctx); !ok || err != nil {
		t.Fatal(ok, err)
	}
	exported := scrape(t, serve(t, baldurprom.NewCollector()))

	var dashboard struct {
		Title, UID string
		Panels     []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, RefID string }
		}
		Templating struct{ List []struct{ Name string } }
	}
	text := must(os.ReadFile("../dashboards/baldur.json"))
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	var variables []string
	for _, v := range dashboard.Templating.List {
		variables = append(variables, v.Name)
	}
	name := regexp.MustCompile(`\b(?:baldur|go_sql)_[a-z_]+`)
	used := map[string]bool{}
	check := func(where, expr string) {
		for _, n := range name.FindAllString(expr, -1) {
			n = strings.TrimSuffix(n, "_bucket")
			used[n] = true
			if exported[n] == nil {
				t.Errorf("%s: %s is not exported", where, n)
			}
		}
	}
	check("the dashboard", string(text[strings.Index(string(text), `"label_values(`):][:80]))
	rules := "groups:\n- name: dashboard\n  rules:\n"
	ids := map[int]bool{}
	cells := map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" || (p.Type == "row") != (len(p.Targets) == 0) || p.Type == "" {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				cell := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if cells[cell] != "" || cell[0] >= 24 {
					t.Errorf("%s lies on %s", p.Title, cells[cell])
				}
				cells[cell] = p.Title
			}
		}
		for _, target := range p.Targets {
			check(p.Title, target.Expr)
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			for _, v := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(expr, -1) {
				if !slices.Contains(variables, v[1]) {
					t.Errorf("%s: there is no variable %s", p.Title, v[0])
				}
			}
			rules += "  - record: dashboard:expr\n    labels: {panel: " + string(must(json.Marshal(p.Title+target.RefID))) + "}\n    expr: " + string(must(json.Marshal(expr))) + "\n"
		}
	}
	for n := range exported {
		// Left out on purpose: those say the same in other words.
		skip := []string{"baldur_tracked_connections", "baldur_unattributed_connections", "go_sql_open_connections", "go_sql_wait_count_total"}
		if !used[n] && !slices.Contains(skip, n) {
			t.Errorf("%s is not on the dashboard", n)
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool(t), "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s\n%s", err, out, rules)
	}
}
