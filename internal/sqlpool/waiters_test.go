package sqlpool

import (
	"context"
	"database/sql"
	"fmt"
	"reflect"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/baldur-go/baldur/internal/stack"
)

// fresh has the next sample taken at once.
func fresh() {
	profiles.last.Store(nil)
	dumps.last.Store(nil)
}

// full returns a pool whose only connection is out.
func full(t testing.TB) *sql.DB {
	db := sql.OpenDB(nullConnector{})
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1)
	c, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return db
}

// wait has n goroutines run f with a ctx that the test cancels, and returns when they
// sleep in the queue.
func wait(t testing.TB, db *sql.DB, n int, f func(context.Context, *sql.DB)) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	already := waiting([]*sql.DB{db})[0]
	for range n {
		wg.Go(func() { f(ctx, db) })
	}
	deadline := time.Now().Add(10 * time.Second)
	for waiting([]*sql.DB{db})[0] != already+n {
		if time.Now().After(deadline) {
			t.Fatal("they do not wait")
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * time.Millisecond) // from the queue to sleep
}

//go:noinline
func checkout(ctx context.Context, db *sql.DB) { _, _ = db.ExecContext(ctx, "") }

//go:noinline
func browse(ctx context.Context, db *sql.DB) { _, _ = db.QueryContext(ctx, "") }

// lines are the functions of this package's that wait, with how many there are.
func lines(q Queue) string {
	var all []string
	for _, l := range q.Lines {
		name := "?"
		for _, f := range l.Frames {
			if short, ok := strings.CutPrefix(f.Function, "github.com/baldur-go/baldur/internal/sqlpool."); ok {
				name = short
				if f.Line == 0 || !strings.HasSuffix(f.File, "waiters_test.go") {
					name += " without its place"
				}
				break
			}
		}
		if l.Frames[0].Function != connMethod {
			name += " from " + l.Frames[0].Function
		}
		all = append(all, fmt.Sprint(l.Count, " ", name))
	}
	if !q.Exact {
		all = append(all, "not exact")
	}
	return strings.Join(all, ", ")
}

// expectQueues looks until the queues are as wanted: a goroutine may need a moment
// from the queue to sleep.
func expectQueues(t *testing.T, dbs []*sql.DB, want ...string) {
	t.Helper()
	var got []string
	for range 20 {
		fresh()
		got = nil
		queues, ok := Queues(dbs)
		if !ok {
			got = []string{"unknown"}
		}
		for _, q := range queues {
			got = append(got, lines(q))
		}
		if slices.Equal(got, want) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("got %q, want %q", got, want)
}

// crowded makes the program too large for a dump.
func crowded(t *testing.T) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range maxDump {
		wg.Go(func() { <-stop })
	}
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { close(stop) })
}

func TestQueuesOfOne(t *testing.T) {
	db, idle := full(t), full(t)
	expectQueues(t, []*sql.DB{db, idle}, "", "")
	wait(t, db, 3, browse)
	wait(t, db, 15, checkout)
	expectQueues(t, []*sql.DB{db, idle}, "15 checkout, 3 browse", "")
	unknown := full(t)
	wait(t, unknown, 1, browse)
	expectQueues(t, []*sql.DB{db, idle}, "15 checkout, 3 browse", "")
	crowded(t)
	expectQueues(t, []*sql.DB{db, idle}, "15 checkout, 4 browse, not exact", "")
	expectQueues(t, []*sql.DB{db, unknown}, "15 checkout, 4 browse, not exact", "15 checkout, 4 browse, not exact")
}

func TestQueuesOfSeveral(t *testing.T) {
	a, b, unknown := full(t), full(t), full(t)
	wait(t, a, 3, browse)
	wait(t, a, 1, checkout)
	wait(t, b, 2, checkout)
	wait(t, unknown, 4, browse)
	expectQueues(t, []*sql.DB{a, b, full(t)}, "3 browse, 1 checkout", "2 checkout", "")

	crowded(t)
	expectQueues(t, []*sql.DB{a, b, full(t)}, "7 browse, 3 checkout, not exact", "7 browse, 3 checkout, not exact", "")
}

