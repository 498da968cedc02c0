package pqconn

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

// A Socket is a connection's network connection, which can be cut: calls that block
// in it return at once, and so do all later ones.
//
// lib/pq does not let the end of a ctx interrupt a read (lib/pq#620, #450, #583), so
// a call on a silent network blocks for ever. Who owns the socket can interrupt it.
type Socket struct {
	net.Conn
	reads atomic.Uint32 // that returned something
	gone  chan struct{} // closed by Cut

	mu    sync.Mutex // guards the fields below
	limit time.Time  // no deadline after this; zero: no limit
	once  sync.Once  // closes gone
}

func newSocket(nc net.Conn) *Socket { return &Socket{Conn: nc, gone: make(chan struct{})} }

// Reads is how many reads have returned something.
func (s *Socket) Reads() uint32 { return s.reads.Load() }

func (s *Socket) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if n > 0 {
		s.reads.Add(1)
	}
	return n, err
}

// Cut interrupts the socket.
func (s *Socket) Cut() {
	s.EndBy(time.Unix(1, 0))
	s.once.Do(func() { close(s.gone) })
}

// EndBy sets a deadline that SetDeadline cannot put off. (pq sets a deadline for the
// log-in and takes it back.)
func (s *Socket) EndBy(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = t
	_ = s.Conn.SetDeadline(t) // fails only on a closed socket
}

func (s *Socket) SetDeadline(t time.Time) error      { return s.within(t, s.Conn.SetDeadline) }
func (s *Socket) SetReadDeadline(t time.Time) error  { return s.within(t, s.Conn.SetReadDeadline) }
func (s *Socket) SetWriteDeadline(t time.Time) error { return s.within(t, s.Conn.SetWriteDeadline) } // crypto/tls: 5 s for its last alert

func (s *Socket) within(t time.Time, set func(time.Time) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.limit.IsZero() && (t.IsZero() || t.After(s.limit)) {
		t = s.limit
	}
	return set(t)
}

// UntilCut calls f, and returns when it does, or soon after the socket was cut. f is
// then left behind: a call on a prepared statement of lib/pq's does not return
// before the cancel request is over that it sends when ctx ends, and that can take
// longer. (Other calls of lib/pq do not wait for it.) Use it where Outlives says so.
func UntilCut[T any](s *Socket, f func() (T, error)) (T, error) {
	type result struct {
		t        T
		err      error
		panicked any
	}
	var settled atomic.Bool // by whoever is first: f with its result, or the caller without it
	returned := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			r.panicked = recover()
			if settled.CompareAndSwap(false, true) {
				returned <- r
			} else if rows, ok := any(r.t).(driver.Rows); ok {
				defer func() { _ = recover() }()
				_ = rows.Close() // it has a goroutine of lib/pq's
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

// Outlives tells whether a call on a prepared statement, with ctx, may outlive the
// cut of its socket. (UntilCut does not ask: calling it allocates a closure.)
func (s *Socket) Outlives(ctx context.Context) bool { return s != nil && ctx.Done() != nil }

// afterCut is how long a call is given to return by itself once its socket is cut.
const afterCut = 20 * time.Millisecond

// An attempt to connect keeps its socket. pq tries several hosts in turn; the last
// socket is that of the connection.
type attempt struct {
	mu    sync.Mutex // guards the fields below
	sock  *Socket
	ended bool // ctx has ended: whatever is dialled from now on is cut too
}

type attemptKey struct{}

// Connect connects by c, which NewConnector has made or which wraps such a one, and
// also returns the connection's socket. Unlike with c.Connect, ctx bounds all of it,
// handshake and log-in included.
func Connect(ctx context.Context, c driver.Connector) (driver.Conn, *Socket, error) {
	a := new(attempt)
	stop := context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.ended = true
		if a.sock != nil {
			a.sock.Cut()
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

// dialer dials sockets. pq also dials to send a cancel request, on a ctx of its own,
// and then reads until the server hangs up, however long that takes; such a socket
// gets a deadline. It is later than the return of the call that is to be cancelled:
// if the request were cut off with the call, the query would go on running on the
// server.
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
		s.EndBy(end)
		return s, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sock = s
	if a.ended {
		s.Cut()
	}
	return s, nil
}

// DialTimeout is pq.Dialer's; pq calls DialContext.
func (d *dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}
