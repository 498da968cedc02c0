package baldur

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/baldur-go/baldur/internal/checkout"
)

// Watch makes a report at each interval and calls f with it if there is news. News are
// leaks, suspected or proven, that it has not reported before, which alone are in
// SuspectedLeaks and Proven, and connections that it has reported and that have come back,
// in Returned. So a leak is reported once for each checkout.
//
// It also looks at the pool's figures four times a second, which costs a microsecond, and
// calls f once when
//
//   - the pool has been exhausted for a second, that is full while requests waited:
//     Exhausted is set, and Holding has who holds it
//   - that has been over for a second: Recovered is set
//   - the pool has become part of a deadlock, within a second: Deadlock is set
//
// Watch returns the cause of ctx when that ends, and nil when the pool is closed. It
// returns an error at once if every is not above 0 or f is nil. Run it on a goroutine
// of its own; f is called there.
func (t *Tracker) Watch(ctx context.Context, every time.Duration, f func(LeakReport)) error {
	if f == nil {
		return errors.New("baldur: Watch: the function is nil")
	}
	return t.watch(ctx, every, "Watch", func(r LeakReport, news, changed bool) {
		if news || changed {
			f(r)
		}
	})
}

// watch calls f with each of Watch's reports, also without news. changed tells that an
// exhaustion has begun or ended.
func (t *Tracker) watch(ctx context.Context, every time.Duration, who string, f func(r LeakReport, news, changed bool)) error {
	if every <= 0 {
		return fmt.Errorf("baldur: %s: interval is %v; it must be above 0", who, every)
	}
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	ticker := time.NewTicker(min(every, samplePeriod))
	defer ticker.Stop()
	reported := map[*checkout.Leak]bool{}
	var told pressureState
	stuck := false // a deadlock was told
	for due := time.Now().Add(every); ; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-closed:
			return nil
		case <-ticker.C:
		}
		now, deadlocked := t.sample()
		changed := now.episode != told.episode || now.on != told.on
		urgent := changed || deadlocked && !stuck
		stuck = deadlocked
		if !urgent && time.Now().Before(due) {
			continue
		}
		for !time.Now().Before(due) {
			due = due.Add(every)
		}
		r, news := t.news(reported)
		if changed && !now.on {
			r.Recovered = now.lasted
		}
		told = now
		f(r, news, changed)
	}
}

// How a pool is sampled while someone watches it.
const (
	samplePeriod  = 250 * time.Millisecond
	pressureDelay = time.Second // for so long a pool must be exhausted, or not, before that is told
)

// pressure is what samples of a pool have shown: whether it is exhausted, that is full while
// requests wait. Whoever watches the pool takes the samples: there is no goroutine for it.
type pressure struct {
	mu    sync.Mutex // guards the fields below
	state pressureState
	begun time.Time // when the first sample of the state that may become the next one was taken
	first time.Time // when the exhaustion that is on, or may be, began
}

// pressureState is what is told of it.
type pressureState struct {
	episode int           // how many exhaustions there were
	on      bool          // the last one lasts
	lasted  time.Duration // the last one, if it does not
}

// sample takes a sample. deadlocked tells that the pool is part of a deadlock.
func (t *Tracker) sample() (state pressureState, deadlocked bool) {
	s, ok := t.pool()
	st := t.stats(s, ok)
	if d, _ := t.deadlocked(nil); d != nil {
		deadlocked = true
	}
	p, now := &t.pressure, st.CheckedAt
	p.mu.Lock()
	defer p.mu.Unlock()
	switch full := st.IsExhausted() && st.WaitingRequests != 0; { // -1: not known
	case full == p.state.on:
		p.begun = time.Time{}
	case p.begun.IsZero():
		p.begun = now
		if full {
			p.first = now
		}
	case now.Sub(p.begun) >= pressureDelay:
		p.state.on = full
		if full {
			p.state.episode++
		} else {
			p.state.lasted = p.begun.Sub(p.first)
		}
		p.begun = time.Time{}
	}
	return p.state, deadlocked
}

