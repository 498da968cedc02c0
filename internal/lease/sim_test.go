package lease

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// simWitness is a witness in memory that fails on demand. What it does with a
// request is what the statements of package leasepg do.
type simWitness struct {
	mu      sync.Mutex // guards the fields below
	row     Row        // but expired; expires is by the server's clock
	past    []Row      // before each of its changes
	clock   time.Duration
	granted []int64
	broken  string
}

func (w *simWitness) now() time.Time { return time.Now().Add(w.clock) }

func (w *simWitness) change(row Row) {
	w.past = append(w.past, w.row)
	w.row = row
}

func (w *simWitness) reply() Row {
	row := w.row
	row.Expired = !row.Expires.After(w.now())
	return row
}

// failOver loses the last n changes.
func (w *simWitness) failOver(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	timeline := w.row.Witness.Timeline + 1
	for ; n > 0 && len(w.past) > 0; n-- {
		w.row, w.past = w.past[len(w.past)-1], w.past[:len(w.past)-1]
	}
	w.row.Witness.Timeline = timeline
}

func (w *simWitness) acquire(id string, ttl time.Duration, seen Row, floor int64, ignoreClock bool) (Row, bool) {
	row := w.reply()
	if row.Witness != seen.Witness || row.Epoch != seen.Epoch || row.Seq != seen.Seq || !(row.LeaseID == "" || row.LeaseID == id || row.Expired || ignoreClock) {
		return row, false
	}
	row.Epoch, row.Given = row.NextEpoch(floor), row.Witness
	row.LeaseID, row.Seq, row.TTL, row.Expires = id, 0, ttl, w.now().Add(ttl)
	w.change(row)
	for _, e := range w.granted {
		if e >= row.Epoch {
			w.broken = fmt.Sprintf("epoch %x granted after %x", row.Epoch, e)
		}
	}
	w.granted = append(w.granted, row.Epoch)
	return w.reply(), true
}

func (w *simWitness) update(id string, epoch int64, f func(*Row)) (Row, bool) {
	if w.row.LeaseID != id || w.row.Epoch != epoch {
		return w.reply(), false
	}
	row := w.row
	row.Seq++
	f(&row)
	w.change(row)
	return w.reply(), true
}

// simLink is one client's way to the witness.
type simLink struct {
	w      *simWitness
	ttl    time.Duration
	random *rand.Rand // under mu
	wake   chan struct{}
	ghosts sync.WaitGroup

	mu    sync.Mutex    // guards the fields below
	delay time.Duration // at most, each way
	lose  float64       // part of the requests, and of the replies
}

var errSim = errors.New("sim: no answer")

// do sends a request. It may be carried out long after the client has given up.
func (l *simLink) do(ctx context.Context, f func() (Row, bool)) (Row, bool, error) {
	l.mu.Lock()
	there, back := time.Duration(l.random.Int64N(int64(l.delay)+1)), time.Duration(l.random.Int64N(int64(l.delay)+1))
	loseThere, loseBack := l.random.Float64() < l.lose, l.random.Float64() < l.lose
	l.mu.Unlock()
	type answer struct {
		row Row
		ok  bool
	}
	c := make(chan answer, 1)
	if !loseThere {
		l.ghosts.Go(func() {
			time.Sleep(there)
			l.w.mu.Lock()
			row, ok := f()
			l.w.mu.Unlock()
			time.Sleep(back)
			if !loseBack {
				c <- answer{row, ok}
			}
		})
	}
	select {
	case a := <-c:
		return a.row, a.ok, nil
	case <-ctx.Done():
		return Row{}, false, errSim
	}
}

func (l *simLink) Observe(ctx context.Context) (Row, error) {
	row, _, err := l.do(ctx, func() (Row, bool) { return l.w.reply(), true })
	return row, err
}

