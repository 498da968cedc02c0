package deadlock

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// by makes the holders of a pool: each is held by one goroutine; a negative one has exited.
func by(goroutines ...int64) (holders []Holder) {
	for i, g := range goroutines {
		holders = append(holders, Holder{ID: uint64(i + 1), Users: []User{{max(g, -g), g < 0}}})
	}
	return holders
}

func full(id string, holders []Holder) Pool[string] {
	return Pool[string]{ID: id, Full: true, Holders: holders}
}

// tell writes deadlocks as "A B: 1 holds A, waits for B; …; 7 waits for A".
func tell(found []Deadlock[string]) string {
	var all []string
	for _, d := range found {
		var parts []string
		for _, h := range d.Held {
			s := fmt.Sprintf("%d holds %s", h.Goroutine, h.Pool)
			if h.Waits {
				s += ", waits for " + h.For
			}
			parts = append(parts, s)
		}
		for _, v := range d.Victims {
			parts = append(parts, fmt.Sprintf("%d waits for %s", v.Goroutine, v.For))
		}
		all = append(all, strings.Join(d.Pools, " ")+": "+strings.Join(parts, "; "))
	}
	return strings.Join(all, " | ")
}

func TestShapes(t *testing.T) {
	type waits = map[int64]string
	for _, c := range []struct {
		name  string
		pools []Pool[string]
		waits waits
		want  string
	}{
		{"nested query in a transaction, of one connection", []Pool[string]{full("A", by(1))}, waits{1: "A"}, "A: 1 holds A, waits for A"},
		{"nested in every worker, with victims", []Pool[string]{full("A", by(1, 2, 3))}, waits{1: "A", 2: "A", 3: "A", 8: "A", 7: "A"},
			"A: 1 holds A, waits for A; 2 holds A, waits for A; 3 holds A, waits for A; 7 waits for A; 8 waits for A"},
		{"a goroutine with two connections", []Pool[string]{full("A", by(1, 1))}, waits{1: "A"}, "A: 1 holds A, waits for A; 1 holds A, waits for A"},
		{"AB-BA", []Pool[string]{full("A", by(1)), full("B", by(2))}, waits{1: "B", 2: "A"}, "A B: 1 holds A, waits for B; 2 holds B, waits for A"},
		{"ring of three", []Pool[string]{full("A", by(1)), full("B", by(2)), full("C", by(3))}, waits{1: "B", 2: "C", 3: "A", 9: "B"},
			"A B C: 1 holds A, waits for B; 2 holds B, waits for C; 3 holds C, waits for A; 9 waits for B"},
		{"leak plus nested", []Pool[string]{full("A", by(-1, 2))}, waits{2: "A"}, "A: 1 holds A; 2 holds A, waits for A"},
		{"holders that wait for a deadlock", []Pool[string]{full("B", by(2)), full("A", by(1))}, waits{1: "A", 2: "A"}, "B A: 2 holds B, waits for A; 1 holds A, waits for A"},
		{"two of them", []Pool[string]{full("B", by(2)), full("A", by(1))}, waits{1: "A", 2: "B", 3: "A"}, "B: 2 holds B, waits for B | A: 1 holds A, waits for A; 3 waits for A"},
		{"taken by one, used by another", []Pool[string]{full("A", []Holder{{1, []User{{5, true}, {1, false}}}})}, waits{1: "A"}, "A: 1 holds A, waits for A"},

		{"nobody waits in it", []Pool[string]{full("A", by(1, 2))}, waits{3: "A"}, ""},
		{"a slow holder", []Pool[string]{full("A", by(1, 2))}, waits{1: "A", 3: "A"}, ""},
		{"all have exited", []Pool[string]{full("A", by(-1, -2))}, waits{3: "A"}, ""},
		{"waits for a pool whose holder has exited", []Pool[string]{full("A", by(-1)), full("B", by(2))}, waits{2: "A", 3: "B"}, ""},
		{"AB-BA, and B has another holder", []Pool[string]{full("A", by(1)), full("B", by(2, 3))}, waits{1: "B", 2: "A"}, ""},
		{"AB-BA, and B has room", []Pool[string]{full("A", by(1)), {ID: "B", Holders: by(2)}}, waits{1: "B", 2: "A"}, ""},
		{"a connection is being dialled", []Pool[string]{{ID: "A", Full: true, Unknown: 1, Holders: by(1)}}, waits{1: "A"}, ""},
		{"for a pool that is not known", []Pool[string]{full("A", by(1))}, waits{1: ""}, ""},
		{"the one that took it goes on", []Pool[string]{full("A", []Holder{{1, []User{{5, false}, {1, false}}}})}, waits{1: "A"}, ""},
		{"no user is known", []Pool[string]{full("A", []Holder{{ID: 1}, by(2)[0]})}, waits{2: "A"}, ""},
		{"a pool without holders", []Pool[string]{full("A", nil)}, waits{1: "A"}, ""},
		{"nothing", nil, nil, ""},
	} {
		if got := tell(Find(c.pools, c.waits)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// A world is pools with goroutines that hold connections of them and wait.
type world struct {
	pools []Pool[int]
	free  []int // connections
	waits map[int64]int
}

func draw(t *rapid.T) world {
	w := world{waits: map[int64]int{}}
	nPools, nGoroutines := rapid.IntRange(1, 4).Draw(t, "pools"), rapid.Int64Range(1, 8).Draw(t, "goroutines")
	exited := map[int64]bool{}
	for g := range nGoroutines {
		switch p := rapid.IntRange(-2, 2*nPools).Draw(t, "waits"); {
		case p < 0:
			exited[g] = rapid.Bool().Draw(t, "exited")
		case p == 2*nPools:
			w.waits[g] = -1 // another pool
		default:
			w.waits[g] = p / 2
		}
	}
	for i := range nPools {
		p := Pool[int]{ID: i, Full: rapid.IntRange(0, 5).Draw(t, "full") > 0}
		for h := range rapid.IntRange(1, 3).Draw(t, "holders") {
			users := rapid.SliceOfN(rapid.Int64Range(0, nGoroutines-1), 1, 2).Draw(t, "users")
			holder := Holder{ID: uint64(h)}
			for _, g := range users {
				holder.Users = append(holder.Users, User{g, exited[g]})
			}
			p.Holders = append(p.Holders, holder)
		}
		w.pools = append(w.pools, p)
		w.free = append(w.free, 0)
		if !p.Full {
			w.free[i] = 1
		}
	}
	return w
}

// run lets the goroutines go on as they can, one at a time in a random order: one that
// does not wait gives back what it may; one that waits for a pool with a free
// connection takes it and goes on. It returns the pools that never have a free one.
// Since a handle whose goroutines have all exited may be in somebody's hands, it is given
// back, too, unless one that waits holds a connection of that pool.
func (w world) run(rng *rand.Rand) (stuck []int) {
	free := slices.Clone(w.free)
	ever := make([]bool, len(free))
	given := map[[2]int]bool{}
	running := map[int64]bool{}
	for _, p := range w.pools {
		for _, h := range p.Holders {
			for _, u := range h.Users {
				if _, waits := w.waits[u.Goroutine]; !waits && !u.Exited {
					running[u.Goroutine] = true
				}
			}
		}
	}
	for g, p := range w.waits {
		if p < 0 {
			running[g] = true // what it waits for may come
		}
	}
	for {
		var steps []func()
		for _, p := range w.pools {
			someWait := false
			for _, h := range p.Holders {
				for _, u := range h.Users {
					_, waits := w.waits[u.Goroutine]
					someWait = someWait || waits
				}
			}
			for i, h := range p.Holders {
				at := [2]int{p.ID, i}
				if given[at] {
					continue
				}
				can := !someWait
				for _, u := range h.Users {
					can = can || running[u.Goroutine]
				}
				if can {
					steps = append(steps, func() { given[at] = true; free[p.ID]++ })
				}
			}
		}
		for g, p := range w.waits {
			if p >= 0 && !running[g] && free[p] > 0 {
				steps = append(steps, func() { running[g] = true }) // it takes, goes on and gives back
			}
		}
		for i, n := range free {
			ever[i] = ever[i] || n > 0
		}
		if len(steps) == 0 {
			break
		}
		steps[rng.IntN(len(steps))]()
	}
	for i, e := range ever {
		if !e {
			stuck = append(stuck, i)
		}
	}
	return stuck
}

// TestAgainstSimulation: the pools found are those that are stuck in any order of events.
func TestAgainstSimulation(t *testing.T) {
	deadlocks := 0
	rapid.Check(t, func(t *rapid.T) {
		w := draw(t)
		var got []int
		found := Find(w.pools, w.waits)
		held, victims := 0, map[int64]bool{}
		for _, d := range found {
			deadlocks++
			got = append(got, d.Pools...)
			held += len(d.Held)
			for _, h := range d.Held {
				if h.Waits && !slices.Contains(d.Pools, h.For) || !slices.Contains(d.Pools, h.Pool) {
					t.Errorf("%+v is not of the deadlock of %v", h, d.Pools)
				}
			}
			for _, v := range d.Victims {
				if victims[v.Goroutine] || w.waits[v.Goroutine] != v.For || !slices.Contains(d.Pools, v.For) {
					t.Errorf("%+v is no victim of %v", v, d.Pools)
				}
				victims[v.Goroutine] = true
			}
		}
		slices.Sort(got)
		for range 3 {
			if want := w.run(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 0))); !slices.Equal(got, want) {
				t.Fatalf("found %v, stuck are %v of %+v", got, want, w)
			}
		}

		// Each waiter for a pool that is found holds one, or is a victim.
		for _, p := range w.pools {
			if slices.Contains(got, p.ID) {
				held -= len(p.Holders)
				for _, h := range p.Holders {
					for _, u := range h.Users {
						if victims[u.Goroutine] {
							t.Errorf("goroutine %d holds a connection, and is a victim", u.Goroutine)
						}
						delete(w.waits, u.Goroutine)
					}
				}
			}
		}
		for g, p := range w.waits {
			if slices.Contains(got, p) && !victims[g] {
				t.Errorf("goroutine %d is no victim", g)
			}
		}
		if held != 0 {
			t.Errorf("%d holders too many", held)
		}
	})
	t.Logf("%d deadlocks", deadlocks)
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1, 10, 1000} {
		var pools []Pool[int]
		waits := map[int64]int{}
		for i := range n {
			p := Pool[int]{ID: i, Full: true}
			for h := range 10 {
				g := int64(10*i + h)
				p.Holders = append(p.Holders, Holder{uint64(g), []User{{g, false}}})
				waits[g] = (i + 1) % n // a ring
			}
			pools = append(pools, p)
		}
		b.Run(fmt.Sprint("pools=", n), func(b *testing.B) {
			for b.Loop() {
				if found := Find(pools, waits); len(found) != 1 || len(found[0].Pools) != n {
					b.Fatal(found)
				}
			}
		})
	}
}
