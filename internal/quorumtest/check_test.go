//go:build linux

package quorumtest

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// problems are what a checker has found; none is well.
type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

// report makes them errors of a test: the first ones of what may be thousands.
func (p problems) report(t testing.TB) {
	t.Helper()
	const most = 20
	for _, problem := range p[:min(len(p), most)] {
		t.Error(problem)
	}
	if len(p) > most {
		t.Errorf("and %d more", len(p)-most)
	}
}

// check applies all checkers. Where a failover has lost commits, what the
// clients were told may not be there, and that it is is left out.
func (h *history) check(lossless bool) problems {
	p := slices.Concat(h.found, h.checkOverlap(), h.checkEpochs(), h.checkGrants(), h.checkCommits(), h.checkTurns())
	if lossless {
		p = slices.Concat(p, h.checkConfirmed(), h.checkRegister())
	}
	return p
}

// sure returns the beliefs that were held for some time for sure, in the order of
// their beginnings.
func (h *history) sure() []belief {
	sure := slices.DeleteFunc(slices.Clone(h.beliefs), func(b belief) bool { return b.From >= b.To })
	slices.SortFunc(sure, func(a, b belief) int { return cmp.Compare(a.From, b.From) })
	return sure
}

// checkOverlap sweeps over the beliefs: no instant must be in two clients' ones.
func (h *history) checkOverlap() (found problems) {
	sure := h.sure()
	latest := map[string]belief{} // of each client, the one that ends last so far
	for _, b := range sure {
		for client, l := range latest {
			if client != b.client && l.To > b.From {
				found.add("two primaries for %v: %s of epoch %s and %s of epoch %s, at %d",
					time.Duration(min(l.To, b.To)-b.From), client, epochText(l.Epoch), b.client, epochText(b.Epoch), b.From)
			}
		}
		if b.To > latest[b.client].To {
			latest[b.client] = b
		}
	}
	// One sample alone is at an instant that is not known: it must be all in
	// another one's belief.
	for _, e := range h.events {
		if e.Kind != "point" {
			continue
		}
		for _, b := range sure {
			if b.client != e.client && b.From < e.From && e.To < b.To {
				found.add("two primaries: %s, between %d and %d, and %s of epoch %s", e.client, e.From, e.To, b.client, epochText(b.Epoch))
			}
		}
	}
	return found
}

// checkEpochs: an epoch is of one client, and who believes later believes in a
// later one.
func (h *history) checkEpochs() (found problems) {
	type owner struct{ client, lease string }
	owners := map[int64]owner{}
	for _, b := range h.beliefs {
		o := owner{b.client, b.LeaseID}
		if was, ok := owners[b.Epoch]; ok && was != o {
			found.add("epoch %s was given to %s and to %s", epochText(b.Epoch), was.client, b.client)
		}
		owners[b.Epoch] = o
	}
	byTime := h.sure()
	for i := 1; i < len(byTime); i++ {
		if a, b := byTime[i-1], byTime[i]; b.Epoch <= a.Epoch {
			found.add("%s has believed in epoch %s after %s in epoch %s", b.client, epochText(b.Epoch), a.client, epochText(a.Epoch))
		}
	}
	return found
}

// checkGrants: in the order of their commits the epochs grow.
func (h *history) checkGrants() (found problems) {
	last := int64(math.MinInt64)
	for _, c := range h.commits {
		if c.kind != "grant" {
			continue
		}
		if c.epoch <= last {
			found.add("epoch %s was granted after epoch %s", epochText(c.epoch), epochText(last))
		}
		last = c.epoch
	}
	return found
}

// checkCommits: in the order of their commits no guarded write is of another
// epoch than the last granted one.
func (h *history) checkCommits() (found problems) {
	current := int64(math.MinInt64)
	for _, c := range h.commits {
		switch {
		case c.kind == "grant":
			current = c.epoch
		case c.epoch < current:
			found.add("write %d of %s, of epoch %s, was committed after epoch %s was granted", c.n, c.client, epochText(c.epoch), epochText(current))
		case c.epoch > current:
			found.add("write %d of %s is of epoch %s, which was not granted", c.n, c.client, epochText(c.epoch))
		}
	}
	return found
}

// checkTurns: what InTx says is not committed is not there, and a turn of Run's f is in one
// epoch, so that by checkCommits no two turns overlap in what they commit.
func (h *history) checkTurns() (found problems) {
	denied := map[told]string{}
	for _, e := range h.events {
		switch e.Kind {
		case "denied":
			denied[told{e.client, event{N: e.N}}] = e.Text
		case "strayed":
			found.add("write %d of %s is of epoch %s, and its turn has begun in another", e.N, e.client, epochText(e.Epoch))
		}
	}
	for _, c := range h.commits {
		if err, ok := denied[told{c.client, event{N: c.n}}]; ok && c.kind == "write" {
			found.add("write %d of %s is there, and InTx had said: %s", c.n, c.client, err)
		}
	}
	return found
}

