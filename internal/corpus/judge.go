package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/baldur-go/baldur"
)

// A view is how the judge reads what baldur says.
type view struct {
	accused   func(baldur.LeakReport) []baldur.ConnectionInfo
	suspected func(baldur.LeakReport) []baldur.ConnectionInfo

	// ended returns, by line, how many checkouts their ctx has ended, and how many of
	// these the program has certainly not closed. nil: baldur does not tell.
	ended func(*baldur.Tracker) (ended, notClosed map[line]int)
}

// current is baldur's API.
var current = view{
	accused:   baldur.LeakReport.Accused,
	suspected: func(r baldur.LeakReport) []baldur.ConnectionInfo { return r.SuspectedLeaks },
	ended: func(t *baldur.Tracker) (ended, notClosed map[line]int) {
		ended, notClosed = map[line]int{}, map[line]int{}
		for _, e := range t.ContextEnded() {
			at := lineOf(e.CallSite)
			ended[at] += e.Count
			notClosed[at] += e.NotClosed
		}
		return ended, notClosed
	},
}

// A judge collects what the reports say of one program.
type judge struct {
	piled bool // a report that counts has told of open statements
	entry
	view view

	found     map[line]string // by marked line: the verdict of the last report that tells of it
	convicted map[line]bool   // marked lines that a report accuses
	accused   map[string]int  // reports that accuse a holder which is no leak, by line and verdict
	suspect   map[string]int  // reports that suspect one, by line and verdict
	ended     map[line]int    // by line: checkouts that their ctx has ended
	notClosed map[line]int    // of these, those that the program has certainly not closed
	untold    map[line]int    // by marked line: leaks that the last report does not tell of
	faults    []string        // of the program itself, or of the harness
}

func newJudge(e entry, v view) *judge {
	return &judge{entry: e, view: v, found: map[line]string{}, convicted: map[line]bool{}, accused: map[string]int{}, suspect: map[string]int{}, untold: map[line]int{}, ended: map[line]int{}, notClosed: map[line]int{}}
}

// look takes a report. counts tells that it is one of those within which a leak must
// be found.
func (j *judge) look(r baldur.LeakReport, counts bool) {
	note := func(c baldur.ConnectionInfo, innocent map[string]int, accused bool) {
		at := siteOf(c)
		verdict := string(c.Verdict)
		if slices.Contains(j.marks, at) {
			if counts {
				j.found[at] = verdict
				if accused {
					j.convicted[at] = true
				}
			}
			if j.kind != told {
				return
			}
		}
		innocent[fmt.Sprintf("%s at %v", verdict, at)]++
	}
	if counts && len(r.OpenStatements) > 0 {
		j.piled = true
	}
	accused := j.view.accused(r)
	defer func() { // last, so that of two holders at a line the accused one counts
		for _, c := range accused {
			note(c, j.accused, true)
		}
	}()
	for _, c := range j.view.suspected(r) {
		if !slices.ContainsFunc(accused, func(a baldur.ConnectionInfo) bool { return same(a, c) }) {
			note(c, j.suspect, false)
		}
	}
}

// missed notes the holders at marked lines that a report does not tell of, though they
// are as old as the threshold. Of several leaks of a line all must be told. The last
// report counts.
func (j *judge) missed(holders []baldur.ConnectionInfo, r baldur.LeakReport) {
	toldOf := slices.Concat(j.view.accused(r), j.view.suspected(r))
	for _, m := range j.marks {
		n := 0
		for _, h := range holders {
			if siteOf(h) == m && h.Held > r.LeakThreshold+margin/2 && !slices.ContainsFunc(toldOf, func(c baldur.ConnectionInfo) bool { return same(c, h) }) {
				n++
			}
		}
		if n > 0 {
			j.untold[m] = n
		} else if slices.ContainsFunc(holders, func(h baldur.ConnectionInfo) bool { return siteOf(h) == m }) {
			delete(j.untold, m)
		}
	}
}

// account notes what the ctxs of the program have ended, after it.
func (j *judge) account(t *baldur.Tracker) {
	if j.view.ended == nil {
		return
	}
	ended, notClosed := j.view.ended(t)
	for at, n := range ended {
		j.ended[at] += n
	}
	for at, n := range notClosed {
		if n > 0 {
			j.notClosed[at] += n
		}
	}
}

// same tells whether two are of one checkout.
func same(a, b baldur.ConnectionInfo) bool {
	return a.ConnectionID == b.ConnectionID && a.AcquiredAt.Equal(b.AcquiredAt)
}

func (j *judge) fault(format string, args ...any) {
	j.faults = append(j.faults, fmt.Sprintf(format, args...))
}

// wrong says what is against the rules; nil if nothing is.
func (j *judge) wrong() (all []string) {
	all = slices.Clone(j.faults)
	if j.kind == leaks || j.kind == stuck {
		for _, m := range j.marks {
			if j.found[m] == "" {
				all = append(all, fmt.Sprintf("not found: the leak at %v", m))
			} else if n := j.untold[m]; n > 0 {
				all = append(all, fmt.Sprintf("of the leaks at %v the last report does not tell of %d", m, n))
			}
		}
	}
	if j.kind == piles && !j.piled {
		all = append(all, "its open statements are not told")
	}
	if j.kind == heals && j.view.ended != nil {
		for _, m := range j.marks {
			if j.ended[m] == 0 {
				all = append(all, fmt.Sprintf("not counted as ended by its ctx: %v", m))
			}
		}
	}
	for at, n := range j.notClosed {
		if !slices.Contains(j.marks, at) {
			all = append(all, fmt.Sprintf("said %d times to be not closed, and is closed: %v", n, at))
		}
	}
	if j.kind != told {
		for what, n := range j.accused {
			all = append(all, fmt.Sprintf("accused in %d reports, and is no leak: %s", n, what))
		}
	}
	slices.Sort(all)
	return all
}

// says is the judgement in a word or two, for the table.
func (j *judge) says() string {
	if w := j.wrong(); len(w) > 0 {
		return "**wrong**"
	}
	var words []string
	add := func(w string) {
		if !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	if j.piled {
		add("open statements")
	}
	for _, m := range j.marks {
		if v := j.found[m]; v != "" {
			add(v)
		}
		if j.kind == heals && j.notClosed[m] > 0 {
			add("not closed")
		} else if j.kind == heals && j.ended[m] > 0 {
			add("ended by its ctx")
		}
	}
	for _, innocent := range []map[string]int{j.accused, j.suspect} {
		for what := range innocent {
			verdict, _, _ := strings.Cut(what, " ")
			if j.kind == leaks || j.kind == stuck {
				verdict = "(another: " + verdict + ")"
			}
			add(verdict)
		}
	}
	if len(words) == 0 {
		return "–"
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

// siteOf is the call site of a holder as a line of the corpus.
func siteOf(c baldur.ConnectionInfo) line { return lineOf(c.CallSite()) }

func lineOf(f baldur.Frame) line {
	return line{path.Base(strings.ReplaceAll(f.File, `\`, "/")), f.Line}
}