func (l *simLink) Acquire(ctx context.Context, id string, seen Row, floor int64, ignoreClock bool) (Row, bool, error) {
	return l.do(ctx, func() (Row, bool) {
		return l.w.acquire(id, l.ttl, seen, floor, ignoreClock)
	})
}

func (l *simLink) Renew(ctx context.Context, id string, epoch int64) (Row, bool, error) {
	return l.do(ctx, func() (Row, bool) {
		return l.w.update(id, epoch, func(r *Row) { r.Expires = l.w.now().Add(l.ttl) })
	})
}

func (l *simLink) Release(ctx context.Context, id string, epoch int64) (Row, bool, error) {
	return l.do(ctx, func() (Row, bool) {
		return l.w.update(id, epoch, func(r *Row) { r.LeaseID, r.Expires = "", l.w.now() })
	})
}

func (l *simLink) Wait(d time.Duration, _ bool, unless func() bool) {
	if d <= 0 || unless() {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.wake:
	}
}

func (l *simLink) Interrupt() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *simLink) IsOpen() bool { return true }

func (l *simLink) Announce(context.Context) {}
func (l *simLink) Close()                   {}

// simObserver checks that gains and losses come in turn.
type simObserver struct {
	wrong     *simWrong
	elections int
	losses    map[Reason]int64
	believes  bool
}

func (o *simObserver) Began(*Belief, time.Duration) {
	if o.believes {
		o.wrong.add("acquired twice")
	}
	o.believes = true
	o.elections++
}

func (o *simObserver) Lost(_ *Belief, r Reason) {
	if !o.believes {
		o.wrong.add("lost what it had not")
	}
	o.believes = false
	o.losses[r]++
}

func (o *simObserver) Heard(Row, State, bool) {}
func (o *simObserver) Renewed(time.Duration)  {}
func (o *simObserver) Failed(string, error)   {}
func (o *simObserver) InUse(bool)             {}
func (o *simObserver) Ended()                 {}

// simWrong is what has gone wrong.
type simWrong struct {
	mu  sync.Mutex // guards the field below
	all []string
}

func (w *simWrong) add(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, s)
}

func (w *simWrong) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.all, "; ")
}

func (w *simWrong) none() bool { return w.String() == "" }

// simFault is what happens at one moment.
type simFault struct {
	kind   string
	client int
	amount int // 0 to 99
}

var simFaults = []string{"delay", "lose", "heal", "clock", "failover", "release", "stop", "start", "new", "nothing"}

// TestElectorSimulated: candidates on a network that delays and loses, with a
// server whose clock is set about and that fails over and forgets. At no moment
// is there more than one primary, no epoch is given twice or goes back, gain and
// loss come in turn, and once all is well there is a primary soon.
//
// A millisecond of it takes none: see testing/synctest. Processes that pause,
// which it cannot have, are in internal/quorumtest.
func TestElectorSimulated(t *testing.T) {
	elections, losses := 0, map[Reason]int64{}
	rapid.Check(t, func(rt *rapid.T) {
		faults := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) simFault {
			return simFault{rapid.SampledFrom(simFaults).Draw(rt, "kind"), rapid.IntRange(0, 2).Draw(rt, "client"), rapid.IntRange(0, 99).Draw(rt, "amount")}
		}), 20, 60).Draw(rt, "faults")
		seed := rapid.Uint64().Draw(rt, "seed")
		var wrong string
		synctest.Test(t, func(t *testing.T) { wrong = simulate(t, faults, seed, &elections, losses) })
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
	t.Log(elections, "elections; losses:", losses)
	if !testing.Short() && (elections < 100 || losses[Expired] == 0 || losses[Fenced]+losses[Failover] == 0 || losses[Released] == 0) {
		t.Error("the simulation has not got about")
	}
}

