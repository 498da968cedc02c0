package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestCorpus runs the corpus at a threshold of half a second. It does so in a program of
// its own: in a test the corpus would be in a package of baldur's, whose functions are no
// call sites.
func TestCorpus(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	program := filepath.Join(t.TempDir(), "corpus")
	build := []string{"build", "-o", program}
	if race {
		build = append(build, "-race")
	}
	if out, err := exec.CommandContext(ctx, "go", append(build, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	server := pgtest.Server(t, "max_connections=1000")
	cmd := exec.CommandContext(ctx, program, "-v", "-threshold", "500ms", "-dsn", server.SocketDSN("postgres"))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// TestPrograms: there are enough of each kind, and each is in one list, with a comment and
// its lines marked.
func TestPrograms(t *testing.T) {
	all, err := corpus()
	if err != nil {
		t.Fatal(err)
	}
	n := map[kind]int{}
	var names []string
	for _, e := range all {
		n[e.kind]++
		names = append(names, strings.ToLower(e.name))
	}
	for k, least := range map[kind]int{leaks: 40, honest: 40, thinking: 12, heals: 5, stuck: 6, told: 1} {
		if n[k] < least {
			t.Errorf("%d programs are %s; at least %d are wanted", n[k], k, least)
		}
	}
	slices.Sort(names)
	if len(slices.Compact(names)) < len(all) {
		t.Error("two programs share a name")
	}
}

// TestJudge: the judge finds what is against the rules, and only that.
func TestJudge(t *testing.T) {
	holder := func(id, line int, v baldur.Verdict) baldur.ConnectionInfo {
		return baldur.ConnectionInfo{ConnectionID: int64(id), Verdict: v, Held: time.Minute,
			StackTrace: []baldur.Frame{{Function: "main.f", File: "x/leak.go", Line: line}}}
	}
	const lost, suspected = "lost", baldur.VerdictSuspected
	v := view{
		accused: func(r baldur.LeakReport) (all []baldur.ConnectionInfo) {
			for _, c := range r.SuspectedLeaks {
				if c.Verdict == lost {
					all = append(all, c)
				}
			}
			return all
		},
		suspected: func(r baldur.LeakReport) []baldur.ConnectionInfo { return r.SuspectedLeaks },
	}
	type infos = []baldur.ConnectionInfo
	for _, c := range []struct {
		name     string
		kind     kind
		holders  infos // who is out
		reported infos // of these
		wrong    string
		says     string
	}{
		{"leak, suspected", leaks, infos{holder(1, 7, suspected)}, infos{holder(1, 7, suspected)}, "", "suspected"},
		{"leak, accused", leaks, infos{holder(1, 7, lost)}, infos{holder(1, 7, lost)}, "", "lost"},
		{"leak, not found", leaks, infos{holder(1, 7, "in_use")}, nil, "not found: the leak at leak.go:7", "**wrong**"},
		{"leak, at another line", leaks, nil, infos{holder(1, 8, suspected)}, "not found: the leak at leak.go:7", "**wrong**"},
		{"two leaks of a line, one told", leaks, infos{holder(1, 7, lost), holder(2, 7, "in_use")}, infos{holder(1, 7, lost)},
			"of the leaks at leak.go:7 the last report does not tell of 1", "**wrong**"},
		{"leak, and another accused", leaks, nil, infos{holder(1, 7, lost), holder(2, 8, lost)}, "accused in 1 reports, and is no leak: lost at leak.go:8", "**wrong**"},
		{"leak, and another suspected", leaks, nil, infos{holder(1, 7, lost), holder(2, 8, suspected)}, "", "(another: suspected), lost"},
		{"honest", honest, infos{holder(1, 8, "in_use")}, nil, "", "–"},
		{"honest, suspected", honest, nil, infos{holder(1, 8, suspected)}, "", "suspected"},
		{"honest, accused", honest, nil, infos{holder(1, 8, lost)}, "accused in 1 reports, and is no leak: lost at leak.go:8", "**wrong**"},
		{"thinking, accused", thinking, nil, infos{holder(1, 8, lost)}, "accused in 1 reports, and is no leak: lost at leak.go:8", "**wrong**"},
		{"heals, accused at its line", heals, nil, infos{holder(1, 7, lost)}, "", "–"},
		{"told, accused", told, nil, infos{holder(1, 7, lost)}, "", "lost"},
	} {
		e := entry{name: "f", kind: c.kind}
		if c.kind != honest && c.kind != thinking {
			e.marks = []line{{"leak.go", 7}}
		}
		j := newJudge(e, v)
		r := baldur.LeakReport{LeakThreshold: time.Second, SuspectedLeaks: c.reported}
		j.look(r, c.kind == leaks)
		j.missed(c.holders, r)
		if got := strings.Join(j.wrong(), "; "); got != c.wrong {
			t.Errorf("%s: wrong is %q, want %q", c.name, got, c.wrong)
		}
		if got := j.says(); got != c.says {
			t.Errorf("%s: says %q, want %q", c.name, got, c.says)
		}
	}
}

// TestJudgeEnded: of what a ctx has ended, that of a leak must be counted, and of nothing
// that is closed may be said that it is not.
func TestJudgeEnded(t *testing.T) {
	leak, other := line{"leak.go", 7}, line{"leak.go", 8}
	for _, c := range []struct {
		kind             kind
		ended, notClosed map[line]int
		wrong, says      string
	}{
		{heals, map[line]int{leak: 2}, nil, "", "ended by its ctx"},
		{heals, map[line]int{leak: 2}, map[line]int{leak: 1}, "", "not closed"},
		{heals, nil, nil, "not counted as ended by its ctx: leak.go:7", "**wrong**"},
		{heals, map[line]int{leak: 1, other: 1}, map[line]int{other: 1}, "said 1 times to be not closed, and is closed: leak.go:8", "**wrong**"},
		{honest, map[line]int{other: 1}, nil, "", "–"},
		{honest, map[line]int{other: 1}, map[line]int{other: 1}, "said 1 times to be not closed, and is closed: leak.go:8", "**wrong**"},
	} {
		e := entry{name: "f", kind: c.kind}
		if c.kind == heals {
			e.marks = []line{leak}
		}
		j := newJudge(e, view{ended: func(*baldur.Tracker) (ended, notClosed map[line]int) { return c.ended, c.notClosed }})
		j.account(nil)
		if got := strings.Join(j.wrong(), "; "); got != c.wrong {
			t.Errorf("wrong is %q, want %q", got, c.wrong)
		}
		if got := j.says(); got != c.says {
			t.Errorf("says %q, want %q", got, c.says)
		}
	}
}
