package baldur

import (
	"context"
	"sync"
)

// gates lets the holders of a lock id within one process in: one alone, or
// several that share. Who has to wait waits here in the order of coming, and
// takes no connection for it: a pool full of waiters would leave none for the
// work that they wait for.
type gates struct {
	mu     sync.Mutex // guards the fields below and the gates'
	open   map[int64]*gate
	closed bool
}

// gate is the state of one id that somebody is in or waits for.
type gate struct {
	alone   bool
	sharing int
	queue   []*waiter
}

type waiter struct {
	shared  bool
	in      bool          // let in
	decided chan struct{} // closed when let in, or when the gates close
}

func (g *gate) admits(shared bool) bool {
	return !g.alone && (shared || g.sharing == 0)
}

func (g *gate) admit(shared bool) {
	if shared {
		g.sharing++
	} else {
		g.alone = true
	}
}

// enter waits until it is let in, or not at all. ok tells whether it is in.
func (gs *gates) enter(ctx context.Context, id int64, shared, wait bool) (ok bool, err error) {
	gs.mu.Lock()
	if gs.closed {
		gs.mu.Unlock()
		return false, ErrPGAdminClosed
	}
	if err := ctx.Err(); err != nil {
		gs.mu.Unlock()
		return false, err
	}
	g := gs.open[id]
	if g == nil {
		g = new(gate)
		if gs.open == nil {
			gs.open = map[int64]*gate{}
		}
		gs.open[id] = g
	}
	if len(g.queue) == 0 && g.admits(shared) {
		g.admit(shared)
		gs.mu.Unlock()
		return true, nil
	}
	if !wait {
		gs.mu.Unlock()
		return false, nil
	}
	w := &waiter{shared: shared, decided: make(chan struct{})}
	g.queue = append(g.queue, w)
	gs.mu.Unlock()

	select {
	case <-w.decided:
	case <-ctx.Done():
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	switch {
	case w.in && ctx.Err() == nil:
		return true, nil
	case w.in: // let in just as ctx ended
		gs.leaveLocked(id, shared)
		return false, ctx.Err()
	case ctx.Err() != nil:
		for i, other := range g.queue {
			if other == w {
				g.queue = append(g.queue[:i:i], g.queue[i+1:]...)
				break
			}
		}
		gs.advanceLocked(id, g) // it may have been what the next ones waited for
		return false, ctx.Err()
	}
	return false, ErrPGAdminClosed
}

func (gs *gates) leave(id int64, shared bool) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.leaveLocked(id, shared)
}

func (gs *gates) leaveLocked(id int64, shared bool) {
	g := gs.open[id]
	if shared {
		g.sharing--
	} else {
		g.alone = false
	}
	gs.advanceLocked(id, g)
}

// advanceLocked lets in who can be, in the order of coming.
func (gs *gates) advanceLocked(id int64, g *gate) {
	for len(g.queue) > 0 && g.admits(g.queue[0].shared) {
		w := g.queue[0]
		g.queue = g.queue[1:]
		g.admit(w.shared)
		w.in = true
		close(w.decided)
	}
	if len(g.queue) == 0 && !g.alone && g.sharing == 0 && gs.open[id] == g {
		delete(gs.open, id)
	}
}

// close sends the waiters away.
func (gs *gates) close() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.closed = true
	for _, g := range gs.open {
		for _, w := range g.queue {
			close(w.decided)
		}
		g.queue = nil
	}
}
