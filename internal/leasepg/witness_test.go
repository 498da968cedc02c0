package leasepg

import (
	"database/sql"
	"math/rand/v2"
	"strconv"
	"testing"

	_ "github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/lease"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestNextEpoch: the statement and package lease give the same epoch.
func TestNextEpoch(t *testing.T) {
	db, err := sql.Open("postgres", pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	orNull := func(n int64) string {
		if n == 0 {
			return "NULL"
		}
		return pgsql.Int(n)
	}
	// As witness.go reads a row: NULL is 0.
	check := func(row lease.Row, floor int64) {
		t.Helper()
		query := pgsql.Fill("SELECT "+nextEpoch+" FROM (SELECT {epoch}::pg_catalog.int8, {given}::pg_catalog.int8, {given_timeline}::pg_catalog.int8) AS l(epoch, system_id, timeline)",
			"{epoch}", pgsql.Int(row.Epoch), "{given}", orNull(row.Given.System), "{given_timeline}", orNull(row.Given.Timeline), "{floor}", pgsql.Int(floor),
			"{system}", pgsql.Int(row.Witness.System)+"::pg_catalog.int8", "{timeline}", pgsql.Int(row.Witness.Timeline)+"::pg_catalog.int8",
			"{shift}", strconv.Itoa(lease.TimelineShift)+"::pg_catalog.int4")
		var got int64
		if err := db.QueryRow(query).Scan(&got); err != nil {
			t.Fatal(err, query)
		}
		if want := row.NextEpoch(floor); got != want {
			t.Errorf("%+v above %d: the server says %d, and package lease %d", row, floor, got, want)
		}
	}
	given := []lease.Server{{}, {System: 7, Timeline: 1}, {System: 7, Timeline: 2}, {System: 7, Timeline: 9}, {System: 7}, {System: 7, Timeline: -1}, {System: 8, Timeline: 1}, {System: -8, Timeline: 3}, {Timeline: 2}}
	for _, g := range given {
		for _, timeline := range []int64{1, 2, 3, 9} {
			for _, epoch := range []int64{0, 1, 5, 1 << lease.TimelineShift, 1<<lease.TimelineShift + 3, 9<<lease.TimelineShift + 1<<31, 20 << lease.TimelineShift} {
				floor := []int64{0, epoch + rand.Int64N(10), rand.Int64N(30 << lease.TimelineShift)}[rand.IntN(3)]
				check(lease.Row{Witness: lease.Server{System: 7, Timeline: timeline}, Given: g, Epoch: epoch}, floor)
			}
		}
	}
}
