package leadershipmodel

import (
	"fmt"
	"slices"
)

// path returns the states from the first to the one with index to.
func (x *set) path(to int) []int {
	path := []int{to}
	for to != 0 {
		to = int(x.from[to])
		path = append(path, to)
	}
	slices.Reverse(path)
	return path
}

// trace tells a shortest way to the state with index bad, a line a step. Order
// may have exchanged the clients on the way: here they keep their names.
func (x *set) trace(v *Variant, bad int) []string {
	var out []string
	s := v.initial()
	for i, at := range x.path(bad)[1:] {
		var after state
		text := ""
		v.next(&s, func(n state, by step) {
			v.settle(&n)
			mirrored := n
			mirrored.mirror()
			if want := x.states[at]; text == "" && (n == want || mirrored == want) {
				after, text = n, by.text(&s)
			}
		})
		out = append(out, fmt.Sprintf("%2d. %-48s %s", i+1, text, after))
		s = after
	}
	return out
}

func (t step) text(s *state) string {
	switch {
	case t.who < 0:
		return t.what
	case t.who >= 2:
		return fmt.Sprintf("%s: %s", t.what, s.late[t.who-2])
	}
	return fmt.Sprintf("%c %s", 'A'+t.who, t.what)
}

func (v version) String() string {
	return fmt.Sprintf("%d.%d/%d", v.epoch>>epochBits, v.epoch&(1<<epochBits-1), v.seq)
}

func (q request) String() string {
	return fmt.Sprintf("%s by %s on %s", [...]string{"", "observation", "takeover", "renewal", "release"}[q.kind], ids[q.lease], q.version)
}

var ids = [...]string{nobody: "nobody", idA: "A", idB: "B", old: "an old id"}

func (r row) String() string {
	if !r.made {
		return "missing"
	}
	return fmt.Sprintf("%s %s %+d", r.version, ids[r.lease], r.left)
}

func (s state) String() string {
	out := fmt.Sprintf("%d:%d row %s", system(s.identity), timeline(s.identity), s.row)
	if s.lagging {
		out += fmt.Sprintf(" (standby %s)", s.standby)
	}
	for i, c := range s.client {
		if c.belief > 0 {
			out += fmt.Sprintf(" | %c PRIMARY %d", 'A'+i, c.belief)
		}
		if c.quarantine > 0 {
			out += fmt.Sprintf(" | %c quarantined %d", 'A'+i, c.quarantine)
		}
	}
	return out
}
