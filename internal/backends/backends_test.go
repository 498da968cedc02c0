package backends

import (
	"fmt"
	"strings"
	"testing"
)

// TestArrange: a queue is no explosion, and a circle is no endless loop.
func TestArrange(t *testing.T) {
	node := func(pid int, by ...int) *Node {
		return &Node{Backend: Backend{PID: pid}, BlockedBy: by}
	}
	var shape func([]*Node) string
	shape = func(nodes []*Node) string {
		var parts []string
		for _, n := range nodes {
			s := fmt.Sprint(n.PID)
			if len(n.Blocks) > 0 {
				s += "(" + shape(n.Blocks) + ")"
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, " ")
	}
	queue := []*Node{node(1)}
	for i := 2; i <= 60; i++ {
		n := node(i)
		for j := 1; j < i; j++ {
			n.BlockedBy = append(n.BlockedBy, j)
		}
		queue = append(queue, n)
	}
	if tree := arrange(queue); len(tree) != 1 || len(tree[0].Blocks) != 59 {
		t.Error(shape(tree))
	}
	for _, c := range []struct {
		nodes []*Node
		want  string
	}{
		{[]*Node{node(1, 2), node(2, 1)}, "1(2)"},
		{[]*Node{node(1, 2), node(2, 1), node(3, 2)}, "1(2(3))"},
		{[]*Node{node(0), node(5, 0)}, "0(5)"},
		{[]*Node{node(1, 9)}, "1"},
		{[]*Node{node(1), node(2), node(3, 1, 2), node(4, 3)}, "1(3(4)) 2"},
	} {
		if got := shape(arrange(c.nodes)); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}
