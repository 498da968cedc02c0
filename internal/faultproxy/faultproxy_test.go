package faultproxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

const deadline = 30 * time.Second

// silence is how long nothing must arrive: it can only miss a fault, not invent one.
const silence = 50 * time.Millisecond

// setUp starts a proxy in front of a server that sends back what it gets.
func setUp(t *testing.T) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		wg.Wait() // proves that the proxy has let go of the server
	})
	p, err := New(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if open := p.Stats().Open; open != 0 {
			t.Errorf("%d connections are open after Close", open)
		}
	})
	return p
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(deadline))
	return c
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func wantAnswer(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("the answer is %q, %v; want %q", got, err, want)
	}
}

func wantSilence(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(silence))
	n, err := c.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v; want silence", n, err)
	}
	c.SetReadDeadline(time.Now().Add(deadline))
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v; want a reset", n, err)
	}
}

// wantRefused wants a new connection to be reset, before or after it is seen to be open.
func wantRefused(t *testing.T, p *Proxy) {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(deadline))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("new connection: %v; want a reset", err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v: not so: %s", deadline, what)
		}
	}
}

func TestForward(t *testing.T) {
	p := setUp(t)
	const size = 1 << 20
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	c := dial(t, p)
	go func() {
		c.Write(data)
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(data), err)
	}
	eventually(t, "the connection is closed", func() bool { return p.Stats().Open == 0 })
	if got, want := p.Stats(), (Stats{Accepted: 1, ToServer: size, ToClient: size}); got != want {
		t.Errorf("Stats are %+v, want %+v", got, want)
	}
}

func TestFreeze(t *testing.T) {
	for name, d := range map[string]Direction{"to server": ToServer, "to client": ToClient, "both": Both} {
		t.Run(name, func(t *testing.T) {
			p := setUp(t)
			old := dial(t, p)
			send(t, old, "one")
			wantAnswer(t, old, "one")
			p.Freeze(d)
			p.Freeze(d) // is once
			fresh := dial(t, p)
			for _, c := range []net.Conn{old, fresh} {
				send(t, c, "two")
			}
			wantSilence(t, old)
			wantSilence(t, fresh)
			p.Unfreeze(d)
			wantAnswer(t, old, "two")
			wantAnswer(t, fresh, "two")
		})
	}
}

// A frozen direction hides that its sender is gone, by close or by reset, even
// from a server that goes on sending.
func TestFreezeHidesEnd(t *testing.T) {
	for name, linger := range map[string]int{"close": -1, "reset": 0} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			p, err := New(listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			client := dial(t, p)
			server, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			server.SetDeadline(time.Now().Add(deadline))

			p.Freeze(ToServer)
			client.(*net.TCPConn).SetLinger(linger)
			client.Close()
			for range 3 {
				send(t, server, "are you there?")
				wantSilence(t, server)
			}
			p.Unfreeze(ToServer)
			if n, err := server.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after Unfreeze the server read %d bytes, %v; want an end", n, err)
			}
		})
	}
}

func TestCut(t *testing.T) {
	p := setUp(t)
	for _, frozen := range []Direction{0, Both} {
		c := dial(t, p)
		send(t, c, "one")
		wantAnswer(t, c, "one")
		p.Freeze(frozen)
		p.Cut()
		wantReset(t, c)
		p.Unfreeze(frozen)
	}
	c := dial(t, p)
	send(t, c, "two")
	wantAnswer(t, c, "two")
}

func TestRefuse(t *testing.T) {
	p := setUp(t)
	old := dial(t, p)
	send(t, old, "one")
	wantAnswer(t, old, "one")
	p.Refuse(true)
	wantRefused(t, p)
	send(t, old, "two")
	wantAnswer(t, old, "two")
	p.Refuse(false)
	c := dial(t, p)
	send(t, c, "three")
	wantAnswer(t, c, "three")
}

func TestDelay(t *testing.T) {
	p := setUp(t)
	c := dial(t, p)
	p.Delay(ToServer, silence)
	p.Delay(ToClient, silence)
	begin := time.Now()
	send(t, c, "one")
	wantAnswer(t, c, "one")
	if took := time.Since(begin); took < 2*silence {
		t.Errorf("took %v, want at least %v", took, 2*silence)
	}
	p.Delay(Both, time.Hour)
	send(t, c, "two")
	wantSilence(t, c)
	p.Cut() // does not wait for the delay
	wantReset(t, c)
}

// OnData can stop the very answer that it sees: the server has done the work,
// the client does not learn of it.
func TestOnData(t *testing.T) {
	p := setUp(t)
	var mu sync.Mutex
	var seen []Direction
	p.OnData(func(d Direction, data []byte) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, d)
		if d == ToClient && string(data) == "commit" {
			p.Freeze(ToClient)
		}
	})
	c := dial(t, p)
	send(t, c, "begin")
	wantAnswer(t, c, "begin")
	send(t, c, "commit")
	wantSilence(t, c)
	p.OnData(func(d Direction, data []byte) {
		if d == ToServer {
			p.Cut()
		}
	})
	before := p.Stats().ToServer
	send(t, c, "more")
	wantReset(t, c)
	if after := p.Stats().ToServer; after != before {
		t.Errorf("%d bytes reached the server through a cut", after-before)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []Direction{ToServer, ToClient, ToServer, ToClient}; !slices.Equal(seen, want) {
		t.Errorf("saw directions %v, want %v", seen, want)
	}
}

// A server that is not there resets the client.
func TestServerDown(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	p, err := New(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	wantRefused(t, p)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// Everything at once, for the race detector; the clean-up closes in that state.
// New connections go to the new target; the open ones stay where they are.
func TestRetarget(t *testing.T) {
	p, other := setUp(t), setUp(t)
	c := dial(t, p)
	send(t, c, "before")
	wantAnswer(t, c, "before")
	p.Retarget(other.Addr())
	send(t, c, "still")
	wantAnswer(t, c, "still")
	d := dial(t, p)
	send(t, d, "after")
	wantAnswer(t, d, "after")
	if n := other.Stats().Accepted; n != 1 {
		t.Errorf("the new target has seen %d connections, want 1", n)
	}
}

func TestAtOnce(t *testing.T) {
	p := setUp(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("tcp", p.Addr())
				if err != nil {
					return
				}
				c.SetDeadline(time.Now().Add(time.Millisecond))
				io.WriteString(c, "x")
				c.Read(make([]byte, 1))
				c.Close()
			}
		})
	}
	for i := range 200 {
		if c, err := net.Dial("tcp", p.Addr()); err == nil { // gives the others time
			c.Close()
		}
		switch i % 7 {
		case 0:
			p.Freeze(Both)
		case 1:
			p.Cut()
		case 2:
			p.Unfreeze(ToServer)
		case 3:
			p.Refuse(i%2 == 0)
		case 4:
			p.Delay(Both, time.Duration(i%3)*time.Millisecond)
		case 5:
			p.Unfreeze(Both)
		case 6:
			p.OnData(func(Direction, []byte) { p.Stats() })
		}
	}
	p.Freeze(Both)
	close(stop)
	wg.Wait()
}
