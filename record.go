package baldur

import (
	"context"
	"database/sql/driver"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/baldur-go/baldur/internal/clock"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/stack"
	"github.com/baldur-go/baldur/internal/text"
)

// The flags of a record's activity word, below the coarse time in ms.
const (
	flagOut       = 1 << iota // checked out
	flagInCall                // inside a call of the driver
	flagCalled                // a call has ended since the checkout
	flagInTx                  // between BeginTx and Commit or Rollback
	flagRows                  // a Rows is open
	flagClosing               // the call closes something; also of a connection that is not checked out
	flagDraining              // the call reads what is left of a Rows
	flagUnwrapped             // the driver's connection was handed out since the last call
	flagBits      = 8

	flagRollback = flagClosing | flagDraining // of a rollback: as long as a closing, and no closing of a statement

	flagsOfCall = flagInCall | flagClosing | flagDraining | flagUnwrapped
)

// kind is a Kind in a byte: it is compared at each call.
type kind uint8

const (
	kindQuery kind = iota + 1
	kindExec
	kindTx
	kindStmt
	kindPing
	kindConn
)

func (k kind) public() Kind {
	return [...]Kind{KindUnknown, KindQuery, KindExec, KindTx, KindStmt, KindPing, KindConn}[k]
}

// A record is what the tracker knows of one physical connection. It has one
// writer at a time, the goroutine whose call database/sql has let through to
// the connection; reports read it from elsewhere. Nothing of it is shared with
// another connection.
type record struct {
	act   word   // coarse time of the last use << flagBits | flags
	flags uint64 // the writer's copy of the flags in act
	clk   *clock.Clock
	told  atomic.Bool // leak is set

	t       *Tracker
	id      int64
	index   int            // in t.records, under its lock; -1: removed
	pid     int            // the server's backend, 0: unknown
	sock    *pqconn.Socket // the connection's socket where we dialled it, else nil
	inner   driver.Conn    // the driver's own, below all wrappers
	cut     atomic.Bool
	rowsNow int // open Rows; of the writer

	statements atomic.Int32 // prepared, and not closed
	hideText   bool         // see WithQueryText

	mu sync.Mutex // guards the fields below; the writer may read them without it
	checkout
	holds holds
	leak  *leak           // the checkout was reported as suspected
	done  <-chan struct{} // of the ctx of the call in flight, if sock is set
	seen  time.Duration   // when the sweep first saw done closed during that call
	reads uint32          // of sock, when the sweep last saw a Rows being drained
	heard time.Duration   // when the sweep first saw that number
}

// checkout is what is known of one stay outside the pool.
type checkout struct {
	seq    uint64 // of the record, counts checkouts
	site   *stack.Site
	start  time.Duration // by the exact clock
	holder stack.G       // the goroutine that took it
	last   stack.G       // the goroutine of the last call
	span   SpanContext
	first  kind // of the first call since the checkout
	kind   kind // of the last call; may be of an earlier checkout while flagCalled and flagInCall are off
	query  string
	label  string // of an expected holder, see Label
}

// take notes that the calling goroutine has the connection from now on.
func (r *record) take(ctx context.Context) {
	var site *stack.Site
	if Capture(r.t.capture.Load()) != CaptureOff {
		site = stack.Capture(r.t.sites.tag)
	}
	var span SpanContext
	if hook := r.t.cfg.spanContext; hook != nil {
		span = guardedSpan(hook, ctx)
	}
	ms, g, now := r.clk.Coarse(), stack.CurrentG(), r.clk.Now()
	r.mu.Lock()
	r.holds.count(r.site, &r.t.holds)
	r.seq++
	r.site, r.start, r.holder, r.last, r.span, r.label = site, now, g, g, span, ""
	if r.leak != nil {
		r.leak = nil
		r.told.Store(false)
	}
	r.flags = flagOut
	r.act.set(uint64(ms)<<flagBits | flagOut)
	r.mu.Unlock()
}

