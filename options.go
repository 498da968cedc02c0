package baldur

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/baldur-go/baldur/internal/hook"
)

// Defaults of the settings; the ranges are in the comments of the options.
const (
	DefaultLeakThreshold     = 300 * time.Second
	DefaultWarningThreshold  = 70.0 // percent
	DefaultCriticalThreshold = 90.0 // percent
	DefaultCancelGrace       = time.Second
	DefaultCancelTimeout     = 10 * time.Second
)

// config is the result of the options, the DSN and the environment.
type config struct {
	poolName       string
	leakThreshold  time.Duration
	warning        float64
	critical       float64
	cancelGrace    time.Duration
	cancelTimeout  time.Duration
	queryText      bool
	capture        Capture
	returnAudit    int
	spanContext    func(context.Context) SpanContext
	skipPackages   []string
	skipFunctions  []string
	hookMakers     []hookMaker
	hooks          []Hooks // by hookMakers; nil: none
	privateLayouts bool
}

// An Option sets one thing about a pool. The nearest setting wins: option, DSN
// parameter, environment variable, default.
type Option func(*config)

// WithPoolName names the pool in reports. The default is address:port/database
// where baldur parses the DSN, else "pool"; a name that another open pool of
// this program has already gets "#2", "#3", ….
// DSN: baldur_pool_name.
func WithPoolName(name string) Option {
	return func(c *config) { c.poolName = name }
}

// WithLeakThreshold sets how long a connection must be out, and unused for that
// long, before its holder is suspected of a leak. Default 300 s; must be above zero.
// DSN: baldur_leak_threshold (a duration such as 90s, or a number of seconds);
// environment: BALDUR_POOL_MONITOR_LEAK_THRESHOLD_SECONDS.
func WithLeakThreshold(d time.Duration) Option {
	return func(c *config) { c.leakThreshold = d }
}

// WithWarningThreshold sets from which usage of the pool on its health is
// [HealthWarning], in percent: above 1, below the critical one. Default 70.
// DSN: baldur_warning_threshold; environment:
// BALDUR_POOL_MONITOR_WARNING_THRESHOLD.
func WithWarningThreshold(percent float64) Option {
	return func(c *config) { c.warning = percent }
}

// WithCriticalThreshold sets from which usage of the pool on its health is
// [HealthCritical], in percent, up to 100. Default 90.
// DSN: baldur_critical_threshold; environment:
// BALDUR_POOL_MONITOR_CRITICAL_THRESHOLD.
func WithCriticalThreshold(percent float64) Option {
	return func(c *config) { c.critical = percent }
}

// WithCancelGrace sets how long a call whose ctx has ended may take to end by itself,
// by lib/pq's cancel request, before its socket is cut. A call that is cut returns the
// ctx's error, and the connection is discarded. The cut comes at the first tick after
// the grace, at most 100 ms later. Default 1 s; must be above zero. It applies to
// connections that baldur dials (by sql.Open and Open, not by Wrap).
//
// Calls that close something end in that time also without a ctx: Stmt.Close,
// Rows.Close, Tx.Rollback, Conn.Close and DB.Close return within the grace and 100 ms
// on a silent network. Rows.Close reads what is left of the result, and may take longer
// while data keeps coming. A statement that is closed while its connection is idle is
// closed on the server when the connection is next taken.
//
// Other calls that the program makes without a ctx are not limited; they show in
// reports. Drivers given to Wrap and OpenDB have their own limits: pgx ends Stmt.Close,
// and a connection's Close, after 5 s, and honours a ctx in everything else; its
// Rows.Close and Rollback without a ctx are not limited.
// DSN: baldur_cancel_grace.
func WithCancelGrace(d time.Duration) Option {
	return func(c *config) { c.cancelGrace = d }
}

// WithCancelTimeout sets how long a cancel request may take, its dialling included. It
// goes on after the call that it cancels has returned, so that the query ends on the
// server too. Default 10 s, which is also lib/pq's limit for the dialling; must be
// above zero. It applies to the same connections as the grace.
// DSN: baldur_cancel_timeout.
func WithCancelTimeout(d time.Duration) Option {
	return func(c *config) { c.cancelTimeout = d }
}

