// Package baldurtest finds connections that a test has leaked.
//
//	func TestOrders(t *testing.T) {
//		db := open(t) // *sql.DB on "baldur-pq", or from baldur.OpenDB
//		baldurtest.VerifyNone(t, db)
//		…
//	}
//
// looks at the end of the test, and fails it if a connection is still out of
// the pool: with the line that took it, and what it was doing. It looks at one
// pool, so tests that have a pool of their own may run in parallel. For all the
// tests of a package at once there is [VerifyTestMain].
//
// A leak on t.Context() is not found: that ctx ends before clean-ups run.
package baldurtest

import (
	"database/sql"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/baldur-go/baldur"
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
// pool. Call it at the start, before anything that is to be cleaned up is made:
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
	t.Cleanup(func() {
		t.Helper()
		if found := find(tr, time.Now().Add(grace)); found != "" {
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
		if found := find(tr, end); found != "" {
			fmt.Fprintln(stderr, found)
			status = max(status, 1)
		}
	}
	return status
}

// find waits until end for the connections to come back and lists those that
// do not; "" if all have.
func find(tr *baldur.Tracker, end time.Time) string {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		holders, unattributed := tr.Holders(), tr.Report().Unattributed
		if len(holders) == 0 && unattributed <= 0 {
			return ""
		}
		if left := time.Until(end); left > 0 {
			time.Sleep(min(wait, left))
			continue
		}
		return describe(tr.PoolName(), holders, unattributed)
	}
}

func describe(pool string, holders []baldur.ConnectionInfo, unattributed int) string {
	var b strings.Builder
	n := len(holders) + max(0, unattributed)
	fmt.Fprintf(&b, "baldurtest: connections left out of pool %s: %d", pool, n)
	for _, h := range holders {
		site := h.CallSite()
		fmt.Fprintf(&b, "\n  %s:%d: %s: %s, held for %s, %s", site.File, site.Line, site.Function, h.Kind, h.Held.Round(time.Millisecond), h.Doing())
		if h.QueryInfo != "" {
			fmt.Fprintf(&b, "\n      %.200s", h.QueryInfo)
		}
	}
	if unattributed > 0 {
		fmt.Fprintf(&b, "\n  and %d that cannot be seen: taken by DB.Conn and never used", unattributed)
	}
	return b.String()
}
