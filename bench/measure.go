package main

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// An op is one operation. make prepares a pool and returns the operation, for
// one goroutine.
type op struct {
	name string
	make func(db *sql.DB) (func() error, error)
}

var (
	opExec = op{"Exec", func(db *sql.DB) (func() error, error) {
		return func() error { _, err := db.Exec("SELECT 1"); return err }, nil
	}}
	opQuery = op{"Query", func(db *sql.DB) (func() error, error) {
		return func() error {
			rows, err := db.Query("SELECT 1")
			if err != nil {
				return err
			}
			for rows.Next() {
			}
			return rows.Close()
		}, nil
	}}
	opQueryRow = op{"QueryRow", func(db *sql.DB) (func() error, error) {
		var n int64
		return func() error { return db.QueryRow("SELECT 1").Scan(&n) }, nil
	}}
	opTx = op{"Tx", func(db *sql.DB) (func() error, error) {
		return func() error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			if _, err := tx.Exec("SELECT 1"); err != nil {
				return err
			}
			return tx.Commit()
		}, nil
	}}
	opPrepared = op{"prepared Exec", func(db *sql.DB) (func() error, error) {
		st, err := db.Prepare("SELECT 1")
		if err != nil {
			return nil, err
		}
		return func() error { _, err := st.Exec(); return err }, nil
	}}
)

// A setting is a place to measure in.
type setting struct {
	op         op
	depth      int // frames of the application above database/sql
	goroutines int
	sites      int // call paths, taken in random order; 0: one, with no call between the loop and the operation
}

// A runner is one variant in one setting.
type runner struct {
	setting
	settle  func()
	db      *sql.DB
	ops     []func() error
	paths   [][]uint8
	n       int  // operations in a block
	inOrder bool // the call sites one after the other, not at random
}

func newRunner(v variant, t target, s setting, pool int) (*runner, error) {
	db, err := v.open(t)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.name, err)
	}
	// Without it database/sql keeps two idle ones, and the others come and go.
	db.SetMaxOpenConns(pool)
	db.SetMaxIdleConns(pool)
	r := &runner{setting: s, settle: v.settle, db: db}
	for range s.goroutines {
		f, err := s.op.make(db)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
		r.ops = append(r.ops, f)
	}
	if s.sites > 0 {
		r.paths = sitePaths(s.sites)
	}
	return r, nil
}

// calibrate sets n so that a block takes about d, and visits each call site.
func (r *runner) calibrate(d time.Duration) {
	r.n = max(1, len(r.paths)) * r.goroutines
	r.inOrder = true
	r.time(measureWall)
	r.inOrder = false
	for {
		took := r.time(measureWall)
		if took >= d/2 || r.n > 1<<24 {
			r.n = max(r.goroutines, int(float64(r.n)*float64(d)/float64(took)))
			return
		}
		r.n *= 2
	}
}

// time runs a block and returns what it used of what the meter counts. Each
// goroutine is started anew and has done a tenth of its share before the block
// begins, from the same line: another one would be another call site. They begin
// when all are there. If there is a core for each they spin until then: one that
// sleeps may be woken when the others have ended, and nothing was concurrent.
func (r *runner) time(meter func() time.Duration) time.Duration {
	var arrived atomic.Int32
	spin := r.goroutines <= runtime.GOMAXPROCS(0)
	start := make(chan struct{})
	var done sync.WaitGroup
	begin, end := make([]time.Duration, r.goroutines), make([]time.Duration, r.goroutines)
	share := r.n / r.goroutines
	for g, f := range r.ops {
		done.Go(func() {
			descend(r.depth-1, func([]uint8, *steps) { // the closure is a frame, too
				for i, n := range [...]int{share/10 + 1, share} {
					if i == 1 {
						if int(arrived.Add(1)) == r.goroutines {
							close(start)
						}
						for spin && int(arrived.Load()) < r.goroutines {
							runtime.Gosched()
						}
						<-start
						begin[g] = meter()
					}
					r.loop(f, n)
				}
				end[g] = meter()
			})
		})
	}
	done.Wait()
	if r.settle != nil {
		r.settle()
	}
	return slices.Max(end) - slices.Min(begin)
}

func (r *runner) loop(f func() error, n int) {
	if r.paths == nil {
		for range n {
			check(f())
		}
		return
	}
	t := leadingTo(func([]uint8, *steps) { check(f()) })
	rng := rand.Uint32()
	mask := uint32(len(r.paths) - 1)
	for i := range n {
		rng = rng*1664525 + 1013904223
		at := rng >> 16
		if r.inOrder {
			at = uint32(i)
		}
		path := r.paths[at&mask]
		t[path[0]](path[1:], t)
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// A result is one variant in one setting.
type result struct {
	variant       string
	added         interval // ns for each operation, over raw
	ratio         interval // to raw
	perOp         float64  // ns
	bytes, allocs int
}

// interval is a median with its 95 % confidence interval.
type interval struct{ lo, mid, hi float64 }

// effort is how much is measured.
type effort struct {
	rounds int
	block  time.Duration
}

// compare measures all variants side by side: in each round every one runs a
// short block, in random order, and is compared with the bare driver's block of
// the same round. What disturbs a round, a neighbour or a slower clock, disturbs
// its blocks alike or falls out with the median.
func compare(ctx context.Context, vs []variant, t target, s setting, pool int, e effort, meter func() time.Duration) ([]result, error) {
	runners := make([]*runner, len(vs))
	for i, v := range vs {
		r, err := newRunner(v, t, s, pool)
		if err != nil {
			return nil, err
		}
		defer r.db.Close()
		r.calibrate(e.block * time.Duration(min(s.goroutines, 16))) // not over before they meet
		runners[i] = r
	}
	perOp := make([][]float64, len(vs)) // by variant and round
	for range e.rounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for _, i := range rand.Perm(len(runners)) {
			perOp[i] = append(perOp[i], float64(runners[i].time(meter))/float64(runners[i].n/s.goroutines*s.goroutines))
		}
	}
	results := make([]result, len(vs))
	for i, v := range vs {
		var added, ratio []float64
		for round, x := range perOp[i] {
			raw := perOp[0][round]
			added = append(added, x-raw)
			ratio = append(ratio, x/raw)
		}
		results[i] = result{variant: v.name, added: median(added), ratio: median(ratio), perOp: median(perOp[i]).mid}
		results[i].bytes, results[i].allocs = runners[i].memory()
	}
	return results, nil
}

// memory returns what an operation allocates. The least of some looks, since
// other goroutines allocate, too.
func (r *runner) memory() (bytes, allocs int) {
	r.n = max(1000, 16*r.goroutines)
	read := func(field func(*runtime.MemStats) uint64) int {
		least := time.Duration(math.MaxInt64)
		for range 3 {
			least = min(least, r.time(func() time.Duration {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return time.Duration(field(&m))
			}))
		}
		return int(least) / r.n
	}
	return read(func(m *runtime.MemStats) uint64 { return m.TotalAlloc }),
		read(func(m *runtime.MemStats) uint64 { return m.Mallocs })
}

// median returns the median and, from the order of the values alone, its 95 %
// confidence interval: the number of values below the true median is binomial
// (the method of benchstat).
func median(values []float64) interval {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	mid := v[n/2]
	if n%2 == 0 {
		mid = (v[n/2-1] + mid) / 2
	}
	k := int((float64(n) - 1.96*math.Sqrt(float64(n))) / 2)
	k = min(max(k, 0), n-1)
	return interval{v[k], mid, v[n-1-k]}
}

var started = time.Now()

func measureWall() time.Duration { return time.Since(started) }
