// Package checkout records who uses a pool's connections and since when: a Record for
// each connection, a Ledger for the pool.
package checkout

import (
	"context"
	"database/sql/driver"
	"math"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
	"weak"

	"github.com/baldur-go/baldur/internal/clock"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/stack"
)

// The flags of a Record's activity cell, below the coarse time in ms.
const (
	Out       = 1 << iota // checked out
	InCall                // inside a call of the driver
	Called                // a call has ended since the checkout
	InTx                  // between BeginTx and Commit or Rollback
	RowsOpen              // a Rows is open
	Closing               // the call closes something; also on a connection that is not checked out
	Draining              // the call reads what is left of a Rows
	Unwrapped             // the driver's own connection was handed out since the last call
	flagBits  = 8

	Rollback = Closing | Draining // of a rollback: limited as a closing is, and told apart from the closing of a statement

	flagsOfCall = InCall | Closing | Draining | Unwrapped
)

// A Kind is what a connection was taken for. It is compared at each call, hence a
// byte.
type Kind uint8

// The kinds.
const (
	KindUnknown Kind = iota
	KindQuery
	KindExec
	KindTx
	KindStmt
	KindPing
	KindConn
)

func (k Kind) String() string {
	return [...]string{"unknown", "query", "exec", "tx", "stmt", "ping", "conn"}[k]
}

// A Record is what is known of one physical connection. It has one writer at a time,
// the goroutine that database/sql lets use the connection; reports read it from other
// goroutines. Records of different connections share no memory that is written.
type Record struct {
	act    cell   // coarse time of the last use << flagBits | flags
	flags  uint64 // the writer's copy of the flags in act
	clk    *clock.Clock
	marked atomic.Bool // leak is set

	ledger  *Ledger
	ID      int64
	index   int            // in the ledger's records, under its lock; -1: removed
	PID     int            // the server's backend, 0: unknown
	Sock    *pqconn.Socket // nil: not dialled by us
	Inner   driver.Conn    // the driver's own, below all wrappers
	cut     atomic.Bool    // Sock was cut
	rowsNow int            // open Rows; owned by the writer

	Statements atomic.Int32 // prepared, and not closed
	hideText   bool         // keep no query

	mu sync.Mutex // guards the fields below; the writer may read them without it
	Checkout
	pending   holdBatch
	leak      *Leak                // the checkout was reported as suspected
	handle    weak.Pointer[Handle] // of the Rows that was opened last
	gone      gone                 // looks that have found the handle gone
	done      <-chan struct{}      // of the ctx of the call in flight, if Sock is set
	endSeen   time.Duration        // when sweep first found done closed during that call
	lastReads uint32               // Sock's reads when sweep last found a Rows being drained
	readAt    time.Duration        // when sweep first found that number
}

// A Checkout is what is known of one stay outside the pool.
type Checkout struct {
	Seq        uint64 // number of the checkout, from 1; 0: there was none yet
	Site       *stack.Site
	Start      time.Duration // by the exact clock
	Holder     stack.G       // the goroutine that took it
	Last       stack.G       // the goroutine of the last call
	before     stack.G       // the last other one before Last
	beforeUsed time.Duration // when it used the connection last, by the coarse clock
	Span       Span
	First      Kind // of the first call since the checkout
	Kind       Kind // of the last call; may be of an earlier checkout while Called and InCall are off
	Query      string
	Label      string // of an expected holder
}

// Take notes that the calling goroutine has the connection from now on.
func (r *Record) Take(ctx context.Context) {
	var site *stack.Site
	if Capture(r.ledger.capture.Load()) != CaptureOff {
		site = stack.Capture(r.ledger.cfg.Tag)
	}
	var span Span
	if hook := r.ledger.cfg.Span; hook != nil {
		span = hook(ctx)
	}
	ms, g, now := r.clk.Coarse(), stack.CurrentG(), r.clk.Now()
	r.mu.Lock()
	r.pending.count(r.Site, &r.ledger.holdTimes)
	r.Seq++
	r.Site, r.Start, r.Holder, r.Last, r.before, r.Span, r.Label = site, now, g, g, g, span, ""
	if r.leak != nil {
		r.leak = nil
		r.marked.Store(false)
	}
	r.flags = Out
	r.act.set(uint64(ms)<<flagBits | Out)
	r.mu.Unlock()
}

