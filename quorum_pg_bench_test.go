package baldur_test

import (
	"context"
	"database/sql"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// reportTimes reports the quantiles of times, in units of per.
func reportTimes(b *testing.B, times []time.Duration, per time.Duration, unit string) {
	slices.Sort(times)
	at := func(q float64) float64 { return float64(times[int(q*float64(len(times)-1))]) / float64(per) }
	b.ReportMetric(at(0.5), "p50-"+unit)
	b.ReportMetric(at(0.99), "p99-"+unit)
	b.ReportMetric(at(1), "max-"+unit)
	b.ReportMetric(0, "ns/op")
}

func BenchmarkIsPrimary(b *testing.B) {
	db := openPool(b, pgtest.SocketDSN(b))
	primary, other := newQuorum(b, db, "a"), newQuorum(b, db, "b")
	primary.StartAutoRenew()
	if _, err := primary.AwaitPrimary(testCtx(b)); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		q    *baldur.PGQuorum
		want bool
	}{{"primary", primary, true}, {"other", other, false}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if c.q.IsPrimary() != c.want {
					b.Fatal(!c.want)
				}
			}
		})
	}
	b.Run("clock alone", func(b *testing.B) {
		base := time.Now()
		for b.Loop() {
			_ = time.Since(base)
		}
	})
}

func BenchmarkRenewLease(b *testing.B) {
	q := newQuorum(b, openPool(b, pgtest.DSN(b)), "a")
	mustAcquire(b, q)
	var times []time.Duration
	for b.Loop() {
		began := time.Now()
		if ok, err := q.RenewLease(context.Background()); !ok || err != nil {
			b.Fatal(ok, err)
		}
		times = append(times, time.Since(began))
	}
	reportTimes(b, times, time.Millisecond, "ms")
}

// BenchmarkHandOver is the time from the release of one process to the gain of
// the other, which listens.
func BenchmarkHandOver(b *testing.B) {
	dsn := pgtest.DSN(b)
	gained := make(chan time.Time, 1)
	option := baldur.WithOnAcquired(func(baldur.QuorumLease) { gained <- time.Now() })
	a, other := newQuorum(b, openPool(b, dsn), "a", option), newQuorum(b, openPool(b, dsn), "b", option)
	a.StartAutoRenew()
	<-gained
	other.StartAutoRenew()
	var times []time.Duration
	for b.Loop() {
		for e := range other.Watch(b.Context()) { // until it has heard of the holder
			if e.State == baldur.LeaseHeld && !e.Local {
				break
			}
		}
		time.Sleep(20 * time.Millisecond) // and listens again
		began := time.Now()
		a.StopAutoRenew()
		times = append(times, (<-gained).Sub(began))
		a.StartAutoRenew()
		a, other = other, a
	}
	reportTimes(b, times, time.Millisecond, "ms")
}

// BenchmarkFailover is the time from the crash of the primary, at some moment
// between two renewals, to the gain of another process, in parts of the TTL.
func BenchmarkFailover(b *testing.B) {
	const ttl = time.Second
	for _, c := range []struct {
		name string
		opts []baldur.QuorumOption
	}{{"notify", nil}, {"polling", []baldur.QuorumOption{baldur.WithoutNotify()}}} {
		b.Run(c.name, func(b *testing.B) {
			dsn := pgtest.DSN(b)
			var times []time.Duration
			candidate := newQuorum(b, openPool(b, dsn), "b", append(c.opts, baldur.WithLeaseTTL(ttl))...)
			for b.Loop() {
				holder := newQuorum(b, openPool(b, dsn), "a", baldur.WithLeaseTTL(ttl))
				mustAcquire(b, holder)
				candidate.StartAutoRenew()
				for range 3 { // it lives for some renewals
					time.Sleep(ttl / 4)
					if ok, err := holder.RenewLease(b.Context()); !ok || err != nil {
						b.Fatal(ok, err)
					}
				}
				time.Sleep(time.Duration(rand.Float64() * float64(ttl) / 4))
				crashed := time.Now() // it says nothing more
				if _, err := candidate.AwaitPrimary(b.Context()); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(crashed))
				candidate.StopAutoRenew()
			}
			reportTimes(b, times, ttl, "TTL")
		})
	}
}

// BenchmarkFence is a transaction of one INSERT, without and with each fence.
func BenchmarkFence(b *testing.B) {
	ctx := context.Background()
	db := openPool(b, pgtest.SocketDSN(b))
	mustExec(b, db, "CREATE TABLE payload (epoch bigint)")
	q := newQuorum(b, db, "a", baldur.WithLeaseTTL(time.Minute))
	mustAcquire(b, q)
	for _, c := range []struct {
		name string
		do   func(tx *sql.Tx) error
	}{
		{"none", func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO payload SELECT 1")
			return err
		}},
		{"RequirePrimary", func(tx *sql.Tx) error {
			if _, err := q.RequirePrimary(ctx, tx); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, "INSERT INTO payload SELECT 1")
			return err
		}},
		{"FenceCTE", func(tx *sql.Tx) error { return fences["FenceCTE"](ctx, q, tx) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if i%1000 == 999 {
					if ok, err := q.RenewLease(ctx); !ok || err != nil {
						b.Fatal(ok, err)
					}
				}
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.do(tx); err != nil {
					b.Fatal(err)
				}
				if err := tx.Commit(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
