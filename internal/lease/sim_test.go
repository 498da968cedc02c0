package baldur

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
// request is what pgWitness's statements do.
type simWitness struct {
	mu      sync.Mutex // guards the fields below
	row     leaseRow   // but expired; expires is by the server's clock
	past    []leaseRow // before each of its changes
	clock   time.Duration
	granted []int64
	broken  string
}

func (w *simWitness) now() time.Time { return time.Now().Add(w.clock) }

func (w *simWitness) change(row leaseRow) {
	w.past = append(w.past, w.row)
	w.row = row
}

func (w *simWitness) reply() leaseRow {
	row := w.row
	row.expired = !row.expires.After(w.now())
	return row
}

// failOver loses the last n changes.
func (w *simWitness) failOver(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	timeline := w.row.witness.timeline + 1
	for ; n > 0 && len(w.past) > 0; n-- {
		w.row, w.past = w.past[len(w.past)-1], w.past[:len(w.past)-1]
	}
	w.row.witness.timeline = timeline
}

func (w *simWitness) acquire(id, region string, ttl time.Duration, seen leaseRow, floor int64, ignoreClock bool) (leaseRow, bool) {
	row := w.reply()
	if row.witness != seen.witness || row.epoch != seen.epoch || row.seq != seen.seq || !(row.leaseID == "" || row.leaseID == id || row.expired || ignoreClock) {
		return row, false
	}
	row.epoch, row.given = row.nextEpoch(floor), row.witness
	row.leaseID, row.region, row.seq, row.ttl, row.expires = id, region, 0, ttl, w.now().Add(ttl)
	w.change(row)
	for _, e := range w.granted {
		if e >= row.epoch {
			w.broken = fmt.Sprintf("epoch %x granted after %x", row.epoch, e)
		}
	}
	w.granted = append(w.granted, row.epoch)
	return w.reply(), true
}

func (w *simWitness) update(id string, epoch int64, f func(*leaseRow)) (leaseRow, bool) {
	if w.row.leaseID != id || w.row.epoch != epoch {
		return w.reply(), false
	}
	row := w.row
	row.seq++
	f(&row)
	w.change(row)
	return w.reply(), true
}

// simLink is one client's way to the witness.
type simLink struct {
	w      *simWitness
	cfg    *quorumConfig
	random *rand.Rand // under mu
	wake   chan struct{}
	ghosts sync.WaitGroup

	mu    sync.Mutex    // guards the fields below
	delay time.Duration // at most, each way
	lose  float64       // part of the requests, and of the replies
}

var errSim = errors.New("sim: no answer")

// do sends a request. It may be carried out long after the client has given up.
func (l *simLink) do(ctx context.Context, f func() (leaseRow, bool)) (leaseRow, bool, error) {
	l.mu.Lock()
	there, back := time.Duration(l.random.Int64N(int64(l.delay)+1)), time.Duration(l.random.Int64N(int64(l.delay)+1))
	loseThere, loseBack := l.random.Float64() < l.lose, l.random.Float64() < l.lose
	l.mu.Unlock()
	type answer struct {
		row leaseRow
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
		return leaseRow{}, false, errSim
	}
}

func (l *simLink) observe(ctx context.Context) (leaseRow, error) {
	row, _, err := l.do(ctx, func() (leaseRow, bool) { return l.w.reply(), true })
	return row, err
}

func (l *simLink) acquire(ctx context.Context, id string, seen leaseRow, floor int64, ignoreClock bool) (leaseRow, bool, error) {
	return l.do(ctx, func() (leaseRow, bool) {
		return l.w.acquire(id, l.cfg.region, l.cfg.ttl, seen, floor, ignoreClock)
	})
}

func (l *simLink) renew(ctx context.Context, id string, epoch int64) (leaseRow, bool, error) {
	return l.do(ctx, func() (leaseRow, bool) {
		return l.w.update(id, epoch, func(r *leaseRow) { r.expires = l.w.now().Add(l.cfg.ttl) })
	})
}

func (l *simLink) release(ctx context.Context, id string, epoch int64) (leaseRow, bool, error) {
	return l.do(ctx, func() (leaseRow, bool) {
		return l.w.update(id, epoch, func(r *leaseRow) { r.leaseID, r.expires = "", l.w.now() })
	})
}

func (l *simLink) wait(d time.Duration, _ bool, unless func() bool) {
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

func (l *simLink) interrupt() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *simLink) isOpen() bool { return true }

func (l *simLink) announce(context.Context) {}
func (l *simLink) close()                   {}

// simFault is what happens at one moment.
type simFault struct {
	kind   string
	client int
	amount int // 0 to 99
}

var simFaults = []string{"delay", "lose", "heal", "clock", "failover", "release", "stop", "start", "new", "nothing"}

