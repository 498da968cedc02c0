package sqlpool

import (
	"bytes"
	"database/sql"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// A Queue is who waits for a connection of a pool.
type Queue struct {
	Lines []Line    // by their count, the most first
	Exact bool      // these are the pool's waiters, all of them; else some may wait for another pool, or be missing
	At    time.Time // when it was so
}

// A Line is a call path on which goroutines wait.
type Line struct {
	Frames []stack.Frame // from database/sql.(*DB).conn on; of a deep stack the innermost 30 (a profile) or more (a dump)
	Count  int
}

const (
	maxProfile = 100_000 // goroutines, above which none is looked at
	maxDump    = 1_000   // goroutines, above which a dump is too long a pause to tell one pool's waiters from another's
	maxWaits   = 10_000  // goroutines, above which it is also too long to find a deadlock

	profileEvery = time.Second
	dumpEvery    = 250 * time.Millisecond
)

// Queues tells who waits for connections of dbs, which should be all pools that the
// caller knows. ok is false where it cannot be told.
//
// If anybody waits, it takes a goroutine profile, for which the world stops twice for
// some 30 µs, however many goroutines there are, up to 100,000. That tells lines, but not
// their pools. Where only one of dbs has waiters, and no fewer before and after than the
// profile has found, then they are its waiters. Else, in a program of at most 1,000
// goroutines, a dump of them tells the pools, for which the world stops for about 20 µs a
// goroutine, and for longer where more threads than processors want to run. Else Exact is
// false.
//
// At most one profile is taken in a second, one dump in 250 ms, and no more than a
// hundredth of the time is spent on each. Between two, and while another goroutine takes
// one, Queues answers from the last. It never waits.
//
// In a bubble of testing/synctest the times are the bubble's, the samples are those
// taken in it, and the goroutines of the whole program are looked at.
func Queues(dbs []*sql.DB) (queues []Queue, ok bool) {
	if !enabled(OtherStacks) {
		return nil, false
	}
	before := waiting(dbs)
	s := sample{whole: true, at: time.Now()}
	if slices.ContainsFunc(before, func(n int) bool { return n != 0 }) {
		s, ok = profiles.get(time.Time{}, func() sample {
			s := takeProfile()
			s.alone = alone(dbs, before, waiting(dbs), s.crowds)
			return s
		})
		if (!ok || s.alone == 0) && runtime.NumGoroutine() <= maxDump {
			if d, known := dumps.get(time.Time{}, takeDump); known {
				s, ok = d, true
			}
		}
		if !ok {
			return nil, false
		}
	}
	queues = make([]Queue, len(dbs))
	for i, db := range dbs {
		q := Queue{At: s.at, Exact: s.whole}
		for _, c := range s.crowds {
			pool := c.pool
			if pool == 0 {
				pool = s.alone
			}
			if pool == address(db) || pool == 0 && before[i] != 0 {
				q.Lines = append(q.Lines, Line{c.frames, c.n})
				q.Exact = q.Exact && pool != 0
			}
		}
		if before[i] != 0 && len(q.Lines) == 0 { // they came after the sample, or cannot be seen
			q.Exact = false
		}
		slices.SortStableFunc(q.Lines, func(a, b Line) int { return b.Count - a.Count })
		queues[i] = q
	}
	return queues, true
}

// waiting is how many goroutines wait for connections of each pool; −1: unknown.
func waiting(dbs []*sql.DB) []int {
	n := make([]int, len(dbs))
	for i, db := range dbs {
		n[i] = -1
		for range 4 {
			if s, ok, _ := readFields(db, false); ok {
				n[i] = s.Waiting
				break
			}
			runtime.Gosched() // its lock is rarely held for long
		}
	}
	return n
}

// alone returns the only pool that had waiters, before and after crowds were seen, and
// may be the one of them all.
func alone(dbs []*sql.DB, before, after []int, crowds []crowd) (pool uintptr) {
	seen := 0
	for _, c := range crowds {
		seen += c.n
	}
	for i, db := range dbs {
		switch {
		case before[i] == 0 && after[i] == 0:
		case pool != 0 || min(before[i], after[i]) < seen:
			return 0
		default:
			pool = address(db)
		}
	}
	return pool
}

// Waits tells which goroutines wait for a connection, by their numbers, and of which of
// dbs: nil, if of another pool or if that cannot be told. What is missing does not wait
// or is not known of. All was so at one moment, which was not before since. The dump that
// tells it stops the world for about 20 µs a goroutine: ask only when all else fits.
//
// ok is false where the program has more than 10,000 goroutines; and where less than
// 250 ms, or twenty times what it took, have passed since the last dump, and that was
// taken before since.
func Waits(dbs []*sql.DB, since time.Time) (waits map[int64]*sql.DB, ok bool) {
	if !enabled(OtherStacks) || runtime.NumGoroutine() > maxWaits {
		return nil, false
	}
	s, ok := dumps.get(since, takeDump)
	if !ok {
		return nil, false
	}
	pools := map[uintptr]*sql.DB{}
	for _, db := range dbs {
		pools[address(db)] = db
	}
	waits = map[int64]*sql.DB{}
	for _, c := range s.crowds {
		for _, g := range c.goroutines {
			waits[g] = pools[c.pool]
		}
	}
	return waits, true
}

// A sample is who waits in the program at one moment.
type sample struct {
	ok     bool
	crowds []crowd
	whole  bool    // crowds are all
	alone  uintptr // the address of the pool that all wait for; 0: not known
	at     time.Time
	next   time.Time // no other is taken before
	bubble int       // of testing/synctest, that it was taken in; 0: in none
}

// A crowd is goroutines that wait on one call path.
type crowd struct {
	frames     []stack.Frame // from database/sql.(*DB).conn on
	n          int
	pool       uintptr // the address of the pool that they wait for; 0: not known
	goroutines []int64 // their numbers, where known
}

// A sampler takes a sample seldom, and keeps the last.
type sampler struct {
	every time.Duration // no sample follows the last within that
	rest  time.Duration // nor within that many times what the last took

	mu   sync.Mutex // held while one is taken
	last atomic.Pointer[sample]
}

var (
	profiles = sampler{every: profileEvery, rest: 100}
	dumps    = sampler{every: dumpEvery, rest: 20}
)

// get returns a sample from since or later: a new one if it is time and no other
// goroutine takes one, else the last.
func (p *sampler) get(since time.Time, take func() sample) (sample, bool) {
	now, bubble := time.Now(), bubble()
	lately := func(margin time.Duration) *sample {
		if s := p.last.Load(); s != nil && s.bubble == bubble && now.Before(s.next.Add(margin)) {
			return s
		}
		return nil
	}
	if lately(0) == nil && p.mu.TryLock() {
		defer p.mu.Unlock()
		if lately(0) == nil {
			s := take()
			end := time.Now()
			s.at, s.bubble, s.next = now, bubble, end.Add(max(p.every, p.rest*end.Sub(now)))
			p.last.Store(&s)
		}
	}
	// While another is taken, the one before will do for a moment.
	if s := lately(p.every); s != nil && s.ok && !s.at.Before(since) {
		return *s, true
	}
	return sample{}, false
}

// bubble returns the number of the bubble of testing/synctest that the goroutine is in,
// or 0: "goroutine 7 [running, synctest bubble 3]:".
func bubble() (n int) {
	var buf [128]byte
	line, _, _ := bytes.Cut(buf[:runtime.Stack(buf[:], false)], []byte("]"))
	if _, number, ok := bytes.Cut(line, []byte(", synctest bubble ")); ok {
		n, _ = strconv.Atoi(string(number))
	}
	return n
}

// takeProfile finds who waits by a goroutine profile.
//
// runtime/pprof was tried: its profiles have deep stacks whole, and names, for the
// same stops and two to three times the CPU time. Its text has labels of the program's, too.
func takeProfile() sample {
	n := runtime.NumGoroutine()
	for range 3 {
		if n > maxProfile {
			break
		}
		records := make([]runtime.StackRecord, n+n/8+16)
		var ok bool
		if n, ok = runtime.GoroutineProfile(records); ok {
			return sample{ok: true, crowds: crowdsOf(records[:n]), whole: true}
		}
	}
	return sample{}
}

func crowdsOf(records []runtime.StackRecord) (crowds []crowd) {
	names := map[uintptr]string{}
	name := func(pc uintptr) string {
		s, ok := names[pc]
		if !ok {
			f, _ := runtime.CallersFrames([]uintptr{pc}).Next()
			s = f.Function
			names[pc] = s
		}
		return s
	}
	seen := map[[32]uintptr]int{}
	for i := range records {
		pcs := records[i].Stack()
		at := 0
		for at < len(pcs) && strings.HasPrefix(name(pcs[at]), "runtime.") {
			at++
		}
		if at == 0 || at == len(pcs) || name(pcs[at]) != connMethod || name(pcs[at-1]) != "runtime.selectgo" {
			continue
		}
		if known, ok := seen[records[i].Stack0]; ok {
			crowds[known].n++
			continue
		}
		seen[records[i].Stack0] = len(crowds)
		c := crowd{n: 1}
		for it, more := runtime.CallersFrames(pcs[at:]), true; more; {
			var f runtime.Frame
			if f, more = it.Next(); f.Function != "runtime.goexit" && f.Function != "runtime.main" { // as in a dump
				c.frames = append(c.frames, stack.Frame{Function: f.Function, File: f.File, Line: f.Line})
			}
		}
		crowds = append(crowds, c)
	}
	return crowds
}

// takeDump finds who waits by a dump of all goroutines. It shows a goroutine of ours
// whose pool is known, without which the others' are not believed.
func takeDump() sample {
	c, err := newCanary(nullConnector{})
	if err != nil {
		return sample{}
	}
	defer c.close()
	for range 8 {
		runtime.Gosched() // let it go to sleep
	}
	perGoroutine := int(dumpRoom.Load())
	buf := make([]byte, min(runtime.NumGoroutine()*perGoroutine+256<<10, 64<<20))
	n := runtime.Stack(buf, true)
	s := sample{whole: n < len(buf)}
	if !s.whole && perGoroutine < 64<<10 {
		dumpRoom.CompareAndSwap(int32(perGoroutine), int32(2*perGoroutine))
	}
	s.crowds = parseDump(buf[:n], s.whole)
	s.crowds = slices.DeleteFunc(s.crowds, func(d crowd) bool {
		ours := d.pool == address(c.db)
		s.ok = s.ok || ours && d.n == 1
		return ours
	})
	return s
}

// dumpRoom is how many bytes of a dump a goroutine gets. Most take 1 or 2 kB. It grows
// once it was too little.
var dumpRoom atomic.Int32

func init() { dumpRoom.Store(4 << 10) }

// parseDump returns the goroutines in a dump that wait for a connection. Of one that is
// not whole, the last goroutine may be cut.
func parseDump(dump []byte, whole bool) (crowds []crowd) {
	type key struct {
		pool   uintptr
		frames string
	}
	seen := map[key]int{}
	for len(dump) > 0 {
		block, rest, more := bytes.Cut(dump, []byte("\n\n"))
		dump = rest
		if !more && !whole {
			break
		}
		if !bytes.Contains(block, []byte(connMethod+"(")) {
			continue
		}
		g, pool, frames, ok := parseWaiter(string(block))
		if !ok {
			continue
		}
		var b strings.Builder
		for _, f := range frames {
			b.WriteString(f.Function + "\n" + f.File + "\n" + strconv.Itoa(f.Line) + "\n")
		}
		k := key{pool, b.String()}
		i, known := seen[k]
		if !known {
			i = len(crowds)
			seen[k] = i
			crowds = append(crowds, crowd{frames: frames, pool: pool})
		}
		crowds[i].n++
		crowds[i].goroutines = append(crowds[i].goroutines, g)
	}
	return crowds
}

// parseWaiter reads a goroutine's part of a dump. ok tells that it sleeps in
// database/sql's wait for a connection.
//
//	goroutine 51 [select, 2 minutes]:
//	database/sql.(*DB).conn(0xc000148000, {0x7d5f20, 0xaec3e0}, 0x1)
//		/usr/lib/go/src/database/sql/sql.go:1369 +0x71e
//	database/sql.(*DB).query(0xc000148000, …)
func parseWaiter(block string) (g int64, pool uintptr, frames []stack.Frame, ok bool) {
	lines := strings.Split(block, "\n")
	number, rest, _ := strings.Cut(strings.TrimPrefix(lines[0], "goroutine "), " ")
	_, state, _ := strings.Cut(rest, "[")
	state, _, _ = strings.Cut(state, "]")
	state, _, _ = strings.Cut(state, ",")
	g, err := strconv.ParseInt(number, 10, 64)
	if err != nil || !strings.HasPrefix(state, "select") || state == "select (no cases)" {
		return 0, 0, nil, false
	}
	for i := 1; i+1 < len(lines); i++ {
		place, isPlace := strings.CutPrefix(lines[i+1], "\t")
		if !isPlace || strings.HasPrefix(lines[i], "created by ") {
			continue
		}
		function, args := cutArgs(lines[i])
		if len(frames) == 0 {
			if strings.HasPrefix(function, "runtime.") { // with GOTRACEBACK=system
				continue
			}
			if function != connMethod {
				return 0, 0, nil, false
			}
			pool = firstArg(args)
		}
		place, _, _ = strings.Cut(place, " +0x")
		file, line := place, 0
		if colon := strings.LastIndexByte(place, ':'); colon >= 0 {
			if n, err := strconv.Atoi(place[colon+1:]); err == nil {
				file, line = place[:colon], n
			}
		}
		frames = append(frames, stack.Frame{Function: function, File: file, Line: line})
		i++
	}
	return g, pool, frames, len(frames) > 0
}
