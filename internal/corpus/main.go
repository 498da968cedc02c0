// Command corpus runs small programs that leak connections, and others that do not,
// and says what baldur says of them.
//
//	go run ./internal/corpus                    # at thresholds of 1 s and 5 s
//	go run ./internal/corpus -load -threshold 500ms
//	go run ./internal/corpus -run 'tx.*' -v     # some programs, and what is wrong with them
//	go run ./internal/corpus -write             # and writes the tables into docs/corpus.md
//
// Its status is 1 if a leak is not found within two reports, one threshold and a garbage
// collection apart, or if anything is accused that is no leak. Each program runs against
// a real PostgreSQL, which is started for it, with a pool of its own.
//
// The programs are functions of a main package, as those of an application are: baldur
// takes functions of its own internal packages for its own.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/baldur-go/baldur/internal/pgserver"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

func run() error {
	thresholds := flag.String("threshold", "1s,5s", "leak thresholds, one run each")
	load := flag.Bool("load", false, "run beside queries on each program's pool")
	only := flag.String("run", "", "run the programs whose names match this")
	dsn := flag.String("dsn", "", "URL of a server to use; its role may create databases, and it needs 1,000 connections")
	write := flag.String("write", "", "write the tables into this file, as docs/corpus.md")
	verbose := flag.Bool("v", false, "say what happens")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	match, err := regexp.Compile("^(" + *only + ")$")
	if err != nil {
		return err
	}
	entries, err := corpus()
	if err != nil {
		return err
	}
	if *only != "" {
		entries = slices.DeleteFunc(entries, func(e entry) bool { return !match.MatchString(e.name) })
	}
	if len(entries) == 0 {
		return fmt.Errorf("no program matches")
	}
	say := func(string, ...any) {}
	if *verbose {
		began := time.Now()
		say = func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%6.1f s: %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
		}
	}
	if *dsn == "" {
		server, err := pgserver.Start(ctx, pgserver.Config{Progress: func(s string) { say("%s", s) }, Settings: map[string]string{"max_connections": "1000"}})
		if err != nil {
			return err
		}
		defer server.Stop()
		*dsn = server.SocketDSN("postgres")
	}
	var results []result
	for t := range strings.SplitSeq(*thresholds, ",") {
		threshold, err := time.ParseDuration(t)
		if err != nil {
			return err
		}
		p := pass{dsn: *dsn, threshold: threshold, load: *load, view: current, say: say}
		judges, err := p.run(ctx, entries)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		results = append(results, result{threshold, judges})
	}
	figures, table := summary(results), tables(results)
	about := fmt.Sprintf("%s, %s, %s/%s%s.", time.Now().UTC().Format(time.DateOnly), runtime.Version(), runtime.GOOS, runtime.GOARCH, built(*load))
	fmt.Printf("%s\n\n%s\n%s", about, figures, table)
	if *write != "" {
		if err := insert(*write, about+"\n\n"+figures+"\n"+table); err != nil {
			return err
		}
	}
	return complaint(results)
}

// built says what is special of the build and the run.
func built(load bool) (s string) {
	info, _ := debug.ReadBuildInfo()
	for _, b := range info.Settings {
		if b.Key == "-race" && b.Value == "true" {
			s += ", -race"
		}
	}
	if load {
		s += ", beside load"
	}
	return s
}

// result is what a pass found.
type result struct {
	threshold time.Duration
	judges    []*judge // in the order of the corpus
}

// summary says how many programs of each kind are found, suspected and accused.
func summary(results []result) string {
	var b strings.Builder
	b.WriteString("| programs | | threshold | found in two reports | of these accused | innocent, accused | innocent, suspected | not as it must be |\n|---|---|---|---|---|---|---|---|\n")
	for _, k := range kinds {
		for i, r := range results {
			var all, found, accused, wronged, suspected, wrong int
			for _, j := range r.judges {
				if j.kind != k {
					continue
				}
				all++
				if len(j.found) == len(j.marks) && (k != piles || j.piled) {
					found++
				}
				if len(j.convicted) > 0 {
					accused++
				}
				if len(j.accused) > 0 {
					wronged++
				}
				if len(j.suspect) > 0 {
					suspected++
				}
				if len(j.wrong()) > 0 {
					wrong++
				}
			}
			if all == 0 {
				continue
			}
			name, count := string(k), fmt.Sprint(all)
			if i > 0 {
				name, count = "", ""
			}
			finds, convicts := "–", "–"
			if k.reported() {
				finds, convicts = fmt.Sprint(found), fmt.Sprint(accused)
			}
			fmt.Fprintf(&b, "| %s | %s | %v | %s | %s | %d | %d | %d |\n", name, count, r.threshold, finds, convicts, wronged, suspected, wrong)
		}
	}
	return b.String()
}

// tables are a table for each kind.
func tables(results []result) string {
	var b strings.Builder
	for _, k := range kinds {
		first := true
		for i, j := range results[0].judges {
			if j.kind != k {
				continue
			}
			if first {
				fmt.Fprintf(&b, "\n### %s\n\n| program | |", strings.ToUpper(string(k[:1]))+string(k[1:]))
				for _, r := range results {
					fmt.Fprintf(&b, " %v |", r.threshold)
				}
				b.WriteString("\n|---|---|" + strings.Repeat("---|", len(results)) + "\n")
				first = false
			}
			fmt.Fprintf(&b, "| %s | %s |", j.name, strings.ReplaceAll(j.about, "|", `\|`))
			for _, r := range results {
				fmt.Fprintf(&b, " %s |", r.judges[i].says())
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// complaint is an error that says all that is not as it must be.
func complaint(results []result) error {
	var b strings.Builder
	for _, r := range results {
		for _, j := range r.judges {
			for _, w := range j.wrong() {
				fmt.Fprintf(&b, "\n%v: %s (%s): %s", r.threshold, j.name, j.kind, w)
			}
		}
	}
	if b.Len() > 0 {
		return fmt.Errorf("not as it must be:%s", b.String())
	}
	return nil
}

const (
	begin = "<!-- tables: written by go run ./internal/corpus -write docs/corpus.md -->\n"
	end   = "<!-- end of the tables -->"
)

// insert puts text between the two comments of a file.
func insert(file, text string) error {
	old, err := os.ReadFile(filepath.Clean(file))
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(old), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s lacks the comments between which the tables go", file)
	}
	return os.WriteFile(filepath.Clean(file), []byte(head+begin+"\n"+text+"\n"+end+tail), 0o644)
}
