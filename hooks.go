package baldur

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/baldur-go/baldur/internal/hook"
	"github.com/baldur-go/baldur/internal/stack"
)

// Hooks are functions that a pool calls as it lives. A nil one is not called,
// and a pool without hooks pays one test of a pointer for each checkout.
//
// They run where things happen, in the program's own calls: they must be quick,
// must not block, and must not use the pool. A panic in one is caught and
// dropped, since database/sql would lose the connection by it.
type Hooks struct {
	// Connector is called once, when the pool is made, and returns what is to
	// connect in place of inner, or nil for inner itself. A connection of it must have inner's reachable
	// by Raw methods: see [Unwrap]. A connector that returns other connections
	// than inner's is what [Wrap] is for.
	Connector func(inner driver.Connector) driver.Connector

	// SpanContext is the function of [WithSpanContext] where that is not given.
	SpanContext func(context.Context) SpanContext

	// Opened is called when the pool has come into use: it was opened by Open or
	// OpenDB, or found by TrackerOf, or has made a connection. Closed is called
	// when it is closed and no connection is out. Both may come again, in turn,
	// if the connector is used for another pool.
	Opened func(*Tracker)
	Closed func()

	// Connected is called after each connect that succeeded, with its ctx and
	// how long it took.
	Connected func(ctx context.Context, took time.Duration)

	// Returned is called when a connection comes back, or is closed instead. It
	// runs on whatever goroutine brings it and under locks of database/sql's.
	Returned func(Return)
}

// A Return is the end of a checkout.
type Return struct {
	ConnectionID int64
	AcquiredAt   time.Time
	Held         time.Duration // exact
	Span         SpanContext   // of the taking

	t    *Tracker
	site *stack.Site
}

// StackTrace is the call stack of the taking, from the application's own frame
// on; nil under [CaptureOff]. It is not to be changed.
func (r Return) StackTrace() []Frame { return r.t.sites.of(r.site).frames }

// A Target is what is known of a pool when it is made: what baldur has read in
// the DSN, or nothing where it has not parsed one.
type Target struct {
	Address   string // host name, IP address, or a Unix socket's path; "" if not known or one of several
	Port      int    // 0: not known, or a Unix socket
	Database  string
	Schema    string // the first of the search_path in the DSN
	QueryText bool   // the text of queries may be told: see WithQueryText
}

// hookMaker is what WithHooks was given.
type hookMaker struct {
	name string
	f    func(Target) Hooks
}

// WithHooks has f called when the pool is made, and the functions that it
// returns as the pool lives. Of several with one name the last counts.
func WithHooks(name string, f func(Target) Hooks) Option {
	return func(c *config) {
		for i, m := range c.hookMakers {
			if m.name == name {
				c.hookMakers[i].f = f
				return
			}
		}
		c.hookMakers = append(c.hookMakers, hookMaker{name, f})
	}
}

// setOTel is the setting of baldur_otel.
func setOTel(c *config, v string) error {
	var on bool
	if err := setSwitch(&on, v); err != nil || !on {
		return err
	}
	option, ok := hook.OTel.(func() Option)
	if !ok {
		return errors.New(`it needs import _ "github.com/baldur-go/baldur/baldurotel" in the program`)
	}
	option()(c)
	return nil
}

// hook makes the hooks of a pool and returns the connector that they want.
func (c *config) hook(inner driver.Connector, target Target) driver.Connector {
	target.QueryText = c.queryText
	for _, m := range c.hookMakers {
		h := m.f(target)
		c.hooks = append(c.hooks, h)
		if c.spanContext == nil {
			c.spanContext = h.SpanContext
		}
		if h.Connector != nil {
			guarded(func() {
				if hooked := h.Connector(inner); hooked != nil {
					inner = hooked
				}
			})
		}
	}
	return inner
}

// announce calls Opened or Closed, if it is time.
func (t *Tracker) announce() {
	if t.hooks == nil {
		return
	}
	t.announcing.Lock()
	defer t.announcing.Unlock()
	t.mu.Lock()
	inUse := len(t.records) > 0 || !t.isClosedLocked()
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

// returned tells the hooks that the connection of r, which has ended its
// checkout, is back.
func (r *record) returned() {
	ret := Return{
		ConnectionID: r.id,
		AcquiredAt:   r.clk.At(r.start),
		Held:         r.clk.Now() - r.start,
		Span:         r.span,
		t:            r.t,
		site:         r.site,
	}
	for _, h := range r.t.hooks {
		if h.Returned != nil {
			guarded(func() { h.Returned(ret) })
		}
	}
}

func guarded(f func()) {
	defer func() { _ = recover() }()
	f()
}

func guardedSpan(f func(context.Context) SpanContext, ctx context.Context) (span SpanContext) {
	defer func() { _ = recover() }()
	return f(ctx)
}

// Connections returns how many connections lie idle in the pool and how many are
// out of it, without those that are being dialled. Unlike [Tracker.Stats] it
// knows this also of a pool that was opened by plain sql.Open and has not been
// given to TrackerOf, and of several pools on one connector (together): from
// what it has seen. Then ok is false while there is a connection that has never
// been seen to go out; see "What cannot be seen" in the package comment.
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
	for _, r := range t.list() {
		r.mu.Lock()
		taken, act := r.seq > 0, r.act.get()
		r.mu.Unlock()
		out := act&flagOut != 0
		switch {
		case !out && act&flagClosing != 0: // on its way out of the pool
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
