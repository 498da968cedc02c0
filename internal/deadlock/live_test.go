package deadlock

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/baldur-go/baldur/internal/sqlpool"
	"github.com/baldur-go/baldur/internal/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The tests below find deadlocks of real pools by the detector.

type null struct{}

func (null) Connect(context.Context) (driver.Conn, error) { return null{}, nil }
func (null) Driver() driver.Driver                        { return nil }
func (null) Prepare(string) (driver.Stmt, error)          { return nil, errors.New("null") }
func (null) Begin() (driver.Tx, error)                    { return nil, errors.New("null") }
func (null) Close() error                                 { return nil }

// A bank is pools whose holders are known.
type bank struct {
	dbs      []*sql.DB
	detector Detector
	wg       sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	n       uint64
	holders []map[uint64]stack.G
}

func newBank(t *testing.T, sizes ...int) *bank {
	b := &bank{}
	for _, n := range sizes {
		db := sql.OpenDB(null{})
		db.SetMaxOpenConns(n)
		t.Cleanup(func() { _ = db.Close() })
		b.dbs = append(b.dbs, db)
		b.holders = append(b.holders, map[uint64]stack.G{})
	}
	return b
}

// with takes a connection of a pool, for as long as f runs.
func (b *bank) with(ctx context.Context, pool int, f func()) {
	c, err := b.dbs[pool].Conn(ctx)
	if err != nil {
		return
	}
	id := b.hold(pool)
	f()
	b.mu.Lock()
	delete(b.holders[pool], id)
	b.mu.Unlock()
	_ = c.Close()
}

func (b *bank) hold(pool int) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	b.holders[pool][b.n] = stack.CurrentG()
	return b.n
}

func (b *bank) look() (pools []Pool[*sql.DB]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, db := range b.dbs {
		s, ok := sqlpool.Read(db)
		p := Pool[*sql.DB]{ID: db, Full: ok && s.Waiting > 0 && s.InUse() == s.MaxOpen, Unknown: s.InUse() - len(b.holders[i])}
		for id := uint64(1); id <= b.n; id++ {
			if g, ok := b.holders[i][id]; ok {
				p.Holders = append(p.Holders, Holder{id, []User{{g.ID(), g.State() == stack.Exited}}})
			}
		}
		pools = append(pools, p)
	}
	return pools
}

// find looks twice, as the detector asks.
func (b *bank) find() []Deadlock[*sql.DB] {
	b.detector.Look(time.Now(), b.look, func(int64) bool { return true })
	time.Sleep(Patience) // which is what it measures
	return b.detector.Look(time.Now(), b.look, func(int64) bool { return true })
}

