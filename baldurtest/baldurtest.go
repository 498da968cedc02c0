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
// A leak on t.Context() is not found: that ctx ends before clean-ups run, and
// database/sql takes back what was taken with it. Only a [sql.Conn] stays. A test
// that is to find such leaks gives the code context.WithoutCancel(t.Context()).
package baldurtest

import (
	"database/sql"
	"fmt"
	"io"
	"os"
	"regexp"
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
// A connection that is out is given 2 s to come back; nothing is waited for
// where none is out. A db that is not tracked by baldur fails the test.
func VerifyNone(t TestingT, db *sql.DB) {
	t.Helper()
	tr := baldur.TrackerOf(db)
	if tr == nil {
		t.Errorf("baldurtest: this *sql.DB is not tracked: open it with sql.Open(%q, …) or baldur.OpenDB", baldur.DriverName)
		return
	}
	before := look(tr)
	t.Cleanup(func() {
		t.Helper()
		if found := find(tr, before, time.Now().Add(grace)); found != "" {
			t.Errorf("%s", found)
		}
	})
}

// VerifyTestMain runs the tests of a package and then fails if any tracked pool
// of the process still has a connection out, a closed pool included. Use it as
//
//	func TestMain(m *testing.M) { baldurtest.VerifyTestMain(m) }
//
// It calls os.Exit with the status of the tests, or 1 if they passed and there
// are leaks, which it lists on standard error.
func VerifyTestMain(m interface{ Run() int }) { os.Exit(verify(m, os.Stderr)) }

func verify(m interface{ Run() int }, stderr io.Writer) int {
	status := m.Run()
	end := time.Now().Add(grace)
	for _, tr := range baldur.Trackers() {
		if found := find(tr, state{}, end); found != "" {
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
}

func look(tr *baldur.Tracker) state {
	return state{tr.Holders(), max(0, tr.Report().Unattributed)}
}

// since is what is in s and was not in before.
func (s state) since(before state) state {
	holders := slices.DeleteFunc(s.holders, func(h baldur.ConnectionInfo) bool {
		return slices.ContainsFunc(before.holders, func(b baldur.ConnectionInfo) bool {
			return b.ConnectionID == h.ConnectionID && b.AcquiredAt.Equal(h.AcquiredAt)
		})
	})
	return state{holders, max(0, s.unattributed-before.unattributed)}
}

// find waits until end for the connections to come back that were not out before,
// and lists those that do not; "" if all have.
func find(tr *baldur.Tracker, before state, end time.Time) string {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		now := look(tr).since(before)
		if len(now.holders) == 0 && now.unattributed == 0 {
			return ""
		}
		if left := time.Until(end); left > 0 {
			time.Sleep(min(wait, left))
			continue
		}
		return describe(tr.PoolName(), now.holders, now.unattributed)
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

func describe(pool string, holders []baldur.ConnectionInfo, unattributed int) string {
	var b strings.Builder
	n := len(holders) + unattributed
	fmt.Fprintf(&b, "baldurtest: connections left out of %s: %d", nameOf(pool), n)
	for _, h := range holders {
		site := h.CallSite()
		fmt.Fprintf(&b, "\n  %s:%d: %s: %s, held for %s, %s", text.Clean(site.File), site.Line, text.Clean(site.Function), h.Kind, text.Short(h.Held), h.Doing())
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
	if unattributed > 0 {
		fmt.Fprintf(&b, "\n  and %d that cannot be seen: taken by DB.Conn and never used", unattributed)
	}
	return b.String()
}
