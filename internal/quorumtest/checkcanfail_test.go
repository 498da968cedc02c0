//go:build linux

package quorumtest

import (
	"slices"
	"strings"
	"testing"
)

// goodHistory is one of two clients that no checker objects to.
func goodHistory() *history {
	of := func(client, kind string, from, to, epoch int64) told {
		return told{client, event{Kind: kind, From: from, To: to, Epoch: epoch, LeaseID: client}}
	}
	unknown := of("b", "release", 300, 310, 3)
	unknown.Unknown = true
	write := of("a", "write", 0, 0, 1)
	write.N = 1
	return &history{
		beliefs: []belief{
			belief(of("a", "", 10, 100, 1)), belief(of("b", "", 100, 200, 2)), belief(of("b", "", 250, 300, 3)),
			belief(of("a", "", 260, 260, 4)), // one sample, when is not known
		},
		events: []told{
			of("a", "acquire", 5, 10, 1), of("a", "renew", 20, 30, 1), of("a", "release", 100, 100, 1),
			of("b", "acquire", 99, 110, 2), of("b", "verify", 120, 130, 2), of("b", "release", 200, 205, 2),
			of("b", "acquire", 240, 250, 3), unknown, of("a", "acquire", 290, 350, 4),
			of("a", "point", 90, 110, 0), of("b", "point", 90, 110, 0), write,
		},
		commits: []commit{
			{no: 1, kind: "grant", epoch: 1, leaseID: "a"}, {no: 2, kind: "write", epoch: 1, client: "a", n: 1},
			{no: 5, kind: "grant", epoch: 2, leaseID: "b"}, {no: 6, kind: "write", epoch: 2, client: "b", n: 1},
			{no: 7, kind: "grant", epoch: 3, leaseID: "b"}, {no: 8, kind: "grant", epoch: 4, leaseID: "a"},
		},
	}
}

// Each checker finds what it is for, and finds nothing else wrong.
func TestCheckersFail(t *testing.T) {
	if p := goodHistory().check(true); len(p) > 0 {
		t.Errorf("found in a good history: %q", p)
	}
	event := func(h *history, client, kind string, epoch int64) *told {
		return &h.events[slices.IndexFunc(h.events, func(e told) bool { return e.client == client && e.Kind == kind && e.Epoch == epoch })]
	}
	for _, test := range []struct {
		name, want string
		spoil      func(*history)
	}{
		{"overlap", "two primaries for 1ns", func(h *history) { h.beliefs[0].To = 101 }},
		{"overlap, long ago begun", "two primaries for 50ns", func(h *history) { h.beliefs[0].To = 300 }},
		{"point in a belief", "two primaries: b, between 50 and 60", func(h *history) { p := event(h, "b", "point", 0); p.From, p.To = 50, 60 }},
		{"epoch given twice", "epoch 0:1 was given to", func(h *history) { h.beliefs[1].Epoch = 1 }},
		{"epoch falls", "b has believed in epoch 0:1 after", func(h *history) { h.beliefs[2].Epoch = 1 }},
		{"grants fall", "epoch 0:3 was granted after epoch 0:3", func(h *history) { h.commits[5].epoch = 3 }},
		{"belief without a grant", "b believes in epoch 0:2, which", func(h *history) { h.commits[2].leaseID = "a" }},
		{"fenced write", "write 1 of a, of epoch 0:1, was committed after epoch 0:2", func(h *history) {
			h.commits[1], h.commits[2] = h.commits[2], h.commits[1]
		}},
		{"write too early", "write 1 of b is of epoch 0:2, which was not granted", func(h *history) {
			h.commits[2], h.commits[3] = h.commits[3], h.commits[2]
		}},
		{"denied write", "write 1 of a is there, and InTx had said: no", func(h *history) {
			e := *event(h, "a", "write", 1)
			e.Kind, e.Text = "denied", "no"
			h.events = append(h.events, e)
		}},
		{"two epochs in a turn", "write 2 of a is of epoch 0:2, and its turn has begun in another", func(h *history) {
			e := *event(h, "a", "write", 1)
			e.Kind, e.N, e.Epoch = "strayed", 2, 2
			h.events = append(h.events, e)
		}},
		{"lost write", "write 2 of a, of epoch 0:1, was confirmed and is not there", func(h *history) { event(h, "a", "write", 1).N = 2 }},
		{"renewed after a takeover", "porcupine: the operations", func(h *history) {
			e := event(h, "a", "renew", 1)
			e.From, e.To = 111, 112
		}},
		{"verified before the acquisition", "porcupine: the operations", func(h *history) {
			e := event(h, "b", "verify", 2)
			e.From, e.To = 90, 98
		}},
		{"verified after the release", "porcupine: the operations", func(h *history) {
			e := event(h, "b", "verify", 2)
			e.From, e.To = 206, 207
		}},
		{"acquired in another order", "porcupine: the operations", func(h *history) {
			e := event(h, "b", "acquire", 2)
			e.From, e.To = 251, 252
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := goodHistory()
			test.spoil(h)
			if p := h.check(true); !slices.ContainsFunc(p, func(s string) bool { return strings.HasPrefix(s, test.want) }) {
				t.Errorf("found %q, want %q…", p, test.want)
			}
		})
	}
}

// An acquisition that nobody was told of may have happened at any time until the
// next one, and many pieces are checked as one is.
func TestRegisterPieces(t *testing.T) {
	h := &history{}
	for i := int64(1); i <= 3*registerPiece; i++ {
		h.commits = append(h.commits, commit{no: i, kind: "grant", epoch: i, leaseID: "a"})
		if i%10 != 0 {
			h.events = append(h.events, told{"a", event{Kind: "acquire", From: i * 10, To: i*10 + 5, Epoch: i}})
			h.events = append(h.events, told{"a", event{Kind: "verify", From: i*10 + 6, To: i*10 + 7, Epoch: i}})
		}
	}
	if p := h.checkRegister(); len(p) > 0 {
		t.Error(p)
	}
	for _, epoch := range []int64{1, registerPiece, registerPiece + 1, 3 * registerPiece} {
		bad := &history{commits: h.commits, events: slices.Clone(h.events)}
		bad.events = append(bad.events, told{"a", event{Kind: "verify", From: epoch*10 + 27, To: epoch*10 + 28, Epoch: epoch}})
		if found := len(bad.checkRegister()) > 0; found != (epoch < 3*registerPiece) {
			t.Errorf("a late verification of epoch %d: found %v", epoch, found)
		}
	}
}
