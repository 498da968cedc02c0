package baldur

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/baldur-go/baldur/internal/checkout"
)

// Watch makes a report at each interval and calls f with it if there is news. News are
// suspected leaks that it has not reported before, which alone are in SuspectedLeaks,
// and connections that it has reported and that have come back, in Returned. So a leak
// is reported once for each checkout.
//
// Watch returns the cause of ctx when that ends, and nil when the pool is closed. It
// returns an error at once if every is not above 0 or f is nil. Run it on a goroutine
// of its own; f is called there.
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

// watch calls f with each of Watch's reports, also without news.
func (t *Tracker) watch(ctx context.Context, every time.Duration, who string, f func(r LeakReport, news bool)) error {
	if every <= 0 {
		return fmt.Errorf("baldur: %s: interval is %v; it must be above 0", who, every)
	}
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	reported := map[*checkout.Leak]bool{}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-closed:
			return nil
		case <-ticker.C:
		}
		f(t.news(reported))
	}
}

// news is a report of what reported does not have yet, and brings it up to date.
func (t *Tracker) news(reported map[*checkout.Leak]bool) (LeakReport, bool) {
	report, leaks := t.report()
	var fresh []ConnectionInfo
	for i, l := range leaks {
		if !reported[l] {
			reported[l] = true
			fresh = append(fresh, report.SuspectedLeaks[i])
		}
	}
	report.SuspectedLeaks = fresh
	for l := range reported {
		if info, ok := returned(l); ok {
			report.Returned = append(report.Returned, info)
			delete(reported, l)
		}
	}
	slices.SortFunc(report.Returned, func(a, b ConnectionInfo) int { return cmp.Compare(b.Held, a.Held) })
	return report, len(fresh) > 0 || len(report.Returned) > 0
}

// How much Log writes.
const (
	logBurst  = 3           // records of a kind for each call site in a window
	logWindow = time.Minute // from the first of them on
	logName   = 200         // characters of a name
)

// Log writes leaks to logger as they show: a record of level WARN for each checkout
// that is suspected, and one of level INFO when it comes back. In main:
//
//	go baldur.TrackerOf(db).Log(ctx, 30*time.Second, slog.Default())
//
// The messages are "baldur: suspected connection leak" and "baldur: suspected
// connection came back". Attributes are pool, code.function.name, code.file.path
// and code.line.number (of the call site; a leak's also likely_missing), held,
// idle, kind, state, goroutine, goroutine_state (of a leak), backend_pid, query
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
	err := t.watch(ctx, every, "Log", func(r LeakReport, _ bool) {
		now := time.Now()
		// A window ends early where this is the last look at it.
		defer l.flush(now.Add(every))
		l.flush(now)
		for _, c := range r.SuspectedLeaks {
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
	if !l.handler.Enabled(l.ctx, level) {
		return
	}
	r := slog.NewRecord(time.Now(), level, message, 0)
	r.AddAttrs(slog.String("pool", shorten(clean(pool), logName)), slog.String("code.function.name", clean(site.Function)))
	if site.File != "" {
		r.AddAttrs(slog.String("code.file.path", clean(site.File)), slog.Int("code.line.number", site.Line))
	}
	r.AddAttrs(attrs...)
	_ = l.handler.Handle(l.ctx, r) // ignored as slog.Logger does: there is nobody to tell
}

func connAttrs(level slog.Level, c ConnectionInfo) []slog.Attr {
	attrs := []slog.Attr{slog.Duration("held", c.Held)}
	if level == slog.LevelWarn { // of a connection that is back this is not known
		attrs = append(attrs, slog.Duration("idle", c.Idle), slog.String("state", string(c.State)), slog.String("goroutine_state", string(c.Goroutine)))
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