// keptQuery is the longest query, in bytes, that a connection keeps while it lies in
// the pool. To drop every query would cost a lock for each checkout.
const keptQuery = 256

// Give notes that the connection has come back or is being closed. database/sql may
// say so twice.
func (r *Record) Give() {
	if r.flags&Out == 0 {
		return
	}
	r.flags, r.rowsNow = 0, 0
	r.act.set(0)
	if r.Site != nil && Capture(r.ledger.capture.Load()) == CaptureFull {
		r.pending.ended.set(uint64(max(1, r.clk.Now()-r.Start)))
	}
	// A report may set marked at this very moment, and the store above is a plain one,
	// so marked can be missed here: Leak.Returned sees to that.
	if r.done != nil || len(r.Query) > keptQuery || r.marked.Load() {
		r.mu.Lock()
		r.done = nil
		if len(r.Query) > keptQuery {
			r.Query = ""
		}
		if r.leak != nil {
			r.leak.held.Store(int64(max(1, r.clk.Now()-r.Start)))
			r.leak = nil
			r.marked.Store(false)
		}
		r.mu.Unlock()
	}
	if r.Holder.Elsewhere() {
		r.ledger.contextEnded(r)
	}
	if f := r.ledger.cfg.Returned; f != nil {
		f(Return{r.ID, r.clk.At(r.Start), r.clk.Now() - r.Start, r.Span, r.Site})
	}
}

// Begin notes that a call has started and tells whether it is the first since the
// checkout. A connection that is used although it was not seen to leave the pool
// (one that database/sql's connectionOpener had made) is bound to its holder here.
func (r *Record) Begin(ctx context.Context, k Kind, query string) (first bool) {
	if r.flags&Out == 0 {
		r.Take(ctx)
	}
	if r.hideText {
		query = ""
	}
	first = r.flags&(Called|InCall) == 0
	if k != r.Kind || first && k != r.First || !sameString(query, r.Query) {
		r.mu.Lock()
		r.Kind, r.Query = k, query
		if first {
			r.First = k
		}
		r.mu.Unlock()
	}
	r.enter(ctx)
	return first
}

// Resume is Begin for a call that continues what the last one has begun.
func (r *Record) Resume(ctx context.Context) {
	if r.flags&Out == 0 {
		r.Begin(ctx, r.Kind, r.Query)
		return
	}
	r.enter(ctx)
}

// ResumeDraining is Resume for a call that reads what is left of a Rows.
func (r *Record) ResumeDraining(ctx context.Context) {
	r.flags |= Draining // published by Resume
	r.Resume(ctx)
}

// enter notes whose call it is, and the ctx that limits it.
func (r *Record) enter(ctx context.Context) {
	var done <-chan struct{}
	if r.Sock != nil {
		done = ctx.Done()
	}
	if g := stack.CurrentG(); g != r.Last || done != r.done {
		r.mu.Lock()
		if g != r.Last {
			r.noteUserLocked(g)
		}
		r.done, r.endSeen = done, 0
		r.mu.Unlock()
	}
	r.flags |= InCall
	r.touch()
}

// sameString tells whether two strings share their bytes, for a fraction of the time
// that it takes to compare them. A program's queries are mostly constants.
func sameString(a, b string) bool {
	return len(a) == len(b) && unsafe.StringData(a) == unsafe.StringData(b)
}

// End notes that the call in flight has ended.
func (r *Record) End() {
	r.flags = r.flags&^flagsOfCall | Called
	r.touch()
}

// BeginClose notes that a call has started that closes something; how is Closing or
// Rollback. Where the connection is not checked out it does not count as a use, and
// does not check it out.
func (r *Record) BeginClose(how uint64) {
	r.flags |= InCall | how
	r.touch()
}

// EndClose is End for BeginClose.
func (r *Record) EndClose() {
	r.flags &^= flagsOfCall
	if r.flags&Out == 0 {
		r.act.set(0)
		return
	}
	r.touch()
}