// TestLive: the shapes of the design's facts, made of real pools.
func TestLive(t *testing.T) {
	nop := func() {}
	for _, c := range []struct {
		name                   string
		sizes                  []int
		run                    func(ctx context.Context, b *bank)
		pools, waiting, exited int
		victims                int
	}{
		{"nested in a transaction", []int{1}, func(ctx context.Context, b *bank) {
			b.wg.Go(func() { b.with(ctx, 0, func() { b.with(ctx, 0, nop) }) })
		}, 1, 1, 0, 0},
		{"nested in every worker, and victims", []int{4, 1}, func(ctx context.Context, b *bank) {
			var ready sync.WaitGroup
			ready.Add(4)
			for range 4 {
				b.wg.Go(func() { b.with(ctx, 0, func() { ready.Done(); ready.Wait(); b.with(ctx, 0, nop) }) })
			}
			for range 3 {
				b.wg.Go(func() { ready.Wait(); b.with(ctx, 0, nop) })
			}
		}, 1, 4, 0, 3},
		{"two connections and a third", []int{2}, func(ctx context.Context, b *bank) {
			b.wg.Go(func() { b.with(ctx, 0, func() { b.with(ctx, 0, func() { b.with(ctx, 0, nop) }) }) })
		}, 1, 2, 0, 0},
		{"crossed", []int{1, 1}, func(ctx context.Context, b *bank) {
			var ready sync.WaitGroup
			ready.Add(2)
			for i := range 2 {
				b.wg.Go(func() { b.with(ctx, i, func() { ready.Done(); ready.Wait(); b.with(ctx, 1-i, nop) }) })
			}
		}, 2, 2, 0, 0},
		{"a ring of three, and a victim", []int{1, 1, 1}, func(ctx context.Context, b *bank) {
			var ready sync.WaitGroup
			ready.Add(3)
			for i := range 3 {
				b.wg.Go(func() { b.with(ctx, i, func() { ready.Done(); ready.Wait(); b.with(ctx, (i+1)%3, nop) }) })
			}
			b.wg.Go(func() { ready.Wait(); b.with(ctx, 2, nop) })
		}, 3, 3, 0, 1},
		{"a leak, and nested", []int{2}, func(ctx context.Context, b *bank) {
			var left sync.WaitGroup
			left.Go(func() {
				c, err := b.dbs[0].Conn(ctx)
				if err == nil {
					b.hold(0)
					context.AfterFunc(ctx, func() { _ = c.Close() })
				}
			})
			left.Wait()
			b.wg.Go(func() { b.with(ctx, 0, func() { b.with(ctx, 0, nop) }) })
		}, 1, 1, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.exited > 0 && !stack.Self().Liveness {
				t.Skip("whether a goroutine has exited cannot be told: ", stack.Self().Reason)
			}
			ctx, cancel := context.WithCancel(context.Background())
			b := newBank(t, c.sizes...)
			defer b.wg.Wait()
			defer cancel()
			c.run(ctx, b)
			began := time.Now()
			var found []Deadlock[*sql.DB]
			for time.Since(began) < 20*time.Second {
				if found = b.find(); len(found) > 0 && len(found[0].Victims) == c.victims {
					break
				}
			}
			t.Log("found after ", time.Since(began))
			if len(found) != 1 {
				t.Fatal(found)
			}
			waiting, exited := 0, 0
			for _, h := range found[0].Held {
				if h.Waits {
					waiting++
				} else {
					exited++
				}
			}
			if len(found[0].Pools) != c.pools || waiting != c.waiting || exited != c.exited || len(found[0].Victims) != c.victims {
				t.Errorf("%+v", found)
			}
		})
	}
}

// TestLiveSlow: pools that are full for long, with holders that take another connection
// in an order that cannot lock up, are never told.
func TestLiveSlow(t *testing.T) {
	const schedules = 8
	for range schedules {
		t.Run("", func(t *testing.T) {
			b := newBank(t, 1, 2, 1)
			ctx, cancel := context.WithCancel(context.Background())
			defer b.wg.Wait()
			defer cancel()
			for range 12 {
				b.wg.Go(func() {
					for ctx.Err() == nil {
						first := rand.IntN(3)
						b.with(ctx, first, func() {
							time.Sleep(rand.N(250 * time.Millisecond))
							if first < 2 {
								b.with(ctx, first+1, func() { time.Sleep(rand.N(250 * time.Millisecond)) })
							}
						})
					}
				})
			}
			t.Parallel()
			for began := time.Now(); time.Since(began) < 2*time.Second; {
				if found := b.find(); len(found) > 0 {
					t.Errorf("%+v", found)
				}
			}
		})
	}
}

// TestGivenBackMeanwhile: where the holder is another one after the dump than before it,
// nothing is told, whatever the dump has shown.
func TestGivenBackMeanwhile(t *testing.T) {
	b := newBank(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer b.wg.Wait()
	defer cancel()
	b.wg.Go(func() { b.with(ctx, 0, func() { b.with(ctx, 0, func() {}) }) })
	for deadline := time.Now().Add(20 * time.Second); len(b.find()) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the deadlock itself is not found")
		}
	}
	var d Detector
	looks := 0
	look := func() []Source {
		looks++
		pools := b.look()
		if looks == 3 { // after the dump
			pools[0].Holders[0].ID++
		}
		return pools
	}
	for deadline := time.Now().Add(20 * time.Second); looks < 3; {
		if found := d.Look(time.Now(), look, func(int64) bool { return true }); len(found) > 0 {
			t.Fatalf("told: %+v", found)
		}
		if looks == 2 { // no dump yet
			looks = 1
		}
		if time.Now().After(deadline) {
			t.Fatal("no dump")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
