package leadershipmodel

import (
	"time"

	"github.com/baldur-go/baldur/internal/lease"
)

// A bug is a mistake put into the protocol, to show that the explorer finds it.
type Bug uint32

// The mistakes. Each is one that a published lease library has made, or one
// that the rules in doc.go exist to prevent.
const (
	DeadlineFromReply Bug = 1 << iota // believe until the reply + Belief, not until the send + Belief
	WatchFromSend                     // count the watch from when the observation was sent
	NoWatch                           // take what the server's clock calls expired, without a watch
	ReleaseUnchecked                  // release without comparing lease id and epoch
	ReleaseLate                       // stop believing at the reply of the release, not before it is sent
	AdoptByRenewal                    // a lease found to be mine is renewed, and believed in under its epoch
	ByRegion                          // "mine" is what carries my region: both processes have the same
	PlainEpoch                        // epoch+1, whatever the timeline
	FloorByTimeline                   // the epoch is above timeline<<32, and that is all
	TrustByEpoch                      // trusted is whose epoch's upper half is the timeline
	NoQuarantine                      // a new identity is like the old one
	FirstSightTrusted                 // quarantine only what was seen to change: a fresh process trusts
	AdoptAtOnce                       // a lease found to be mine is taken in a quarantine too
	NewRowTrusted                     // a new row is of the witness that it is made on, in any timeline
	TakeUnbound                       // the takeover does not compare the identity it was decided under
	LapsedRenewal                     // a renewal counts although the belief had ended when its reply came
	GuardUnlocked                     // the fence reads the epoch and locks nothing
)

// A Variant is one protocol, right or with a mistake, the faults it is exposed
// to, and the bounds of the search. Times are in ticks, all else are numbers of
// events in one run.
type Variant struct {
	Name string
	Bug  Bug
	Want string // the invariant that breaks; "": none

	Belief     uint8 // D_H: believed for so long from the send
	Watch      uint8 // D_C: to be watched unchanged for so long; the TTL in the row too
	Escape     uint8 // watched for so long, the server's clock no longer counts; 0: never
	Quarantine uint8 // from the first sight of an identity of the witness

	Takeovers, Renewals uint8 // that succeed
	Late                uint8 // abandoned requests that are still under way at one time; 2 at most
	Guards              bool  // clients commit transactions that called RequirePrimary

	NewTable        bool  // there is no row yet
	Timeline        uint8 // at the start; 0: the first
	Failovers       uint8 // each brings back the row as it once was, in a new timeline
	Upgrades        uint8 // by pg_upgrade: a new system identifier, and timeline 1 again
	RowLosses       uint8 // the table comes back empty
	Steps, StepSize uint8 // of the server's clock, forward or back
	LostTicks       uint8 // ticks that a client's clock misses

	goal func(*state) bool // to be reached; nil: none
}

// The invariants, as a state names the one that broke.
const (
	holds uint8 = iota
	twoPrimaries
	epochReused
	fencedCommit
	goalReached // not an invariant, but ends the search like one
)

var invariants = [...]string{"", "two primaries", "epoch reused or fallen", "commit of a fenced epoch", "goal"}

// Lease ids. A client that restarts draws a new one; what it used before is then
// old wherever it still stands, and no client's.
const (
	nobody uint8 = iota
	idA
	idB
	old
)

// An epoch's lower bits count the takeovers under one identity of the witness.
// The identity is the system identifier, a small number here, and the timeline.
const epochBits, identityBits = 4, 4

func system(identity uint8) uint8   { return identity >> identityBits }
func timeline(identity uint8) uint8 { return identity & (1<<identityBits - 1) }

// A version is what a takeover compares.
type version struct{ epoch, seq uint8 }

// A row is the lease row.
type row struct {
	made bool // there is one
	version
	lease uint8
	in    uint8 // the identity of the witness when the epoch was granted; 0: none was
	left  int8  // ticks to expires_at by the server's clock; 0 where nobody holds it
}

// What a client knows of the holder of a version.
const (
	unseen uint8 = iota
	free
	mine
	other
)

// What a request asks for.
const (
	none uint8 = iota
	observe
	acquire
	renew
	release
)

// A request is a statement on its way to the server, or its reply on the way
// back.
type request struct {
	kind     uint8
	done     bool  // it was executed: this is the reply
	age      uint8 // since the send, by the client's clock, where that counts
	lease    uint8 // the id it gives
	version        // asked for; in the reply: as it is now
	identity uint8 // decided under; in the reply: executed under
	force    bool  // acquire: watched for Escape
	ok       bool  // reply: the row was changed
	holder   uint8 // reply
	native   bool  // reply: the epoch was granted under this identity
}

