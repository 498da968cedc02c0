package baldur_test

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
	"github.com/baldur-go/baldur/internal/profile"
)

// TestSites: every way of taking a connection is named by its line, whatever the
// compiler has inlined and renamed by it. See testdata/sites.
func TestSites(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds programs, the standard library included")
	}
	for _, c := range []struct {
		name    string
		flags   []string
		renames bool // database/sql's closures
	}{
		{"plain", nil, false},
		{"inlining, trimpath", []string{"-trimpath", "-gcflags=all=-l=4"}, true},
		{"profile", []string{"-pgo=" + hotProfile(t)}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "sites")
			if out, err := exec.Command("go", append(append([]string{"build", "-o", file}, c.flags...), "./testdata/sites")...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			out, err := exec.Command(file).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if c.renames && !strings.Contains(string(out), "renamed: true") {
				t.Errorf("the build shows nothing: no closure of database/sql was renamed: %s", out)
			}
		})
	}
}

// hotProfile writes a CPU profile of the program that has the compiler inline
// database/sql's methods into it, and returns its path. It is made up: a compiler
// counts a call only where the callee itself was running at a sample.
func hotProfile(t *testing.T) string {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	program := "testdata/sites/main.go"
	library := filepath.Join(strings.TrimSpace(string(goroot)), "src/database/sql/sql.go")
	p := &profile.Profile{SampleTypes: []profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}}}
	for _, e := range []struct{ file, caller, head, call, callee string }{
		{program, "main.query", "func query(", ".QueryContext(", "(*DB).QueryContext"},
		{program, "main.hold", "func hold(", ".Conn(", "(*DB).Conn"},
		{library, "database/sql.(*DB).QueryRow", "func (db *DB) QueryRow(", ".QueryRowContext(", "(*DB).QueryRowContext"},
		{library, "database/sql.(*DB).QueryRowContext", "func (db *DB) QueryRowContext(", ".QueryContext(", "(*DB).QueryContext"},
		{library, "database/sql.(*DB).Exec", "func (db *DB) Exec(", ".ExecContext(", "(*DB).ExecContext"},
		{library, "database/sql.(*DB).Begin", "func (db *DB) Begin(", ".BeginTx(", "(*DB).BeginTx"},
		{library, "database/sql.(*DB).Ping", "func (db *DB) Ping(", ".PingContext(", "(*DB).PingContext"},
		{library, "database/sql.(*DB).Prepare", "func (db *DB) Prepare(", ".PrepareContext(", "(*DB).PrepareContext"},
	} {
		text, err := os.ReadFile(e.file)
		if err != nil {
			t.Fatal(err)
		}
		before, after, ok := strings.Cut(string(text), "\n"+e.head)
		to, _, called := strings.Cut(after, e.call)
		if !ok || !called {
			t.Fatalf("%s has no %s with %s", e.file, e.head, e.call)
		}
		start := strings.Count(before, "\n") + 2
		p.Samples = append(p.Samples, profile.Sample{Values: []int64{1000, 1000}, Stack: []profile.Frame{
			{Function: "database/sql." + e.callee, File: e.file, Start: 1, Line: 1},
			{Function: e.caller, File: e.file, Start: start, Line: start + strings.Count(to, "\n")},
		}})
	}
	file := filepath.Join(t.TempDir(), "hot.pprof")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := p.Write(f); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestFrameNames: a name keeps what tells it apart.
func TestFrameNames(t *testing.T) {
	for _, c := range []struct{ function, file, want string }{
		{"main.handler", "/src/shop/orders.go", "main.handler (shop/orders.go:7)"},
		{"example.com/shop/orders.(*Store).List", "/src/shop/orders/orders.go", "orders.(*Store).List (orders/orders.go:7)"},
		{"github.com/gobuffalo/pop/v6.newTX", "/m/github.com/gobuffalo/pop/v6@v6.1.1/tx.go", "pop/v6.newTX (pop/v6@v6.1.1/tx.go:7)"},
		{"github.com/doug-martin/goqu/v9.(*Database).QueryContext", "/m/vendor/github.com/doug-martin/goqu/v9/database.go", "goqu/v9.(*Database).QueryContext (goqu/v9/database.go:7)"},
		{"example.com/x/v2/store.F", `C:\src\x\v2\store\f.go`, "store.F (store/f.go:7)"},
		{"example.com/shop/list.Map[example.com/shop/v2.Item]", "list.go", "list.Map[example.com/shop/v2.Item] (list.go:7)"},
		{"v2.F", "/v2/f.go", "v2.F (v2/f.go:7)"},
		{"unknown", "", "unknown (unknown)"},
	} {
		if got := (baldur.Frame{Function: c.function, File: c.file, Line: 7}).String(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.function, got, c.want)
		}
	}
}

// TestSkip: the skip lists of the option, the DSN and the environment add up, and
// pools keep their own.
func TestSkip(t *testing.T) {
	const here = "github.com/baldur-go/baldur_test"
	name := func(db *sql.DB) string {
		defer db.Close()
		tx := skipped1(db)
		defer tx.Rollback()
		inReport := baldur.TrackerOf(db).Holders()[0].CallSite()
		return strings.TrimPrefix(inReport.Function, here+".")
	}
	dsn := pgtest.DSN(t)
	if got := name(baldur.OpenDB(&fakeDB{})); got != "skipped4" {
		t.Errorf("nothing skipped: %s", got)
	}
	if got := name(baldur.OpenDB(&fakeDB{}, baldur.WithSkipFunctions(here+".skipped4"))); got != "skipped3.func1" {
		t.Errorf("by an option: %s", got)
	}
	t.Setenv("BALDUR_SKIP_FUNCTIONS", "baldur_test.skipped3, ")
	dsn += "&baldur_skip_functions=" + here + ".skipped2,main.x&baldur_skip_packages=example.com/a/"
	if got := name(must(baldur.Open(dsn, baldur.WithSkipFunctions(here+".skipped4")))); got != "skipped1" {
		t.Errorf("by all three: %s", got)
	}
}

//go:noinline
func skipped1(db *sql.DB) *sql.Tx { return skipped2(db) }

//go:noinline
func skipped2(db *sql.DB) *sql.Tx { return skipped3(db) }

//go:noinline
func skipped3(db *sql.DB) *sql.Tx {
	f := func() *sql.Tx { return skipped4(db) }
	return f()
}

//go:noinline
func skipped4(db *sql.DB) *sql.Tx { return must(db.Begin()) }