// TestQueuesKinds: each way to wait is seen, and what is no wait is not.
func TestQueuesKinds(t *testing.T) {
	db := full(t)
	for _, f := range []func(ctx context.Context, db *sql.DB){
		func(ctx context.Context, db *sql.DB) { _, _ = db.Conn(ctx) },
		func(ctx context.Context, db *sql.DB) { _ = db.PingContext(ctx) },
		func(ctx context.Context, db *sql.DB) { _, _ = db.BeginTx(ctx, nil) },
		func(ctx context.Context, db *sql.DB) { _, _ = db.PrepareContext(ctx, "") },
		func(ctx context.Context, db *sql.DB) { _ = db.QueryRowContext(ctx, "").Scan() },
	} {
		wait(t, db, 1, f)
	}
	dialling := sql.OpenDB(&seeing{found: make(chan *sql.DB, 1), connect: func() { time.Sleep(time.Second) }})
	var wg sync.WaitGroup
	wg.Go(func() { _ = dialling.Ping() })
	defer dialling.Close()
	defer wg.Wait()
	fresh()
	queues, ok := Queues([]*sql.DB{db})
	if !ok || len(queues[0].Lines) != 5 || !queues[0].Exact {
		t.Error(ok, queues)
	}
}

func TestQueuesOff(t *testing.T) {
	db, other := full(t), full(t)
	wait(t, db, 2, checkout)
	restore := Disable(OtherStacks)
	expectQueues(t, []*sql.DB{db}, "unknown")
	if _, ok := Waits([]*sql.DB{db}, time.Time{}); ok {
		t.Error("waits are known")
	}
	restore()
	restore = Disable(Fields) // how many wait is not known: only a dump tells the pool
	expectQueues(t, []*sql.DB{db, other}, "2 checkout", "not exact")
	if s, ok := Read(db); !ok || s.Waiting != -1 || s.Open != 1 {
		t.Error(s, ok)
	}
	restore()
	expectQueues(t, []*sql.DB{db}, "2 checkout")
}

// TestQueuesBlocked: the lock of a pool is held, and nobody waits for it.
func TestQueuesBlocked(t *testing.T) {
	db, blocked := full(t), full(t)
	wait(t, db, 2, checkout)
	field, _ := reflect.TypeFor[sql.DB]().FieldByName("mu")
	mu := (*sync.Mutex)(unsafe.Add(unsafe.Pointer(blocked), field.Offset))
	mu.Lock()
	began := time.Now()
	fresh()
	queues, ok := Queues([]*sql.DB{db, blocked})
	took := time.Since(began)
	mu.Unlock()
	if !ok || lines(queues[0]) != "2 checkout" || lines(queues[1]) != "not exact" {
		t.Errorf("%v %q %q", ok, lines(queues[0]), lines(queues[1]))
	}
	if took > 5*time.Second {
		t.Error(took)
	}
}