// WithQueryText(false) keeps the text of queries out of everything that baldur shows,
// and out of its memory.
//
// One policy holds wherever a text is shown: reports, logs, JSON, the page, the
// profile, baldurtest and OpenTelemetry. Arguments are never kept. A report has the
// first 2 kB of a text. A text that carries a secret is shown without its literals and
// comments. That is a text that
//
//   - sets a password (ALTER ROLE, CREATE USER MAPPING)
//   - has a conninfo (CREATE SUBSCRIPTION, CREATE SERVER, dblink) or a URL with a password
//   - calls pgcrypto
//   - contains a word such as password, secret, token or credential
//
// Other literals are shown as they are, except by OpenTelemetry, which shows literals
// only of statements with parameters. Programs that write other secrets into their SQL
// need WithQueryText(false). An idle connection keeps no text of more than 256 bytes.
// DSN: baldur_query_text=off.
func WithQueryText(on bool) Option {
	return func(c *config) { c.queryText = on }
}

// Capture says what is noted of a checkout beside the time, the goroutine and the use
// of the connection.
type Capture int32

// What can be noted of a checkout. What each costs is in docs/performance.md.
const (
	CaptureFull  Capture = iota // the call stack, and how long it was out in the call site's histogram: see CallSites
	CaptureSites                // the call stack
	CaptureOff                  // neither: leaks are found, and where they were taken is unknown
)

// WithCapture sets what is noted of a checkout. Default [CaptureFull]. It can be
// changed at run time, by [Tracker.SetCapture].
// DSN: baldur_capture=full, sites or off.
func WithCapture(c Capture) Option {
	return func(cfg *config) { cfg.capture = c }
}

// WithReturnAudit checks one in every n returns of a connection to the pool: 1 checks
// all, and 0, the default, none. It finds what database/sql and lib/pq do not undo:
// transactions that were begun by the text of a query and are still open, and session
// advisory locks. [Tracker.DirtyReturns] has the results. The connection itself goes
// back as it is.
//
// The check of a connection without a transaction is a round trip on the goroutine
// that returns it, of at most 1 s. It needs lib/pq. Through a pooler in transaction
// mode it means nothing.
// DSN: baldur_return_audit.
func WithReturnAudit(n int) Option {
	return func(c *config) { c.returnAudit = n }
}

// WithSpanContext has f called with the ctx of every checkout, to note the
// trace that it belongs to. With OpenTelemetry (baldurotel.With includes it):
//
//	func(ctx context.Context) baldur.SpanContext {
//		sc := trace.SpanContextFromContext(ctx)
//		return baldur.SpanContext{TraceID: sc.TraceID(), SpanID: sc.SpanID(), TraceFlags: byte(sc.TraceFlags())}
//	}
func WithSpanContext(f func(context.Context) SpanContext) Option {
	return func(c *config) { c.spanContext = f }
}

// WithSkipPackages adds packages, by import path, to those that no call site is in: a
// stack starts at the first frame outside of them. The standard library, baldur and the
// well-known libraries on top of database/sql are among them. A path that ends in a
// slash stands for that package and all below it: "example.com/shop/db/" for
// example.com/shop/db and example.com/shop/db/orm. Without the slash it is that one
// package. A package's own tests are not skipped.
//
// The paths of the option, the DSN and the environment add up.
// DSN: baldur_skip_packages, separated by commas; environment: BALDUR_SKIP_PACKAGES.
func WithSkipPackages(paths ...string) Option {
	return func(c *config) { c.skipPackages = append(c.skipPackages, paths...) }
}

// WithSkipFunctions adds functions that are never a call site, such as a program's own
// helpers through which all its queries go. A name is that of a [Frame], with its
// import path or the end of that: "example.com/shop/store.(*conn).Exec" or
// "store.(*conn).Exec". Closures in the function are skipped with it.
//
// The names of the option, the DSN and the environment add up.
// DSN: baldur_skip_functions, separated by commas; environment: BALDUR_SKIP_FUNCTIONS.
func WithSkipFunctions(names ...string) Option {
	return func(c *config) { c.skipFunctions = append(c.skipFunctions, names...) }
}

