package leadershipmodel

// A step is what leads from one state to the next.
type step struct {
	what string
	who  int8 // client, late request; -1: the witness or the time
}

// next calls emit for everything that can happen in s.
func (v *Variant) next(s *state, emit func(state, step)) {
	for i := range s.client {
		v.nextOf(s, i, emit)
	}
	for k := range s.late {
		if s.late[k].kind == none {
			continue
		}
		n := *s
		n.late[k] = request{}
		if _, ok := v.execute(&n, s.late[k]); ok {
			emit(n, step{"a late request is executed", int8(k) + 2})
		}
	}
	n := *s
	v.tick(&n, -1)
	emit(n, step{"a tick passes", -1})
	if s.left.lostTicks > 0 {
		for i := range s.client {
			n := *s
			n.left.lostTicks--
			v.tick(&n, i)
			emit(n, step{"misses a tick that passes", int8(i)})
		}
	}
	if s.left.steps > 0 {
		for _, by := range []int8{int8(v.StepSize), -int8(v.StepSize)} {
			n := *s
			v.serverClock(&n, by)
			n.left.steps--
			v.serverClock(&n, 0)
			emit(n, step{"the server's clock steps", -1})
		}
	}
	switch {
	case s.left.failovers > 0 && !s.lagging:
		n := *s
		n.lagging, n.standby = true, s.row
		emit(n, step{"replication stops", -1})
	case s.lagging:
		n := *s
		n.lagging, n.row, n.standby = false, s.standby, row{}
		n.identity++
		n.left.failovers--
		n.endTransactions()
		if n.left.failovers == 0 && n.left.upgrades == 0 && n.top < v.nextEpoch(&n) {
			n.top = 0
		}
		emit(n, step{"the standby is promoted", -1})
	}
	if s.left.upgrades > 0 && !s.lagging {
		n := *s
		n.left.upgrades--
		n.identity = (system(s.identity)+1)<<identityBits | 1
		n.endTransactions()
		emit(n, step{"the witness is upgraded by pg_upgrade", -1})
	}
	if s.left.rowLosses > 0 {
		n := *s
		n.row = row{}
		n.left.rowLosses--
		n.endTransactions()
		emit(n, step{"the witness restarts and the row is new", -1})
	}
}

// endTransactions rolls back what was open on the server that went away.
func (s *state) endTransactions() { s.client[0].guard, s.client[1].guard = 0, 0 }

// nextOf calls emit for everything that client i can do, and the network with
// its call.
func (v *Variant) nextOf(s *state, i int, emit func(state, step)) {
	c := &s.client[i]
	id := idA + uint8(i)
	to := func(what string, change func(n *state, c *client)) {
		n := *s
		change(&n, &n.client[i])
		emit(n, step{what, int8(i)})
	}
	switch {
	case c.call.kind == none:
		to("observes", func(_ *state, c *client) { c.call = request{kind: observe, lease: id} })
		if ok, force := v.mayTake(c); ok && s.left.takeovers > 0 {
			to("asks for the lease", func(_ *state, c *client) {
				c.call = request{kind: acquire, lease: id, version: c.seen, identity: c.identity, force: force}
			})
		}
		epoch := c.epoch
		if c.belief == 0 {
			epoch = c.seen.epoch
		}
		if v.mayRenew(c) && s.left.renewals > 0 {
			to("asks for a renewal", func(_ *state, c *client) {
				c.call = request{kind: renew, lease: id, version: version{epoch: epoch}}
			})
		}
		if c.belief > 0 || c.holder == mine {
			to("releases", func(_ *state, c *client) {
				c.call = request{kind: release, lease: id, version: version{epoch: epoch}}
				if !v.has(ReleaseLate) {
					c.stop()
				}
			})
		}
	case !c.call.done:
		n := *s
		if reply, ok := v.execute(&n, c.call); ok {
			n.client[i].call = reply
			emit(n, step{"its request is executed", int8(i)})
		}
		to("gives up, and the request is lost", func(_ *state, c *client) { c.call = request{} })
		if c.call.kind != observe {
			v.abandon(s, i, "gives up, and the request is late", emit)
		}
	default:
		to("gets the reply", func(n *state, _ *client) { v.receive(n, i) })
		to("gives up, and the reply is lost", func(_ *state, c *client) { c.call = request{} })
	}
	if c.belief > 0 && !v.has(ReleaseLate) {
		to("stops believing", func(_ *state, c *client) { c.stop() })
	}
	if *c != (client{}) {
		to("restarts", func(n *state, c *client) {
			*c = client{}
			n.newLease(i)
		})
	}
	if !v.Guards {
		return
	}
	if c.belief > 0 && c.guard == 0 && s.row.epoch == c.epoch {
		to("begins a guarded transaction", func(_ *state, c *client) { c.guard = c.epoch })
	}
	if c.guard != 0 {
		to("commits it", func(n *state, c *client) {
			if c.guard < n.row.epoch {
				n.broken = fencedCommit
			}
			c.guard = 0
		})
	}
}

// abandon leaves the call of client i in the network.
func (v *Variant) abandon(s *state, i int, what string, emit func(state, step)) {
	for k := range int(v.Late) {
		if s.late[k].kind != none {
			continue
		}
		n := *s
		n.late[k] = n.client[i].call
		n.late[k].age = 0
		n.client[i].call = request{}
		emit(n, step{what, int8(i)})
		return
	}
}

// tick lets a tick pass, which the clock of client except misses.
func (v *Variant) tick(s *state, except int) {
	v.serverClock(s, 1)
	for i := range s.client {
		c := &s.client[i]
		if i == except {
			continue
		}
		if c.belief > 0 {
			if c.belief--; c.belief == 0 {
				c.stop()
			}
		}
		if c.quarantine > 0 {
			c.quarantine--
		}
		if c.holder == other {
			c.age = min(c.age+1, max(v.Watch, v.Escape))
		}
		switch {
		case c.call.done && !c.call.ok && !v.has(WatchFromSend): // nothing is counted from its send
		case c.call.kind == acquire, c.call.kind == renew:
			c.call.age = min(c.call.age+1, v.Belief)
		case c.call.kind == observe:
			if v.has(WatchFromSend) {
				c.call.age = min(c.call.age+1, v.Watch)
			}
		}
	}
}

// serverClock moves the server's clock. A row that no step can bring back to
// life counts no further.
func (v *Variant) serverClock(s *state, by int8) {
	for _, r := range []*row{&s.row, &s.standby} {
		if r.lease != nobody {
			r.left = max(r.left-by, -int8(s.left.steps*v.StepSize))
		}
	}
}