func TestWaits(t *testing.T) {
	a, b, other := full(t), full(t), full(t)
	var mu sync.Mutex
	want := map[int64]*sql.DB{}
	note := func(as *sql.DB) func(context.Context, *sql.DB) {
		return func(ctx context.Context, db *sql.DB) {
			mu.Lock()
			want[stack.CurrentG().ID()] = as
			mu.Unlock()
			checkout(ctx, db)
		}
	}
	wait(t, a, 3, note(a))
	wait(t, b, 2, note(b))
	wait(t, other, 1, note(nil))
	var got map[int64]*sql.DB
	for range 20 {
		fresh()
		var ok bool
		if got, ok = Waits([]*sql.DB{a, b}, time.Now()); ok && len(got) == len(want) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for g, db := range want {
		if d, ok := got[g]; !ok || d != db {
			t.Errorf("goroutine %d: %v %v, want %v", g, d, ok, db)
		}
	}
	// The last answers again, unless it is too old.
	if _, ok := Waits([]*sql.DB{a, b}, time.Time{}); !ok {
		t.Error("no answer")
	}
	if s := dumps.last.Load(); !s.next.After(time.Now()) {
		t.Log("too slow to see that the next must wait")
	} else if _, ok := Waits([]*sql.DB{a, b}, time.Now()); ok && dumps.last.Load() == s {
		t.Error("an old answer")
	}
}

// TestDumpRoom: of a dump that is cut, what is there counts, and the next is whole.
func TestDumpRoom(t *testing.T) {
	db := full(t)
	wait(t, db, 3, checkout)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 300 {
		wg.Go(func() { at(45, func() { <-stop }) }) // 5 kB each
	}
	defer wg.Wait()
	defer close(stop)
	defer dumpRoom.Store(dumpRoom.Load())
	dumpRoom.Store(512)
	cut := 0
	for {
		s := takeDump()
		for _, c := range s.crowds {
			if c.pool != address(db) || c.n > 3 {
				t.Errorf("%+v", c)
			}
		}
		if s.whole {
			break
		}
		if cut++; cut > 10 {
			t.Fatal("never whole")
		}
	}
	if cut == 0 {
		t.Error("the dump was whole at once")
	}
	expectQueues(t, []*sql.DB{db}, "3 checkout")
}

// TestSampler holds the rates, and that nobody waits for another's sample.
func TestSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := sampler{every: time.Second, rest: 100}
		taken, cost := 0, time.Duration(0)
		take := func() sample {
			taken++
			time.Sleep(cost)
			return sample{ok: true, alone: uintptr(taken)}
		}
		expect := func(want uintptr) {
			t.Helper()
			if s, ok := p.get(time.Time{}, take); !ok || s.alone != want {
				t.Errorf("%v %d, want %d", ok, s.alone, want)
			}
		}
		expect(1)
		time.Sleep(999 * time.Millisecond)
		expect(1)
		if _, ok := p.get(time.Now(), take); ok {
			t.Error("too old a sample")
		}
		time.Sleep(time.Millisecond)
		cost = 50 * time.Millisecond
		expect(2)
		time.Sleep(4999 * time.Millisecond)
		expect(2)
		time.Sleep(time.Millisecond)

		// A slow one: others get the last, as long as that is not too old.
		cost = time.Hour
		var wg sync.WaitGroup
		wg.Go(func() { expect(3) })
		synctest.Wait()
		expect(2)
		time.Sleep(time.Second)
		if _, ok := p.get(time.Time{}, take); ok || taken != 3 {
			t.Error("too old a sample, or a second at the same time")
		}
		wg.Wait()
		cost = 0
		expect(3)
		p.last.Store(nil)
		if s, ok := p.get(time.Time{}, func() sample { return sample{} }); ok {
			t.Error(s)
		}
	})
}

// TestBubble: in a bubble there is no deadlock, the goroutines outside are seen, and
// samples of another are not used.
func TestBubble(t *testing.T) {
	outside := full(t)
	wait(t, outside, 1, browse)
	fresh()
	if _, ok := Queues([]*sql.DB{outside}); !ok {
		t.Error("unknown outside")
	}
	for n := 2; n < 5; n++ {
		synctest.Test(t, func(t *testing.T) {
			if bubble() == 0 {
				t.Error("not known to be a bubble")
			}
			db, other := full(t), full(t)
			for range n {
				go checkout(t.Context(), db)
			}
			go browse(t.Context(), other)
			synctest.Wait()
			queues, ok := Queues([]*sql.DB{db, other})
			if !ok || lines(queues[0]) != fmt.Sprint(n, " checkout") || lines(queues[1]) != "1 browse" {
				t.Error(ok, queues)
			}
			waits, ok := Waits([]*sql.DB{db, other}, time.Now()) // the bubble's own time has not passed
			if !ok || len(waits) != n+2 {
				t.Error(ok, waits)
			}
			time.Sleep(time.Second) // of the bubble
			queues, ok = Queues([]*sql.DB{db})
			if !ok || lines(queues[0]) != fmt.Sprint(n, " checkout") {
				t.Error(ok, lines(queues[0]))
			}
		})
	}
	if bubble() != 0 {
		t.Error("in a bubble")
	}
}

