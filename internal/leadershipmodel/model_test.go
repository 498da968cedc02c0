package leadershipmodel

import (
	"cmp"
	"hash/maphash"
	"strings"
	"testing"
)

// right are the protocols that must hold. The first is the one that the package
// comment specifies, under the faults that a PostgreSQL witness has.
var right = []Variant{
	{Name: "failover", Belief: 2, Watch: 2, Quarantine: 2, Takeovers: 2, Renewals: 1, Late: 1, Failovers: 1},
	{Name: "failover, a client's clock loses a tick", Belief: 2, Watch: 3, Quarantine: 3, Takeovers: 2, Renewals: 1, Failovers: 1, LostTicks: 1},
	{Name: "failover, the server's clock steps", Belief: 2, Watch: 2, Quarantine: 2, Takeovers: 2, Failovers: 1, Steps: 1, StepSize: 3},
	{Name: "failover, guarded transactions", Belief: 2, Watch: 2, Quarantine: 2, Takeovers: 2, Renewals: 1, Failovers: 1, Guards: true},
	{Name: "failover of a new table", Belief: 2, Watch: 2, Quarantine: 2, Takeovers: 2, Renewals: 1, Failovers: 1, NewTable: true},
	{Name: "failover of a new table, made after another", Belief: 2, Watch: 2, Quarantine: 2, Takeovers: 2, Failovers: 1, NewTable: true, Timeline: 2},
	{Name: "two failovers", Belief: 2, Watch: 2, Quarantine: 2, Takeovers: 2, Late: 1, Failovers: 2},
	{Name: "pg_upgrade and failover", Belief: 2, Watch: 2, Quarantine: 2, Takeovers: 2, Late: 1, Timeline: 2, Failovers: 1, Upgrades: 1},
	{Name: "three takeovers, two late requests", Belief: 2, Watch: 2, Takeovers: 3, Renewals: 1, Late: 2},
	{Name: "a client's clock loses a tick", Belief: 2, Watch: 3, Takeovers: 2, Renewals: 2, Late: 1, LostTicks: 1},
	{Name: "the server's clock steps twice", Belief: 2, Watch: 2, Escape: 6, Takeovers: 2, Renewals: 1, Steps: 2, StepSize: 3},
	{Name: "guarded transactions", Belief: 2, Watch: 2, Takeovers: 3, Renewals: 1, Late: 1, Guards: true},
	{Name: "the server's clock alone, step = margin", Bug: NoWatch, Belief: 2, Watch: 3, Takeovers: 2, Renewals: 1, Steps: 1, StepSize: 1},
}

const (
	two    = "two primaries"
	reused = "epoch reused or fallen"
	fenced = "commit of a fenced epoch"
)

