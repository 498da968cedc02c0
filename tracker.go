package baldur

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"hash/maphash"
	"math"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/baldur-go/baldur/internal/callsite"
	"github.com/baldur-go/baldur/internal/checkout"
	"github.com/baldur-go/baldur/internal/clock"
	"github.com/baldur-go/baldur/internal/deadlock"
	"github.com/baldur-go/baldur/internal/evidence"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/sqlpool"
	"github.com/baldur-go/baldur/internal/sqltext"
	"github.com/baldur-go/baldur/internal/stack"
	"github.com/baldur-go/baldur/internal/text"
)

// Tracker knows who holds each connection of a pool. Get it by [TrackerOf]. Its
// methods may be called from any goroutine at any time; none of them takes a
// connection, and none stops the program.
type Tracker struct {
	cfg     *config
	clk     *clock.Clock
	ledger  *checkout.Ledger // of the open connections
	sites   *siteCache
	dialing atomic.Int32 // Connect calls in flight
	name    atomic.Pointer[string]
	returns atomic.Int64 // counted by the return audit, where there is one
	leaked  atomic.Int64 // checkouts that were reported as suspected
	hooks   []Hooks

	pressure pressure // what Watch and Log have sampled

	announcing sync.Mutex // guards the field below, and orders the calls of Opened and Closed
	announced  bool       // Opened was called, and Closed not since

	mu        sync.Mutex       // guards the fields below
	db        *sql.DB          // nil: not known
	shared    bool             // more than one pool uses the connector: db's figures are not ours
	leaks     []*checkout.Leak // reported, not known to be back
	onRelease []func(ConnectionInfo)
	closed    chan struct{} // closed by close
	quorums   []quorum      // in use

	dirty      []DirtyReturn // the last ones
	dirtyTotal int
}

var (
	_ ConnectionPoolMonitor = (*Tracker)(nil)
	_ PoolInfoProvider      = (*Tracker)(nil)
	_ PoolStatsProvider     = (*Tracker)(nil)
)

// ConnectionPoolMonitor watches a pool, as *Tracker does.
type ConnectionPoolMonitor interface {
	// CheckHealth judges the pool.
	CheckHealth() PoolHealthStatus
	// DetectLeaks lists the holders that are suspected of a leak.
	DetectLeaks() LeakReport
	// OnConnectionReleased has f called with each connection that comes back
	// after it was reported as a suspected leak.
	OnConnectionReleased(f func(ConnectionInfo))
}

func newTracker(cfg *config) *Tracker {
	if !cfg.privateLayouts {
		stack.Disable()
		sqlpool.Disable(sqlpool.Layouts)
	}
	sqlpool.Prepare()
	t := &Tracker{cfg: cfg, hooks: cfg.hooks, closed: make(chan struct{})}
	t.sites = siteCacheOf(cfg.skipPackages, cfg.skipFunctions)
	t.name.Store(&cfg.poolName)
	tick := min(100*time.Millisecond, max(time.Millisecond, min(cfg.leakThreshold, cfg.cancelGrace)/10))
	t.clk = clock.New(tick, func() bool { return t.ledger.Sweep(t.clk.Kernel()) })
	c := checkout.Config{Tag: t.sites.tag, HideText: !cfg.queryText, Grace: cfg.cancelGrace, Closed: t.remove}
	skip := t.sites.skip
	c.Left = func(c *checkout.Checkout) bool { return evidence.NewLooker(skip).Left(c) }
	if hook := cfg.spanContext; hook != nil {
		c.Span = func(ctx context.Context) checkout.Span { return checkout.Span(guardedSpan(hook, ctx)) }
	}
	if t.hooks != nil {
		c.Returned = t.returned
	}
	t.ledger = checkout.NewLedger(t.clk, c)
	t.SetCapture(cfg.capture)
	return t
}

// registry has the trackers in use by their names. It keeps none alive.
var registry struct {
	mu    sync.Mutex // guards the fields below
	named map[string]weak.Pointer[Tracker]
}

// Trackers returns the trackers of the pools that are in use in this program, sorted
// by name: those that were opened by Open or OpenDB, found by TrackerOf, or have made
// a connection. A closed pool stays among them while a connection of it is out.
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

// register lists t, under a name that no other tracker has, unless it is listed.
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
	empty := t.ledger.Len() == 0
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