// exhausted is how long the exhaustion that is on has lasted.
func (p *pressure) exhausted() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.state.on {
		return 0
	}
	return time.Since(p.first)
}

// news is a report of what reported does not have yet, and brings it up to date.
func (t *Tracker) news(reported map[*checkout.Leak]bool) (LeakReport, bool) {
	report, leaks := t.report()
	var fresh, proven []ConnectionInfo
	for i, l := range leaks {
		if reported[l] {
			continue
		}
		reported[l] = true
		if n := len(report.SuspectedLeaks); i < n {
			fresh = append(fresh, report.SuspectedLeaks[i])
		} else {
			proven = append(proven, report.Proven[i-n])
		}
	}
	report.SuspectedLeaks, report.Proven = fresh, proven
	for l := range reported {
		if info, ok := returned(l); ok {
			report.Returned = append(report.Returned, info)
			delete(reported, l)
		}
	}
	slices.SortFunc(report.Returned, func(a, b ConnectionInfo) int { return cmp.Compare(b.Held, a.Held) })
	return report, len(fresh)+len(proven)+len(report.Returned) > 0
}

// How much Log writes.
const (
	logBurst  = 3           // records of a kind for each call site in a window
	logWindow = time.Minute // from the first of them on
	logName   = 200         // characters of a name
)

// Log writes leaks to logger as they show: a record of level WARN for each checkout
// that is accused or suspected, and one of level INFO when it comes back. In main:
//
//	go baldur.TrackerOf(db).Log(ctx, 30*time.Second, slog.Default())
//
// The messages are "baldur: connection leak", where the leak is proven, "baldur: suspected
// connection leak" and "baldur: suspected connection came back".
//
// When the pool has been exhausted for a second, full while requests waited, it writes
// "baldur: pool exhausted", of level WARN, with the attributes pool, in_use, max, waiting,
// held_by and waiting_at (lines of code); a second after that has ended, "baldur: pool
// recovered", of level INFO, with lasted. Each is written once.
//
// The attributes of a leak are pool, code.function.name, code.file.path
// and code.line.number (of the call site; a leak's also likely_missing), held,
// idle, verdict, evidence, kind, state, goroutine, goroutine_state (of a leak), backend_pid, query
// (an excerpt), trace_id and span_id. Unknown ones are left out. The logger's handler
// decides the format.
//
// A call site that leaks over and over does not fill the log. After 3 records of a
// kind, those that follow within a minute of the first are only counted, and reported
// as one record, "baldur: more suspected connection leaks" or "baldur: more suspected
// connections came back", with the attribute count.
//
// It looks at the pool at each interval, and returns as [Tracker.Watch] does. A nil
// logger is an error.
func (t *Tracker) Log(ctx context.Context, every time.Duration, logger *slog.Logger) error {
	if logger == nil {
		return errors.New("baldur: Log: the logger is nil")
	}
	l := leakLog{ctx: ctx, handler: logger.Handler(), windows: map[logKey]*logged{}}
	err := t.watch(ctx, every, "Log", func(r LeakReport, _, changed bool) {
		now := time.Now()
		if changed {
			l.exhausted(r)
		}
		// A window ends early where this is the last look at it.
		defer l.flush(now.Add(every))
		l.flush(now)
		for _, c := range slices.Concat(r.Proven, r.SuspectedLeaks) {
			l.add(now, slog.LevelWarn, r.PoolName, c)
		}
		for _, c := range r.Returned {
			l.add(now, slog.LevelInfo, r.PoolName, c)
		}
	})
	l.ctx = context.WithoutCancel(ctx)
	l.flush(time.Now().Add(logWindow))
	return err
}

// leakLog writes Log's records.
type leakLog struct {
	ctx     context.Context
	handler slog.Handler
	windows map[logKey]*logged
	order   []logKey // of windows
}

// logKey is what the limit is for: the records of one level for one call site.
type logKey struct {
	level slog.Level
	groupKey
}

// logged is what a window of logWindow has seen of a key.
type logged struct {
	since   time.Time
	pool    string
	written int
	counted int
}