// wrong are protocols with one mistake each, or without what they rely on.
var wrong = []Variant{
	{Name: "deadline from the reply", Bug: DeadlineFromReply, Want: two},
	{Name: "watch from the send", Bug: WatchFromSend, Steps: 1, StepSize: 2, Want: two},
	{Name: "the server's clock alone, step > margin", Bug: NoWatch, Watch: 3, Steps: 1, StepSize: 2, Want: two},
	{Name: "no margin, a client's clock loses a tick", LostTicks: 1, Want: two},
	{Name: "margin 1, a client's clock loses two ticks", Watch: 3, LostTicks: 2, Want: two},
	{Name: "release of whoever holds it", Bug: ReleaseUnchecked, Takeovers: 3, Late: 1, Want: two},
	{Name: "release sent while believing", Bug: ReleaseLate, Want: two},
	{Name: "own lease adopted by a renewal", Bug: AdoptByRenewal, Late: 1, Want: two},
	{Name: "renewal by region", Bug: ByRegion, Want: two},
	{Name: "row lost (UNLOGGED): epochs", RowLosses: 1, Want: reused},
	{Name: "fence that locks nothing", Bug: GuardUnlocked, Guards: true, Want: fenced},
	{Name: "failover, no quarantine", Bug: NoQuarantine, Failovers: 1, Want: two},
	{Name: "failover, quarantine shorter than the belief", Quarantine: 1, Failovers: 1, Want: two},
	{Name: "failover, a fresh process trusts a released row", Bug: FirstSightTrusted, Quarantine: 2, Failovers: 1, Want: two},
	{Name: "failover, own lease taken in the quarantine", Bug: AdoptAtOnce, Quarantine: 2, Takeovers: 3, Failovers: 1, Want: two},
	{Name: "failover, takeover not bound to the timeline", Bug: TakeUnbound, Late: 1, Quarantine: 2, Failovers: 1, Want: two},
	{Name: "failover of a new table, a new row is trusted", Bug: NewRowTrusted, NewTable: true, Quarantine: 2, Failovers: 1, Want: two},
	{Name: "two failovers that lose all their epochs, then pg_upgrade", Belief: 1, Watch: 1, Quarantine: 1, Failovers: 2, Upgrades: 1, Want: reused},
	{Name: "failover that loses a new row, then pg_upgrade", NewTable: true, Quarantine: 2, Failovers: 1, Upgrades: 1, Want: reused},
	{Name: "failover, renewal counts after the belief has ended", Bug: LapsedRenewal, Quarantine: 2, Failovers: 1, Want: two},
	{Name: "failover, epoch is a plain counter", Bug: PlainEpoch, Quarantine: 2, Failovers: 1, Want: reused},
	{Name: "pg_upgrade and failover, epoch above timeline<<32 only", Bug: FloorByTimeline, Quarantine: 2, Timeline: 2, Failovers: 1, Upgrades: 1, Want: reused},
	{Name: "pg_upgrade and failover, trust by the epoch's half", Bug: TrustByEpoch, Quarantine: 2, Timeline: 2, Failovers: 1, Upgrades: 1, Want: two},
}

// goals are what the right protocol has to be able to do: if it could do
// nothing, it would be safe too.
var goals = []struct {
	name  string
	about Variant
	ticks int // that pass on the way, at least and at most
	goal  func(*state) bool
}{
	{"a takeover after a failover", Variant{Failovers: 1}, 2, func(s *state) bool {
		return s.row.epoch == 2<<epochBits|1 && s.some(func(c *client) bool { return c.belief > 0 && c.epoch == s.row.epoch })
	}},
	{"a holder goes on after a failover", Variant{Failovers: 1}, 0, func(s *state) bool {
		return s.some(func(c *client) bool { return c.belief == 2 && timeline(c.identity) == 2 && timeline(s.row.in) == 1 })
	}},
	{"a lease is adopted whose grant was never answered", Variant{}, 0, func(s *state) bool {
		return s.some(func(c *client) bool { return c.call.kind == acquire && c.call.ok && c.holder == mine })
	}},
	{"a released lease is free while its releaser waits for the reply", Variant{}, 0, func(s *state) bool {
		return s.some(func(c *client) bool { return c.call.kind == release && c.call.done }) &&
			s.some(func(c *client) bool { return c.belief == 2 })
	}},
	{"a takeover that the server's clock would refuse", Variant{Escape: 6, Steps: 1, StepSize: 9}, 6, func(s *state) bool {
		return s.row.left > 0 && s.some(func(c *client) bool {
			return c.holder == other && c.call.kind == acquire && c.call.force && c.call.version == s.row.version
		})
	}},
	{"a takeover of a new table", Variant{NewTable: true}, 0, primary},
	{"a takeover of a new table, made after a failover", Variant{NewTable: true, Timeline: 2}, 2, primary},
}

func primary(s *state) bool { return s.some(func(c *client) bool { return c.belief > 0 }) }

func (s *state) some(f func(*client) bool) bool { return f(&s.client[0]) || f(&s.client[1]) }

// bounded fills in what a variant leaves open.
func bounded(v Variant) Variant {
	v.Belief, v.Watch = cmp.Or(v.Belief, 2), cmp.Or(v.Watch, 2)
	v.Takeovers, v.Renewals = cmp.Or(v.Takeovers, 2), cmp.Or(v.Renewals, 1)
	return v
}

// enough ends a search that has grown beyond the memory it may take.
const enough = 6_000_000

