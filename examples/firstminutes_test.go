//go:build unix

package examples

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur/internal/modproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const (
	promised = time.Minute
	slowness = 5 // of a machine that has other work to do
)

// TestFirstMinutes does what the README says under "First minutes", with the
// commands and the program from there, in an empty directory, and wants its leak
// on the screen. Modules come from this machine's cache: the download is left out
// of the time. With BALDUR_COLD set nothing was ever compiled before.
func TestFirstMinutes(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := codeBlocks(section(t, string(readme), "First minutes"))
	if len(blocks["go"]) != 1 || len(blocks["sh"]) != 2 || len(blocks["text"]) != 1 {
		t.Fatalf("the section is not a set-up, a program, a run and its output: %q", blocks)
	}
	setUp, program, run, output := blocks["sh"][0], blocks["go"][0], blocks["sh"][1], blocks["text"][0]
	dsn := regexp.MustCompile(`(?m)^export DATABASE_URL=.*$`)
	if !dsn.MatchString(run) {
		t.Fatalf("the run does not set DATABASE_URL: %s", run)
	}
	run = dsn.ReplaceAllLiteralString(run, "export DATABASE_URL='"+pgtest.DSN(t)+"'")

	dir := filepath.Join(t.TempDir(), "leaky")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	published, err := modproxy.Publish("..", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	env := slices.Concat(os.Environ(), published.Env, []string{
		"GOMODCACHE=" + t.TempDir(), "GOFLAGS=-modcacherw -buildvcs=false", "BALDUR_POOL_MONITOR_LEAK_THRESHOLD_SECONDS="})
	if os.Getenv("BALDUR_COLD") != "" {
		env = append(env, "GOCACHE="+t.TempDir())
	}
	shell := func(commands string) string {
		cmd := exec.Command("sh", "-euc", commands)
		cmd.Dir, cmd.Env = dir, env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s\n%v\n%s", dsn.ReplaceAllString(commands, "export DATABASE_URL=…"), err, out)
		}
		return string(out)
	}

	began := time.Now()
	shell(setUp)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	got := shell(run)
	took := time.Since(began)

	if got, want := constant(got, dir), constant(output, "/home/you/leaky"); got != want {
		t.Errorf("it says\n%s\nand the README\n%s", got, want)
	}
	t.Logf("from go mod init to the leak on the screen: %.1f s (promised %v)", took.Seconds(), promised)
	if took > slowness*promised {
		t.Errorf("it took %v", took)
	}
}

// section returns the text below a heading.
func section(t *testing.T, text, heading string) string {
	_, rest, ok := strings.Cut(text, "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("there is no section %q", heading)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	return rest
}

// codeBlocks returns the blocks of code by their languages.
func codeBlocks(text string) map[string][]string {
	blocks := map[string][]string{}
	for _, m := range regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		blocks[m[1]] = append(blocks[m[1]], m[2])
	}
	return blocks
}

// constant leaves of a report what does not change from run to run.
func constant(report, dir string) string {
	report = strings.ReplaceAll(report, dir, "DIR")
	for pattern, with := range map[string]string{
		`pool \S+:`:               "pool NAME:",
		`goroutine \d+`:           "goroutine N",
		`pid \d+`:                 "pid N",
		`for \d+(\.\d+)?s`:        "for N s",
		`\d{4}-\d\d-\d\dT[\d:]+Z`: "TIME",
	} {
		report = regexp.MustCompile(pattern).ReplaceAllString(report, with)
	}
	return report
}
