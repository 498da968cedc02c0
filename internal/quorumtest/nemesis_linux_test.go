package quorumtest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The environment of a run.
const (
	envElections = "BALDUR_NEMESIS_ELECTIONS" // how many, at least
	envSeed      = "BALDUR_NEMESIS_SEED"
	envFaults    = "BALDUR_NEMESIS_FAULTS" // a regular expression: those that it matches
)

const ttl = 600 * time.Millisecond // of TestNemesis' lease

// serverSettings are those of the servers here: a request is shown as a whole.
var serverSettings = []string{"synchronous_commit=on", "max_connections=100", "track_activity_query_size=8kB"}

// elections returns how many a run is to see, and within what time, if that
// comes first.
func elections(t *testing.T) (n int, within time.Duration) {
	within = time.Hour * 24
	ci := os.Getenv("CI") != ""
	if ci {
		within = 100 * time.Second
	}
	if s := os.Getenv(envElections); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", envElections, err)
		}
		return n, within
	}
	switch {
	case ci && !raceDetector:
		return 300, within
	case ci:
		return 60, within
	}
	return 40, within
}

func seed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv(envSeed); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s: %v", envSeed, err)
		}
	}
	t.Logf("%s=%d (the order of the faults and their lengths; not how the processes meet)", envSeed, seed)
	return seed
}

func self(t testing.TB) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// TestNemesis holds elections while everything fails, and then looks at what has
// happened: see README.md.
func TestNemesis(t *testing.T) {
	want, within := elections(t)
	seed := seed(t)
	server, clock := clockedServer(t, serverSettings...)
	notifies := limitNotify(t, server)
	c := newCluster(t, server, "nemesis", self(t))
	c.giveRoles()
	n := &nemesis{c: c, rand: rand.New(rand.NewPCG(seed, 0)), ttl: ttl, clock: clock}
	started := 0
	base := clientConfig{
		Region: "one", Role: roleApp, TTL: ttl, Margin: ttl / 10, Attempt: ttl / 5,
		MaxOpen: 4, Runs: true, Writes: true, Sample: 200 * time.Microsecond,
	}
	n.spawn = func(cfg clientConfig) *proc {
		started++
		cfg.Name, cfg.Seed = fmt.Sprintf("client-%d", started), n.rand.Uint64()
		return c.start(cfg)
	}
	n.spawn(base)
	base.Role = roleBatch
	n.spawn(base)
	base.Region, base.Role, base.Manual, base.Runs = "two", roleApp, true, false
	n.spawn(base)

	chosen, err := regexp.Compile(os.Getenv(envFaults))
	if err != nil {
		t.Fatalf("%s: %v", envFaults, err)
	}
	played := slices.DeleteFunc(slices.Clone(faults), func(f fault) bool {
		return clock == nil && strings.HasPrefix(f.name, "clock") || !notifies && f.name == notifyFull || !chosen.MatchString(f.name)
	})
	if len(played) == 0 {
		t.Fatalf("%s: no fault matches", envFaults)
	}
	began, deck := time.Now(), []fault(nil)
	for {
		n.handOvers()
		if got, _ := c.elections(); got >= want || time.Since(began) > within {
			break
		}
		if len(deck) == 0 {
			deck = slices.Clone(played)
			n.rand.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		n.play(deck[0], began)
		deck = deck[1:]
	}
	took := time.Since(began)
	h := c.finish()
	h.check(true).report(t)
	n.figures(h, took)
	if t.Failed() {
		t.Log(c.report())
	}
}

func (n *nemesis) play(f fault, began time.Time) {
	n.c.t.Helper()
	n.c.t.Logf("%v: %s", time.Since(began).Round(time.Millisecond), f.name)
	s := span{what: f.name, from: monotonic()}
	f.do(n)
	s.to = monotonic()
	n.spans = append(n.spans, s)
}

// traces are what the clients log when a fault has met them, which is almost each
// time.
var traces = map[string]string{
	"cancel synchronous wait": "with a warning",
	notifyFull:                "no notifications of the lease's changes",
	"lose reply to acquire":   "request=acquire unknown=true",
	"lose reply to renew":     "request=renew unknown=true",
	"lose reply to release":   "request=release unknown=true",
}

// handOvers has the holder release the lease some times.
func (n *nemesis) handOvers() {
	for range 1 + n.rand.IntN(4) {
		p, epoch := n.c.awaitHolder(0)
		s := span{what: "hand-over", from: monotonic()}
		p.tell("release")
		n.c.awaitHolder(epoch)
		s.to = monotonic()
		n.spans = append(n.spans, s)
		time.Sleep(n.someTime(0, 0.3))
	}
}

// figures logs how long there was no primary, by what had happened. It is an
// error only beyond all reason, since machines stand still, too.
func (n *nemesis) figures(h *history, took time.Duration) {
	t := n.c.t
	times := map[string][]float64{}
	counts := map[string]int{}
	for _, s := range n.spans {
		counts[s.what]++
	}
	var end int64
	for i, b := range h.sure() {
		if i > 0 && b.From > end {
			what, without := n.blame(end, b.From)
			times[what] = append(times[what], float64(without)/float64(ttl))
			if without > 10*2*ttl {
				t.Errorf("%s: there was no primary for %v, not counting the time that the fault lasted", what, without)
			}
		}
		end = max(end, b.To)
	}
	for fault, trace := range traces {
		if counts[fault] >= 3 && !n.c.logged(trace) {
			t.Errorf("%s: no client has logged %q: does it still have an effect?", fault, trace)
		}
	}
	const aborted = "current transaction is aborted"
	if n.c.logged(aborted) {
		t.Errorf("a client has logged %q: a request had been refused and its transaction was not ended", aborted)
	}
	elections, _ := n.c.elections()
	writes, ops, unheard := 0, 0, -elections
	for _, c := range h.commits {
		if c.kind == "grant" {
			unheard++
		}
	}
	for _, e := range h.events {
		switch e.Kind {
		case "write":
			writes++
		case "acquire", "renew", "verify", "release":
			ops++
		}
	}
	if n.c.lossy {
		unheard = 0 // they are lost, like others
	}
	t.Logf("%d elections in %v, and %d acquisitions that nobody was told of; %d guarded writes confirmed; %d operations checked by porcupine; without a primary, in TTLs, beside the fault's own time:", elections, took.Round(time.Second), unheard, writes, ops)
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		v := times[what]
		slices.Sort(v)
		line := fmt.Sprintf("%-26s %5d times", what, counts[what])
		if len(v) > 0 {
			line += fmt.Sprintf(", %5d gaps: median %.3f, longest %.3f, above 2: %d", len(v), v[len(v)/2], v[len(v)-1], len(v)-sort.SearchFloat64s(v, 2))
		}
		t.Log(line)
	}
}

// blame returns what was going on last when there was no primary, and for how
// much of that time it did not last. A fault has effects for a TTL and a half after it.
func (n *nemesis) blame(from, to int64) (what string, without time.Duration) {
	what, without = "?", time.Duration(to-from)
	for _, s := range n.spans {
		if s.from < to && from < s.to+int64(ttl*3/2) {
			what = s.what
			without = time.Duration(to - from)
			if what != "hand-over" {
				without -= time.Duration(max(0, min(to, s.to)-max(from, s.from)))
			}
			if from >= s.from && from < s.to && what != "hand-over" {
				break
			}
		}
	}
	return what, without
}