// WithPrivateLayouts(false) turns off, for the whole program and for good, all that reads
// what is private of the runtime and of database/sql: the stacks of other goroutines,
// pointers on the own stack, and fields of sql.DB. Each is read only after a self-test at
// the start, so this is for a program that must rule it out, or for an emergency. It should
// be given to the first pool.
//
// Reports then say "unknown" for what they cannot tell: how many requests wait and where,
// what holders are doing now, whether goroutines have exited; no deadlock is told. A
// checkout costs some microseconds more. lost is told all the same: it takes nothing private.
// DSN: baldur_private_layouts=off; environment: BALDUR_PRIVATE_LAYOUTS=off.
func WithPrivateLayouts(on bool) Option {
	return func(c *config) { c.privateLayouts = on }
}

// WithHooks has f called when the pool is made, and the functions that it returns
// called as the pool lives. Of several with the same name the last one counts.
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

// hookMaker is what WithHooks was given.
type hookMaker struct {
	name string
	f    func(Target) Hooks
}

// A setting is an option that has a text form.
type setting struct {
	param, env string
	set        func(c *config, value string) error
}

var settings = []setting{
	{"baldur_pool_name", "", func(c *config, v string) error { c.poolName = v; return nil }},
	{"baldur_leak_threshold", "BALDUR_POOL_MONITOR_LEAK_THRESHOLD_SECONDS", func(c *config, v string) error { return setDuration(&c.leakThreshold, v) }},
	{"baldur_warning_threshold", "BALDUR_POOL_MONITOR_WARNING_THRESHOLD", func(c *config, v string) error { return setPercent(&c.warning, v) }},
	{"baldur_critical_threshold", "BALDUR_POOL_MONITOR_CRITICAL_THRESHOLD", func(c *config, v string) error { return setPercent(&c.critical, v) }},
	{"baldur_cancel_grace", "", func(c *config, v string) error { return setDuration(&c.cancelGrace, v) }},
	{"baldur_cancel_timeout", "", func(c *config, v string) error { return setDuration(&c.cancelTimeout, v) }},
	{"baldur_skip_packages", "BALDUR_SKIP_PACKAGES", func(c *config, v string) error { return addNames(&c.skipPackages, v) }},
	{"baldur_skip_functions", "BALDUR_SKIP_FUNCTIONS", func(c *config, v string) error { return addNames(&c.skipFunctions, v) }},
	{"baldur_capture", "", func(c *config, v string) error { return setCapture(&c.capture, v) }},
	{"baldur_private_layouts", "BALDUR_PRIVATE_LAYOUTS", func(c *config, v string) error { return setSwitch(&c.privateLayouts, v) }},
	{"baldur_return_audit", "", func(c *config, v string) error { return setCount(&c.returnAudit, v) }},
	{"baldur_otel", "", setOTel}, // see baldurotel
	{"baldur_query_text", "", func(c *config, v string) error { return setSwitch(&c.queryText, v) }},
}

func setDuration(d *time.Duration, v string) error {
	if s, err := strconv.ParseFloat(v, 64); err == nil && s < 1e9 && s > -1e9 {
		*d = time.Duration(s * float64(time.Second))
		return nil
	}
	parsed, err := time.ParseDuration(v)
	if err != nil {
		return fmt.Errorf("want a duration such as 90s or 5m, or a number of seconds")
	}
	*d = parsed
	return nil
}

func setPercent(p *float64, v string) error {
	f, err := strconv.ParseFloat(strings.TrimSuffix(v, "%"), 64)
	if err != nil || f != f {
		return fmt.Errorf("want a percentage such as 70")
	}
	*p = f
	return nil
}

func setSwitch(b *bool, v string) error {
	switch v {
	case "on", "true", "1":
		*b = true
	case "off", "false", "0":
		*b = false
	default:
		return fmt.Errorf("want on or off")
	}
	return nil
}

func setCount(n *int, v string) (err error) {
	if *n, err = strconv.Atoi(v); err != nil {
		return fmt.Errorf("want a number")
	}
	return nil
}

