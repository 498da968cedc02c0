package checkout

import (
	"context"
	"database/sql/driver"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baldur-go/baldur/internal/clock"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/stack"
)

// A Capture is what is noted of a checkout beside times and goroutines.
type Capture int32

// What can be noted.
const (
	CaptureFull  Capture = iota // the call stack, and the hold time
	CaptureSites                // the call stack
	CaptureOff                  // neither
)

// A Span is a trace context as OpenTelemetry has it.
type Span struct {
	TraceID    [16]byte
	SpanID     [8]byte
	TraceFlags byte
}

// A Return is the end of a checkout.
type Return struct {
	ID    int64 // of the Record
	Start time.Time
	Held  time.Duration
	Span  Span
	Site  *stack.Site
}

// A Config is what all records of a Ledger have in common.
type Config struct {
	Tag      uint32                     // of the call sites: see stack.Capture
	HideText bool                       // keep no query
	Grace    time.Duration              // after which a call whose ctx has ended, or a closing, is cut
	Span     func(context.Context) Span // of a taking; may be nil, must not panic
	Left     func(*Checkout) bool       // tells whether whoever took a connection has surely left the code that did; may be nil, must not panic
	Returned func(Return)               // is told of each return; may be nil, must not panic
	Closed   func(*Record)              // is to remove the record of a connection that is closed
}

// A Ledger has the records of a pool's open connections.
type Ledger struct {
	cfg     Config
	clk     *clock.Clock
	capture atomic.Int32

	mu      sync.Mutex // guards the fields below
	records []*Record
	lastID  int64
	ended   map[*stack.Site]*ContextEnds

	holdTimes stack.Hist // of all checkouts that were counted; last, since other fields are read at each checkout
}

// NewLedger returns an empty ledger.
func NewLedger(clk *clock.Clock, cfg Config) *Ledger { return &Ledger{cfg: cfg, clk: clk} }

// SetCapture changes what is noted of checkouts from now on.
func (l *Ledger) SetCapture(c Capture) { l.capture.Store(int32(c)) }

// Add makes the record of a new connection.
func (l *Ledger) Add(inner driver.Conn, pid int, sock *pqconn.Socket) *Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastID++
	r := &Record{ledger: l, clk: l.clk, ID: l.lastID, Inner: inner, PID: pid, Sock: sock, hideText: l.cfg.HideText, index: len(l.records)}
	l.records = append(l.records, r)
	return r
}

// Remove forgets a connection that is closed. It may be called twice.
func (l *Ledger) Remove(r *Record) {
	r.flush() // first: whoever does not find r among the records finds its hold times in the histograms
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.index < 0 {
		return
	}
	last := len(l.records) - 1
	l.records[r.index] = l.records[last]
	l.records[r.index].index = r.index
	l.records[last] = nil
	l.records = l.records[:last]
	r.index = -1
}

// Len is the number of open connections.
func (l *Ledger) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.records)
}

// Records returns the records of the open connections.
func (l *Ledger) Records() []*Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.records)
}

// Sweep cuts the calls that have outlived their ctx, at the time now by the kernel's
// clock. busy tells that it has to be called again.
func (l *Ledger) Sweep(now time.Duration) (busy bool) {
	for _, r := range l.Records() {
		if r.sweep(now, l.cfg.Grace) {
			busy = true
		}
	}
	return busy
}

// Count returns how many connections are out, and how many have left the pool to be
// closed.
func (l *Ledger) Count() (out, closing int) {
	for _, r := range l.Records() {
		switch act := r.act.get(); {
		case act&Out != 0:
			out++
		case act&Closing != 0:
			closing++
		}
	}
	return out, closing
}

// NeverOut counts the connections that were never seen to go out.
func (l *Ledger) NeverOut() (n int) {
	for _, r := range l.Records() {
		if flags, taken := r.Usage(); !taken && flags&Closing == 0 {
			n++
		}
	}
	return n
}

// Holds returns the histogram of how long connections were held, up to date.
func (l *Ledger) Holds() *stack.Hist {
	l.Flush()
	return &l.holdTimes
}

// Flush brings the histograms up to date with all records.
func (l *Ledger) Flush() {
	for _, r := range l.Records() {
		r.flush()
	}
}

// ContextEnds counts the checkouts of a call site that have ended with their ctx: database/sql
// has brought the connection back before the program did, if that was still to do so.
type ContextEnds struct {
	Count     uint64
	NotClosed uint64        // of those: whoever took the connection had certainly left the code that did
	Held      time.Duration // in all
}

// contextEnded counts a return that another goroutine than the holder's makes, if it is
// database/sql's because the ctx has ended.
func (l *Ledger) contextEnded(r *Record) {
	if !byContext(stack.Capture(l.cfg.Tag)) {
		return
	}
	held, gone := r.clk.Now()-r.Start, false
	// The end of a ctx ends a Tx at once for the program, whose Rollback then does nothing; but
	// database/sql rolls back only after the call in flight. So it is not known whether a program
	// that has made a call just now has called Rollback.
	busy := r.Kind == KindTx && l.clk.Kernel()-r.beforeUsed < 3*l.clk.Tick()
	if l.cfg.Left != nil && !busy {
		c := r.Checkout // whose last call is this goroutine's, that of the closing
		if !c.Last.Elsewhere() {
			c.Last = c.before
		}
		gone = l.cfg.Left(&c)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.ended[r.Site]
	if e == nil {
		if l.ended == nil {
			l.ended = map[*stack.Site]*ContextEnds{}
		}
		e = new(ContextEnds)
		l.ended[r.Site] = e
	}
	e.Count++
	e.Held += held
	if gone {
		e.NotClosed++
	}
}

// ContextEnds returns the checkouts that have ended with their ctx, by the site that took them.
func (l *Ledger) ContextEnds() map[*stack.Site]ContextEnds {
	l.mu.Lock()
	defer l.mu.Unlock()
	ends := make(map[*stack.Site]ContextEnds, len(l.ended))
	for s, e := range l.ended {
		ends[s] = *e
	}
	return ends
}

// byContext tells whether a return was made by the goroutine that database/sql starts for a
// Rows or a Tx with a ctx.
func byContext(s *stack.Site) bool {
	by, ok := awaits.Load(s)
	if !ok {
		by = slices.ContainsFunc(s.Frames(), func(f stack.Frame) bool {
			return f.Function == "database/sql.(*Rows).awaitDone" || f.Function == "database/sql.(*Tx).awaitDone"
		})
		awaits.Store(s, by)
	}
	return by.(bool)
}

// awaits are the sites that byContext has seen: few, since they end in database/sql.
var awaits sync.Map // *stack.Site → bool
