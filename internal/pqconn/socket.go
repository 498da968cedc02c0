package baldur

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// socket is a connection's network connection, which can be cut: what blocks in
// it returns at once, for good.
//
// lib/pq does not let a ctx deadline interrupt a read (lib/pq#620, #450, #583),
// so that a call on a silent network blocks for ever. Whoever owns the socket
// can interrupt it: see record.sweep.
type socket struct {
	net.Conn
	reads atomic.Uint32 // that brought something
	gone  chan struct{} // closed by cut

	mu    sync.Mutex // guards the fields below
	limit time.Time  // no deadline after this; zero: no limit
	once  sync.Once  // closes gone
}

func newSocket(nc net.Conn) *socket { return &socket{Conn: nc, gone: make(chan struct{})} }

func (s *socket) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if n > 0 {
		s.reads.Add(1)
	}
	return n, err
}

// cut interrupts the socket.
func (s *socket) cut() {
	s.endBy(time.Unix(1, 0))
	s.once.Do(func() { close(s.gone) })
}

// endBy sets a deadline that SetDeadline cannot move to later. pq sets a
// deadline for the log-in and takes it back.
func (s *socket) endBy(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = t
	_ = s.Conn.SetDeadline(t) // fails only on a closed socket
}

func (s *socket) SetDeadline(t time.Time) error      { return s.within(t, s.Conn.SetDeadline) }
func (s *socket) SetReadDeadline(t time.Time) error  { return s.within(t, s.Conn.SetReadDeadline) }
func (s *socket) SetWriteDeadline(t time.Time) error { return s.within(t, s.Conn.SetWriteDeadline) } // crypto/tls: 5 s for its last alert

func (s *socket) within(t time.Time, set func(time.Time) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.limit.IsZero() && (t.IsZero() || t.After(s.limit)) {
		t = s.limit
	}
	return set(t)
}

// untilCut calls f, and returns when it does, or soon after the socket was cut.
// f is then left behind: the call of a prepared statement of lib/pq's does not
// return before the cancel request has ended that it sends when ctx ends, and
// that may last for longer (the other calls of lib/pq do not wait for it).
// It is for where outlives says so.
func untilCut[T any](s *socket, f func() (T, error)) (T, error) {
	type result struct {
		t        T
		err      error
		panicked any
	}
	var settled atomic.Bool // by who comes first: f with its result, or the caller without it
	returned := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			r.panicked = recover()
			if settled.CompareAndSwap(false, true) {
				returned <- r
			} else if rows, ok := any(r.t).(driver.Rows); ok {
				guarded(func() { _ = rows.Close() }) // it has a goroutine of lib/pq's
			}
		}()
		r.t, r.err = f()
	}()
	var r result
	select {
	case r = <-returned:
	case <-s.gone:
		timer := time.NewTimer(afterCut)
		defer timer.Stop()
		select {
		case r = <-returned:
		case <-timer.C:
			if settled.CompareAndSwap(false, true) {
				return r.t, os.ErrDeadlineExceeded
			}
			r = <-returned
		}
	}
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.t, r.err
}

// outlives tells whether a call of a prepared statement, with ctx, may outlive the
// cut of its socket. (Not asked in untilCut, for which a closure is allocated.)
func (s *socket) outlives(ctx context.Context) bool { return s != nil && ctx.Done() != nil }

// afterCut is how long a call is given to return by itself once its socket is cut.
const afterCut = 20 * time.Millisecond

// socketConnector connects by a connector whose dialer is a *dialer, and hands
// out each connection's socket.
type socketConnector struct{ driver.Connector }

// An attempt to connect keeps its socket. pq tries several hosts in turn; the
// last socket is the one that it keeps.
type attempt struct {
	mu    sync.Mutex // guards the fields below
	sock  *socket
	ended bool // ctx has ended: what is dialled from now on is cut too
}

type attemptKey struct{}

// connect is Connect, but ctx holds for all of it, handshake and log-in included.
func (c socketConnector) connect(ctx context.Context) (driver.Conn, *socket, error) {
	a := new(attempt)
	stop := context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.ended = true
		if a.sock != nil {
			a.sock.cut()
		}
	})
	ci, err := c.Connect(context.WithValue(ctx, attemptKey{}, a))
	if !stop() && err == nil { // too late: the socket is cut
		_ = ci.Close()
		return nil, nil, ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if a.ended && errors.Is(err, os.ErrDeadlineExceeded) { // by our cut
			err = ctx.Err()
		}
		return nil, nil, err
	}
	return ci, a.sock, nil
}

// dialer dials sockets for socketConnector. pq also dials to send a cancel
// request, on a ctx of its own, and then reads until the server hangs up,
// however long that takes; such a socket ends by itself. That is later than the
// call which it is to cancel returns: a request that is cut off with the call
// would leave the query running on the server.
type dialer struct {
	net.Dialer
	cancelTimeout time.Duration
}

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	a, connecting := ctx.Value(attemptKey{}).(*attempt)
	if err := ctx.Err(); err != nil {
		return nil, err // pq goes on to the next host
	}
	end := time.Now().Add(d.cancelTimeout)
	if !connecting {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end)
		defer cancel()
	}
	nc, err := d.Dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	s := newSocket(nc)
	if !connecting {
		s.endBy(end)
		return s, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sock = s
	if a.ended {
		s.cut()
	}
	return s, nil
}

// DialTimeout is pq.Dialer's; pq calls DialContext.
func (d *dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}