// TestQuorumSimulated: candidates on a network that delays and loses, with a
// server whose clock is set about and that fails over and forgets. At no moment
// is there more than one primary, no epoch is given twice or goes back, gain and
// loss come in turn, and once all is well there is a primary soon.
//
// A millisecond of it takes none: see testing/synctest. Processes that pause,
// which it cannot have, are in internal/quorumtest.
func TestQuorumSimulated(t *testing.T) {
	elections, losses := 0, map[LossReason]int64{}
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
	if !testing.Short() && (elections < 100 || losses[LossExpired] == 0 || losses[LossFenced]+losses[LossFailover] == 0 || losses[LossReleased] == 0) {
		t.Error("the simulation has not got about")
	}
}

func simulate(t *testing.T, faults []simFault, seed uint64, elections *int, losses map[LossReason]int64) string {
	const ttl = time.Second
	random := rand.New(rand.NewPCG(seed, 1))
	w := &simWitness{row: leaseRow{epoch: 1 << timelineShift, witness: witnessID{7, 1}, given: witnessID{7, 1}}}
	var mu sync.Mutex // guards the two below
	var wrong []string
	var all []*PGQuorum
	add := func(i int) (*PGQuorum, *simLink) {
		believes := false // of its callbacks, which come one at a time
		cfg, err := newQuorumConfig(fmt.Sprint("region", i), []QuorumOption{
			WithLeaseTTL(ttl), WithSafetyMargin(ttl / 100), WithAttemptTimeout(ttl / 5),
			WithOnAcquired(func(QuorumLease) {
				mu.Lock()
				defer mu.Unlock()
				if believes {
					wrong = append(wrong, "acquired twice")
				}
				believes = true
			}),
			WithOnLost(func(l QuorumLease, r LossReason) {
				mu.Lock()
				defer mu.Unlock()
				if !believes {
					wrong = append(wrong, "lost what it had not")
				}
				believes = false
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		rate, start := 1+(2*random.Float64()-1)*clockDrift*0.99, time.Now()
		cfg.clock = func() time.Duration { return time.Duration(rate * float64(time.Since(start))) }
		l := &simLink{w: w, cfg: cfg, random: rand.New(rand.NewPCG(seed, uint64(len(all)+2))), wake: make(chan struct{}, 1), delay: 5 * time.Millisecond}
		q := newQuorum(cfg, newTracker(&config{leakThreshold: time.Minute, cancelGrace: time.Second}), l, l)
		all = append(all, q)
		return q, l
	}
	var quorums [3]*PGQuorum
	var links [3]*simLink
	var allLinks []*simLink
	fresh := func(i int) {
		quorums[i], links[i] = add(i)
		allLinks = append(allLinks, links[i])
		quorums[i].StartAutoRenew()
	}
	for i := range quorums {
		fresh(i)
	}
	primaries := func() (n int) {
		for _, q := range all {
			if q.IsPrimary() {
				n++
			}
		}
		return n
	}
	pass := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end) && len(wrong) == 0; time.Sleep(time.Millisecond) {
			if n := primaries(); n > 1 {
				wrong = append(wrong, fmt.Sprint(n, " primaries"))
			}
		}
	}
	var stopping sync.WaitGroup
	for _, f := range faults {
		q, l := quorums[f.client], links[f.client]
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
			stopping.Go(func() { _ = q.ReleaseLease(context.Background()) })
		case "stop":
			stopping.Go(q.StopAutoRenew)
		case "start":
			q.StartAutoRenew()
		case "new": // the process is killed: its belief is nobody's, its requests go on
			q.lose(LossReleased)
			l.mu.Lock()
			l.lose = 1
			l.mu.Unlock()
			stopping.Go(func() { _ = q.Close() })
			fresh(f.client)
		}
		pass(time.Duration(random.Float64() * 1.5 * float64(ttl)))
	}
	for i, l := range links {
		l.mu.Lock()
		l.delay, l.lose = 5*time.Millisecond, 0
		l.mu.Unlock()
		quorums[i].StartAutoRenew()
	}
	stopping.Wait()
	for _, q := range quorums {
		q.StartAutoRenew()
	}
	// A failover's quarantine, three TTLs where the server's clock was set back, a
	// ghost that renews the last belief, a hold-off.
	settled := 0
	for i := 0; i < 200 && settled < 10 && len(wrong) == 0; i++ {
		if pass(ttl / 10); primaries() == 1 {
			settled++
		} else {
			settled = 0
		}
	}
	if settled < 10 && len(wrong) == 0 {
		wrong = append(wrong, "no lasting primary when all is well")
	}
	for _, q := range all {
		_ = q.Close()
		s := q.Stats()
		*elections += int(s.Elections)
		for r, n := range s.Losses {
			losses[r] += n
		}
	}
	for _, l := range allLinks {
		l.ghosts.Wait()
	}
	if w.broken != "" {
		wrong = append(wrong, w.broken)
	}
	return strings.Join(wrong, "; ")
}
