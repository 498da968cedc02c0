package baldur_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// The yardstick: Go's own tests of database/sql, from the GOROOT of the go
// command, over their fake drivers with our wrapper around them.
//
// They are tests from inside of package sql, so they are built where they are,
// with an overlay that puts one call into sql.OpenDB and adds the two files
// below; the wrapper is then built on that very package, and sees the frames
// and fields that it sees in a program. Rejected: a copy of the package under
// another import path, where it would not, and which since Go 1.27 does not
// build (database/sql/internal).
//
// Some tests look at the driver's own types. They fail, and are listed below.
// So that what they are about is tested all the same, the overlay also sends
// each type assertion through driversOwn, which does nothing except in the mode
// "unwrap", in which it finds what is wrapped.

// In package sql.
const suiteHook = `package sql

import "database/sql/driver"

var (
	WrapConnector = func(c driver.Connector) driver.Connector { return c }
	driversOwn    = func(x any) any { return x }
)

func SetDriversOwn(f func(x any) any) { driversOwn = f }
`

// In package sql_test, which may import what imports database/sql.
const suiteWrap = `package sql_test

import (
	"database/sql"
	"database/sql/driver"
	"os"

	"github.com/baldur-go/baldur"
)

func init() {
	switch os.Getenv("BALDUR_SUITE") {
	case "unwrap":
		sql.SetDriversOwn(baldur.DriversOwn)
		fallthrough
	case "wrap":
		sql.WrapConnector = func(c driver.Connector) driver.Connector { return baldur.Wrap(c) }
	}
}
`

// In package baldur.
const suiteOwn = `package baldur

import (
	"database/sql/driver"

	"github.com/baldur-go/baldur/internal/wrap"
)

func DriversOwn(x any) any {
	switch x := x.(type) {
	case driver.Conn:
		return Unwrap(x)
	case *connector:
		return x.inner()
	case poolDriver:
		return x.Driver
	}
	return wrap.DriversOwn(x)
}
`

// In package wrap.
const suiteOwnWrap = `package wrap

import "database/sql/driver"

func DriversOwn(x any) any {
	switch x := x.(type) {
	case interface{ wrapped() driver.Rows }:
		return x.wrapped()
	case *tx:
		return x.inner
	}
	return x
}

func (r *rows) wrapped() driver.Rows { return r.inner }
`

// Why a test of the suite cannot pass with any wrapper.
const (
	looksAtConn      = "asserts that a connection is of the fake driver's own type"
	looksAtRows      = "asserts that a Rows is of the fake driver's own type"
	looksAtTx        = "asserts that a Tx is of the fake driver's own type"
	looksAtConnector = "asserts that a connector is of the fake driver's own type"
	looksAtDriver    = "asserts that db.Driver() is the fake driver; ours is a value of the pool's own, by which TrackerOf finds its tracker"
)

// suiteExceptions are all the tests that fail with the wrapper and not without.
var suiteExceptions = map[string]string{
	"TestConnExpiresFreshOutOfPool":   looksAtConn,
	"TestConnIsValid":                 looksAtConn,
	"TestConnMaxLifetime":             looksAtDriver,
	"TestConnQuery":                   looksAtConn,
	"TestConnRaw":                     looksAtConn,
	"TestConnTx":                      looksAtConn,
	"TestConnectionLeak":              looksAtDriver,
	"TestInvalidNilValues":            looksAtConn,
	"TestIssue20647":                  looksAtConn,
	"TestIssue4902":                   looksAtDriver,
	"TestIssue6081":                   looksAtDriver,
	"TestManyErrBadConn":              looksAtConn,
	"TestMaxOpenConns":                looksAtDriver,
	"TestMultiResultSetQuery":         looksAtConn,
	"TestOpenConnector":               looksAtConnector,
	"TestOpenDB":                      looksAtDriver,
	"TestParentStmtOutlivesTxStmt":    looksAtConn,
	"TestQuery":                       looksAtConn,
	"TestQueryContext":                looksAtConn,
	"TestQueryContextWait":            looksAtConn,
	"TestQueryExecContextOnly":        looksAtConn,
	"TestQueryNamedArg":               looksAtConn,
	"TestQueryRowClosingStmt":         looksAtConn,
	"TestRowsCloseError":              looksAtRows,
	"TestRowsImplicitClose":           looksAtRows,
	"TestStmtCloseDeps":               looksAtDriver,
	"TestTxCannotCommitAfterRollback": looksAtTx,
	"TestTxContextWait":               looksAtConn,
	"TestTxContextWaitNoDiscard":      looksAtConn,
	"TestTxStmtClosedRePrepares":      looksAtConn,
	"TestTxStmtFromTxStmtRePrepares":  looksAtConn,
	"TestTxStmtPreparedOnce":          looksAtConn,
}

// suiteForged is a subtest (of Go 1.27) that sets sql.Tx's unexported
// keepConnOnRollback for a driver for which database/sql would not, and so
// fails also where its assertions look at what is wrapped.
const suiteForged = "TestTxContextWaitNoDiscard/basic"

