package baldur

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/baldur-go/baldur/internal/clock"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/sqlpool"
	"github.com/baldur-go/baldur/internal/stack"
)

// Tracker knows who holds each connection of a pool. Get it by [TrackerOf]. Its
// methods may be called from any goroutine at any time; none of them takes a
// connection, and none stops the program.
type Tracker struct {
	cfg     *config
	clk     *clock.Clock
	sites   *siteCache
	dialing atomic.Int32 // Connect calls in flight
	capture atomic.Int32 // a Capture
	name    atomic.Pointer[string]
	returns atomic.Int64 // counted by the return audit, where there is one
	leaked  atomic.Int64 // checkouts that were reported as suspected
	hooks   []Hooks

	announcing sync.Mutex // guards the field below, and orders the calls of Opened and Closed
	announced  bool       // Opened was called, and Closed not since

	mu        sync.Mutex // guards the fields below
	db        *sql.DB    // nil: not known
	shared    bool       // more than one pool uses the connector: db's figures are not ours
	records   []*record  // of the open connections
	lastID    int64
	leaks     []*leak // reported, not known to be back
	onRelease []func(ConnectionInfo)
	closed    chan struct{} // closed by close
	quorums   []*PGQuorum   // in use

	dirty      []DirtyReturn // the last ones
	dirtyTotal int

	holds stack.Hist // of all checkouts that were counted; last, since other fields are read at each checkout
}

func newTracker(cfg *config) *Tracker {
	t := &Tracker{cfg: cfg, hooks: cfg.hooks, closed: make(chan struct{})}
	t.sites = siteCacheOf(cfg.skipPackages, cfg.skipFunctions)
	t.name.Store(&cfg.poolName)
	t.capture.Store(int32(cfg.capture))
	tick := min(100*time.Millisecond, max(time.Millisecond, min(cfg.leakThreshold, cfg.cancelGrace)/10))
	t.clk = clock.New(tick, t.sweep)
	return t
}

// registry holds the trackers in use by their names. It keeps none alive.
var registry struct {
	mu    sync.Mutex // guards the fields below
	named map[string]weak.Pointer[Tracker]
}

// Trackers returns the trackers of the pools that are in use in this program:
// opened by Open or OpenDB, or found by TrackerOf, or with a connection made. A
// closed pool is among them as long as a connection of it is out. In the order
// of their names.
func Trackers() []*Tracker {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	var all []*Tracker
	for _, p := range registry.named {
		if t := p.Value(); t != nil {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b *Tracker) int { return cmp.Compare(a.PoolName(), b.PoolName()) })
	return all
}

// register gives t a name of its own and lists it, if that is not done.
func (t *Tracker) register() {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	if registry.named[t.PoolName()].Value() == t {
		return
	}
	if registry.named == nil {
		registry.named = map[string]weak.Pointer[Tracker]{}
	}
	for n, p := range registry.named {
		if p.Value() == nil {
			delete(registry.named, n)
		}
	}
	name := t.cfg.poolName
	for i := 2; registry.named[name].Value() != nil; i++ {
		name = t.cfg.poolName + "#" + strconv.Itoa(i)
	}
	registry.named[name] = weak.Make(t)
	t.name.Store(&name)
}

// attach tells the tracker its pool.
func (t *Tracker) attach(db *sql.DB) {
	defer t.announce()
	t.mu.Lock()
	switch t.db {
	case db:
		t.mu.Unlock()
		return
	case nil:
		t.db = db
	default:
		t.shared = true
	}
	t.mu.Unlock()
	t.register()
}

// close is called when a pool of the tracker is closed.
func (t *Tracker) close() {
	t.mu.Lock()
	t.db = nil
	if !t.isClosedLocked() {
		close(t.closed)
	}
	empty := len(t.records) == 0
	t.mu.Unlock()
	t.clk.Stop()
	if empty { // else remove does it
		t.unregister()
	}
	t.announce()
}

