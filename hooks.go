package baldur

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/baldur-go/baldur/internal/stack"
)

// Hooks are functions that a pool calls as it lives. A nil one is not called. A pool
// without hooks pays one test of a pointer for each checkout.
//
// They run where things happen, in the program's own calls: they must be quick, must
// not block, and must not use the pool. A panic in one is caught and dropped, since
// database/sql would lose the connection by it.
type Hooks struct {
	// Connector is called once, when the pool is made. It returns the connector to use
	// in place of inner, or nil for inner itself. inner's connections must be reachable
	// from its connections by Raw methods: see [Unwrap]. For a connector with
	// connections of its own there is [Wrap].
	Connector func(inner driver.Connector) driver.Connector

	// SpanContext is used as the function of [WithSpanContext] if that is not given.
	SpanContext func(context.Context) SpanContext

	// Opened is called when the pool comes into use: when it is opened by Open or
	// OpenDB, is found by TrackerOf, or makes a connection. Closed is called when it is
	// closed and has no connection left. Both may be called again, in turn, if the
	// connector is used for another pool.
	Opened func(*Tracker)
	Closed func()

	// Connected is called after each successful connect, with its ctx and duration.
	Connected func(ctx context.Context, took time.Duration)

	// Returned is called when a connection comes back, or is closed instead. It runs on
	// whichever goroutine returns it, and under locks of database/sql.
	Returned func(Return)
}

// A Return is the end of a checkout.
type Return struct {
	ConnectionID int64
	AcquiredAt   time.Time
	Held         time.Duration // exact
	Span         SpanContext   // of the taking

	sites *siteCache
	site  *stack.Site
}

// CallSite is the line that took the connection: see [ConnectionInfo.CallSite].
func (r Return) CallSite() Frame {
	info := r.sites.of(r.site)
	return ConnectionInfo{StackTrace: info.frames, site: info.at}.CallSite()
}

// StackTrace is the call stack of the taking, from the application's own frame on; nil
// under [CaptureOff]. It must not be changed.
func (r Return) StackTrace() []Frame { return r.sites.of(r.site).frames }

// A Target is what is known of a pool when it is made: what its DSN says. It is empty
// where baldur has not parsed a DSN.
type Target struct {
	Address   string // host name, IP address, or a Unix socket's path; "" if not known or one of several
	Port      int    // 0: not known, or a Unix socket
	Database  string
	Schema    string // the first of the search_path in the DSN
	QueryText bool   // the text of queries may be shown: see WithQueryText
}

// hook makes the hooks of a pool and returns the connector that they ask for.
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

func guarded(f func()) {
	defer func() { _ = recover() }()
	f()
}

func guardedSpan(f func(context.Context) SpanContext, ctx context.Context) (span SpanContext) {
	defer func() { _ = recover() }()
	return f(ctx)
}