func TestGoSuite(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the tests of database/sql")
	}
	bin := buildSuite(t)
	names := strings.Fields(mustRun(t, osexec.Command(bin, "-test.list", "^Test")))
	if len(names) < 100 {
		t.Fatalf("the suite has %d tests: %q", len(names), names)
	}
	var wg sync.WaitGroup
	var passed atomic.Int32
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, name := range names {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			why := suiteExceptions[name]
			err := compareSuite(bin, name, "wrap", why == "")
			if why != "" {
				if err := compareSuite(bin, name, "unwrap", true); err != nil {
					t.Errorf("where its assertions look at what is wrapped: %v", err)
				}
			}
			switch {
			case err == nil && why != "":
				t.Errorf("%s is excepted, as it %s, but it passes", name, why)
			case err == nil:
				passed.Add(1)
			case why == "":
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for name := range suiteExceptions {
		if !slices.Contains(names, name) {
			t.Errorf("%s is excepted, but there is no such test", name)
		}
	}
	if compareSuite(bin, suiteForged, "unwrap", false) == nil && runtime.Version() >= "go1.27" {
		t.Errorf("%s is excepted, but it passes", suiteForged)
	}
	t.Logf("%s: %d of %d tests are as without the wrapper, the others too where their assertions look at what is wrapped",
		runtime.Version(), passed.Load(), len(names))
}

// compareSuite runs one test of the suite bare and in a mode. The tests of Go
// 1.26 wait for real time to pass, and may fail on a busy machine by
// themselves: with again, a difference counts if it is there three times.
func compareSuite(bin, name, mode string, again bool) error {
	for try := 1; ; try++ {
		bare, bareOut := runSuite(bin, name, "bare")
		got, out := runSuite(bin, name, mode)
		if slices.Equal(bare, got) {
			return nil
		}
		if !again || try == 3 {
			return fmt.Errorf("%s: bare %q, wrapped %q\n--- bare:\n%.2000s\n--- wrapped:\n%.4000s", name, bare, got, bareOut, out)
		}
	}
}

var verdict = regexp.MustCompile(`(?m)^\s*--- (?:PASS|FAIL|SKIP): \S+`)

// runSuite runs one test, in a process of its own since many failures of the
// suite are panics, and returns its verdict and those of its subtests.
func runSuite(bin, name, mode string) (verdicts []string, out string) {
	args := []string{"-test.v", "-test.timeout=15s", "-test.run=^" + strings.ReplaceAll(name, "/", "$/^") + "$"}
	if name != suiteForged {
		args = append(args, "-test.skip="+suiteForged)
	}
	cmd := osexec.Command(bin, args...)
	cmd.Env = append(os.Environ(), "BALDUR_SUITE="+mode, "GORACE=atexit_sleep_ms=0") // else -race sleeps for a second
	b, err := cmd.CombinedOutput()
	for _, v := range verdict.FindAllString(string(b), -1) {
		verdicts = append(verdicts, strings.TrimSpace(v))
	}
	slices.Sort(verdicts)
	if err != nil {
		verdicts = append(verdicts, err.Error()) // also a data race
	}
	return verdicts, string(b)
}

// buildSuite builds the test binary of database/sql with the overlay.
func buildSuite(t *testing.T) string {
	out, err := osexec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Skipf("no go command: %v", err)
	}
	dir := t.TempDir()
	// By a link to it, as the go command does not allow an overlay in the module
	// cache, where GOTOOLCHAIN puts a GOROOT.
	goroot := filepath.Join(dir, "go")
	if err := os.Symlink(strings.TrimSpace(string(out)), goroot); err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(goroot, "src", "database", "sql")
	if _, err := os.Stat(filepath.Join(src, "sql_test.go")); errors.Is(err, os.ErrNotExist) {
		t.Skipf("this GOROOT has no sources: %v", err)
	}
	repo, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay := map[string]string{}
	put := func(in, name, content string) {
		overlay[filepath.Join(in, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	edit := func(name string, want int, pattern, by string) {
		file := filepath.Join(src, name)
		if edited := overlay[file]; edited != "" {
			file = edited
		}
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		re := regexp.MustCompile(pattern)
		if n := len(re.FindAllIndex(old, -1)); n < want {
			t.Fatalf("%s has %d times %q, not %d: this Go is newer than this test", name, n, pattern, want)
		}
		put(src, name, re.ReplaceAllString(string(old), by))
	}
	edit("sql.go", 1, `(?m)^func OpenDB\(c driver\.Connector\) \*DB \{$`, "$0\n\tc = WrapConnector(c)")
	edit("sql_test.go", 10, `([\w.]+(?:\[0\][\w.]*|\(\))?)\.\(\*(fake\w+|ctxOnlyConn|rowsCursor)\)`, "driversOwn($1).(*$2)")
	edit("sql_test.go", 1, `db\.Driver\(\) != `, "driversOwn(db.Driver()) != ")
	edit("fakedb_test.go", 0, `\b(c|rs\.rowsi)\.\(interface \{`, "driversOwn($1).(interface {")
	put(src, "baldur_hook.go", suiteHook)
	put(src, "baldur_wrap_test.go", suiteWrap)
	put(repo, "baldur_suite_own.go", suiteOwn)
	put(filepath.Join(repo, "internal", "wrap"), "baldur_suite_own_wrap.go", suiteOwnWrap)
	config, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "sql.test")
	args := []string{"test", "-c", "-overlay", file, "-o", bin}
	if underRace() {
		args = append(args, "-race")
	}
	cmd := osexec.Command(filepath.Join(goroot, "bin", "go"), append(args, "database/sql")...) // here, so that baldur is this one
	cmd.Env = append(os.Environ(), "GOROOT="+goroot, "GOTOOLCHAIN=local", "GOPROXY=off")
	mustRun(t, cmd)
	return bin
}

func underRace() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func mustRun(t *testing.T, cmd *osexec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return string(out)
}