// A client is one process.
type client struct {
	belief     uint8 // it is primary for so many ticks more, by its own clock
	epoch      uint8 // of the belief
	identity   uint8 // of the witness, last seen; 0: none
	quarantine uint8 // ticks of it that remain
	seen       version
	holder     uint8 // of what was seen
	age        uint8 // unchanged for so long since received; counted where another holds it
	call       request
	guard      uint8 // the epoch its open transaction was let in with; 0: none is open
}

// state is the whole world at one instant. Every time in it is relative, and
// stops counting where more of it changes nothing: so a state that is met again
// later is the same state, and the search needs no horizon in time.
type state struct {
	row      row
	standby  row  // what a promotion will bring back, where lagging
	lagging  bool // replication has stopped
	identity uint8
	top      uint8 // the highest epoch ever granted; 0 where none to come can be as low
	client   [2]client
	late     [2]request // abandoned, and may still be executed
	left     left
	broken   uint8
}

// left is how many of the events are yet to come.
type left struct{ takeovers, renewals, failovers, upgrades, steps, lostTicks, rowLosses uint8 }

func (v *Variant) initial() state {
	s := state{identity: 1<<identityBits | max(v.Timeline, 1)}
	s.left = left{v.Takeovers, v.Renewals, v.Failovers, v.Upgrades, v.Steps, v.LostTicks, v.RowLosses}
	if !v.NewTable {
		s.row.made, s.row.in = true, s.identity
		s.row.epoch = timeline(s.identity)<<epochBits | 1
		s.top = s.row.epoch
	}
	return s
}

func (v *Variant) has(b Bug) bool { return v.Bug&b != 0 }

// isMine compares lease ids, as every statement does.
func (v *Variant) isMine(lease, in uint8) bool {
	return lease == in || v.has(ByRegion) && in != nobody
}

// execute runs q on the witness, and returns the reply, which tells the row as
// it is then. It tells false where the request has to wait: for a guard, or
// because the search ends there.
func (v *Variant) execute(s *state, q request) (request, bool) {
	r := &s.row
	if !r.made {
		v.makeRow(s)
	}
	reply := request{kind: q.kind, done: true, age: q.age, identity: s.identity}
	held := v.isMine(q.lease, r.lease) && q.epoch == r.epoch
	switch {
	case q.kind == acquire && v.mayGrant(s, q):
		if s.isGuarded() && !v.has(GuardUnlocked) || s.left.takeovers == 0 {
			return reply, false
		}
		s.left.takeovers--
		epoch := v.nextEpoch(s)
		if epoch <= s.top {
			s.broken = epochReused
		}
		s.top = max(s.top, epoch)
		*r = row{true, version{epoch, 0}, q.lease, s.identity, int8(v.Watch)}
		reply.ok = true
	case q.kind == renew && held:
		if s.left.renewals == 0 {
			return reply, false
		}
		s.left.renewals--
		r.seq++
		r.left = int8(v.Watch)
		reply.ok = true
	case q.kind == release && (held || v.has(ReleaseUnchecked) && r.lease != nobody):
		r.seq++
		r.lease, r.left = nobody, 0
		reply.ok = true
	}
	if !reply.ok && !v.has(WatchFromSend) {
		reply.age = 0
	}
	reply.version, reply.native = r.version, v.isNative(s)
	switch {
	case r.lease == nobody:
		reply.holder = free
	case v.isMine(q.lease, r.lease):
		reply.holder = mine
	default:
		reply.holder = other
	}
	return reply, true
}

// makeRow makes the row, as each connection begins with where there is none. It
// is no witness's, as if its epoch had been granted by one that is gone; but
// before the first timeline there was none.
func (v *Variant) makeRow(s *state) {
	s.row = row{made: true}
	if timeline(s.identity) == 1 || v.has(NewRowTrusted) {
		s.row.in, s.row.epoch = s.identity, timeline(s.identity)<<epochBits
	}
}

// mayGrant is the condition of the takeover.
func (v *Variant) mayGrant(s *state, q request) bool {
	r := &s.row
	return r.version == q.version && (s.identity == q.identity || v.has(TakeUnbound)) &&
		(r.lease == nobody || v.isMine(q.lease, r.lease) || r.left <= 0 || q.force)
}

// isGuarded tells whether a transaction keeps the row's epoch from changing.
func (s *state) isGuarded() bool {
	for i := range s.client {
		if s.client[i].guard != 0 && s.client[i].guard == s.row.epoch {
			return true
		}
	}
	return false
}

// nextEpoch is the epoch that a takeover gets: package lease's, and the witness's
// statement does the same.
func (v *Variant) nextEpoch(s *state) uint8 {
	epoch := s.row.epoch
	switch {
	case v.has(FloorByTimeline):
		return max(epoch, timeline(s.identity)<<epochBits) + 1
	case v.has(PlainEpoch):
		return epoch + 1
	}
	row := lease.Row{Witness: server(s.identity), Given: server(s.row.in), Epoch: wide(epoch)}
	return narrow(row.NextEpoch(0))
}