func TestTooMany(t *testing.T) {
	if testing.Short() {
		t.Skip("10,001 goroutines")
	}
	db := full(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range maxWaits {
		wg.Go(func() { <-stop })
	}
	defer wg.Wait()
	defer close(stop)
	if _, ok := Waits([]*sql.DB{db}, time.Time{}); ok {
		t.Error("a dump of more than 10,000 goroutines")
	}
}

func TestConcurrent(t *testing.T) {
	a, b := full(t), full(t)
	wait(t, a, 2, checkout)
	wait(t, b, 2, browse)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				fresh()
				if queues, ok := Queues([]*sql.DB{a, b}); ok {
					for _, q := range queues {
						if s := lines(q); q.Exact && s != "2 checkout" && s != "2 browse" {
							t.Error(s)
						}
					}
				}
				Waits([]*sql.DB{a, b}, time.Time{})
			}
		})
	}
	wg.Wait()
}

const oneDump = `goroutine 51 [select, 2 minutes]:
database/sql.(*DB).conn(0xc0148000, {0x7d5f20, 0xaec3e0}, 0x1)
	/usr/lib/go/src/database/sql/sql.go:1369 +0x71e
database/sql.(*DB).query(0xc0148000?, {0x7d5f20, 0xaec3e0}, {0x0, 0x0}, {0x0, 0x0, 0x0}, 0x0?)
	/usr/lib/go/src/database/sql/sql.go:1759 +0x5a
main.serve.func1(...)
	C:/my folder/main.go:17
created by main.main in goroutine 1
	/src/main.go:9 +0x3c

`

func TestParseDump(t *testing.T) {
	replace := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(oneDump) }
	const frames = " database/sql.(*DB).conn:1369 database/sql.(*DB).query:1759 main.serve.func1:17"
	for _, c := range []struct{ name, dump, want string }{
		{"one", oneDump, "0xc0148000 [51]" + frames},
		{"two", oneDump + replace("51", "52", "0xc0148000?", "0x1"), "0xc0148000 [51 52]" + frames},
		{"two pools", oneDump + replace("51", "52", "0xc0148000", "0x1"), "0xc0148000 [51]" + frames + "; 0x1 [52]" + frames},
		{"bubble", replace("[select, 2 minutes]", "[select (durable), synctest bubble 3]"), "0xc0148000 [51]" + frames},
		{"labels", replace("]:", "] {x: y]:, \"a [chan\": b}:"), "0xc0148000 [51]" + frames},
		{"verbose", replace("goroutine 51 ", "goroutine 51 gp=0xc0001 m=nil mp=0x1 ", "database/sql.(*DB).conn", "runtime.selectgo(0x1)\n\tselect.go:1\ndatabase/sql.(*DB).conn"), "0xc0148000 [51]" + frames},
		{"elided", replace("main.serve", "...7 frames elided...\nmain.serve"), "0xc0148000 [51]" + frames},
		{"stale", replace("conn(0xc0148000", "conn(0xc0148000?"), "0x0 [51]" + frames},
		{"inlined", replace("conn(0xc0148000, {0x7d5f20, 0xaec3e0}, 0x1)", "conn(...)"), "0x0 [51]" + frames},
		{"woken", replace("select, 2 minutes", "runnable"), ""},
		{"no cases", replace("select, 2 minutes", "select (no cases)"), ""},
		{"dialling", replace("database/sql.(*DB).conn", "net.dial(0x1)\n\tx.go:1\ndatabase/sql.(*DB).conn"), ""},
		{"cut", oneDump[:len(oneDump)-3], ""},
		{"cut in the second", oneDump + oneDump[:len(oneDump)/2], "0xc0148000 [51]" + frames},
	} {
		var got []string
		for _, d := range parseDump([]byte(c.dump), false) {
			s := fmt.Sprintf("%#x %d", d.pool, d.goroutines)
			for _, f := range d.frames {
				s += fmt.Sprint(" ", f.Function, ":", f.Line)
			}
			if file := d.frames[len(d.frames)-1].File; file != "C:/my folder/main.go" {
				s += " in " + file
			}
			if d.n != len(d.goroutines) {
				s += fmt.Sprint(" but ", d.n)
			}
			got = append(got, s)
		}
		if s := strings.Join(got, "; "); s != c.want {
			t.Errorf("%s: %s\nwant %s", c.name, s, c.want)
		}
	}
}