// quorum is what the tracker lists of a PGQuorum.
type quorum interface{ Stats() QuorumStats }

// Quorums returns what the quorums on the pool that are in use have done and know.
func (t *Tracker) Quorums() []QuorumStats {
	t.mu.Lock()
	quorums := slices.Clone(t.quorums)
	t.mu.Unlock()
	var all []QuorumStats
	for _, q := range quorums {
		all = append(all, q.Stats())
	}
	return all
}

// whenClosed returns a channel that is closed when the pool is.
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

// add makes the record of a new connection. afterClose tells that it was dialled after
// the pool was closed, that is for a second pool on the connector.
func (t *Tracker) add(inner driver.Conn, sock *pqconn.Socket, afterClose bool) *checkout.Record {
	defer t.announce()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ledger.Len() == 0 { // rarely more than once
		if afterClose && t.isClosedLocked() {
			t.closed = make(chan struct{})
			t.clk.Reopen()
		}
		t.register()
	}
	return t.ledger.Add(inner, pqconn.PID(inner), sock)
}

// remove forgets a connection that is closed. It may be called twice.
func (t *Tracker) remove(r *checkout.Record) {
	defer t.announce()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ledger.Remove(r)
	if t.ledger.Len() == 0 && t.isClosedLocked() {
		t.unregister()
	}
}

// announce calls Opened or Closed, if it is time.
func (t *Tracker) announce() {
	if t.hooks == nil {
		return
	}
	t.announcing.Lock()
	defer t.announcing.Unlock()
	t.mu.Lock()
	inUse := t.ledger.Len() > 0 || !t.isClosedLocked()
	t.mu.Unlock()
	if inUse == t.announced {
		return
	}
	t.announced = inUse
	for _, h := range t.hooks {
		switch {
		case inUse && h.Opened != nil:
			guarded(func() { h.Opened(t) })
		case !inUse && h.Closed != nil:
			guarded(h.Closed)
		}
	}
}

func (t *Tracker) connected(ctx context.Context, took time.Duration) {
	for _, h := range t.hooks {
		if h.Connected != nil {
			guarded(func() { h.Connected(ctx, took) })
		}
	}
}

// returned tells the hooks that a checkout has ended.
func (t *Tracker) returned(r checkout.Return) {
	ret := Return{ConnectionID: r.ID, AcquiredAt: r.Start, Held: r.Held, Span: SpanContext(r.Span), sites: t.sites, site: r.Site}
	for _, h := range t.hooks {
		if h.Returned != nil {
			guarded(func() { h.Returned(ret) })
		}
	}
}

// PoolName returns the pool's name. See [WithPoolName].
func (t *Tracker) PoolName() string { return *t.name.Load() }

// Holders returns every connection that is out and whose holder is known, the
// longest held first.
func (t *Tracker) Holders() []ConnectionInfo {
	looker := t.newViewer()
	_, waits := t.deadlocked(looker)
	snapshots, _ := t.snapshots(math.MaxInt64)
	now := t.clk.Kernel()
	var infos []ConnectionInfo
	for _, s := range snapshots {
		infos = append(infos, t.info(s, now, looker, waits))
	}
	return infos
}

// info makes the public values of a snapshot. Without a looker nothing is said of where
// the goroutine is.
func (t *Tracker) info(s checkout.Snapshot, now time.Duration, looker *viewer, waits stuck) ConnectionInfo {
	site := t.sites.of(s.Site)
	c := ConnectionInfo{
		ConnectionID:    s.Rec.ID,
		AcquiredAt:      t.clk.At(s.Start),
		Held:            max(0, now-s.Start),
		Kind:            site.kind,
		Label:           s.Label,
		InTransaction:   s.Flags&checkout.InTx != 0,
		RowsOpen:        s.Flags&checkout.RowsOpen != 0,
		StackTrace:      site.frames,
		site:            site.at,
		GoroutineID:     s.Holder.ID(),
		Goroutine:       Liveness(s.Holder.State().String()),
		LastGoroutineID: s.Last.ID(),
		BackendPID:      s.Rec.PID,
		Span:            SpanContext(s.Span),
	}
	used := s.Flags&(checkout.Called|checkout.InCall) != 0
	if used && t.cfg.queryText {
		c.QueryInfo = text.Lines(sqltext.Safe(s.Query, maxQuery))
	}
	if used && c.Kind == KindUnknown {
		c.Kind = Kind(s.First.String())
	}
	since := max(0, now-s.Used)
	switch {
	case s.Flags&checkout.InCall != 0:
		c.State, c.InCall = StateInCall, since
		if s.Flags&checkout.Rollback == checkout.Closing {
			c.State = StateClosing
		}
	case s.Flags&checkout.Unwrapped != 0:
		c.State, c.Idle = StateUnseen, since
	case c.InTransaction:
		c.State, c.Idle = StateIdleInTx, since
	case c.RowsOpen:
		c.State, c.Idle = StateRowsOpen, since
	case used:
		c.State, c.Idle = StateIdle, since
	default:
		c.State, c.Idle = StateNoCall, since
	}
	var place evidence.Place
	if looker != nil {
		place = looker.Of(&s.Checkout)
		c.setPlace(looker, place, s.Site)
	}
	c.Verdict, c.Evidence = t.judge(s, c, now, place, waits)
	return c
}

