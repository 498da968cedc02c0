// Package faultproxy is a TCP proxy that can make a network fail, in particular
// fall silent: connections stay open and nothing arrives.
package faultproxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Direction says which way bytes go.
type Direction int

const (
	ToServer Direction = 1 << iota
	ToClient
	Both = ToServer | ToClient
)

// Proxy forwards TCP connections to one server. Its methods may be called
// concurrently, and concern existing and future connections alike.
type Proxy struct {
	listener net.Listener
	wg       sync.WaitGroup // accept loop and connections
	toServer flow
	toClient flow

	mu       sync.Mutex // guards the fields below
	target   string
	closed   bool
	refuse   bool
	accepted int
	links    map[*link]struct{}
}

// Stats counts since the proxy was made.
type Stats struct {
	Accepted int   // connections
	Open     int   // connections that are open now
	ToServer int64 // bytes forwarded
	ToClient int64 // bytes forwarded
}

// New starts a proxy on a port of 127.0.0.1 for the server at a TCP address.
func New(target string) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, listener: listener, links: map[*link]struct{}{}}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr returns the address to connect to instead of the server's.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Target returns the address that new connections go to.
func (p *Proxy) Target() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target
}

// Freeze holds back everything that is sent in a direction from now on, the end
// of a connection included; neither side is told. What the proxy has already
// received may still get through. New connections are accepted, and freeze too.
func (p *Proxy) Freeze(d Direction) {
	for _, f := range p.flows(d) {
		f.freeze()
	}
}

// Unfreeze lets through what was held back and what follows.
func (p *Proxy) Unfreeze(d Direction) {
	for _, f := range p.flows(d) {
		f.unfreeze()
	}
}

// Delay makes everything sent in a direction arrive later by the duration.
// Pieces are delayed one after the other, as on a slow line.
func (p *Proxy) Delay(d Direction, by time.Duration) {
	for _, f := range p.flows(d) {
		f.delay.Store(int64(by))
	}
}

// Drip makes everything sent in a direction arrive byte by byte, each later than
// the one before by the duration; 0 ends that.
func (p *Proxy) Drip(d Direction, by time.Duration) {
	for _, f := range p.flows(d) {
		f.drip.Store(int64(by))
	}
}

// HalfClose ends the stream in a direction on the connections that are open: the
// receiver reads an end, and what it sends still arrives. New ones are not affected.
func (p *Proxy) HalfClose(d Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.halfClose(d)
	}
}

// OnData has f called with each piece of data before it is forwarded. It may
// Freeze or Cut, which then applies to that very piece. It must not keep the slice.
func (p *Proxy) OnData(f func(d Direction, data []byte)) {
	p.toServer.onData.Store(&f)
	p.toClient.onData.Store(&f)
}

// Cut resets the connections that are open. New ones are not affected.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut()
	}
}

// Retarget makes new connections go to another server. Those that are open stay.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Refuse says whether new connections are reset at once.
func (p *Proxy) Refuse(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = refuse
}

// Stats returns the counts so far.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{
		Accepted: p.accepted,
		Open:     len(p.links),
		ToServer: p.toServer.bytes.Load(),
		ToClient: p.toClient.bytes.Load(),
	}
}

// Close resets all connections, stops listening and waits until all is over.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.listener.Close()
	p.Cut()
	p.wg.Wait()
	return err
}

func (p *Proxy) flows(d Direction) []*flow {
	var flows []*flow
	if d&ToServer != 0 {
		flows = append(flows, &p.toServer)
	}
	if d&ToClient != 0 {
		flows = append(flows, &p.toClient)
	}
	return flows
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		l := &link{client: client.(*net.TCPConn), gone: make(chan struct{})}
		if p.add(l) {
			p.wg.Go(func() { p.serve(l) })
		} else {
			l.cut()
		}
	}
}

// add counts a connection and says whether to serve it.
func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accepted++
	if p.closed || p.refuse {
		return false
	}
	p.links[l] = struct{}{}
	return true
}

func (p *Proxy) serve(l *link) {
	defer func() {
		p.mu.Lock()
		delete(p.links, l)
		p.mu.Unlock()
	}()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		l.cut()
		return
	}
	if !l.connect(server.(*net.TCPConn)) {
		return
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { p.toServer.pump(ToServer, l, l.server, l.client) })
	pumps.Go(func() { p.toClient.pump(ToClient, l, l.client, l.server) })
	pumps.Wait()
	// No reset, which would overtake the last bytes. After a cut both are closed already.
	l.client.Close()
	l.server.Close()
}

// link is one connection through the proxy.
type link struct {
	client *net.TCPConn
	gone   chan struct{} // closed when the link is cut

	mu     sync.Mutex // guards the fields below
	server *net.TCPConn
	isCut  bool
}

// connect notes the connection to the server; it fails when the link is cut already.
func (l *link) connect(server *net.TCPConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = server
	if l.isCut {
		reset(server)
	}
	return !l.isCut
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isCut {
		return
	}
	l.isCut = true
	close(l.gone)
	reset(l.client)
	if l.server != nil {
		reset(l.server)
	}
}

func (l *link) halfClose(d Direction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isCut {
		return
	}
	if d&ToClient != 0 {
		l.client.CloseWrite()
	}
	if d&ToServer != 0 && l.server != nil {
		l.server.CloseWrite()
	}
}

// reset closes a connection so that the peer sees an error rather than an end.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// flow is what all connections have in common in one direction.
type flow struct {
	bytes  atomic.Int64
	delay  atomic.Int64 // a time.Duration
	drip   atomic.Int64 // a time.Duration; 0: off
	onData atomic.Pointer[func(Direction, []byte)]

	mu     sync.Mutex    // guards frozen
	frozen chan struct{} // nil: not frozen; closed by unfreeze
}

func (f *flow) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen == nil {
		f.frozen = make(chan struct{})
	}
}

func (f *flow) unfreeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen != nil {
		close(f.frozen)
		f.frozen = nil
	}
}

// pass waits as long as the flow is delayed or frozen; it is false when the link is cut.
func (f *flow) pass(l *link) bool {
	if by := time.Duration(f.delay.Load()); by > 0 {
		select {
		case <-time.After(by):
		case <-l.gone:
			return false
		}
	}
	for {
		f.mu.Lock()
		frozen := f.frozen
		f.mu.Unlock()
		if frozen == nil {
			return true
		}
		select {
		case <-frozen:
		case <-l.gone:
			return false
		}
	}
}

// pump forwards until the source ends, and then the end.
func (f *flow) pump(d Direction, l *link, to, from *net.TCPConn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if onData := f.onData.Load(); onData != nil && n > 0 {
			(*onData)(d, buffer[:n])
		}
		if !f.pass(l) {
			return
		}
		for rest := buffer[:n]; len(rest) > 0; {
			piece := rest
			if by := time.Duration(f.drip.Load()); by > 0 {
				piece = rest[:1]
				select {
				case <-time.After(by):
				case <-l.gone:
					return
				}
			}
			written, err := to.Write(piece)
			f.bytes.Add(int64(written))
			if err != nil {
				return // the other pump reads from that side and sees why
			}
			rest = rest[len(piece):]
		}
		switch err {
		case nil:
		case io.EOF:
			to.CloseWrite()
			return
		default: // that side was reset, so reset the other
			l.cut()
			return
		}
	}
}
