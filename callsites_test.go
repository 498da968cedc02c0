package baldur_test

import (
	"database/sql"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baldur-go/baldur"
)

// holdSites are call sites that hold a connection of a pool for d.
var holdSites = []func(db *sql.DB, d time.Duration) error{holdTx, holdConn, holdRows}

//go:noinline
func holdTx(db *sql.DB, d time.Duration) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	time.Sleep(d)
	return tx.Rollback()
}

//go:noinline
func holdConn(db *sql.DB, d time.Duration) error {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	if err := c.PingContext(ctx); err != nil { // else one from the connectionOpener is not seen
		return err
	}
	time.Sleep(d)
	return c.Close()
}

//go:noinline
func holdRows(db *sql.DB, d time.Duration) error {
	rows, err := db.Query("SELECT 1")
	if err != nil {
		return err
	}
	time.Sleep(d)
	return rows.Close()
}

var holdNames = []string{"holdTx", "holdConn", "holdRows"}

// TestHoldsExact: whatever goes on, the hold times of a call site are those that
// were, in number and in sum. Records gather them; connections and pools close
// meanwhile, and others look on.
func TestHoldsExact(t *testing.T) {
	const pools, workers, ops, rounds = 2, 6, 40, 10
	type total struct {
		n   uint64
		sum time.Duration
	}
	look := func() (all [3]total) {
		for i, name := range holdNames {
			all[i].n, all[i].sum = baldur.HoldsOf("github.com/baldur-go/baldur_test." + name)
		}
		return all
	}
	synctest.Test(t, func(t *testing.T) {
		var n, sum [3]atomic.Int64
		before := look() // with -count
		check := func(round int, when string) {
			t.Helper()
			for i, got := range look() {
				want := total{before[i].n + uint64(n[i].Load()), before[i].sum + time.Duration(sum[i].Load())}
				if got != want {
					t.Errorf("round %d, %s: %s: %d holds of %v in all, want %d of %v", round, when, holdNames[i], got.n, got.sum, want.n, want.sum)
				}
			}
		}
		for round := range rounds {
			var dbs [pools]*sql.DB
			for i := range dbs {
				dbs[i] = baldur.OpenDB(&fakeDB{})
				dbs[i].SetMaxOpenConns(4)
				dbs[i].SetMaxIdleConns(round % 4) // 0 and 1: connections close while others are taken
				dbs[i].SetConnMaxLifetime(time.Duration(round%3) * 50 * time.Millisecond)
			}
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for range ops {
						i := rand.IntN(3)
						d := [...]time.Duration{time.Millisecond, time.Millisecond, 1001 * time.Microsecond, 7 * time.Millisecond}[rand.IntN(4)]
						if err := holdSites[i](dbs[rand.IntN(pools)], d); err != nil {
							t.Error(err)
						}
						n[i].Add(1)
						sum[i].Add(int64(d))
					}
				})
			}
			done := make(chan struct{})
			wg.Go(func() { // looks on: counts only rise
				last := look()
				for {
					now := look()
					for i := range now {
						if now[i].n < last[i].n || now[i].sum < last[i].sum {
							t.Errorf("%s: from %+v to %+v", holdNames[i], last[i], now[i])
						}
					}
					last = now
					select {
					case <-done:
						return
					case <-time.After(500 * time.Microsecond):
					}
				}
			})
			time.Sleep(50 * time.Millisecond)
			close(done)
			wg.Wait()
			if round%2 == 0 { // else nobody looks before they are closed
				check(round, "pools open")
			}
			for _, db := range dbs {
				_ = db.Close()
			}
			check(round, "pools closed")
		}
	})
}

// TestHoldsSpread: each hold is counted where it belongs, one connection or several.
func TestHoldsSpread(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		_ = db.Ping()                         // the first checkout takes another path
		hold := func(d time.Duration) error { // a line of its own
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			time.Sleep(d)
			return tx.Rollback()
		}
		for i := range 100 {
			d := time.Millisecond
			if i%10 > 7 {
				d = time.Minute
			}
			if err := hold(d); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range baldur.CallSites() {
			if !strings.Contains(s.CallSite().Function, "TestHoldsSpread") {
				continue
			}
			if s.Returned%100 != 0 || s.P50 < 800*time.Microsecond || s.P50 > 1200*time.Microsecond || s.P99 < 48*time.Second || s.P99 > 72*time.Second {
				t.Errorf("80 holds of 1ms and 20 of 1m: %d, half of them up to %v, 99 %% up to %v", s.Returned, s.P50, s.P99)
			}
			return
		}
		t.Error("the call site is missing")
	})
}