// Discard notes that the connection is being closed. Unlike BeginClose it does not
// start the clock, since nothing waits for it here.
func (r *Record) Discard() {
	r.flags |= InCall | Closing
	r.act.set(uint64(r.clk.Now().Milliseconds())<<flagBits | r.flags)
}

// HandOut notes that the driver's own connection is handed out, whose use is not
// seen. It binds a connection that was never seen to go out.
func (r *Record) HandOut() {
	if r.flags&Out == 0 && r.Seq == 0 {
		r.Take(context.Background())
	}
	if r.flags&(Out|InCall) != Out { // in a call: within baldur.Raw, which is seen
		return
	}
	r.flags |= Unwrapped
	r.touch()
}

// touch publishes the flags with the coarse time.
func (r *Record) touch() { r.act.set(uint64(r.clk.Coarse())<<flagBits | r.flags) }

func (r *Record) noteUserLocked(g stack.G) {
	r.Last, r.before, r.beforeUsed = g, r.Last, time.Duration(r.act.get()>>flagBits)*time.Millisecond
}

// Reader notes which goroutine reads the first row of a Rows: the Rows may have been handed on.
func (r *Record) Reader() {
	if r.Last.Elsewhere() {
		r.mu.Lock()
		r.noteUserLocked(stack.CurrentG())
		r.mu.Unlock()
	}
}

// BeginRow and EndRow are Begin and End for the reading of a row, which must cost next
// to nothing: one load and one plain store each (see cell).
func (r *Record) BeginRow() { r.act.set(uint64(r.clk.Coarse())<<flagBits | r.flags | InCall) }

// EndRow: see BeginRow.
func (r *Record) EndRow() { r.act.set(uint64(r.clk.Coarse())<<flagBits | r.flags) }

// OpenRows and CloseRows count the open Rows, within a call. h is what the program reaches
// the connection by while that Rows is open, unless it has a Tx or a Conn.
func (r *Record) OpenRows(h weak.Pointer[Handle]) {
	r.rowsNow++
	r.flags |= RowsOpen
	if h != r.handle { // rarely: a connection uses the same few Rows again
		r.mu.Lock()
		r.handle = h
		r.mu.Unlock()
	}
}

// CloseRows: see OpenRows.
func (r *Record) CloseRows() {
	if r.rowsNow--; r.rowsNow <= 0 {
		r.rowsNow = 0
		r.flags &^= RowsOpen
	}
}

// SetTx notes whether a transaction is open, within a call.
func (r *Record) SetTx(open bool) {
	if open {
		r.flags |= InTx
	} else {
		r.flags &^= InTx
	}
}

// Grace is the ledger's.
func (r *Record) Grace() time.Duration { return r.ledger.cfg.Grace }

// Closed has the record of a connection that is closed removed.
func (r *Record) Closed() { r.ledger.cfg.Closed(r) }

// IsOut tells its writer whether the connection is checked out.
func (r *Record) IsOut() bool { return r.flags&Out != 0 }

// WasCut tells whether the connection's socket was cut.
func (r *Record) WasCut() bool { return r.cut.Load() }

// Usage is what the record's flags are, and whether it was ever checked out.
func (r *Record) Usage() (flags uint64, taken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.act.get() & (1<<flagBits - 1), r.Seq > 0
}

// SetLabel names the holder for the rest of the checkout. It binds a connection that
// was not seen to go out.
func (r *Record) SetLabel(name string) {
	if r.act.get()&Out == 0 {
		r.Take(context.Background())
	}
	r.mu.Lock()
	r.Label = name
	r.mu.Unlock()
}

// A Handle is part of an object that the program must have to give a connection back,
// and that nothing of ours keeps alive.
type Handle struct{ _ byte } // not empty, so that it has an address of its own

// lostPatience is how long a handle must be gone before it counts as lost, and two looks must see
// it: a finalizer of the program's may run after the handle is gone, and close what it was for.
const lostPatience = 100 * time.Millisecond

// gone is when a look first saw the handle of a checkout gone.
type gone struct {
	seq uint64
	at  time.Duration
}