// keptQuery is how long a query's text may be, in bytes, to be kept by a connection
// that lies in the pool. To drop each would cost a lock for each checkout.
const keptQuery = 256

// give notes that the connection has come back or is being closed. The pool
// may say so twice.
func (r *record) give() {
	if r.flags&flagOut == 0 {
		return
	}
	r.flags, r.rowsNow = 0, 0
	r.act.set(0)
	if r.site != nil && Capture(r.t.capture.Load()) == CaptureFull {
		r.holds.ended.set(uint64(max(1, r.clk.Now()-r.start)))
	}
	// told may be missed when a report sets it at this very moment (the store
	// above is a plain one): leak.returned sees to that.
	if r.done != nil || len(r.query) > keptQuery || r.told.Load() {
		r.mu.Lock()
		r.done = nil
		if len(r.query) > keptQuery {
			r.query = ""
		}
		if r.leak != nil {
			r.leak.held.Store(int64(max(1, r.clk.Now()-r.start)))
			r.leak = nil
			r.told.Store(false)
		}
		r.mu.Unlock()
	}
	if r.t.hooks != nil {
		r.returned()
	}
}

// begin notes that a call has started and tells whether it is the first since
// the checkout. A connection that is used without having been seen to leave the
// pool (one that database/sql's connectionOpener had made) is bound to its
// holder here.
func (r *record) begin(ctx context.Context, k kind, query string) (first bool) {
	if r.flags&flagOut == 0 {
		r.take(ctx)
	}
	if r.hideText {
		query = ""
	}
	first = r.flags&(flagCalled|flagInCall) == 0
	if k != r.kind || first && k != r.first || !sameString(query, r.query) {
		r.mu.Lock()
		r.kind, r.query = k, query
		if first {
			r.first = k
		}
		r.mu.Unlock()
	}
	r.enter(ctx)
	return first
}

// resume is begin for a call that goes on with what the last one has begun.
func (r *record) resume(ctx context.Context) {
	if r.flags&flagOut == 0 {
		r.begin(ctx, r.kind, r.query)
		return
	}
	r.enter(ctx)
}

// enter notes who is in a call from now on, and until when.
func (r *record) enter(ctx context.Context) {
	var done <-chan struct{}
	if r.sock != nil {
		done = ctx.Done()
	}
	if g := stack.CurrentG(); g != r.last || done != r.done {
		r.mu.Lock()
		r.last, r.done, r.seen = g, done, 0
		r.mu.Unlock()
	}
	r.flags |= flagInCall
	r.touch()
}

// watch notes until when the closings that follow may take, beside the grace.
func (r *record) watch(ctx context.Context) {
	if r.sock == nil {
		return
	}
	r.mu.Lock()
	r.done, r.seen = ctx.Done(), 0
	r.mu.Unlock()
}

// sameString tells whether two strings are one, for a fraction of the time that
// it takes to compare them. A program's queries are mostly constants.
func sameString(a, b string) bool {
	return len(a) == len(b) && unsafe.StringData(a) == unsafe.StringData(b)
}

// end notes that the call in flight has ended.
func (r *record) end() {
	r.flags = r.flags&^flagsOfCall | flagCalled
	r.touch()
}

// beginClose notes that a call has started that closes something. It is no use
// of a connection that is not checked out, and takes none.
func (r *record) beginClose(how uint64) {
	r.flags |= flagInCall | how
	r.touch()
}

func (r *record) endClose() {
	r.flags &^= flagsOfCall
	if r.flags&flagOut == 0 {
		r.act.set(0)
		return
	}
	r.touch()
}

// closing notes that the connection is being closed. Unlike beginClose it does
// not start the clock, which nothing here waits for.
func (r *record) closing() {
	r.flags |= flagInCall | flagClosing
	r.act.set(uint64(r.clk.Now().Milliseconds())<<flagBits | r.flags)
}

