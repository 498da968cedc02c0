// Package lockqueue queues, within one process, the goroutines that want the same
// advisory lock.
package lockqueue

import (
	"context"
	"sync"
)

// Locks admits the holders of each lock id: one exclusive holder, or several that
// share. Everybody else waits here, first come, first served, without a connection:
// a pool full of waiters would leave none for the work that they wait for.
type Locks struct {
	mu     sync.Mutex // guards the fields below and those of each lock
	locks  map[int64]*lock
	closed error // what Close was given
}

// lock is the state of one id that somebody holds or waits for.
type lock struct {
	alone   bool
	sharing int
	queue   []*waiter
}

type waiter struct {
	shared  bool
	in      bool          // admitted
	decided chan struct{} // closed when admitted, or by Close
}

func (k *lock) admits(shared bool) bool {
	return !k.alone && (shared || k.sharing == 0)
}

func (k *lock) admit(shared bool) {
	if shared {
		k.sharing++
	} else {
		k.alone = true
	}
}

// Enter waits for the lock, or only tries it if wait is false. If ok, the caller
// must call Leave.
func (l *Locks) Enter(ctx context.Context, id int64, shared, wait bool) (ok bool, err error) {
	l.mu.Lock()
	if err := l.closed; err != nil {
		l.mu.Unlock()
		return false, err
	}
	if err := ctx.Err(); err != nil {
		l.mu.Unlock()
		return false, err
	}
	k := l.locks[id]
	if k == nil {
		k = new(lock)
		if l.locks == nil {
			l.locks = map[int64]*lock{}
		}
		l.locks[id] = k
	}
	if len(k.queue) == 0 && k.admits(shared) {
		k.admit(shared)
		l.mu.Unlock()
		return true, nil
	}
	if !wait {
		l.mu.Unlock()
		return false, nil
	}
	w := &waiter{shared: shared, decided: make(chan struct{})}
	k.queue = append(k.queue, w)
	l.mu.Unlock()

	select {
	case <-w.decided:
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case w.in && ctx.Err() == nil:
		return true, nil
	case w.in: // admitted just as ctx ended
		l.leaveLocked(id, shared)
		return false, ctx.Err()
	case ctx.Err() != nil:
		for i, other := range k.queue {
			if other == w {
				k.queue = append(k.queue[:i:i], k.queue[i+1:]...)
				break
			}
		}
		l.advanceLocked(id, k) // the next ones may have waited for this one only
		return false, ctx.Err()
	}
	return false, l.closed
}

// Leave releases what Enter has admitted.
func (l *Locks) Leave(id int64, shared bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaveLocked(id, shared)
}

func (l *Locks) leaveLocked(id int64, shared bool) {
	k := l.locks[id]
	if shared {
		k.sharing--
	} else {
		k.alone = false
	}
	l.advanceLocked(id, k)
}

// advanceLocked admits waiters from the head of the queue.
func (l *Locks) advanceLocked(id int64, k *lock) {
	for len(k.queue) > 0 && k.admits(k.queue[0].shared) {
		w := k.queue[0]
		k.queue = k.queue[1:]
		k.admit(w.shared)
		w.in = true
		close(w.decided)
	}
	if len(k.queue) == 0 && !k.alone && k.sharing == 0 && l.locks[id] == k {
		delete(l.locks, id)
	}
}

// Close refuses the waiters, and everybody who comes later, with err.
func (l *Locks) Close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = err
	for _, k := range l.locks {
		for _, w := range k.queue {
			close(w.decided)
		}
		k.queue = nil
	}
}