// lostLocked tells whether nothing in the program refers to the Rows that a checkout is for,
// as two looks have seen. A call in flight has the Rows.
func (r *Record) lostLocked(act uint64) bool {
	const open = Out | RowsOpen
	if act&(open|InCall|InTx) != open || r.handle == (weak.Pointer[Handle]{}) || r.handle.Value() != nil {
		return false
	}
	now := r.clk.Kernel()
	if r.gone.seq != r.Seq {
		r.gone = gone{r.Seq, now}
	}
	return now-r.gone.at >= lostPatience
}

// A Snapshot is a consistent copy of a Record.
type Snapshot struct {
	Rec *Record
	Checkout
	Used  time.Duration // start of the call in flight, or end of the last one; the checkout's start if there was none
	Flags uint64
	Gone  bool // nothing in the program refers to the Rows that was opened last, and that is open
}

// Snapshot copies the record of a connection that is still out, and was taken at until or
// before or whose Rows is gone. out tells whether it is out at all, old whether s is the
// copy. Take writes under the same lock, so the copy is of one checkout.
func (r *Record) Snapshot(until time.Duration) (s Snapshot, out, old bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	act := r.act.get()
	if act&Out == 0 {
		return s, false, false
	}
	lost := r.lostLocked(act)
	if r.Start > until && !lost {
		return s, true, false
	}
	s = Snapshot{Rec: r, Checkout: r.Checkout, Flags: act & (1<<flagBits - 1), Gone: lost}
	// The coarse time lags by up to a tick.
	s.Used = max(s.Start, time.Duration(act>>flagBits)*time.Millisecond)
	return s, true, true
}

// A Leak is a checkout that a report has listed as suspected.
type Leak struct {
	Info any // what that report said of it

	rec   *Record
	seq   uint64
	start time.Duration
	held  atomic.Int64 // how long it was out, in ns; 0: still out
}

// Mark notes that the checkout of s is reported as suspected. It returns its Leak,
// and whether it is a new one, with info; nil if the checkout is over.
func (r *Record) Mark(s Snapshot, info any) (l *Leak, fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Seq != s.Seq || r.act.get()&Out == 0 {
		return nil, false
	}
	if r.leak == nil {
		r.leak = &Leak{Info: info, rec: r, seq: s.Seq, start: s.Start}
		r.marked.Store(true)
		fresh = true
	}
	return r.leak, fresh
}

// Returned tells whether the connection is back, and how long it was out.
func (l *Leak) Returned() (held time.Duration, ok bool) {
	if l.held.Load() == 0 {
		if s, out, _ := l.rec.Snapshot(math.MaxInt64); out && s.Seq == l.seq {
			return 0, false
		}
		// Give has missed it, as it says there: it came back just now, or nearly.
		l.held.CompareAndSwap(0, int64(max(1, l.rec.clk.Now()-l.start)))
	}
	return time.Duration(l.held.Load()), true
}

// sweep cuts the socket of a call that has outlived the end of its ctx by grace, and
// of a closing that has lasted for grace. busy tells that a call is in flight which
// may come to that. The draining of a Rows may last for as long as there is something
// to read.
//
// A call is identified by its done channel. Begin and Give replace that under the
// lock, so a cut hits either the call that deserves it or another call with the same
// ended ctx.
func (r *Record) sweep(now, grace time.Duration) (busy bool) {
	if r.Sock == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	act := r.act.get()
	closing := act&(Closing|Draining) != 0
	if act&InCall == 0 || r.done == nil && !closing {
		return false
	}
	began := time.Duration(act>>flagBits) * time.Millisecond
	due := act&Closing != 0 && now-began >= grace
	if act&Draining != 0 {
		switch n := r.Sock.Reads(); {
		case r.readAt < began:
			r.lastReads, r.readAt = n, began
		case n != r.lastReads:
			r.lastReads, r.readAt = n, now
		}
		due = due || now-r.readAt >= grace
	}
	select {
	case <-r.done:
		if r.endSeen < began {
			r.endSeen = now // a call that began after its ctx had ended gets its grace too
		}
		due = due || now-r.endSeen >= grace
	default:
	}
	if due && !r.cut.Load() {
		r.cut.Store(true)
		r.Sock.Cut()
	}
	return true
}