func (t *Tracker) unregister() {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	if registry.named[t.PoolName()].Value() == t {
		delete(registry.named, t.PoolName())
	}
}

// whenClosed returns what is closed when the pool is.
func (t *Tracker) whenClosed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

func (t *Tracker) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.isClosedLocked()
}

func (t *Tracker) isClosedLocked() bool {
	select {
	case <-t.closed:
		return true
	default:
		return false
	}
}

// add makes the record of a new connection. Its dialling began before the pool
// was closed, or after, for a second pool on the connector.
func (t *Tracker) add(inner driver.Conn, sock *pqconn.Socket, afterClose bool) *record {
	defer t.announce()
	r := &record{t: t, clk: t.clk, inner: inner, pid: pqconn.PID(inner), sock: sock, hideText: !t.cfg.queryText}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lastID++
	r.id = t.lastID
	if len(t.records) == 0 { // rarely more than once
		if afterClose && t.isClosedLocked() {
			t.closed = make(chan struct{})
			t.clk.Reopen()
		}
		t.register()
	}
	r.index = len(t.records)
	t.records = append(t.records, r)
	return r
}

// remove forgets a connection that is closed. It may be called twice.
func (t *Tracker) remove(r *record) {
	r.flush() // first: who does not find r among the records finds its holds in the histograms
	defer t.announce()
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.index < 0 {
		return
	}
	last := len(t.records) - 1
	t.records[r.index] = t.records[last]
	t.records[r.index].index = r.index
	t.records[last] = nil
	t.records = t.records[:last]
	r.index = -1
	if last == 0 && t.isClosedLocked() {
		t.unregister()
	}
}

func (t *Tracker) list() []*record {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.records)
}

// sweep is called at each tick of the clock while there is work.
func (t *Tracker) sweep() (busy bool) {
	now := t.clk.Kernel()
	for _, r := range t.list() {
		if r.sweep(now, t.cfg.cancelGrace) {
			busy = true
		}
	}
	return busy
}

// PoolName returns the pool's name. See [WithPoolName].
func (t *Tracker) PoolName() string { return *t.name.Load() }

// Holders returns every connection that is out and whose holder is known, the
// longest held first.
func (t *Tracker) Holders() []ConnectionInfo {
	snapshots, _ := t.snapshots(math.MaxInt64)
	now := t.clk.Kernel()
	var infos []ConnectionInfo
	for _, s := range snapshots {
		infos = append(infos, t.info(s, now))
	}
	return infos
}

// snapshots returns the checkouts that began at until or before, the longest
// held first, and the number of all that there are.
func (t *Tracker) snapshots(until time.Duration) (snapshots []snapshot, all int) {
	for _, r := range t.list() {
		s, out, old := r.snapshot(until)
		if out {
			all++
		}
		if old {
			snapshots = append(snapshots, s)
		}
	}
	slices.SortFunc(snapshots, func(a, b snapshot) int { return cmp.Compare(a.start, b.start) })
	return snapshots, all
}

// pool returns what database/sql knows of the pool.
func (t *Tracker) pool() (sqlpool.State, bool) {
	t.mu.Lock()
	db, shared := t.db, t.shared
	t.mu.Unlock()
	if db == nil || shared {
		return sqlpool.State{}, false
	}
	return sqlpool.Read(db)
}

// balance returns the pool's state, and how many connections are out of it that
// the tracker does not see; −1 if that is not known.
//
// The two are counted one after the other while connections come and go, and
// database/sql takes a connection out before it tells the driver, and puts it back
// after it has told. So a difference counts only if it is there at each of several
// looks, and if there are connections that can be it: one that has been out once
// is seen whenever it goes out again.
func (t *Tracker) balance() (state sqlpool.State, ok bool, connecting, closing, unattributed int) {
	unattributed = -1
	for i := range 4 {
		if i > 0 {
			runtime.Gosched() // to who is between the two counts
		}
		if state, ok = t.pool(); !ok {
			return state, false, int(t.dialing.Load()), closing, -1
		}
		connecting = state.Pending + int(t.dialing.Load())
		tracked := 0
		closing = 0 // those that have left the pool for that
		for _, r := range t.list() {
			switch act := r.act.get(); {
			case act&flagOut != 0:
				tracked++
			case act&flagClosing != 0:
				closing++
			}
		}
		n := max(0, state.InUse()-connecting-tracked-closing)
		if n > 0 {
			n = min(n, t.neverOut())
		}
		if unattributed < 0 || n < unattributed {
			unattributed = n
		}
		if unattributed == 0 {
			break
		}
	}
	return state, true, connecting, closing, unattributed
}

