package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// machine says what was measured on, and how busy that was.
func machine() string {
	cpu := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if k, v, _ := strings.Cut(line, ":"); strings.TrimSpace(k) == "model name" {
				cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %s, %d cores of %s; load: %s at the start",
		time.Now().Format(time.DateOnly), runtime.Version(), runtime.GOMAXPROCS(0), cpu, load())
}

// load is the machine's load average over a minute.
func load() string {
	avg, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(avg), " ")
	return one
}

func (s setting) String() string {
	t := fmt.Sprintf("%s, depth %d, %s", s.op.name, s.depth, count(s.goroutines, "goroutine"))
	if s.sites > 0 {
		t += ", " + count(s.sites, "call site")
	}
	return t
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// print writes a table for a person at a terminal.
func (t table) print(w io.Writer, what string) {
	fmt.Fprintf(w, "\n%s: %s, raw %.0f ns\n", t.setting, what, t.results[0].perOp)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\tadded ns\tratio\t95 %\tB\tallocs\t")
	for _, r := range t.results[1:] {
		fmt.Fprintf(tw, "%s\t%.0f\t%.3f\t%.3f to %.3f\t%d\t%d\t\n",
			strings.Trim(r.variant, "*"), r.added.mid, r.ratio.mid, r.ratio.lo, r.ratio.hi, r.bytes, r.allocs)
	}
	tw.Flush()
}

// markdown is the table in full.
func (t table) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | added | ratio to raw (95 %%) | B, allocs |\n|---|---|---|---|\n", t.setting)
	fmt.Fprintf(&b, "| raw | %s | 1 | %d, %d |\n", duration(t.results[0].perOp), t.results[0].bytes, t.results[0].allocs)
	for _, r := range t.results[1:] {
		fmt.Fprintf(&b, "| %s | %s | %s (%s to %s) | %d, %d |\n", r.variant, duration(r.added.mid),
			ratio(r.ratio.mid), ratio(r.ratio.lo), ratio(r.ratio.hi), r.bytes, r.allocs)
	}
	return b.String()
}

