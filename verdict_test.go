package baldur_test

import (
	"database/sql"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
)

// TestVerdicts: at every moment each holder has one verdict, which Holders and the
// lists of a report agree on.
func TestVerdicts(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		seen := map[baldur.Verdict]int{}
		check := func() {
			r := tr.Report()
			of := map[int64]baldur.Verdict{}
			for _, c := range r.SuspectedLeaks {
				of[c.ConnectionID] = baldur.VerdictSuspected
			}
			for _, c := range r.LongHeld {
				of[c.ConnectionID] = baldur.VerdictLongHeld
			}
			for _, c := range append(append(tr.Holders(), r.SuspectedLeaks...), r.LongHeld...) {
				want, ok := of[c.ConnectionID]
				if !ok {
					want = baldur.VerdictInUse
				}
				if c.Verdict != want {
					t.Errorf("connection %d, held for %v, is %q, and listed as %q", c.ConnectionID, c.Held, c.Verdict, want)
				}
				seen[c.Verdict]++
			}
		}
		leaked, used, labelled := must(db.Conn(ctx)), must(db.Conn(ctx)), must(db.Conn(ctx))
		defer leaked.Close()
		defer used.Close()
		defer labelled.Close()
		if err := baldur.Label(labelled, "listener"); err != nil {
			t.Fatal(err)
		}
		for range 40 {
			check()
			pass(500 * time.Millisecond)
			must(used.ExecContext(ctx, "x"))
		}
		check()
		for _, v := range []baldur.Verdict{baldur.VerdictInUse, baldur.VerdictLongHeld, baldur.VerdictSuspected} {
			if seen[v] == 0 {
				t.Errorf("none is %q", v)
			}
		}
	})
}