func addNames(list *[]string, v string) error {
	for name := range strings.SplitSeq(v, ",") {
		if name = strings.TrimSpace(name); name != "" {
			*list = append(*list, name)
		}
	}
	return nil
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

func setCapture(c *Capture, v string) error {
	i := slices.Index([]string{"full", "sites", "off"}, v)
	if i < 0 {
		return fmt.Errorf("want full, sites or off")
	}
	*c = Capture(i)
	return nil
}

var plainName = regexp.MustCompile(`^baldur_[a-z_]{1,40}$`)

// newConfig layers defaults, environment, DSN parameters and options, and checks the
// result. Errors quote no value from a DSN: by a typo it can be a password.
func newConfig(params map[string]string, opts []Option) (*config, error) {
	c := &config{
		leakThreshold: DefaultLeakThreshold,
		warning:       DefaultWarningThreshold,
		critical:      DefaultCriticalThreshold,
		cancelGrace:   DefaultCancelGrace,
		cancelTimeout: DefaultCancelTimeout,
		queryText:     true,

		privateLayouts: true,
	}
	for _, s := range settings {
		if s.env == "" {
			continue
		}
		if v := os.Getenv(s.env); v != "" {
			if err := s.set(c, v); err != nil {
				return nil, fmt.Errorf("baldur: environment variable %s: %w", s.env, err)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(params)) {
		i := slices.IndexFunc(settings, func(s setting) bool { return s.param == k })
		if i < 0 {
			if !plainName.MatchString(k) {
				k = "baldur_…" // it looks like something else, gone wrong
			}
			return nil, fmt.Errorf("baldur: DSN: unknown parameter %q (there are %s)", k, paramNames())
		}
		if err := settings[i].set(c, params[k]); err != nil {
			return nil, fmt.Errorf("baldur: DSN: parameter %s: %w", k, err)
		}
	}
	for _, o := range opts {
		if o == nil {
			return nil, fmt.Errorf("baldur: a nil Option")
		}
		o(c)
	}
	return c, c.check()
}

func (c *config) check() error {
	switch {
	case c.leakThreshold <= 0:
		return fmt.Errorf("baldur: leak threshold (WithLeakThreshold, baldur_leak_threshold, BALDUR_POOL_MONITOR_LEAK_THRESHOLD_SECONDS) is %v; it must be above 0", c.leakThreshold)
	case !(c.warning > 1):
		return fmt.Errorf("baldur: warning threshold (WithWarningThreshold, baldur_warning_threshold, BALDUR_POOL_MONITOR_WARNING_THRESHOLD) is %v %%; it must be above 1 (it is a percentage: 70, not 0.7)", c.warning)
	case !(c.critical <= 100):
		return fmt.Errorf("baldur: critical threshold (WithCriticalThreshold, baldur_critical_threshold, BALDUR_POOL_MONITOR_CRITICAL_THRESHOLD) is %v %%; it must be at most 100", c.critical)
	case !(c.warning < c.critical):
		return fmt.Errorf("baldur: warning threshold is %v %% and critical threshold %v %%; warning must be below critical", c.warning, c.critical)
	case c.capture < CaptureFull || c.capture > CaptureOff:
		return fmt.Errorf("baldur: capture (WithCapture) is %d; it must be CaptureFull, CaptureSites or CaptureOff", c.capture)
	case c.returnAudit < 0:
		return fmt.Errorf("baldur: return audit (WithReturnAudit, baldur_return_audit) is %d; it must be 0 (off) or above", c.returnAudit)
	case c.cancelTimeout <= 0:
		return fmt.Errorf("baldur: cancel timeout (WithCancelTimeout, baldur_cancel_timeout) is %v; it must be above 0", c.cancelTimeout)
	case c.cancelGrace <= 0:
		return fmt.Errorf("baldur: cancel grace (WithCancelGrace, baldur_cancel_grace) is %v; it must be above 0", c.cancelGrace)
	}
	return nil
}

func paramNames() string {
	names := make([]string, len(settings))
	for i, s := range settings {
		names[i] = s.param
	}
	return strings.Join(names, ", ")
}
