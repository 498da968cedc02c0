package baldur_test

import (
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
)

// captureModes are the modes, by their names in a DSN.
var captureModes = []struct {
	name string
	mode baldur.Capture
}{{"full", baldur.CaptureFull}, {"sites", baldur.CaptureSites}, {"off", baldur.CaptureOff}}

// TestCapture: in each mode leaks are found; what is not noted is told as
// unknown, and modes change at run time.
func TestCapture(t *testing.T) {
	returned := func() (n uint64) {
		for _, s := range baldur.CallSites() {
			if len(s.StackTrace) > 0 && strings.HasSuffix(s.StackTrace[0].Function, "TestCapture.func2") {
				n += s.Returned
				if s.Kind != baldur.KindTx || s.P50 < 15*time.Second || s.P99 > 25*time.Second {
					t.Errorf("%+v, of checkouts of 20 s", s)
				}
			}
		}
		return n
	}
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		for _, c := range []struct {
			mode        baldur.Capture
			site, holds bool
		}{
			{baldur.CaptureFull, true, true},
			{baldur.CaptureSites, true, false},
			{baldur.CaptureOff, false, false},
			{baldur.CaptureFull, true, true},
			{99, false, false},
		} {
			tr.SetCapture(c.mode)
			before := returned()
			tx := must(db.Begin())
			must(tx.Exec("UPDATE"))
			time.Sleep(20 * time.Second)
			r := tr.Report()
			if r.LeakCount() != 1 || r.SuspectedLeaks[0].Kind != baldur.KindTx || r.SuspectedLeaks[0].QueryInfo != "UPDATE" {
				t.Errorf("mode %d:\n%s", c.mode, r)
			}
			if site := r.SuspectedLeaks[0].CallSite(); strings.Contains(site.Function, "TestCapture") != c.site || (site.Function == "unknown") == c.site {
				t.Errorf("mode %d: taken at %v", c.mode, site)
			}
			_ = tx.Rollback()
			if n := returned() - before; (n == 1) != c.holds {
				t.Errorf("mode %d: %d holds recorded", c.mode, n)
			}
		}
	})
}

// TestLabel: an expected holder is named, and not accused.
func TestLabel(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		for range 2 { // fresh, pooled
			c := must(db.Conn(ctx))
			if err := baldur.Label(c, "advisory lock 42"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			r := tr.Report()
			if r.LeakCount() != 0 || len(r.LongHeld) != 1 || r.LongHeld[0].Label != "advisory lock 42" || !strings.Contains(r.String(), "advisory lock 42, held for 1m0s") {
				t.Errorf("labelled:\n%s", r)
			}
			_ = baldur.Label(c, "")
			if r := tr.Report(); r.LeakCount() != 1 {
				t.Errorf("the label taken back:\n%s", r)
			}
			_ = c.Close()
			if err := baldur.Label(c, "x"); err != sql.ErrConnDone {
				t.Errorf("closed: %v", err)
			}
		}
		tx := must(db.Begin())
		defer tx.Rollback()
		time.Sleep(time.Minute)
		if r := tr.Report(); r.LeakCount() != 1 {
			t.Errorf("a label has outlived its checkout:\n%s", r)
		}
	})
	foreign := sql.OpenDB(&fakeDB{})
	defer foreign.Close()
	c := must(foreign.Conn(ctx))
	defer c.Close()
	if err := baldur.Label(c, "x"); err == nil || !strings.Contains(err.Error(), "not tracked") {
		t.Errorf("foreign: %v", err)
	}
}