// overview is one column for each table: time added, and ratio.
func overview(tables []table, head func(table) string) string {
	var b strings.Builder
	b.WriteString("| |")
	for _, t := range tables {
		fmt.Fprintf(&b, " %s |", head(t))
	}
	b.WriteString("\n|---" + strings.Repeat("|---", len(tables)) + "|\n")
	for i := range tables[0].results {
		fmt.Fprintf(&b, "| %s |", tables[0].results[i].variant)
		for _, t := range tables {
			if r := t.results[i]; i == 0 {
				fmt.Fprintf(&b, " %s |", duration(r.perOp))
			} else {
				fmt.Fprintf(&b, " %s, %s |", duration(r.added.mid), ratio(r.ratio.mid))
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func duration(ns float64) string {
	switch a := math.Abs(ns); {
	case a >= 9999.5:
		return fmt.Sprintf("%.0f µs", ns/1000)
	case a >= 999.5:
		return fmt.Sprintf("%.1f µs", ns/1000)
	case a >= 9.95:
		return fmt.Sprintf("%.0f ns", ns)
	}
	return fmt.Sprintf("%.1f ns", ns)
}

func ratio(r float64) string {
	if r >= 9.95 {
		return fmt.Sprintf("%.0f", r)
	}
	return fmt.Sprintf("%.2f", r)
}

func probeTable(head string, results []probeResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | (95 %%) |\n|---|---|\n", head)
	for _, p := range results {
		fmt.Fprintf(&b, "| %s | %s (%.1f to %.1f) |\n", p.name, duration(p.ns.mid), p.ns.lo, p.ns.hi)
	}
	return b.String()
}

func (f *figures) printProbes() {
	fmt.Print(probeTable(fmt.Sprintf("capture, %d frames of net/http", f.depth), f.capture), "\n",
		probeTable("clock", f.clock), "\n", probeTable("report", f.report))
}

// Where the variants stand in a table, see variants.
const (
	control   = 1
	full      = 2
	otelsqlNo = 8
)

// goals sets what was measured beside what is wanted.
func (f *figures) goals() string {
	var b strings.Builder
	b.WriteString("| goal | | measured | |\n|---|---|---|---|\n")
	row := func(name, goal, measured string, reached bool) {
		verdict := "**no**"
		if reached {
			verdict = "yes"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, goal, measured, verdict)
	}
	over := func(name string, t table, limit, stretch float64) {
		r, c := t.results[full].ratio, t.results[control].ratio
		goal := fmt.Sprintf("≤ %.2f", limit)
		if stretch > 0 {
			goal += fmt.Sprintf(", stretch %.2f", stretch)
		}
		row(name, goal, fmt.Sprintf("%.3f (%.3f to %.3f); control %.3f (%.3f to %.3f)", r.mid, r.lo, r.hi, c.mid, c.lo, c.hi), r.mid <= limit)
	}
	find := func(ts []table, o op, goroutines int) (t table) {
		for _, t := range ts {
			if t.op.name == o.name && t.goroutines == goroutines && t.depth == 20 && t.sites == 0 {
				return t
			}
		}
		panic("no such table: " + o.name)
	}
	exec := find(f.null, opExec, 1)
	over("Exec over raw, depth 20", exec, 1.85, 1.5)
	over("QueryRow over raw", find(f.null, opQueryRow, 1), 1.35, 1.2)
	over("two goroutines, Exec", find(f.null, opExec, 2), 1.5, 0)
	bytes, allocs := 0, 0
	for _, t := range f.null {
		if t.goroutines == 1 { // in the others the connections may be new
			bytes = max(bytes, t.results[full].bytes-t.results[0].bytes)
			allocs = max(allocs, t.results[full].allocs-t.results[0].allocs)
		}
	}
	row("bytes and allocations added, the most of all settings", "0", fmt.Sprintf("%d B, %d", bytes, allocs), bytes <= 0 && allocs <= 0)
	added := exec.results[full].added.mid
	otel := exec.results[otelsqlNo].added.mid
	row("added time against otelsql without a provider", "≤ 1/6", fmt.Sprintf("%.0f of %.0f ns: 1/%.1f", added, otel, otel/added), added*6 <= otel)
	if f.hikari > 0 {
		row("… against HikariCP's on-off difference", "≤ 1/10", fmt.Sprintf("%.0f of %.0f ns: 1/%.1f", added, f.hikari, f.hikari/added), added*10 <= f.hikari)
	}
	c := f.capture[1].ratio
	row("capture against `runtime.Callers`", "≤ 1/30", fmt.Sprintf("1/%.1f (1/%.1f to 1/%.1f)", 1/c.mid, 1/c.hi, 1/c.lo), c.mid*30 <= 1)
	if len(f.postgres) > 0 {
		over("PostgreSQL, client CPU for each Exec", find(f.postgres, opExec, 1), 1.05, 0)
		over("PostgreSQL, client CPU for each QueryRow", find(f.postgres, opQueryRow, 1), 1.05, 0)
	}
	row("report, for each holder", "≤ 50 ns", duration(f.report[0].ns.mid), f.report[0].ns.mid <= 50)
	row("is the holder alive?", "≤ 60 ns", duration(f.report[1].ns.mid), f.report[1].ns.mid <= 60)
	return b.String()
}

// hikariDifference takes the figure from java/run's last line.
func hikariDifference(out string) (ns float64, err error) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if _, err := fmt.Sscanf(lines[len(lines)-1], "difference %f ns", &ns); err != nil {
		return 0, fmt.Errorf("java/run: no difference in %q: %w", out, err)
	}
	return ns, nil
}

// The block in performance.md that is written.
const (
	blockBegin = "<!-- figures: written by bench, go run . -write -->\n"
	blockEnd   = "<!-- end of figures -->\n"
)

func (f *figures) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n\n%s\n", f.machine, f.goals())
	fmt.Fprintf(&b, "Null driver. ![Time added to Exec](performance.svg)\n\n%s\n", f.null[0].markdown())
	fmt.Fprintf(&b, "Other operations, at depth 20; time added, ratio to raw (first line: raw):\n\n%s\n",
		overview(f.null[1:5], func(t table) string { return t.op.name }))
	fmt.Fprintf(&b, "Exec in other places:\n\n%s\n", overview(f.null[5:9], func(t table) string {
		if t.goroutines == 1 {
			return fmt.Sprintf("depth %d", t.depth)
		}
		return count(t.goroutines, "goroutine")
	}))
	fmt.Fprintf(&b, "Exec from several call sites in random order, two calls below the loop:\n\n%s\n",
		overview(f.null[9:], func(t table) string { return count(t.sites, "site") }))
	if len(f.postgres) > 0 {
		fmt.Fprintf(&b, "PostgreSQL over a Unix socket, **CPU time of the client** for each query (64 goroutines share a pool of %d):\n\n%s\n",
			pgPool, overview(f.postgres, func(t table) string { return t.op.name + ", " + count(t.goroutines, "goroutine") }))
	}
	fmt.Fprintf(&b, "%s\n%s\n%s", probeTable(fmt.Sprintf("capture, on a stack of %d frames in net/http", f.depth), f.capture),
		probeTable("clock", f.clock), probeTable("report", f.report))
	return b.String()
}

func (f *figures) write(dir string) error {
	name := filepath.Join(dir, "performance.md")
	old, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	before, rest, ok1 := bytes.Cut(old, []byte(blockBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(blockEnd))
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no block %q", name, blockBegin)
	}
	text := string(before) + blockBegin + f.markdown() + blockEnd + string(after)
	if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "performance.svg"), []byte(f.chart()), 0o666)
}
