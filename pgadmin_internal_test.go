package baldur

import (
	"fmt"
	"strings"
	"testing"

	"github.com/baldur-go/baldur/internal/pgsession"
)

// TestBlockingTreeShapes: a queue is no explosion, and a circle is no endless loop.
func TestBlockingTreeShapes(t *testing.T) {
	node := func(pid int, by ...int) *BlockingNode {
		return &BlockingNode{Backend: Backend{PID: pid}, BlockedBy: by}
	}
	var shape func([]*BlockingNode) string
	shape = func(nodes []*BlockingNode) string {
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
	queue := []*BlockingNode{node(1)}
	for i := 2; i <= 60; i++ {
		n := node(i)
		for j := 1; j < i; j++ {
			n.BlockedBy = append(n.BlockedBy, j)
		}
		queue = append(queue, n)
	}
	if tree := blockingTree(queue); len(tree) != 1 || len(tree[0].Blocks) != 59 {
		t.Error(shape(tree))
	}
	for _, c := range []struct {
		nodes []*BlockingNode
		want  string
	}{
		{[]*BlockingNode{node(1, 2), node(2, 1)}, "1(2)"},
		{[]*BlockingNode{node(1, 2), node(2, 1), node(3, 2)}, "1(2(3))"},
		{[]*BlockingNode{node(0), node(5, 0)}, "0(5)"},
		{[]*BlockingNode{node(1, 9)}, "1"},
		{[]*BlockingNode{node(1), node(2), node(3, 1, 2), node(4, 3)}, "1(3(4)) 2"},
	} {
		if got := shape(blockingTree(c.nodes)); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// TestPoolerModes: each mode that a probe finds is told as one of its own.
func TestPoolerModes(t *testing.T) {
	for found, want := range map[pgsession.Pooler]PoolerMode{
		pgsession.NoPooler: PoolerNone, pgsession.SessionPooler: PoolerSession, pgsession.TransactionPooler: PoolerTransaction,
		pgsession.StatementPooler: PoolerStatement, pgsession.UnknownPooler: PoolerUnknown,
	} {
		if PoolerMode(found) != want {
			t.Errorf("%q is told as %q", want, found)
		}
	}
}