func (l *leakLog) add(now time.Time, level slog.Level, pool string, c ConnectionInfo) {
	key := logKey{level, c.group()}
	w := l.windows[key]
	if w == nil {
		w = &logged{since: now, pool: pool}
		l.windows[key] = w
		l.order = append(l.order, key)
	}
	if w.written == logBurst {
		w.counted++
		return
	}
	w.written++
	message := "baldur: suspected connection leak"
	if level == slog.LevelInfo {
		message = "baldur: suspected connection came back"
	} else if c.Verdict.Accuses() {
		message = "baldur: connection leak"
	}
	l.write(level, message, pool, c.CallSite(), connAttrs(level, c))
}

// flush ends the windows that are over at now, and writes what they have counted.
func (l *leakLog) flush(now time.Time) {
	kept := l.order[:0]
	for _, key := range l.order {
		w := l.windows[key]
		if now.Sub(w.since) < logWindow {
			kept = append(kept, key)
			continue
		}
		delete(l.windows, key)
		if w.counted == 0 {
			continue
		}
		message := "baldur: more suspected connection leaks"
		if key.level == slog.LevelInfo {
			message = "baldur: more suspected connections came back"
		}
		l.write(key.level, message, w.pool, key.site, []slog.Attr{slog.Int("count", w.counted)})
	}
	clear(l.order[len(kept):])
	l.order = kept
}

// write leaves the record's program counter out: a handler with AddSource would name
// this file, and the place that matters is code.file.path.
func (l *leakLog) write(level slog.Level, message, pool string, site Frame, attrs []slog.Attr) {
	at := []slog.Attr{slog.String("code.function.name", clean(site.Function))}
	if site.File != "" {
		at = append(at, slog.String("code.file.path", clean(site.File)), slog.Int("code.line.number", site.Line))
	}
	l.writePool(level, message, pool, append(at, attrs...)...)
}

func (l *leakLog) writePool(level slog.Level, message, pool string, attrs ...slog.Attr) {
	if !l.handler.Enabled(l.ctx, level) {
		return
	}
	r := slog.NewRecord(time.Now(), level, message, 0)
	r.AddAttrs(slog.String("pool", shorten(clean(pool), logName)))
	r.AddAttrs(attrs...)
	_ = l.handler.Handle(l.ctx, r) // ignored as slog.Logger does: there is nobody to tell
}

// exhausted writes that the pool is exhausted, or no longer.
func (l *leakLog) exhausted(r LeakReport) {
	if r.Recovered > 0 {
		l.writePool(slog.LevelInfo, "baldur: pool recovered", r.PoolName, slog.Duration("lasted", r.Recovered))
		return
	}
	attrs := []slog.Attr{slog.Int("in_use", r.Stats.ActiveConnections), slog.Int("max", r.Stats.MaxConnections), slog.Int("waiting", r.Stats.WaitingRequests)}
	l.writePool(slog.LevelWarn, "baldur: pool exhausted", r.PoolName, append(attrs, r.bySite()...)...)
}

func connAttrs(level slog.Level, c ConnectionInfo) []slog.Attr {
	attrs := []slog.Attr{slog.Duration("held", c.Held)}
	if level == slog.LevelWarn { // of a connection that is back this is not known
		attrs = append(attrs, slog.Duration("idle", c.Idle), slog.String("verdict", string(c.Verdict)), slog.String("evidence", c.Evidence), slog.String("state", string(c.State)), slog.String("goroutine_state", string(c.Goroutine)))
		if m := c.LikelyMissing(); m != "" {
			attrs = append(attrs, slog.String("likely_missing", m))
		}
	}
	attrs = append(attrs, slog.String("kind", string(c.Kind)), slog.Int64("goroutine", c.GoroutineID))
	if c.BackendPID != 0 {
		attrs = append(attrs, slog.Int("backend_pid", c.BackendPID))
	}
	if c.QueryInfo != "" {
		attrs = append(attrs, slog.String("query", excerpt(c.QueryInfo)))
	}
	if c.Span.IsValid() {
		attrs = append(attrs, slog.String("trace_id", c.Span.String()), slog.String("span_id", c.Span.spanID()))
	}
	return attrs
}