func simulate(t *testing.T, faults []simFault, seed uint64, elections *int, losses map[Reason]int64) string {
	const ttl = time.Second
	random := rand.New(rand.NewPCG(seed, 1))
	w := &simWitness{row: Row{Epoch: 1 << TimelineShift, Witness: Server{7, 1}, Given: Server{7, 1}}}
	var wrong simWrong
	var all []*Elector
	var records []*simObserver
	add := func() (*Elector, *simLink) {
		rate, start := 1+(2*random.Float64()-1)*ClockDrift*0.99, time.Now()
		cfg := Config{
			TTL: ttl, Margin: ttl / 100, Renew: ttl / 4, Attempt: ttl / 5, Jitter: 0.1,
			Clock: func() time.Duration { return time.Duration(rate * float64(time.Since(start))) },
			Gone:  func() <-chan struct{} { return nil },
		}
		l := &simLink{w: w, ttl: ttl, random: rand.New(rand.NewPCG(seed, uint64(len(all)+2))), wake: make(chan struct{}, 1), delay: 5 * time.Millisecond}
		o := &simObserver{wrong: &wrong, losses: map[Reason]int64{}}
		e := New(cfg, l, l, o)
		all, records = append(all, e), append(records, o)
		return e, l
	}
	var electors [3]*Elector
	var links [3]*simLink
	var allLinks []*simLink
	fresh := func(i int) {
		electors[i], links[i] = add()
		allLinks = append(allLinks, links[i])
		electors[i].Start()
	}
	for i := range electors {
		fresh(i)
	}
	primaries := func() (n int) {
		for _, e := range all {
			if e.Belief() != nil {
				n++
			}
		}
		return n
	}
	pass := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end) && wrong.none(); time.Sleep(time.Millisecond) {
			if n := primaries(); n > 1 {
				wrong.add(fmt.Sprint(n, " primaries"))
			}
		}
	}
	var stopping sync.WaitGroup
	for _, f := range faults {
		e, l := electors[f.client], links[f.client]
		part := float64(f.amount) / 100
		set := func(delay time.Duration, lose float64) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.delay, l.lose = delay, lose
		}
		switch f.kind {
		case "delay":
			set(time.Duration(part*3*float64(ttl)), 0)
		case "lose":
			set(5*time.Millisecond, part)
		case "heal":
			set(5*time.Millisecond, 0)
		case "clock":
			w.mu.Lock()
			w.clock += time.Duration((part - 0.5) * 6 * float64(ttl))
			w.mu.Unlock()
		case "failover":
			w.failOver(f.amount % 4)
		case "release":
			stopping.Go(func() { _ = e.Release(context.Background()) })
		case "stop":
			stopping.Go(func() { e.Stop(false) })
		case "start":
			e.Start()
		case "new": // the process is killed: its belief is nobody's, its requests go on
			e.lose(Released)
			l.mu.Lock()
			l.lose = 1
			l.mu.Unlock()
			stopping.Go(func() { _ = e.Close() })
			fresh(f.client)
		}
		pass(time.Duration(random.Float64() * 1.5 * float64(ttl)))
	}
	for i, l := range links {
		l.mu.Lock()
		l.delay, l.lose = 5*time.Millisecond, 0
		l.mu.Unlock()
		electors[i].Start()
	}
	stopping.Wait()
	for _, e := range electors {
		e.Start()
	}
	// A failover's quarantine, three TTLs where the server's clock was set back, a
	// ghost that renews the last belief, a hold-off.
	settled := 0
	for i := 0; i < 200 && settled < 10 && wrong.none(); i++ {
		if pass(ttl / 10); primaries() == 1 {
			settled++
		} else {
			settled = 0
		}
	}
	if settled < 10 && wrong.none() {
		wrong.add("no lasting primary when all is well")
	}
	for i, e := range all {
		_ = e.Close()
		*elections += records[i].elections
		for r, n := range records[i].losses {
			losses[r] += n
		}
	}
	for _, l := range allLinks {
		l.ghosts.Wait()
	}
	if w.broken != "" {
		wrong.add(w.broken)
	}
	return wrong.String()
}