// A viewer looks at the goroutines of a report's holders, and keeps what it has said of a
// place: many holders are in the same one.
type viewer struct {
	*evidence.Looker
	said map[saying]said
}

// A saying is what the words depend on, beside the goroutine's number.
type saying struct {
	frames *stack.Frame // the first of a place's, which a Looker shares
	reason string
	taker  stack.Fate
	site   *stack.Site
}

type said struct {
	now   []Frame
	words string // after "goroutine 51 "
}

func (t *Tracker) newViewer() *viewer {
	return &viewer{evidence.NewLooker(t.sites.skip), map[saying]said{}}
}

// setPlace says where the goroutine is.
func (c *ConnectionInfo) setPlace(v *viewer, p evidence.Place, site *stack.Site) {
	// Who waits at the very line that took the connection is past what that was for: the call
	// is made again.
	again := p.At < len(p.Frames) && Frame(p.Frames[p.At]) == c.CallSite()
	c.waits = p.Waits && p.Taker != stack.Returned && !again
	if !p.Goroutine.Elsewhere() {
		return // it makes the report
	}
	var is said
	switch p.Doing {
	case stack.Running:
		is.words = "is running"
	case stack.InSyscall:
		is.words = "is in a system call or in C"
	case stack.Parked:
		key := saying{reason: p.Reason, taker: p.Taker, site: site}
		if len(p.Frames) > 0 {
			key.frames = &p.Frames[0]
		}
		var ok bool
		if is, ok = v.said[key]; !ok {
			is = c.parked(p)
			v.said[key] = is
		}
	default:
		return
	}
	c.Now = is.now
	c.Where = "goroutine " + strconv.FormatInt(p.Goroutine.ID(), 10) + " " + is.words
}

// parked says where a goroutine waits.
func (c *ConnectionInfo) parked(p evidence.Place) (is said) {
	for _, f := range p.Frames {
		is.now = append(is.now, Frame(f))
	}
	is.words = "waits"
	if p.At >= len(is.now) {
		return is
	}
	at := is.now[p.At].place()
	switch {
	case p.Waits:
		is.words = "waits for a connection itself, at " + at
	case p.In != "":
		is.words = "is in " + Frame{Function: p.In}.short() + ", at " + at
	default:
		is.words = "waits at " + at
	}
	if p.Reason != "" && !p.Waits {
		is.words += " (" + p.Reason + ")"
	}
	if p.Taker == stack.Returned {
		is.words += "; " + c.CallSite().short() + " has returned"
	}
	return is
}

// judge finds a holder's verdict, and the evidence for it.
func (t *Tracker) judge(s checkout.Snapshot, c ConnectionInfo, now time.Duration, place evidence.Place, waits stuck) (Verdict, string) {
	// A Rows is what a connection is held by only if it was taken for one query.
	if kind := t.sites.of(s.Site).kind; s.Gone && s.Label == "" && (kind == KindQuery || kind == KindStmt) {
		return VerdictLost, "nothing refers to its Rows any more: nobody can close it"
	}
	if pool, ok := waits[s.Rec]; ok && s.Label == "" {
		return VerdictDeadlock, fmt.Sprintf("goroutine %d holds it and waits for a connection of pool %s itself, as all holders do", c.LastGoroutineID, pool)
	}
	switch {
	case s.Start > now-t.cfg.leakThreshold:
		return VerdictInUse, ""
	case !t.suspected(s, now):
		if s.Label != "" {
			return VerdictLongHeld, "labelled as expected"
		}
		return VerdictLongHeld, "used within the threshold"
	case place.Taking == stack.Returned && place.Goroutine == s.Holder && place.Doing == stack.Ended:
		return VerdictAbandoned, fmt.Sprintf("goroutine %d, which took it, has exited; unused for %s", c.GoroutineID, short(c.Idle))
	case place.Taking == stack.Returned && place.Goroutine == s.Holder:
		return VerdictAbandoned, fmt.Sprintf("goroutine %d has returned from what took it; unused for %s", c.GoroutineID, short(c.Idle))
	}
	return VerdictSuspected, "by its age: unused for " + short(c.Idle)
}