// unwrapped notes that the driver's own connection is handed out, the use of
// which is not seen. It binds a connection that has never been seen to go out.
func (r *record) unwrapped() {
	if r.flags&flagOut == 0 && r.seq == 0 {
		r.take(context.Background())
	}
	if r.flags&(flagOut|flagInCall) != flagOut { // in a call: inside of Raw, which is seen
		return
	}
	r.flags |= flagUnwrapped
	r.touch()
}

// touch publishes the flags with the coarse time.
func (r *record) touch() { r.act.set(uint64(r.clk.Coarse())<<flagBits | r.flags) }

// beginRow and endRow are begin and end for the reading of a row, which is to
// cost next to nothing: one load and one plain store each (see word).
func (r *record) beginRow() { r.act.set(uint64(r.clk.Coarse())<<flagBits | r.flags | flagInCall) }
func (r *record) endRow()   { r.act.set(uint64(r.clk.Coarse())<<flagBits | r.flags) }

// openRows and closeRows count the open Rows, within a call.
func (r *record) openRows() {
	r.rowsNow++
	r.flags |= flagRows
}

func (r *record) closeRows() {
	if r.rowsNow--; r.rowsNow <= 0 {
		r.rowsNow = 0
		r.flags &^= flagRows
	}
}

// setLabel names the holder for the rest of the checkout. It binds a connection
// that has not been seen to go out.
func (r *record) setLabel(name string) {
	if r.act.get()&flagOut == 0 {
		r.take(context.Background())
	}
	r.mu.Lock()
	r.label = text.Clean(name)
	r.mu.Unlock()
}

// snapshot is a consistent copy of a record.
type snapshot struct {
	rec *record
	checkout
	used  time.Duration // start of the last call in flight, or end of the last one; the checkout's where there is none
	flags uint64
}

// snapshot copies the record of a connection that is out, and was taken at until
// or before; out tells whether it is out at all, old whether s is the copy. take
// writes under the same lock, so the copy is of one checkout.
func (r *record) snapshot(until time.Duration) (s snapshot, out, old bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	act := r.act.get()
	if act&flagOut == 0 || r.start > until {
		return s, act&flagOut != 0, false
	}
	s = snapshot{rec: r, checkout: r.checkout, flags: act & (1<<flagBits - 1)}
	// The coarse time lags by up to a tick.
	s.used = max(s.start, time.Duration(act>>flagBits)*time.Millisecond)
	return s, true, true
}

// mark notes that the checkout of s is reported as suspected, unless it is over.
// It returns the first leak that was marked.
func (r *record) mark(s snapshot, l *leak) (*leak, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seq != s.seq || r.act.get()&flagOut == 0 {
		return nil, false
	}
	if r.leak == nil {
		r.leak = l
		r.told.Store(true)
	}
	return r.leak, true
}

// sweep cuts the socket of a call that has outlived the end of its ctx by
// grace, and of a closing that has lasted for grace; busy tells that there is a
// call in flight which may come to that. The draining of a Rows may last as long
// as there is something to read.
//
// A call's identity is its done channel: begin and give replace it under the
// lock, so a cut meets either the call that deserves it or another one of the
// same, ended, ctx.
func (r *record) sweep(now, grace time.Duration) (busy bool) {
	if r.sock == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	act := r.act.get()
	closing := act&(flagClosing|flagDraining) != 0
	if act&flagInCall == 0 || r.done == nil && !closing {
		return false
	}
	began := time.Duration(act>>flagBits) * time.Millisecond
	due := act&flagClosing != 0 && now-began >= grace
	if act&flagDraining != 0 {
		switch n := r.sock.Reads(); {
		case r.heard < began:
			r.reads, r.heard = n, began
		case n != r.reads:
			r.reads, r.heard = n, now
		}
		due = due || now-r.heard >= grace
	}
	select {
	case <-r.done:
		if r.seen < began {
			r.seen = now // a call that began after its ctx had ended has its grace too
		}
		due = due || now-r.seen >= grace
	default:
	}
	if due && !r.cut.Load() {
		r.cut.Store(true)
		r.sock.Cut()
	}
	return true
}