func TestRight(t *testing.T) {
	for i, v := range right {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			if raceEnabled || testing.Short() {
				v.Takeovers, v.Renewals, v.Late, v.LostTicks = 2, 0, 0, 0
				v.Failovers, v.Steps = min(v.Failovers, 1), min(v.Steps, 1)
			}
			r := Explore(v, enough)
			t.Logf("%d states, %d transitions, depth %d, %v", r.States, r.Transitions, r.Depth, r.Took)
			if r.Broken != "" {
				t.Fatalf("%s:\n%s", r.Broken, strings.Join(r.Trace, "\n"))
			}
			if !r.Exhausted {
				t.Error("not exhausted")
			}
			if i == 0 && !raceEnabled && !testing.Short() && r.States < 500_000 {
				t.Error("fewer than 500,000 states: the bounds are too narrow")
			}
		})
	}
}

func TestWrong(t *testing.T) {
	for _, v := range wrong {
		t.Run(v.Name, func(t *testing.T) {
			r := Explore(bounded(v), enough)
			t.Logf("%s after %d states, %d transitions, %v:\n%s", r.Broken, r.States, r.Transitions, r.Took, strings.Join(r.Trace, "\n"))
			if r.Broken != v.Want {
				t.Errorf("%q breaks, want %q", r.Broken, v.Want)
			}
			if len(r.Trace) != r.Depth {
				t.Errorf("the trace has %d steps, and it takes %d", len(r.Trace), r.Depth)
			}
		})
	}
}

func TestGoals(t *testing.T) {
	for _, g := range goals {
		t.Run(g.name, func(t *testing.T) {
			v := bounded(g.about)
			v.Quarantine, v.goal = v.Watch, g.goal
			r := Explore(v, enough)
			t.Logf("%d states:\n%s", r.States, strings.Join(r.Trace, "\n"))
			if r.Broken != invariants[goalReached] {
				t.Errorf("not reached: %q", r.Broken)
			}
			if n := strings.Count(strings.Join(r.Trace, ""), "a tick passes"); n != g.ticks {
				t.Errorf("it takes %d ticks, want %d", n, g.ticks)
			}
		})
	}
}

// TestSavings: a search that leaves nothing out finds nothing more. Up to where a
// state is over, it visits what the explorer visited, but for the names of the
// clients and late requests without effect; and from there on nothing breaks and
// nobody becomes primary.
func TestSavings(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("takes long, and is one goroutine")
	}
	v := Variant{Belief: 1, Watch: 1, Quarantine: 1, Takeovers: 1, Renewals: 1, Late: 1, Failovers: 1, Guards: true}
	x, _ := explore(&v, enough)
	var over []state
	visited := walk(&v, []state{v.initial()}, func(s, n state) bool {
		v.settle(&n)
		if !x.has(n) {
			if n.mirror(); !x.has(n) {
				t.Fatalf("after %s: not visited: %s", s, n)
			}
		}
		if n.isOver() {
			over = append(over, n)
		}
		return !n.isOver()
	})
	after := walk(&v, over, func(s, n state) bool {
		v.settle(&n)
		if n.broken != holds || n.client[0].belief > s.client[0].belief || n.client[1].belief > s.client[1].belief {
			t.Fatalf("%s was over, and then %s", s, n)
		}
		return true
	})
	if visited < 2*len(x.states) || after == 0 {
		t.Errorf("%d states stand for %d, and %d after them: nothing was saved", len(x.states), visited, after)
	}
	t.Logf("%d states stand for %d, and %d after them", len(x.states), visited, after)
}

// walk visits what can be reached from the states given, as far as on allows,
// and returns how much it was. It calls on for each transition.
func walk(v *Variant, stack []state, on func(s, n state) bool) int {
	met := map[state]bool{}
	for len(stack) > 0 {
		s := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		v.next(&s, func(n state, _ step) {
			if on(s, n) && !met[n] {
				stack = append(stack, n)
			}
			met[n] = true
		})
	}
	return len(met)
}

func (x *set) has(s state) bool {
	return x.find(maphash.Comparable(x.seed, s), func(p *slot) bool { return x.states[p.index-1] == s }).index != 0
}