// checkConfirmed: each belief is in an epoch that was granted to it, and what a
// client was told is committed is there.
func (h *history) checkConfirmed() (found problems) {
	type id struct {
		client string
		n      int64
	}
	grants, writes := map[int64]string{}, map[id]int64{}
	for _, c := range h.commits {
		if c.kind == "grant" {
			grants[c.epoch] = c.leaseID
		} else {
			writes[id{c.client, c.n}] = c.epoch
		}
	}
	for _, b := range h.beliefs {
		if grants[b.Epoch] != b.LeaseID {
			found.add("%s believes in epoch %s, which was not granted to it", b.client, epochText(b.Epoch))
		}
	}
	for _, e := range h.events {
		if epoch, ok := writes[id{e.client, e.N}]; e.Kind == "write" && (!ok || epoch != e.Epoch) {
			found.add("write %d of %s, of epoch %s, was confirmed and is not there", e.N, e.client, epochText(e.Epoch))
		}
	}
	return found
}

func epochText(epoch int64) string { return fmt.Sprintf("%d:%d", epoch>>32, epoch&math.MaxUint32) }

// registerOp is an operation on the lease, as a register that holds an epoch.
type registerOp struct {
	kind    string // acquire, renew, verify, release
	epoch   int64
	unknown bool // it may have had no effect
}

// registerState: the epoch that was granted last, and whether it is held.
type registerState struct {
	epoch int64
	held  bool
}

// register is the sequential specification. An epoch stands for its holder, too:
// checkEpochs sees that it has one only. When a lease ends by its age is for
// checkOverlap: here any acquisition may end the one before.
var register = porcupine.NondeterministicModel{
	Init: func() []any { return []any{registerState{math.MinInt64, false}} },
	Step: func(s, in, _ any) []any {
		state, op := s.(registerState), in.(registerOp)
		mine := state == registerState{op.epoch, true}
		switch {
		case op.kind == "acquire" && op.epoch > state.epoch:
			return []any{registerState{op.epoch, true}}
		case op.kind == "renew" && mine, op.kind == "verify" && mine:
			return []any{state}
		case op.kind == "release" && mine && op.unknown:
			return []any{state, registerState{op.epoch, false}}
		case op.kind == "release" && mine:
			return []any{registerState{op.epoch, false}}
		case op.kind == "release": // of a lease that is over
			return []any{state}
		}
		return nil
	},
	DescribeOperation: func(in, _ any) string { return fmt.Sprintf("%+v", in) },
}

// The history is checked in pieces: the operations of so many epochs, and the
// same of the next ones, with some of the last. An operation names its epoch, so
// that those of other epochs do not matter to it but by the order of the
// acquisitions.
const registerPiece, registerLap = 64, 4

// checkRegister has porcupine find an order of the operations that the register
// allows and that is one of their times. An acquisition that no client was told of
// may have happened at any time until the next one; a release of unknown result
// may happen until then, or never.
func (h *history) checkRegister() (found problems) {
	ops := map[int64][]porcupine.Operation{} // by epoch
	acquired := map[int64]event{}
	for _, e := range h.events {
		switch e.Kind {
		case "acquire":
			acquired[e.Epoch] = e.event
		case "renew", "verify", "release":
			ops[e.Epoch] = append(ops[e.Epoch], porcupine.Operation{Input: registerOp{e.Kind, e.Epoch, e.Unknown}, Call: e.From, Return: e.To})
		}
	}
	end := int64(math.MaxInt64)
	var epochs []int64
	for _, c := range slices.Backward(h.commits) {
		if c.kind != "grant" {
			continue
		}
		for i, op := range ops[c.epoch] {
			if op.Input.(registerOp).unknown {
				ops[c.epoch][i].Return = end
			}
		}
		op := porcupine.Operation{Input: registerOp{kind: "acquire", epoch: c.epoch}, Call: 0, Return: end}
		if e, ok := acquired[c.epoch]; ok {
			op.Call, op.Return = e.From, e.To
		}
		ops[c.epoch] = append(ops[c.epoch], op)
		epochs = append(epochs, c.epoch)
		end = op.Return
	}
	slices.Sort(epochs)
	model := register.ToModel()
	for i := 0; i < len(epochs); i += registerPiece {
		piece := epochs[max(0, i-registerLap):min(len(epochs), i+registerPiece)]
		var of []porcupine.Operation
		for _, epoch := range piece {
			of = append(of, ops[epoch]...)
		}
		switch result := porcupine.CheckOperationsTimeout(model, of, time.Minute); result {
		case porcupine.Ok:
		default:
			found.add("porcupine: the operations of the epochs from %s to %s: %s", epochText(piece[0]), epochText(piece[len(piece)-1]), result)
		}
	}
	return found
}
