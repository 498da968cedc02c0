package baldur

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/baldur-go/baldur/internal/aside"
	"github.com/baldur-go/baldur/internal/lease"
	"github.com/baldur-go/baldur/internal/leasepg"
)

// DefaultLeaseTTL is a lease's TTL without WithLeaseTTL.
const DefaultLeaseTTL = 10 * time.Second

// quorumConfig is what the options come to.
type quorumConfig struct {
	leasepg.Config
	logs       aside.Queue // of Log
	onAcquired func(QuorumLease)
	onLost     func(QuorumLease, LossReason)
	errs       []error // of options
}

// A QuorumOption sets one thing about a [PGQuorum].
type QuorumOption func(*quorumConfig)

// WithLeaseName names the lease. Whoever uses the same name on the same database
// competes for it. Default "primary"; 1 to 200 bytes.
func WithLeaseName(name string) QuorumOption {
	return func(c *quorumConfig) { c.Name = name }
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
		c.Table = &table
	}
}

// WithLeaseOwner accepts lease and fence tables that these roles own. Accepted without it are
// those of the current role, of the database's owner, of superusers, and of roles that the
// current role was made a member of by one of these: not by a GRANT of anyone else who may.
// Whoever owns a table can have code run with the rights of those who use it.
func WithLeaseOwner(roles ...string) QuorumOption {
	return func(c *quorumConfig) { c.Owners = append(c.Owners, roles...) }
}

// WithLeaseTTL sets how long a lease lasts that is not renewed, which is also
// how long a successor waits. Default 10 s; 500 ms to 300 s in whole milliseconds,
// and no less than four round trips to the server and two margins. All candidates should use
// the same.
func WithLeaseTTL(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.TTL = d }
}

// WithSafetyMargin sets by how much the holder's belief ends before the lease.
// Default a tenth of the TTL; at least 1/500 of it, which covers clocks whose
// rates are wrong by up to 1 in 1000, and less than half.
func WithSafetyMargin(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.Margin = d }
}

// WithRenewInterval sets how often the lease is renewed. Default a quarter of
// the TTL; at most a third of what TTL and margin leave. It varies by a tenth, up or
// down, so that many processes do not act as one.
func WithRenewInterval(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.Renew = d }
}

// WithAttemptTimeout sets how long one request to the witness may take before
// its connection is cut and its result is unknown. Default a fifth of the TTL;
// at most a quarter of what TTL and margin leave.
func WithAttemptTimeout(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.Attempt = d }
}

// WithFenceKill has a takeover that has waited for so long for transactions
// which [PGQuorum.RequirePrimary] guards end their sessions, by
// pg_terminate_backend, which the same role may. Default 0: it waits for them; else less than
// the attempt timeout.
// It needs a direct connection by lib/pq: behind PgBouncer, and with other drivers, it does
// nothing.
func WithFenceKill(after time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.FenceKill = after }
}

// WithFenceIdleTimeout sets for how long a transaction that RequirePrimary
// guards may be idle before the server ends its session: by
// idle_in_transaction_session_timeout, for this transaction, where that is not
// lower already. So a primary that is cut off from the network does not hold up
// its successor. Default the TTL; 0 leaves it as it is. At most 2^31-1 ms, the
// server's largest.
func WithFenceIdleTimeout(d time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.FenceIdle = d }
}

// WithoutNotify has this process neither LISTEN for the lease's changes, so that it polls, nor
// NOTIFY others of its own. Behind a pooler, and with other drivers than lib/pq, it polls in any case.
func WithoutNotify() QuorumOption {
	return func(c *quorumConfig) { c.Notify = false }
}

// WithQuorumLogger logs elections, losses and errors. Default: nothing is logged. The handler is
// called on a goroutine of its own, one record after the other: one that blocks delays the next
// ones, of which 1000 wait, and nothing else. Close and StopAutoRenew wait up to 1 s for them.
func WithQuorumLogger(l *slog.Logger) QuorumOption {
	return func(c *quorumConfig) { c.Log = l }
}

// WithQuorumClock sets the clock by which leases are held and watched, for
// tests and for [BootTime]: now returns the time since some fixed instant and
// never goes back. Default: the monotonic clock of package time.
func WithQuorumClock(now func() time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.Clock = now }
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
	const unset = -1
	c := &quorumConfig{Config: leasepg.Config{
		Config: lease.Config{Name: "primary", TTL: DefaultLeaseTTL, Margin: unset, Renew: unset, Attempt: unset, Jitter: 0.1},
		Region: region, FenceIdle: unset, Notify: true,
	}}
	for _, o := range opts {
		if o == nil {
			return nil, errors.New("a nil QuorumOption")
		}
		o(c)
	}
	for d, part := range map[*time.Duration]time.Duration{&c.Margin: 10, &c.Renew: 4, &c.Attempt: 5, &c.FenceIdle: 1} {
		if *d == unset {
			*d = c.TTL / part
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	} else {
		c.Log = slog.New(aside.Handler(c.Log.Handler(), &c.logs))
	}
	if err := errors.Join(c.errs...); err != nil {
		return nil, err
	}
	return c, c.Check()
}
