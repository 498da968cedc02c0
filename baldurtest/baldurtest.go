// Package baldurtest finds connections that a test has leaked.
//
//	func TestOrders(t *testing.T) {
//		db := open(t) // *sql.DB on "baldur-pq", or from baldur.OpenDB
//		baldurtest.VerifyNone(t, db)
//		…
//	}
//
// looks at the end of the test, and fails it if a connection that was taken since
// is still out of the pool: with the line that took it, what it was doing, what is
// likely missing, and the stack. It looks at one pool, so tests that have a pool of
// their own may run in parallel. For all the tests of a package at once there is
// [VerifyTestMain].
//
// What was taken with a ctx that ends, and not closed, is given back by database/sql. It
// fails the test too, where whoever took it had surely returned: see
// [baldur.ContextEnded], and [AllowNotClosed]. t.Context() ends before clean-ups run, when
// that is often not known. A test that is to find such leaks for certain gives the code
// context.WithoutCancel(t.Context()).
package baldurtest

import (
	"database/sql"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

// TestingT is what VerifyNone needs of a *testing.T.
type TestingT interface {
	Helper()
	Errorf(format string, args ...any)
	Cleanup(func())
}

// How long a connection has to come back before it is called leaked: a
// cancelled transaction or query gives its connection back on a goroutine of
// database/sql's, a moment after the call has returned.
const grace = 2 * time.Second

// VerifyNone makes the test fail if it ends with a connection of db out of the
// pool that was not out at the call, so that a leak fails one test and not all
// that come after it. Call it at the start, before anything that is to be cleaned up is made:
// it looks in a Cleanup, and these run last in, first out.
//
// A connection that is out is given 2 s to come back. Nothing is waited for where none
// is out, or where each is proven to be lost. A db that is not tracked by baldur fails
// the test.
func VerifyNone(t TestingT, db *sql.DB, opts ...Option) {
	t.Helper()
	tr := baldur.TrackerOf(db)
	if tr == nil {
		t.Errorf("baldurtest: this *sql.DB is not tracked: open it with sql.Open(%q, …) or baldur.OpenDB", baldur.DriverName)
		return
	}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	before := look(tr)
	t.Cleanup(func() {
		t.Helper()
		if found := find(tr, before, time.Now().Add(grace), o); found != "" {
			t.Errorf("%s", found)
		}
	})
}

// An Option changes what fails a test.
type Option func(*options)

type options struct{ allowNotClosed bool }

// AllowNotClosed allows what was not closed and has come back because its ctx had ended.
func AllowNotClosed() Option { return func(o *options) { o.allowNotClosed = true } }

// VerifyTestMain runs the tests of a package and then fails if any tracked pool
// of the process still has a connection out, a closed pool included. Use it as
//
//	func TestMain(m *testing.M) { baldurtest.VerifyTestMain(m) }
//
// It calls os.Exit with the status of the tests, or 1 if they passed and there
// are leaks, which it lists on standard error.
func VerifyTestMain(m interface{ Run() int }, opts ...Option) { os.Exit(verify(m, os.Stderr, opts...)) }

func verify(m interface{ Run() int }, stderr io.Writer, opts ...Option) int {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	status := m.Run()
	end := time.Now().Add(grace)
	for _, tr := range baldur.Trackers() {
		if found := find(tr, state{}, end, o); found != "" {
			fmt.Fprintln(stderr, found)
			status = max(status, 1)
		}
	}
	return status
}

// state is who has a pool's connections.
type state struct {
	holders      []baldur.ConnectionInfo
	unattributed int
	ended        []baldur.ContextEnded
}

func look(tr *baldur.Tracker) state {
	return state{tr.Holders(), max(0, tr.Report().Unattributed), tr.ContextEnded()}
}

// since is what is in s and was not in before.
func (s state) since(before state) state {
	holders := slices.DeleteFunc(s.holders, func(h baldur.ConnectionInfo) bool {
		return slices.ContainsFunc(before.holders, func(b baldur.ConnectionInfo) bool {
			return b.ConnectionID == h.ConnectionID && b.AcquiredAt.Equal(h.AcquiredAt)
		})
	})
	var ended []baldur.ContextEnded
	for _, e := range s.ended {
		for _, b := range before.ended {
			if b.CallSite == e.CallSite {
				e.NotClosed -= b.NotClosed
			}
		}
		if e.NotClosed > 0 {
			ended = append(ended, e)
		}
	}
	return state{holders, max(0, s.unattributed-before.unattributed), ended}
}

// find waits until end for the connections to come back that were not out before, and lists
// those that do not, and those that the end of their ctx has brought back; "" if there are none.
func find(tr *baldur.Tracker, before state, end time.Time, o options) string {
	collected := false
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		now := look(tr).since(before)
		if o.allowNotClosed {
			now.ended = nil
		}
		lost := !slices.ContainsFunc(now.holders, func(h baldur.ConnectionInfo) bool { return !h.Verdict.Accuses() })
		if left := time.Until(end); left > 0 && (now.unattributed > 0 || !lost) {
			if !collected { // what nothing refers to is seen after a garbage collection
				collected = true
				runtime.GC()
			}
			time.Sleep(min(wait, left))
			continue
		}
		if len(now.holders) == 0 && now.unattributed == 0 && len(now.ended) == 0 {
			return ""
		}
		return describe(tr.PoolName(), now)
	}
}

// numbered is what tells pools of one name apart: in a run of tests, how many there
// were before.
var numbered = regexp.MustCompile(`#[0-9]+$`)

// nameOf is a pool's name as a test knows it.
func nameOf(pool string) string {
	pool = numbered.ReplaceAllString(pool, "")
	if pool == "pool" { // has no name
		return "the pool"
	}
	return "pool " + pool
}

func describe(pool string, found state) string {
	var b strings.Builder
	n := len(found.holders) + found.unattributed
	if n > 0 {
		fmt.Fprintf(&b, "baldurtest: connections left out of %s: %d", nameOf(pool), n)
	}
	for _, h := range found.holders {
		site := h.CallSite()
		fmt.Fprintf(&b, "\n  %s:%d: %s: %s, held for %s, %s", text.Clean(site.File), site.Line, text.Clean(site.Function), h.Kind, text.Short(h.Held), h.Doing())
		if h.Verdict.Accuses() {
			fmt.Fprintf(&b, "\n      proof: %s", h.Evidence)
		}
		if m := h.LikelyMissing(); m != "" {
			fmt.Fprintf(&b, "\n      likely missing: %s", m)
		}
		if h.QueryInfo != "" {
			fmt.Fprintf(&b, "\n      last: %s", text.OneLine(h.QueryInfo, 200))
		}
		for _, f := range h.StackTrace {
			fmt.Fprintf(&b, "\n      %s\n          %s:%d", text.Clean(f.Function), text.Clean(f.File), f.Line)
		}
	}
	if found.unattributed > 0 {
		fmt.Fprintf(&b, "\n  and %d that cannot be seen: taken by DB.Conn and never used", found.unattributed)
	}
	if len(found.ended) > 0 {
		if n > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "baldurtest: not closed before the ctx ended, in %s:", nameOf(pool))
	}
	for _, e := range found.ended {
		fmt.Fprintf(&b, "\n  %s:%d: %s: %d, held for %s", text.Clean(e.CallSite.File), e.CallSite.Line, text.Clean(e.CallSite.Function), e.NotClosed, text.Short(e.Held))
	}
	return b.String()
}
