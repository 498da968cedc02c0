package baldur

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/baldur-go/baldur/internal/lease"
	"github.com/baldur-go/baldur/internal/leasepg"
	"github.com/baldur-go/baldur/internal/pgsql"
)

// What a lease has without options.
const (
	DefaultLeaseTTL  = 10 * time.Second
	DefaultLeaseName = "primary"
)

const maxNameLen = 200 // bytes, of a lease or a region

// quorumConfig is what the options come to.
type quorumConfig struct {
	name, region string
	table        *[2]string // schema and name; nil: the usual one
	owners       []string   // roles that may own it
	ttl          time.Duration
	margin       time.Duration
	renew        time.Duration
	attempt      time.Duration
	jitter       float64
	killAfter    time.Duration
	idleTimeout  time.Duration
	notify       bool
	log          *slog.Logger
	logs         callQueue // of log
	clock        func() time.Duration
	onAcquired   func(QuorumLease)
	onLost       func(QuorumLease, LossReason)
	errs         []error // of options
}

// witness is what the witness goes by.
func (c *quorumConfig) witness() leasepg.Config {
	return leasepg.Config{
		Name: c.name, Region: c.region, Table: c.table, Owners: c.owners, TTL: c.ttl, Margin: c.margin,
		Attempt: c.attempt, KillAfter: c.killAfter, Notify: c.notify, Log: c.log,
	}
}

// belief is for how long after the sending of a request its success lets the
// holder believe: D_H in the proof.
func (c *quorumConfig) belief() time.Duration { return c.ttl - c.margin }

// A QuorumOption sets one thing about a [PGQuorum].
type QuorumOption func(*quorumConfig)

// WithLeaseName names the lease. Whoever uses the same name on the same database
// competes for it. Default "primary"; 1 to 200 bytes.
func WithLeaseName(name string) QuorumOption {
	return func(c *quorumConfig) { c.name = name }
}

// WithLeaseTable names the table that has the leases, with its schema, as
// "ops.baldur_lease" or `ops."Leases"`: as [PGAdmin.ExecuteAggregateQuery] reads names. All
// who compete for a lease must name the same.
//
// Default: the table baldur_lease in whatever schema it is, or in public, where it is
// made if there is none. It does not depend on the search_path. If there are several, an error
// names them, and this option is needed.
func WithLeaseTable(name string) QuorumOption {
	return func(c *quorumConfig) {
		table, err := leasepg.ParseTable(name)
		if err != nil {
			c.errs = append(c.errs, fmt.Errorf("WithLeaseTable: %w", err))
		}
		c.table = &table
	}
}

// WithLeaseOwner accepts lease and fence tables that these roles own. Accepted without it are
// those of the current role, of the database's owner, of superusers, and of roles that the
// current role was made a member of by one of these: not by a GRANT of anyone else who may.
// Whoever owns a table can have code run with the rights of those who use it.
func WithLeaseOwner(roles ...string) QuorumOption {
	return func(c *quorumConfig) { c.owners = append(c.owners, roles...) }
}

// WithLeaseTTL sets how long a lease lasts that is not renewed, which is also
// how long a successor waits. Default 10 s; 500 ms to 300 s in whole milliseconds,
// and no less than four round trips to the server and two margins. All candidates should use
// the same.
func WithLeaseTTL(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.ttl = d }
}

// WithSafetyMargin sets by how much the holder's belief ends before the lease.
// Default a tenth of the TTL; at least 1/500 of it, which covers clocks whose
// rates are wrong by up to 1 in 1000, and less than half.
func WithSafetyMargin(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.margin = d }
}

// WithRenewInterval sets how often the lease is renewed. Default a quarter of
// the TTL; at most a third of what TTL and margin leave.
func WithRenewInterval(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.renew = d }
}

// WithAttemptTimeout sets how long one request to the witness may take before
// its connection is cut and its result is unknown. Default a fifth of the TTL;
// at most a quarter of what TTL and margin leave.
func WithAttemptTimeout(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.attempt = d }
}

// WithLeaseJitter sets by which part, up or down, the intervals of renewing and
// polling vary. Default 0.1; 0 to 0.5.
func WithLeaseJitter(part float64) QuorumOption {
	return func(c *quorumConfig) { c.jitter = part }
}

// WithFenceKill has a takeover that has waited for so long for transactions
// which [PGQuorum.RequirePrimary] guards end their sessions, by
// pg_terminate_backend, which the same role may. Default 0: it waits for them; else less than
// the attempt timeout.
// It needs a direct connection by lib/pq: behind PgBouncer, and with other drivers, it does
// nothing.
func WithFenceKill(after time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.killAfter = after }
}

// WithFenceIdleTimeout sets for how long a transaction that RequirePrimary
// guards may be idle before the server ends its session: by
// idle_in_transaction_session_timeout, for this transaction, where that is not
// lower already. So a primary that is cut off from the network does not hold up
// its successor. Default the TTL; 0 leaves it as it is. At most 2^31-1 ms, the
// server's largest.
func WithFenceIdleTimeout(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.idleTimeout = d }
}

// WithoutNotify has this process neither LISTEN for the lease's changes, so that it polls, nor
// NOTIFY others of its own. Behind a pooler, and with other drivers than lib/pq, it polls in any case.
func WithoutNotify() QuorumOption {
	return func(c *quorumConfig) { c.notify = false }
}

// WithQuorumLogger logs elections, losses and errors. Default: nothing is logged. The handler is
// called on a goroutine of its own, one record after the other: one that blocks delays the next
// ones, of which 1000 wait, and nothing else. Close and StopAutoRenew wait up to 1 s for them.
func WithQuorumLogger(l *slog.Logger) QuorumOption {
	return func(c *quorumConfig) { c.log = l }
}

