package pqconn

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/lib/pq"
)

// pipe is a socket, and the other end of its connection.
func pipe(t *testing.T) (*Socket, net.Conn) {
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	return newSocket(near), far
}

// TestCut: a read or write that blocks returns, all later ones do, and no deadline that the
// driver sets changes that.
func TestCut(t *testing.T) {
	s, far := pipe(t)
	go far.Write([]byte("ab"))
	b := make([]byte, 10)
	for range 2 {
		if _, err := s.Read(b[:1]); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Reads(); n != 2 {
		t.Errorf("%d reads are counted", n)
	}
	blocked := make(chan error)
	go func() { _, err := s.Read(b); blocked <- err }()
	s.Cut()
	if err := <-blocked; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the read that was blocked: %v", err)
	}
	for name, set := range map[string]func(time.Time) error{"": s.SetDeadline, "read": s.SetReadDeadline, "write": s.SetWriteDeadline} {
		for _, at := range []time.Time{{}, time.Now().Add(time.Hour)} {
			if err := set(at); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a read after %s deadline %v: %v", name, at, err)
			}
			if _, err := s.Write(b); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a write after %s deadline %v: %v", name, at, err)
			}
		}
	}
	s.Cut() // again
	if n := s.Reads(); n != 2 {
		t.Errorf("%d reads are counted, with those that returned nothing", n)
	}
}

// TestEndBy: a deadline can come sooner, and be taken back to the limit.
func TestEndBy(t *testing.T) {
	s, _ := pipe(t)
	limit := time.Now().Add(time.Hour)
	var got time.Time
	set := func(t time.Time) error { got = t; return nil }
	past := time.Unix(1, 0)
	for _, c := range []struct{ limit, asked, want time.Time }{
		{time.Time{}, limit, limit}, {time.Time{}, time.Time{}, time.Time{}}, {limit, time.Time{}, limit}, {limit, limit.Add(1), limit}, {limit, past, past},
	} {
		if s.EndBy(c.limit); s.within(c.asked, set) != nil || !got.Equal(c.want) {
			t.Errorf("limit %v, asked for %v: %v", c.limit, c.asked, got)
		}
	}
}

func TestOutlives(t *testing.T) {
	s, _ := pipe(t)
	var none *Socket
	if s.Outlives(context.Background()) || none.Outlives(t.Context()) || !s.Outlives(t.Context()) {
		t.Error("told wrong")
	}
}

// TestUntilCut: f's result, error or panic is the caller's; a call that does not return soon
// after the cut is left behind, and its rows are closed when it does.
func TestUntilCut(t *testing.T) {
	failed := errors.New("failed")
	s, _ := pipe(t)
	if n, err := UntilCut(s, func() (int, error) { return 7, failed }); n != 7 || err != failed {
		t.Errorf("%d, %v", n, err)
	}
	func() {
		defer func() {
			if r := recover(); r != "lost" {
				t.Errorf("panicked with %v", r)
			}
		}()
		_, _ = UntilCut(s, func() (int, error) { panic("lost") })
	}()

	s.Cut()
	if n, err := UntilCut(s, func() (int, error) { return 8, nil }); n != 8 || err != nil {
		t.Errorf("a call that returns by itself: %d, %v", n, err)
	}
	for _, panics := range []bool{false, true} {
		release, closed := make(chan struct{}), make(chan struct{})
		rows, err := UntilCut(s, func() (driver.Rows, error) {
			<-release
			return &closing{closed: closed, panics: panics}, nil
		})
		if rows != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a call that does not return: %v, %v", rows, err)
		}
		close(release)
		<-closed
	}
}

type closing struct {
	driver.Rows
	closed chan struct{}
	panics bool
}

func (c *closing) Close() error {
	close(c.closed)
	if c.panics {
		panic("not seen by anybody")
	}
	return nil
}

// listen accepts connections, and says nothing.
func listen(t *testing.T) (accepted chan net.Conn, dsn string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	accepted = make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	return accepted, "postgres://u@" + l.Addr().String() + "/d?sslmode=disable"
}

func testConnector(t *testing.T, dsn string) driver.Connector {
	t.Helper()
	cfg, _, err := ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewConnector(cfg, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestConnectSilence: ctx bounds the log-in at a server that says nothing, on the first
// host and on the next.
func TestConnectSilence(t *testing.T) {
	for _, attrs := range []string{"any", "prefer-standby"} {
		accepted, dsn := listen(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ci, sock, err := Connect(ctx, testConnector(t, dsn+"&target_session_attrs="+attrs))
			if ci != nil || sock != nil {
				t.Errorf("%s: connected, to %v", attrs, sock)
			}
			ended <- err
		}()
		server := <-accepted
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", attrs, err)
		}
		server.Close()
	}
}

// failing connects when ctx has ended.
type failing struct {
	cancel func()
	closed *bool
	err    error
}

func (f failing) Connect(ctx context.Context) (driver.Conn, error) {
	f.cancel()
	<-ctx.Done()
	if f.err != nil {
		return nil, f.err
	}
	return lateConn{closed: f.closed}, nil
}
func (f failing) Driver() driver.Driver { return nil }

type lateConn struct {
	driver.Conn
	closed *bool
}

func (c lateConn) Close() error { *c.closed = true; return nil }

// TestConnectLate: a connection that is there when ctx has ended is closed; an error of the
// server's stays what it is.
func TestConnectLate(t *testing.T) {
	closed := false
	ctx, cancel := context.WithCancel(t.Context())
	if ci, sock, err := Connect(ctx, failing{cancel, &closed, nil}); ci != nil || sock != nil || !errors.Is(err, context.Canceled) || !closed {
		t.Errorf("%v, %v, %v; closed: %v", ci, sock, err, closed)
	}
	refused := &pq.Error{Code: "28P01"}
	ctx, cancel = context.WithCancel(t.Context())
	if _, _, err := Connect(ctx, failing{cancel, nil, refused}); err != refused {
		t.Errorf("%v", err)
	}
}

// TestDialer: a socket that is dialled for a cancel request ends by itself, and not one of a
// connection; nothing is dialled once ctx has ended.
func TestDialer(t *testing.T) {
	accepted, dsn := listen(t)
	cfg, _, err := ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))
	d := &dialer{cancelTimeout: 50 * time.Millisecond}
	nc, err := d.DialTimeout("tcp", address, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Time{})
	if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a cancel request's read: %v", err)
	}

	a := new(attempt)
	nc, err = d.DialContext(context.WithValue(t.Context(), attemptKey{}, a), "tcp", address)
	if err != nil || nc != net.Conn(a.sock) || !a.sock.limit.IsZero() {
		t.Fatalf("a connection's: %v, %+v", err, a.sock)
	}
	defer nc.Close()
	a.ended = true
	nc, err = d.DialContext(context.WithValue(t.Context(), attemptKey{}, a), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("dialled after the end: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.DialContext(ctx, "tcp", address); !errors.Is(err, context.Canceled) {
		t.Errorf("with a ctx that has ended: %v", err)
	}
	for range 3 {
		(<-accepted).Close()
	}
	select {
	case <-accepted:
		t.Error("dialled with a ctx that has ended")
	default:
	}
}