// FuzzParseDump: whatever is parsed, a dump that is cut has nothing that the whole
// dump has not.
func FuzzParseDump(f *testing.F) {
	f.Add([]byte(oneDump+oneDump), 100)
	f.Add([]byte(strings.ReplaceAll(oneDump, "51", "x")), 10)
	buf := make([]byte, 64<<10)
	f.Add(buf[:runtime.Stack(buf, true)], 1000)
	f.Fuzz(func(t *testing.T, dump []byte, cut int) {
		type waiter struct {
			g    int64
			pool uintptr
		}
		count := func(crowds []crowd) map[waiter]int {
			m := map[waiter]int{}
			for _, c := range crowds {
				for _, g := range c.goroutines {
					m[waiter{g, c.pool}]++
				}
			}
			return m
		}
		whole := count(parseDump(dump, false))
		for w, n := range count(parseDump(dump[:max(0, min(cut, len(dump)))], false)) {
			if n > whole[w] {
				t.Errorf("%v is %d times in the part, %d in the whole", w, n, whole[w])
			}
		}
		for _, c := range parseDump(dump, true) {
			if c.n != len(c.goroutines) || c.n == 0 || c.frames[0].Function != connMethod {
				t.Errorf("%+v", c)
			}
		}
	})
}

// BenchmarkPause tells how long a look at a program of so many goroutines takes, and how
// long its stops of the world are, as the runtime has it, which counts in steps of 12 to
// 25 %. On a machine that has other work the median is what counts.
func BenchmarkPause(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000, 90_000} {
		b.Run(fmt.Sprint("goroutines=", n), func(b *testing.B) {
			var wg sync.WaitGroup
			defer wg.Wait()
			stop := make(chan struct{})
			defer close(stop)
			for range n {
				wg.Go(func() { at(12, func() { <-stop }) })
			}
			db := full(b)
			wait(b, db, 25, checkout)
			for _, bm := range []struct {
				name string
				take func() sample
			}{{"profile", takeProfile}, {"dump", takeDump}} {
				if bm.name == "dump" && n > maxWaits {
					continue
				}
				b.Run(bm.name, func(b *testing.B) {
					before := stops()
					for b.Loop() {
						if s := bm.take(); len(s.crowds) != 1 || s.crowds[0].n != 25 {
							b.Fatal(s)
						}
					}
					median, longest := stopsSince(before)
					b.ReportMetric(median.Seconds()*1e6, "µs/stop")
					b.ReportMetric(longest.Seconds()*1e6, "µs-longest-stop")
				})
			}
		})
	}
}

// stops are the stops of the world that are not the collector's.
func stops() *metrics.Float64Histogram {
	s := []metrics.Sample{{Name: "/sched/pauses/total/other:seconds"}}
	metrics.Read(s)
	h := s[0].Value.Float64Histogram()
	return &metrics.Float64Histogram{Counts: slices.Clone(h.Counts), Buckets: h.Buckets}
}

func stopsSince(before *metrics.Float64Histogram) (median, longest time.Duration) {
	now, all := stops(), uint64(0)
	for i := range now.Counts {
		now.Counts[i] -= before.Counts[i]
		all += now.Counts[i]
	}
	seen := uint64(0)
	for i, n := range now.Counts {
		if n == 0 {
			continue
		}
		d := time.Duration(now.Buckets[i+1] * 1e9)
		if seen < (all+1)/2 && seen+n >= (all+1)/2 {
			median = d
		}
		seen += n
		longest = d
	}
	return median, longest
}