// neverOut counts the connections that have never been seen to go out.
func (t *Tracker) neverOut() (n int) {
	for _, r := range t.list() {
		r.mu.Lock()
		if r.seq == 0 && r.act.get()&flagClosing == 0 {
			n++
		}
		r.mu.Unlock()
	}
	return n
}

// Report looks at every connection that is out and lists the holders that are
// suspected of a leak. It costs some 100 ns for each connection and some µs for
// each call site that it meets for the first time.
func (t *Tracker) Report() LeakReport {
	report, _ := t.report()
	return report
}

// report also returns the suspected leaks, in the order of SuspectedLeaks.
func (t *Tracker) report() (LeakReport, []*leak) {
	state, ok, connecting, closing, unattributed := t.balance()
	now := t.clk.Kernel()
	snapshots, tracked := t.snapshots(now - t.cfg.leakThreshold)
	stats := t.stats(state, ok)
	report := LeakReport{
		PoolName:      t.PoolName(),
		ReportTime:    stats.CheckedAt,
		LeakThreshold: t.cfg.leakThreshold,
		Tracked:       tracked,
		Connecting:    connecting,
		Closing:       closing,
		Unattributed:  unattributed,
		Stats:         stats,
		Leases:        t.Quorums(),
	}
	report.DirtyReturns, report.DirtyTotal = t.DirtyReturns()
	report.DirtyReturns = report.DirtyReturns[max(0, len(report.DirtyReturns)-reportDirty):]
	var leaks []*leak
	for _, s := range snapshots {
		info := t.info(s, now)
		if !t.suspected(s, now) {
			report.LongHeld = append(report.LongHeld, info)
			continue
		}
		info.mayWait = stats.WaitingRequests > 0 && info.Goroutine == GoroutineAlive && info.LastGoroutineID == info.GoroutineID
		fresh := &leak{info: info, rec: s.rec, seq: s.seq, start: s.start}
		if l, ok := s.rec.mark(s, fresh); ok { // else it has just come back
			if l == fresh {
				t.leaked.Add(1)
			}
			report.SuspectedLeaks = append(report.SuspectedLeaks, info)
			leaks = append(leaks, l)
		}
	}
	report.Health = stats.health(t.cfg, len(report.SuspectedLeaks))
	if t.isClosed() {
		report.Health = HealthClosed
	}
	report.OpenStatements = t.openStatements()
	t.settle(leaks)
	return report, leaks
}

func (t *Tracker) openStatements() (all []OpenStatements) {
	for _, r := range t.list() {
		if n := int(r.statements.Load()); n >= OpenStatementsBound {
			all = append(all, OpenStatements{r.id, n})
		}
	}
	slices.SortStableFunc(all, func(a, b OpenStatements) int { return cmp.Compare(b.Open, a.Open) })
	return all
}

// suspected: out for the threshold, not labelled, not in a call, not unwrapped, and no use since
// for the threshold. The coarse time of a use is early by up to a tick, so a tick more.
// Both times are the kernel's: the counter can make a checkout only later than that.
func (t *Tracker) suspected(s snapshot, now time.Duration) bool {
	return s.label == "" && s.flags&(flagInCall|flagUnwrapped) == 0 && now-s.used >= t.cfg.leakThreshold+t.clk.Tick()
}

