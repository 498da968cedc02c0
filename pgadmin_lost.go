package baldur

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/baldur-go/baldur/internal/pqconn"
)

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

// LockContext returns a ctx that ends when a lock of AcquireAdvisoryLock or its
// like is lost, with a [LockLostError] as its cause (context.Cause), when it is
// released, or when ctx ends; of several shared holds, the latest. It is the ctx
// that WithAdvisoryLock gives to f: work that must stop with the lock takes it as
// it takes any. If this PGAdmin does not hold the lock it has ended already, with
// such a cause.
//
// A session that the server has ended is noticed within 25 ms, if the pool is
// baldur's on lib/pq and the server, or its machine, could say so; else within 3 s,
// by asking on another connection, if the pool has one free.
func (p *PGAdmin) LockContext(ctx context.Context, id int64) (context.Context, context.CancelFunc) {
	p.mu.Lock()
	var h *hold
	for _, shared := range []bool{true, false} {
		if hs := p.holds[lockKey{id, shared}]; len(hs) > 0 {
			h = hs[len(hs)-1]
		}
	}
	p.mu.Unlock()
	if h == nil {
		ctx, cancel := context.WithCancelCause(ctx)
		cancel(&LockLostError{[]int64{id}, errors.New("this PGAdmin does not hold it")})
		return ctx, func() {}
	}
	return h.context(ctx)
}

// context is LockContext's.
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
		if err == nil && time.Since(asked) >= serverLook && !h.poolFull() {
			err = h.lookAtServer()
			asked = time.Now()
		}
		if err != nil {
			h.stop(&LockLostError{[]int64{h.key.id}, err})
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

func (h *hold) poolFull() bool {
	s := h.p.db.Stats()
	return s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections
}

// lookAtServer asks on another connection. No answer is no news.
func (h *hold) lookAtServer() error {
	ctx, cancel := context.WithTimeout(h.life, lookBound)
	defer cancel()
	var has bool
	err := h.p.row(ctx, fmt.Sprintf(`SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND granted`+
		` AND pid OPERATOR(pg_catalog.=) %d AND objsubid OPERATOR(pg_catalog.=) 1::pg_catalog.int2`+
		` AND classid OPERATOR(pg_catalog.=) '%d'::pg_catalog.oid AND objid OPERATOR(pg_catalog.=) '%d'::pg_catalog.oid)`,
		h.s.BackendPID(), uint64(h.key.id)>>32, uint64(h.key.id)&0xffffffff), &has)
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if err != nil || has || h.s.held[h.key] == nil { // it was released on the session
		return nil
	}
	return errNotHeld
}
