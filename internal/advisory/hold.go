package advisory

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
)

// hold is a lock with a session of its own.
type hold struct {
	l    *Locks
	lock pgsql.Lock
	s    *pgsession.Session

	sock     *pqconn.Socket  // nil: the driver dials by itself
	life     context.Context // until the lock is released or lost
	stop     context.CancelCauseFunc
	watching sync.Once
}

func (l *Locks) newHold(lock pgsql.Lock, s *pgsession.Session) *hold {
	h := &hold{l: l, lock: lock, s: s, sock: l.socket(s.Conn())}
	h.life, h.stop = context.WithCancelCause(context.Background())
	return h
}

// end closes the session, in which the lock is released, and lets the next in.
func (h *hold) end() error {
	defer h.l.queue.Leave(h.lock.ID, h.lock.Shared)
	h.stop(nil)
	return h.s.Close()
}

// How a holder learns that its lock is lost while it works.
//
// The server ends a session for many reasons, and gives its locks to others at
// once. It says so on the connection, where nobody reads while the holder works:
// so the socket is looked into, which costs a system call and disturbs nobody.
// Where it is silent, or the driver's own, the server is asked now and then whether
// the session still has the lock, on another connection: the holder's may be
// in the middle of anything.
const (
	socketLook = 25 * time.Millisecond
	serverLook = 2 * time.Second
	lookBound  = time.Second
)

var (
	errServerHungUp = errors.New("the server has ended the session")
	errNotHeld      = errors.New("the server says that the session does not have it")
)

// context ends with ctx, and when the lock is lost or released.
func (h *hold) context(ctx context.Context) (context.Context, context.CancelFunc) {
	h.watching.Do(func() { go h.watch() })
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(h.life, func() { cancel(context.Cause(h.life)) })
	return ctx, func() { stop(); cancel(nil) }
}

// watch looks after the lock until it is released or lost.
func (h *hold) watch() {
	every := lookBound // sooner than serverLook, for when the pool was full
	if h.sock != nil && pqconn.CanPeek {
		every = socketLook
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for asked := time.Now(); ; {
		select {
		case <-h.life.Done():
			return
		case <-ticker.C:
		}
		err := h.lookAtSocket()
		if err == nil && time.Since(asked) >= serverLook && !h.l.pool.IsFull() {
			err = h.lookAtServer()
			asked = time.Now()
		}
		if err != nil {
			h.stop(h.l.errors.Lost([]int64{h.lock.ID}, err))
			return
		}
	}
}

func (h *hold) lookAtSocket() error {
	if h.sock == nil || !pqconn.CanPeek {
		return nil
	}
	sc, ok := h.sock.Conn.(syscall.Conn)
	if !ok {
		return nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	var pending [4096]byte
	n, hungUp, err := pqconn.Peek(rc, pending[:])
	switch {
	case errors.Is(err, net.ErrClosed): // the driver's doing
		return fmt.Errorf("the connection was closed: %w", err)
	case err != nil:
		return err
	case hungUp || farewell(pending[:n]):
		return errServerHungUp
	}
	return nil
}

// farewell tells whether the messages that nobody has read yet have one after
// which the server hangs up (the manual's 55.7, ErrorResponse). What is encrypted
// looks like none.
func farewell(b []byte) bool {
	for len(b) >= 5 {
		kind, size := b[0], int(binary.BigEndian.Uint32(b[1:]))
		body := b[5:min(len(b), max(5, size+1))]
		if kind == 'E' && (bytes.Contains(body, []byte("VFATAL\x00")) || bytes.Contains(body, []byte("VPANIC\x00"))) {
			return true
		}
		if size < 4 || size+1 > len(b) {
			return false
		}
		b = b[size+1:]
	}
	return false
}

// lookAtServer asks on another connection. No answer is no news.
func (h *hold) lookAtServer() error {
	ctx, cancel := context.WithTimeout(h.life, lookBound)
	defer cancel()
	var has bool
	err := h.l.pool.Row(ctx, fmt.Sprintf("SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE %s AND pid OPERATOR(pg_catalog.=) %d)",
		pgsql.GrantedLock(h.lock.ID), h.s.BackendPID()), &has)
	if _, holds := h.s.Holds(h.lock); err != nil || has || !holds { // it was released on the session
		return nil
	}
	return errNotHeld
}