const (
	maxQuery    = 2 << 10 // bytes of a query that a report has
	reportDirty = 5       // dirty returns that a report has
)

// snapshots returns the checkouts that began at until or before, the longest held
// first, and the number of all checkouts.
func (t *Tracker) snapshots(until time.Duration) (snapshots []checkout.Snapshot, all int) {
	records := t.ledger.Records()
	if until == math.MaxInt64 {
		snapshots = make([]checkout.Snapshot, 0, len(records))
	}
	for _, r := range records {
		s, out, old := r.Snapshot(until)
		if out {
			all++
		}
		if old {
			snapshots = append(snapshots, s)
		}
	}
	slices.SortFunc(snapshots, func(a, b checkout.Snapshot) int { return cmp.Compare(a.Start, b.Start) })
	return snapshots, all
}

// known returns the pool, or nil if it is not known or is not the only one of the connector.
func (t *Tracker) known() *sql.DB {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shared {
		return nil
	}
	return t.db
}

// pool returns what database/sql knows of the pool.
func (t *Tracker) pool() (sqlpool.State, bool) {
	db := t.known()
	if db == nil {
		return sqlpool.State{}, false
	}
	return sqlpool.Read(db)
}

// balance returns the pool's state, and how many connections are out that the tracker
// does not see; −1 if that is not known.
//
// The two are counted one after the other while connections come and go.
// database/sql takes a connection out before it tells the driver, and puts it back
// after. So a difference counts only if each of several looks finds it, and only as
// far as there are connections that were never seen to go out: one that was seen once
// is seen every time.
func (t *Tracker) balance() (state sqlpool.State, ok bool, connecting, closing, unattributed int) {
	unattributed = -1
	for i := range 4 {
		if i > 0 {
			runtime.Gosched() // let whoever is between the two counts go on
		}
		if state, ok = t.pool(); !ok {
			return state, false, int(t.dialing.Load()), closing, -1
		}
		connecting = state.Pending + int(t.dialing.Load())
		var tracked int
		tracked, closing = t.ledger.Count()
		n := max(0, state.InUse()-connecting-tracked-closing)
		if n > 0 {
			n = min(n, t.ledger.NeverOut())
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

// Report looks at every connection that is out and lists the holders that are
// suspected of a leak. It costs about 100 ns for each connection, and a few µs for
// each call site that it meets for the first time; of a pool that is full about 5 µs for
// each connection, whose holder is looked at.
func (t *Tracker) Report() LeakReport {
	report, _ := t.report()
	return report
}

// report also returns the leaks, in the order of SuspectedLeaks and then of Proven.
func (t *Tracker) report() (LeakReport, []*checkout.Leak) {
	state, ok, connecting, closing, unattributed := t.balance()
	now := t.clk.Kernel()
	stats := t.stats(state, ok)
	until := now - t.cfg.leakThreshold
	if stats.IsExhausted() || stats.WaitingRequests > 0 {
		until = math.MaxInt64
	}
	snapshots, tracked := t.snapshots(until)
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
	var leaks, proven []*checkout.Leak
	looker := t.newViewer()
	if until == math.MaxInt64 && len(snapshots) > 0 {
		report.Holding = make([]ConnectionInfo, 0, len(snapshots))
	}
	var waits stuck
	report.Deadlock, waits = t.deadlocked(looker)
	for _, s := range snapshots {
		info := t.info(s, now, looker, waits)
		suspected := t.suspected(s, now)
		switch {
		case suspected || info.Verdict.Accuses():
		case info.Verdict == VerdictLongHeld:
			report.LongHeld = append(report.LongHeld, info)
			continue
		case s.Start <= until:
			report.Holding = append(report.Holding, info)
			continue
		default: // its Rows is gone, and that proves nothing
			continue
		}
		info.mayWait = stats.WaitingRequests > 0 && info.Goroutine == GoroutineAlive && info.LastGoroutineID == info.GoroutineID
		if l, fresh := s.Rec.Mark(s, info); l != nil { // else it has just come back
			if fresh {
				t.leaked.Add(1)
			}
			list, of := &report.SuspectedLeaks, &leaks
			if !suspected {
				list, of = &report.Proven, &proven
			}
			*list, *of = append(*list, info), append(*of, l)
		}
	}
	leaks = append(leaks, proven...)
	slices.SortStableFunc(report.Holding, func(a, b ConnectionInfo) int { return cmp.Compare(b.Idle, a.Idle) })
	report.Health = stats.health(t.cfg.warning, t.cfg.critical, len(report.SuspectedLeaks)+len(report.Proven))
	if t.isClosed() {
		report.Health = HealthClosed
	}
	report.Waiters = t.waiters(stats)
	report.OpenStatements = t.openStatements()
	report.ContextEnded = t.ContextEnded()
	report.Exhausted = t.pressure.exhausted()
	t.settle(leaks)
	return report, leaks
}

// ContextEnded returns the lines of code whose connections came back because their ctx had
// ended, since the tracker was made, those with the most that were not closed first.
func (t *Tracker) ContextEnded() (all []ContextEnded) {
	index := map[Frame]int{}
	for s, e := range t.ledger.ContextEnds() {
		info := t.sites.of(s)
		at := ConnectionInfo{StackTrace: info.frames, site: info.at}.CallSite()
		i, ok := index[at]
		if !ok {
			i = len(all)
			index[at] = i
			all = append(all, ContextEnded{CallSite: at})
		}
		all[i].Count += int(e.Count)
		all[i].NotClosed += int(e.NotClosed)
		all[i].Held += e.Held // in all, for now
	}
	for i := range all {
		all[i].Held /= time.Duration(all[i].Count)
	}
	slices.SortFunc(all, func(a, b ContextEnded) int {
		return cmp.Or(cmp.Compare(b.NotClosed, a.NotClosed), cmp.Compare(b.Count, a.Count), cmp.Compare(a.CallSite.String(), b.CallSite.String()))
	})
	return all
}

func (t *Tracker) openStatements() (all []OpenStatements) {
	for _, r := range t.ledger.Records() {
		if n := int(r.Statements.Load()); n >= OpenStatementsBound {
			all = append(all, OpenStatements{r.ID, n})
		}
	}
	slices.SortStableFunc(all, func(a, b OpenStatements) int { return cmp.Compare(b.Open, a.Open) })
	return all
}

// suspected tells whether a checkout that is as old as the threshold is suspected of a
// leak. It is if all of these hold:
//
//   - it is not labelled
//   - no call is in flight
//   - the driver's own connection was not handed out since the last call
//   - its last use is older than the threshold and a tick, since the coarse time of a
//     use can be early by a tick
//
// Both times are the kernel's. The CPU's counter can only make a checkout seem later.
func (t *Tracker) suspected(s checkout.Snapshot, now time.Duration) bool {
	return s.Label == "" && s.Flags&(checkout.InCall|checkout.Unwrapped) == 0 && now-s.Used >= t.cfg.leakThreshold+t.clk.Tick()
}

// waiters tells who waits, by line.
func (t *Tracker) waiters(stats PoolStats) (groups []WaiterGroup) {
	if stats.WaitingRequests <= 0 {
		return nil
	}
	var dbs []*sql.DB
	own := -1
	for _, other := range Trackers() {
		db := other.known()
		if db == nil {
			continue
		}
		if other == t {
			own = len(dbs)
		}
		dbs = append(dbs, db)
	}
	if own < 0 {
		return nil
	}
	queues, ok := sqlpool.Queues(dbs)
	if !ok {
		return nil
	}
	index := map[Frame]int{}
	for _, line := range queues[own].Lines {
		at := callsite.Locate(line.Frames, t.sites.skip)
		g := WaiterGroup{Count: line.Count, OfPool: queues[own].Exact}
		for _, f := range at.Frames {
			g.StackTrace = append(g.StackTrace, Frame(f))
		}
		g.CallSite = ConnectionInfo{StackTrace: g.StackTrace, site: at.At}.CallSite()
		if i, ok := index[g.CallSite]; ok {
			groups[i].Count += g.Count
			continue
		}
		index[g.CallSite] = len(groups)
		groups = append(groups, g)
	}
	slices.SortStableFunc(groups, func(a, b WaiterGroup) int { return cmp.Compare(b.Count, a.Count) })
	return groups
}

// stuck has the holders of a pool that are part of a deadlock, and the name of the pool for
// whose connection each waits.
type stuck map[*checkout.Record]string

// detector has seen the program's pools that are full and waited for.
var detector deadlock.Detector

// deadlocked looks at all pools of the program that are full while requests wait. It returns
// the deadlock that this pool is part of, nil if there is none that is known, and the pool
// for whose connection each holder of this pool waits.
func (t *Tracker) deadlocked(looker *viewer) (*Deadlock, stuck) {
	state, ok := t.pool()
	if st := t.stats(state, ok); !ok || !st.IsExhausted() || st.WaitingRequests <= 0 {
		return nil, nil
	}
	if looker == nil {
		looker = t.newViewer()
	}
	type id struct {
		rec *checkout.Record
		seq uint64
	}
	names := map[*sql.DB]string{}
	records := map[uint64]*checkout.Record{}
	goroutines := map[int64]stack.G{}
	var own *sql.DB
	look := func() (sources []deadlock.Source) {
		for _, other := range Trackers() {
			state, ok := other.pool()
			if st := other.stats(state, ok); !ok || !st.IsExhausted() || st.WaitingRequests <= 0 {
				continue
			}
			db := other.known()
			if db == nil {
				continue
			}
			snapshots, _ := other.snapshots(math.MaxInt64)
			source := deadlock.Source{ID: db, Full: true, Unknown: max(0, state.InUse()-len(snapshots))}
			for _, s := range snapshots {
				h := deadlock.Holder{ID: maphash.Comparable(detectorSeed, id{s.Rec, s.Seq})}
				for _, g := range []stack.G{s.Holder, s.Last} {
					if len(h.Users) == 0 || h.Users[0].Goroutine != g.ID() {
						h.Users = append(h.Users, deadlock.User{Goroutine: g.ID(), Exited: g.State() == stack.Exited})
						goroutines[g.ID()] = g
					}
				}
				source.Holders = append(source.Holders, h)
				if other == t {
					records[h.ID] = s.Rec
				}
			}
			sources = append(sources, source)
			names[db] = other.PoolName()
			if other == t {
				own = db
			}
		}
		return sources
	}
	for _, d := range detector.Look(time.Now(), look, func(g int64) bool { return looker.Waits(goroutines[g]) }) {
		if !slices.Contains(d.Pools, own) {
			continue
		}
		found := &Deadlock{Holders: len(d.Held), Victims: len(d.Victims)}
		for _, p := range d.Pools {
			found.Pools = append(found.Pools, names[p])
		}
		waits := stuck{}
		for _, h := range d.Held {
			if h.Pool == own && h.Waits && records[h.Holder] != nil {
				waits[records[h.Holder]] = names[h.For]
			}
		}
		return found, waits
	}
	return nil, nil
}

var detectorSeed = maphash.MakeSeed()

// OnConnectionReleased has f called with each connection that comes back after a
// report has listed it as suspected; Held is how long it was out. The next Report,
// Watch or CheckHealth calls f, on its goroutine: the return itself happens under
// database/sql's locks, where no foreign code may run.
func (t *Tracker) OnConnectionReleased(f func(ConnectionInfo)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onRelease = append(t.onRelease, f)
}

// settle calls OnConnectionReleased's functions for the reported leaks that are back,
// and keeps the others and the fresh ones.
func (t *Tracker) settle(fresh []*checkout.Leak) {
	var back []ConnectionInfo
	t.mu.Lock()
	known := map[*checkout.Leak]bool{}
	waiting := t.leaks[:0]
	for _, l := range t.leaks {
		if info, ok := returned(l); ok {
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

// returned returns what was first reported of a leak, and whether the connection is
// back; Held is then how long it was out.
func returned(l *checkout.Leak) (ConnectionInfo, bool) {
	info := l.Info.(ConnectionInfo)
	held, ok := l.Returned()
	if ok {
		info.Held = held
	}
	return info, ok
}

// DirtyReturns returns what [WithReturnAudit] has found, the latest last, at most 100
// of them. total is how many there were.
func (t *Tracker) DirtyReturns() (latest []DirtyReturn, total int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.dirty), t.dirtyTotal
}

// Stats returns the pool's figures now. They are −1 where the pool is not known
// (it was opened by plain sql.Open, and TrackerOf has not been called on it;
// or several pools share one connector) or does not answer within 100 ms.
func (t *Tracker) Stats() PoolStats {
	s, ok := t.pool()
	return t.stats(s, ok)
}

func (t *Tracker) stats(s sqlpool.State, ok bool) PoolStats {
	st := PoolStats{PoolName: t.PoolName(), MaxConnections: -1, ActiveConnections: -1, AvailableConnections: -1, WaitingRequests: -1, CheckedAt: time.Now()}
	if !ok {
		return st
	}
	st.MaxConnections, st.ActiveConnections, st.WaitingRequests = s.MaxOpen, s.InUse(), s.Waiting
	st.AvailableConnections = s.Idle
	if s.MaxOpen > 0 {
		st.AvailableConnections = max(0, s.MaxOpen-s.InUse())
	}
	return st
}

// DBStats returns database/sql's own statistics of the pool, as sql.DB.Stats does. ok
// is false where the figures of Stats are −1. Unlike sql.DB.Stats it does not hang
// with a driver that hangs, but gives up after 100 ms.
func (t *Tracker) DBStats() (stats sql.DBStats, ok bool) {
	db := t.known()
	if db == nil {
		return stats, false
	}
	return sqlpool.Stats(db)
}

// LeaksTotal is the number of checkouts that any report has listed as suspected since
// the tracker was made. Each counts once, also after it has come back, so the number
// never falls. Nobody looks at a pool between two reports, so a leak that came and
// went in between is not counted.
func (t *Tracker) LeaksTotal() int { return int(t.leaked.Load()) }

// PoolInfo returns the pool's shape now. Figures are −1 where Stats' are.
func (t *Tracker) PoolInfo() PoolInfo {
	s, ok := t.pool()
	st := t.stats(s, ok)
	info := PoolInfo{PoolType: "database/sql", PoolSize: st.MaxConnections, CheckedIn: -1, CheckedOut: st.ActiveConnections,
		TotalCapacity: st.MaxConnections, Available: st.AvailableConnections, PoolExhausted: st.IsExhausted()}
	if ok {
		info.CheckedIn = s.Idle
	}
	return info
}

// CheckHealth judges the pool. See [PoolHealthStatus].
func (t *Tracker) CheckHealth() PoolHealthStatus { return t.Report().Health }

// DetectLeaks is Report under its name in [ConnectionPoolMonitor].
func (t *Tracker) DetectLeaks() LeakReport { return t.Report() }

// Connections returns how many connections are idle in the pool and how many are out,
// without those that are being dialled. Unlike [Tracker.Stats] it also knows this of a
// pool that was opened by plain sql.Open and not given to TrackerOf, and of several
// pools on one connector (together): from what it has seen of their connections. There
// ok is false while a connection exists that was never seen to go out: see "What
// cannot be seen" in the package comment.
func (t *Tracker) Connections() (idle, used int, ok bool) {
	if s, ok := t.pool(); ok {
		return s.Idle, max(0, s.InUse()-s.Pending-int(t.dialing.Load())), true
	}
	t.mu.Lock()
	known := t.db == nil || t.shared // else database/sql does not answer
	t.mu.Unlock()
	if !known {
		return 0, 0, false
	}
	for _, r := range t.ledger.Records() {
		flags, taken := r.Usage()
		out := flags&checkout.Out != 0
		switch {
		case !out && flags&checkout.Closing != 0: // on its way out of the pool
		case !taken:
			return 0, 0, false
		case out:
			used++
		default:
			idle++
		}
	}
	return idle, used, true
}

// SetCapture changes what is noted of checkouts from now on: see [WithCapture]. A
// value that is none of the three counts as [CaptureOff].
func (t *Tracker) SetCapture(c Capture) {
	if c < CaptureFull || c > CaptureOff {
		c = CaptureOff
	}
	t.ledger.SetCapture(checkout.Capture(c))
}
