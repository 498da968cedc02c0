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

// TestRules: the alerts fire when they should, by what a Prometheus makes of the rules.
func TestRules(t *testing.T) {
	db := open(t)
	if ok, err := newQuorum(t, db, "eu-west").TryAcquirePrimary(ctx); !ok || err != nil {
		t.Fatal(ok, err)
	}
	exported := scrape(t, serve(t, baldurprom.NewCollector()))
	rules := must(filepath.Abs("../dashboards/baldur.rules.yml"))
	text := string(must(os.ReadFile(rules)))
	for _, n := range regexp.MustCompile(`\bbaldur_[a-z_]+`).FindAllString(text, -1) {
		if exported[n] == nil {
			t.Errorf("%s is not exported", n)
		}
	}
	tool := promtool(t)
	if out, err := exec.Command(tool, "check", "rules", rules).CombinedOutput(); err != nil {
		t.Fatalf("promtool check rules: %v\n%s", err, out)
	}
	const none, several = "BaldurLeaseWithoutPrimary", "BaldurLeaseOfSeveralPrimaries"
	primary := func(lease, region string) string {
		return `baldur_quorum_is_primary{lease="` + lease + `",region="` + region + `",db_name="shop"}`
	}
	a, b := primary("billing", "a"), primary("billing", "b")
	for name, test := range map[string]struct {
		series map[string]string   // a scrape each 15 s; AxN is A and N more
		fires  map[string][]string // by time
	}{
		"one":                          {map[string]string{a: "1x40", b: "0x40"}, map[string][]string{"10m": nil}},
		"hand-overs":                   {map[string]string{a: "1x9 0 0 1 0x9 1 1x9", b: "0x9 0 1 1 1x9 1 0x9"}, map[string][]string{"10m": nil}},
		"none":                         {map[string]string{a: "1x3 0x40", b: "0x40"}, map[string][]string{"1m45s": nil, "2m": {none}, "10m": {none}}},
		"none, and again one":          {map[string]string{a: "0x20 1x20"}, map[string][]string{"5m": {none}, "5m15s": nil}},
		"two":                          {map[string]string{a: "1x40", b: "0x3 1x40"}, map[string][]string{"1m45s": nil, "2m": {several}, "10m": {several}}},
		"one of two dead":              {map[string]string{a: "1x3 stale", b: "0x5 1x40"}, map[string][]string{"10m": nil}},
		"every process dead":           {map[string]string{a: "1x39 stale", b: "0x39 stale"}, map[string][]string{"10m45s": nil, "11m": {none}, "23h": {none}, "24h10m": nil}},
		"not primary, and dead":        {map[string]string{a: "1x3 0 0 stale"}, map[string][]string{"1m45s": nil, "2m": {none}}},
		"no target answers":            {map[string]string{a: "1x39 stale", `up{instance="a"}`: "1x39 0x40"}, map[string][]string{"15m": {none}}},
		"restarted":                    {map[string]string{a: "1x9 stale _ _ 1x9 stale _ 0 1x20"}, map[string][]string{"10m": nil}},
		"restarted under another name": {map[string]string{a: "1x9 stale", b: "_x12 1x40"}, map[string][]string{"10m": nil}},
		"of one name each":             {map[string]string{a: "1x40", primary("mail", "a"): "1x9 stale"}, map[string][]string{"10m": {none}}},
		"leak":                         {map[string]string{`baldur_suspected_connections{db_name="shop"}`: "0x9 1x9 0 2x40"}, map[string][]string{"10m": nil, "11m": {"BaldurSuspectedLeak"}}},
		"exhausted":                    {map[string]string{`baldur_waiting_requests{db_name="shop"}`: "0 3x40"}, map[string][]string{"2m": nil, "3m": {"BaldurPoolExhausted"}}},
		"requests":                     {map[string]string{`baldur_quorum_request_errors_total{lease="billing",region="a",class="refused"}`: "0x40 0+1x80"}, map[string][]string{"10m": nil, "25m": {"BaldurLeaseRequestsFail"}}},
	} {
		t.Run(name, func(t *testing.T) {
			type values map[string]any
			var series, asks []values
			for s, v := range test.series {
				series = append(series, values{"series": s, "values": v})
			}
			for at, alerts := range test.fires {
				samples := []values{}
				for _, alert := range alerts {
					samples = append(samples, values{"labels": `{alertname="` + alert + `"}`, "value": 1})
				}
				asks = append(asks, values{"expr": `count by (alertname) (ALERTS{alertstate="firing"})`, "eval_time": at, "exp_samples": samples})
			}
			file := filepath.Join(t.TempDir(), "test.yml") // of which JSON is a part
			test := values{"rule_files": []string{rules}, "evaluation_interval": "15s", "tests": []values{{"interval": "15s", "input_series": series, "promql_expr_test": asks}}}
			if err := os.WriteFile(file, must(json.Marshal(test)), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(tool, "test", "rules", file).CombinedOutput(); err != nil {
				t.Errorf("promtool test rules: %v\n%s", err, out)
			}
		})
	}
}