// settle calls OnConnectionReleased's functions for the reported leaks that are
// back, and keeps the others, fresh ones added.
func (t *Tracker) settle(fresh []*leak) {
	var back []ConnectionInfo
	t.mu.Lock()
	known := map[*leak]bool{}
	waiting := t.leaks[:0]
	for _, l := range t.leaks {
		if info, ok := l.returned(); ok {
			back = append(back, info)
		} else {
			known[l] = true
			waiting = append(waiting, l)
		}
	}
	for _, l := range fresh {
		if !known[l] {
			waiting = append(waiting, l)
		}
	}
	clear(t.leaks[min(len(waiting), len(t.leaks)):])
	t.leaks = waiting
	call := slices.Clone(t.onRelease)
	t.mu.Unlock()
	for _, info := range back {
		for _, f := range call {
			guarded(func() { f(info) })
		}
	}
}

// OnConnectionReleased has f called with each connection that comes back after
// a report has listed it as suspected; Held is how long it was out. f is called
// by the next Report, Watch or CheckHealth, on its goroutine: the return itself
// happens under database/sql's locks, where no foreign code may run.
func (t *Tracker) OnConnectionReleased(f func(ConnectionInfo)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onRelease = append(t.onRelease, f)
}

// Watch makes a report every so often and calls f with it when there is news:
// suspected leaks that it has not told before, alone in SuspectedLeaks, or
// connections that it has told and that have come back, in Returned. So a leak
// is told once for each checkout.
//
// Watch returns when ctx ends, with its cause, or when the pool is closed, with
// nil. It returns an error at once if every is not above 0 or f is nil. Run it
// on a goroutine of its own; f is called on that one.
func (t *Tracker) Watch(ctx context.Context, every time.Duration, f func(LeakReport)) error {
	if f == nil {
		return errors.New("baldur: Watch: the function is nil")
	}
	return t.watch(ctx, every, "Watch", func(r LeakReport, news bool) {
		if news {
			f(r)
		}
	})
}

// watch calls f with each of Watch's reports, also where there is no news.
func (t *Tracker) watch(ctx context.Context, every time.Duration, who string, f func(r LeakReport, news bool)) error {
	if every <= 0 {
		return fmt.Errorf("baldur: %s: interval is %v; it must be above 0", who, every)
	}
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	told := map[*leak]bool{}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-closed:
			return nil
		case <-ticker.C:
		}
		f(t.news(told))
	}
}

// news is a report of what told does not have, and brings told up to date.
func (t *Tracker) news(told map[*leak]bool) (LeakReport, bool) {
	report, leaks := t.report()
	var fresh []ConnectionInfo
	for i, l := range leaks {
		if !told[l] {
			told[l] = true
			fresh = append(fresh, report.SuspectedLeaks[i])
		}
	}
	report.SuspectedLeaks = fresh
	for l := range told {
		if info, ok := l.returned(); ok {
			report.Returned = append(report.Returned, info)
			delete(told, l)
		}
	}
	slices.SortFunc(report.Returned, func(a, b ConnectionInfo) int { return cmp.Compare(b.Held, a.Held) })
	return report, len(fresh) > 0 || len(report.Returned) > 0
}

// leak is a checkout that a report has listed as suspected.
type leak struct {
	info  ConnectionInfo
	rec   *record
	seq   uint64
	start time.Duration
	held  atomic.Int64 // how long it was out, in ns; 0: still out
}

// returned returns what was reported, with Held as it was at the end, if the
// connection is back.
func (l *leak) returned() (ConnectionInfo, bool) {
	if l.held.Load() == 0 {
		if s, out, _ := l.rec.snapshot(math.MaxInt64); out && s.seq == l.seq {
			return l.info, false
		}
		// Missed by give, for which see there: it was just now, or nearly.
		l.held.CompareAndSwap(0, int64(max(1, l.rec.clk.Now()-l.start)))
	}
	info := l.info
	info.Held = time.Duration(l.held.Load())
	return info, true
}