// WithQuorumClock sets the clock by which leases are held and watched, for
// tests and for [BootTime]: now returns the time since some fixed instant and
// never goes back. Default: the monotonic clock of package time.
func WithQuorumClock(now func() time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.clock = now }
}

// BootTime is the time since the machine has booted, the time that it was
// suspended for included, which the monotonic clock of package time leaves out.
// With [WithQuorumClock] a primary on a machine that wakes up knows at once that
// it is none any more, and not only after some hundredths of the TTL; IsPrimary
// then costs 0.3 µs. Elsewhere than on Linux it is the clock of package time.
func BootTime() time.Duration { return lease.BootTime() }

// WithOnAcquired has f called when this process becomes primary, and WithOnLost
// when it stops being primary. They are called one at a time, in the order of the
// changes, on a goroutine of their own: a call that lasts delays the next one.
// They may call any method of the PGQuorum.
func WithOnAcquired(f func(QuorumLease)) QuorumOption {
	return func(c *quorumConfig) { c.onAcquired = f }
}

// WithOnLost: see [WithOnAcquired]. f is called no later than the end of the
// belief, unless the call before it still lasts.
func WithOnLost(f func(QuorumLease, LossReason)) QuorumOption {
	return func(c *quorumConfig) { c.onLost = f }
}

func newQuorumConfig(region string, opts []QuorumOption) (*quorumConfig, error) {
	c := &quorumConfig{
		name: DefaultLeaseName, region: region, ttl: DefaultLeaseTTL,
		margin: -1, renew: -1, attempt: -1, idleTimeout: -1, jitter: 0.1, notify: true,
	}
	for _, o := range opts {
		if o == nil {
			return nil, errors.New("a nil QuorumOption")
		}
		o(c)
	}
	if c.margin == -1 {
		c.margin = c.ttl / 10
	}
	if c.renew == -1 {
		c.renew = c.ttl / 4
	}
	if c.attempt == -1 {
		c.attempt = c.ttl / 5
	}
	if c.idleTimeout == -1 {
		c.idleTimeout = c.ttl
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	} else {
		c.log = slog.New(logQueue{c.log.Handler(), &c.logs})
	}
	return c, c.check()
}

// check names the inequality that does not hold.
func (c *quorumConfig) check() error {
	if err := errors.Join(c.errs...); err != nil {
		return err
	}
	for _, role := range c.owners {
		if err := checkName("role (WithLeaseOwner)", role); err != nil {
			return err
		}
		if len(role) > pgsql.MaxIdentifier {
			return fmt.Errorf("role (WithLeaseOwner) has %d bytes; PostgreSQL's names have at most %d", len(role), pgsql.MaxIdentifier)
		}
	}
	if err := checkName("region", c.region); err != nil {
		return err
	}
	if err := checkName("lease name (WithLeaseName)", c.name); err != nil {
		return err
	}
	least := time.Duration(float64(c.ttl) * 2 * lease.ClockDrift / (1 + lease.ClockDrift))
	switch {
	case c.ttl < lease.MinTTL || c.ttl > lease.MaxTTL:
		return fmt.Errorf("TTL (WithLeaseTTL) is %v; it must be from %v to %v", c.ttl, lease.MinTTL, lease.MaxTTL)
	case c.ttl%time.Millisecond != 0:
		return fmt.Errorf("TTL (WithLeaseTTL) is %v; it must be whole milliseconds, as the table has it", c.ttl)
	case c.margin < least:
		return fmt.Errorf("safety margin (WithSafetyMargin) is %v; it must be at least %v, which is what two clocks may drift apart in a TTL of %v: margin >= TTL*2ρ/(1+ρ) with ρ = %v", c.margin, least, c.ttl, lease.ClockDrift)
	case c.margin >= c.ttl/2:
		return fmt.Errorf("safety margin (WithSafetyMargin) is %v; it must be less than half of the TTL of %v: margin < TTL/2", c.margin, c.ttl)
	case c.renew <= 0 || c.renew > c.belief()/3:
		return fmt.Errorf("renew interval (WithRenewInterval) is %v; it must be above 0 and at most %v: renew <= (TTL-margin)/3", c.renew, c.belief()/3)
	case c.attempt <= 0 || c.attempt > c.belief()/4:
		return fmt.Errorf("attempt timeout (WithAttemptTimeout) is %v; it must be above 0 and at most %v: attempt <= (TTL-margin)/4", c.attempt, c.belief()/4)
	case !(c.jitter >= 0 && c.jitter <= 0.5):
		return fmt.Errorf("jitter (WithLeaseJitter) is %v; it must be from 0 to 0.5", c.jitter)
	case c.killAfter < 0:
		return fmt.Errorf("fence kill (WithFenceKill) is after %v; it must be 0 (off) or above", c.killAfter)
	case c.killAfter >= c.attempt:
		return fmt.Errorf("fence kill (WithFenceKill) is after %v; it must be less than the attempt timeout of %v", c.killAfter, c.attempt)
	case c.idleTimeout < 0 || c.idleTimeout.Milliseconds() > math.MaxInt32:
		return fmt.Errorf("fence idle timeout (WithFenceIdleTimeout) is %v; it must be from 0 (off) to %v, the server's largest", c.idleTimeout, math.MaxInt32*time.Millisecond)
	}
	return nil
}

func checkName(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is empty", what)
	case len(s) > maxNameLen:
		return fmt.Errorf("%s has %d bytes; it must have at most %d", what, len(s), maxNameLen)
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return fmt.Errorf("%s %q is not text that PostgreSQL can store", what, s)
	}
	return nil
}
