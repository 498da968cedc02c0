package baldur

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"os"
	"sync"
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

	mu    sync.Mutex // guards the fields below
	limit time.Time  // no deadline after this; zero: no limit
}

// cut interrupts the socket.
func (s *socket) cut() { s.endBy(time.Unix(1, 0)) }

// endBy sets a deadline that SetDeadline cannot move to later. pq sets a
// deadline for the log-in and takes it back.
func (s *socket) endBy(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = t
	_ = s.Conn.SetDeadline(t) // fails only on a closed socket
}

func (s *socket) SetDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.limit.IsZero() && (t.IsZero() || t.After(s.limit)) {
		t = s.limit
	}
	return s.Conn.SetDeadline(t)
}

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
// however long that takes; such a socket ends by itself after the grace.
type dialer struct {
	net.Dialer
	grace time.Duration
}

func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	a, connecting := ctx.Value(attemptKey{}).(*attempt)
	end := time.Now().Add(d.grace)
	if !connecting {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end)
		defer cancel()
	}
	nc, err := d.Dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	s := &socket{Conn: nc}
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