// isNative tells whether the row's epoch was granted under the identity that the
// witness has.
func (v *Variant) isNative(s *state) bool {
	if v.has(TrustByEpoch) {
		return s.row.epoch>>epochBits == timeline(s.identity)
	}
	return !lease.Row{Witness: server(s.identity), Given: server(s.row.in)}.Forgotten()
}

// The clients' decisions are package lease's. Its instants are counted from when this
// process began, the model's from now: so now is a fixed one.
const (
	tick = time.Second
	now  = 1000 * tick
)

func server(identity uint8) lease.Server {
	return lease.Server{System: int64(system(identity)), Timeline: int64(timeline(identity))}
}

// wide and narrow are an epoch as package lease has it, and as the model does.
func wide(epoch uint8) int64 {
	return int64(epoch>>epochBits)<<lease.TimelineShift | int64(epoch&(1<<epochBits-1))
}

func narrow(epoch int64) uint8 {
	return uint8(epoch>>lease.TimelineShift)<<epochBits | uint8(epoch)&(1<<epochBits-1)
}

// myself is the lease id of the client that decides.
const myself = "A"

var holders = [...]string{free: "", mine: myself, other: "B"}

// row is what a client gets to know.
func (v *Variant) row(identity uint8, seen version, holder uint8) lease.Row {
	return lease.Row{
		Witness: server(identity), Epoch: wide(seen.epoch), Seq: int64(seen.seq), LeaseID: holders[holder],
		TTL: time.Duration(v.Watch) * tick,
	}
}

// watch is what c has seen. Its row counts as forgotten: whether it still matters, the
// quarantine says, which is 0 once the row was found to be of the present witness.
func (v *Variant) watch(c *client, quarantine, age uint8) lease.Watch {
	return lease.Watch{
		Seen: c.identity != 0, Row: v.row(c.identity, c.seen, c.holder),
		Since: now - time.Duration(age)*tick,
		Born:  now + time.Duration(int(quarantine)-int(max(v.Quarantine, v.Watch)))*tick,
	}
}

// receive gives client i the reply to its call.
func (v *Variant) receive(s *state, i int) {
	c := &s.client[i]
	r := c.call
	c.call = request{}
	moved := r.identity != c.identity
	seen := v.watch(c, c.quarantine, c.age)
	seen.Note(v.row(r.identity, r.version, r.holder), now)
	if seen.Born == now && !v.has(NoQuarantine) && !(v.has(FirstSightTrusted) && c.identity == 0) {
		c.quarantine = v.Quarantine
	}
	if r.version != c.seen || r.holder != c.holder || moved {
		if c.age = uint8((now - seen.Since) / tick); v.has(WatchFromSend) && r.holder == other {
			c.age = r.age
		}
	}
	c.identity, c.seen, c.holder = r.identity, r.version, r.holder
	if r.native {
		c.quarantine = 0
	}
	switch {
	case r.kind == acquire && r.ok:
		v.believe(c, r)
	case r.kind == renew && !r.ok, r.kind == release && v.has(ReleaseLate):
		c.stop()
	case r.kind == renew && (c.belief > 0 || v.has(LapsedRenewal) || v.has(AdoptByRenewal) && !moved):
		v.believe(c, r)
	}
}

// stop ends the belief.
func (c *client) stop() { c.belief, c.epoch = 0, 0 }

// believe takes the deadline from the reply to an acquire or a renewal.
func (v *Variant) believe(c *client, r request) {
	c.epoch = r.epoch
	c.belief = v.Belief - min(r.age, v.Belief)
	if v.has(DeadlineFromReply) {
		c.belief = v.Belief
	}
	if c.belief == 0 {
		c.stop()
	}
}

// mayTake tells whether c may send a takeover of what it saw, and whether whatever the
// server's clock says.
func (v *Variant) mayTake(c *client) (ok, force bool) {
	if c.belief > 0 || c.holder == unseen || c.holder == mine && v.has(AdoptByRenewal) {
		return false, false
	}
	quarantine, age := c.quarantine, c.age
	if c.holder == mine && v.has(AdoptAtOnce) {
		quarantine = 0
	}
	if v.has(NoWatch) {
		age = max(age, v.Watch)
	}
	seen := v.watch(c, quarantine, age)
	at, anyway := seen.TakeAt(myself, time.Duration(v.Quarantine)*tick)
	return now >= at, now >= anyway
}

// mayRenew tells whether c may send a renewal.
func (v *Variant) mayRenew(c *client) bool {
	return c.belief > 0 || v.has(AdoptByRenewal) && c.holder == mine && c.quarantine == 0
}

// newLease makes the lease id of client i an old one.
func (s *state) newLease(i int) {
	id := idA + uint8(i)
	for _, l := range []*uint8{&s.row.lease, &s.standby.lease, &s.late[0].lease, &s.late[1].lease} {
		if *l == id {
			*l = old
		}
	}
}
