package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

const quorumRunUsage = `Usage: baldur quorum run --lease NAME --region R [--ttl D] [--grace D]
                         [--wait D] [--again] [--hold-at-least D]
                         [DSN] -- COMMAND ARGS...

Waits until this process is primary: until it holds the lease NAME in the
PostgreSQL of the DSN (default: that in BALDUR_DSN, which other users cannot
see; the table baldur_lease is made if there is none). Then it runs the command,
with BALDUR_LEASE, BALDUR_REGION and BALDUR_EPOCH in its environment, and
without BALDUR_DSN. When the command ends, the lease is released and another
process takes it at once.

A short job that cron starts on several machines would so run on each of them,
one after the other. With --hold-at-least the lease is kept, when the command has
ended, until that much time has passed since its start, whatever its exit status;
baldur ends then. --wait 0 has the others end at once:

    baldur quorum run --lease nightly --region "$(hostname)" --wait 0 \
        --hold-at-least 1m -- /usr/local/bin/nightly

Choose more than the clocks of the machines may differ by, and less than the time
between two runs. A signal that ends baldur before the time has passed, or the
command and baldur, leaves the lease to run out by itself, after its TTL. If the lease
is lost when the command has ended, nothing is run again. In each case the exit
status is that of the command. A command that cannot be run is not one that ran.

If the lease is lost, as in a network that has fallen silent, the command gets
SIGTERM and, after the grace, SIGKILL: both before the lease ends, so before
another process can be primary. The TTL is divided so:

    0            TTL - TTL/10 - grace        TTL - TTL/10            TTL
    | renewals fail | SIGTERM ---- grace ---- | SIGKILL -- margin -- | another
                                                                       may start

So the grace must be less than TTL/2 - TTL/10. A command that comes to know of
the loss too late, as baldur itself was stopped or the machine was suspended,
gets no grace; while that lasts two commands can run: what must not happen
twice, check with the epoch, in a transaction (PGQuorum.RequirePrimary).

Signals go to the process group of the command. SIGINT, SIGTERM, SIGHUP, SIGQUIT,
SIGUSR1 and SIGUSR2 are passed on. What a command leaves behind in its group is
ended too; what leaves the group, as daemons and the jobs of an interactive
shell do, is not reached. If baldur is killed (SIGKILL), Linux kills the
command, but not what that has started. Ctrl-Z does nothing.

The exit status is that of the command (128+N if signal N has killed it), or
   1    this process has not become primary (--wait)
   2    the command line is wrong
  75    the lease was lost, and the command ended for it (see --again)
 126    the command cannot be run; 127: there is none of that name
 130    interrupted, before the command was started

`

// exitLost is the exit status after a loss of the lease: EX_TEMPFAIL, "try again".
const exitLost exitStatus = 75

const forever = time.Duration(math.MaxInt64)

// leaseRun is what quorum run is to do.
type leaseRun struct {
	lease, region    string
	ttl, grace, wait time.Duration
	hold             time.Duration // from the command's start, at least
	again            bool
	argv             []string

	q        *baldur.PGQuorum
	changes  chan leaseChange
	signals  chan os.Signal
	holder   <-chan baldur.QuorumEvent
	troubles troubles
	leave    bool // the lease is to run out by itself
}

// leaseChange is a gain of the lease, or a loss.
type leaseChange struct {
	lease baldur.QuorumLease
	lost  baldur.LossReason // "" if it is a gain
}

func runQuorumRun(ctx context.Context, args []string) error {
	r := &leaseRun{}
	flags := newFlags("quorum run")
	flags.StringVar(&r.lease, "lease", "", "the name of the lease; who uses the same name on one database competes for it")
	flags.StringVar(&r.region, "region", "", "what to call this process, or where it is, for people; it need not be unique")
	flags.DurationVar(&r.ttl, "ttl", baldur.DefaultLeaseTTL, "how long the lease lasts if it is not renewed, and another waits after a crash; 500ms to 5m, the same for all (default 10s)")
	flags.DurationVar(&r.grace, "grace", -1, "from SIGTERM to SIGKILL; less than TTL/2 - TTL/10 (default TTL/5)")
	flags.DurationVar(&r.wait, "wait", forever, "how long to wait to become primary; 0: only if nobody has the lease, for which one that has run out, as after a crash, is watched for a TTL (default for ever)")
	flags.BoolVar(&r.again, "again", false, "after a loss wait until primary again, and run the command again")
	flags.DurationVar(&r.hold, "hold-at-least", 0, "keep the lease for this long from the command's start, also if that ends sooner")
	command := slices.Index(args, "--")
	options := args
	if command >= 0 {
		options, r.argv = args[:command], args[command+1:]
	}
	dsn, helped, err := parseWithDSN(flags, options, quorumRunUsage)
	if helped {
		return err
	}
	if command < 0 { // then the DSN may not have been one
		err = usageError{"quorum run: there is no command; give it after --; see baldur help quorum run"}
	}
	if err == nil {
		err = r.check()
	}
	if err != nil {
		return err
	}
	if _, err := exec.LookPath(r.argv[0]); err != nil {
		return cannotRun(err)
	}
	db, err := sql.Open(baldur.DriverName, dsn)
	if err != nil {
		return usageError{"quorum run: " + oneLine(err.Error())}
	}
	err = r.run(ctx, db)
	if !r.leave { // which closing the pool would release
		_ = db.Close()
	}
	return err
}

func (r *leaseRun) check() error {
	if r.grace == -1 {
		r.grace = r.ttl / 5
	}
	most := r.ttl/2 - r.margin()
	problem := ""
	switch {
	case len(r.argv) == 0 || r.argv[0] == "":
		problem = "the command after -- is empty"
	case r.lease == "":
		problem = "--lease is not given"
	case r.region == "":
		problem = "--region is not given"
	case r.ttl <= 0:
		problem = fmt.Sprintf("--ttl is %v; it must be above 0", r.ttl)
	case r.wait < 0:
		problem = fmt.Sprintf("--wait is %v; it must not be negative", r.wait)
	case r.hold < 0:
		problem = fmt.Sprintf("--hold-at-least is %v; it must not be negative", r.hold)
	case r.grace < 0:
		problem = fmt.Sprintf("--grace is %v; it must not be negative", r.grace)
	case r.grace >= most:
		problem = fmt.Sprintf("--grace is %v; it must be less than %v, so that the command is dead before a lease of %v ends: grace < TTL/2 - TTL/10", r.grace, most, r.ttl)
	default:
		return nil
	}
	return usageError{"quorum run: " + problem + "; see baldur help quorum run"}
}

// margin is what of the TTL is left after SIGKILL: for clocks that drift apart,
// which takes 1/500, and for a machine that is slow to kill.
func (r *leaseRun) margin() time.Duration { return r.ttl / 10 }

// run makes the quorum. Its belief ends a grace earlier than it would have to:
// to say so to the quorum, rather than to watch for renewals that fail, leaves
// one deadline, kept by the clock.
func (r *leaseRun) run(ctx context.Context, db *sql.DB) error {
	r.changes = make(chan leaseChange)
	over := make(chan struct{})
	tell := func(c leaseChange) {
		select {
		case r.changes <- c:
		case <-over:
		}
	}
	belief := r.ttl - r.margin() - r.grace
	var err error
	r.q, err = baldur.NewPGQuorum(db, r.region, baldur.WithLeaseName(r.lease), baldur.WithLeaseTTL(r.ttl),
		baldur.WithSafetyMargin(r.margin()+r.grace),
		baldur.WithRenewInterval(min(r.ttl/4, belief/3)),
		baldur.WithAttemptTimeout(min(r.ttl/5, belief/4)),
		baldur.WithQuorumLogger(slog.New(&r.troubles)),
		baldur.WithOnAcquired(func(l baldur.QuorumLease) { tell(leaseChange{lease: l}) }),
		baldur.WithOnLost(func(l baldur.QuorumLease, why baldur.LossReason) { tell(leaseChange{l, why}) }))
	if err != nil {
		return usageError{"quorum run: " + strings.NewReplacer("NewPGQuorum: ", "", "TTL (WithLeaseTTL)", "--ttl",
			"lease name (WithLeaseName)", "--lease", "region", "--region").Replace(oneLine(err.Error()))}
	}
	r.signals = make(chan os.Signal, 16)
	signal.Notify(r.signals, endSignals()...)
	if r.wait == 0 { // TryAcquirePrimary says what it sees
		r.troubles.next = time.Now().Add(troubleEvery)
	}
	err = r.contend(ctx)
	close(over)
	signal.Stop(r.signals) // from now on they end us at once
	if r.leave {
		return err
	}
	if released := r.q.Close(); released != nil && err != exitLost {
		say("lease %q could not be released and ends by itself, in %v at most: %v", r.lease, r.ttl, released)
	}
	return err
}

// contend has the command run while this process is primary.
func (r *leaseRun) contend(ctx context.Context) error {
	for {
		lease, err := r.elected(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		ran, err := r.runCommand(lease)
		if ran {
			r.keep(ctx, lease, began)
		}
		if err != exitLost || !r.again || ctx.Err() != nil {
			return err
		}
	}
}

// keep keeps the lease until the command was started long enough ago, or leaves it
// to run out when this process is to end before.
func (r *leaseRun) keep(ctx context.Context, lease baldur.QuorumLease, began time.Time) {
	left := r.hold - time.Since(began)
	if left <= 0 {
		return
	}
	if ctx.Err() == nil {
		say("the command has ended; lease %q is kept for another %v", r.lease, text.Short(left))
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			r.leave = true
			return
		case <-timer.C:
			return
		case <-r.signals: // an end signal ends ctx, too
		case c := <-r.changes:
			if c.lost != "" && c.lease.Epoch == lease.Epoch {
				say("lease %q of epoch %d is lost (%s), when the command had ended", r.lease, lease.Epoch, c.lost)
				return
			}
		}
	}
}

// elected waits until this process is primary.
func (r *leaseRun) elected(ctx context.Context) (baldur.QuorumLease, error) {
	var none baldur.QuorumLease
	wait, seen := r.wait, int64(0)
	if wait == 0 {
		ok, err := r.q.TryAcquirePrimary(ctx)
		held := false
		if !ok && err == nil {
			_, held, err = r.q.CurrentPrimary(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return none, ctx.Err()
		case ok:
			wait = forever // the gain is on its way
		case held, err != nil:
			return none, r.notPrimary(err)
		default: // nobody's, and has to be watched for a TTL: else it would be nobody's for ever
			seen = r.q.Stats().Holder.Lease.Epoch
			wait = 2 * r.ttl
		}
	}
	if r.holder == nil {
		r.holder = r.q.Watch(ctx)
	}
	r.q.StartAutoRenew()
	patience := time.NewTimer(wait)
	defer patience.Stop()
	for {
		select {
		case c := <-r.changes:
			if now, ok := r.q.Lease(); c.lost == "" && ok && now.Epoch == c.lease.Epoch && ctx.Err() == nil {
				return c.lease, nil
			}
		case e, ok := <-r.holder:
			if !ok {
				r.holder = nil
			} else if e.State == baldur.LeaseHeld && !e.Local {
				if r.wait == 0 {
					if e.Lease.Epoch == seen {
						continue
					}
					return none, r.notPrimary(nil)
				}
				say("waiting for lease %q, which region %q has (epoch %d)", r.lease, e.Lease.Region, e.Lease.Epoch)
			}
		case <-r.signals: // an end signal ends ctx, too
		case <-patience.C:
			return none, r.notPrimary(nil)
		case <-ctx.Done():
			return none, ctx.Err()
		}
	}
}

func (r *leaseRun) notPrimary(err error) error {
	why := ""
	stats := r.q.Stats()
	switch h := stats.Holder; {
	case err != nil:
		why = ": " + oneLine(err.Error())
	case h.State == baldur.LeaseHeld && !h.Local:
		why = fmt.Sprintf(": region %q has it (epoch %d)", h.Lease.Region, h.Lease.Epoch)
	case h.State == baldur.LeaseExpired:
		why = fmt.Sprintf(": that of region %q (epoch %d) is just running out", h.Lease.Region, h.Lease.Epoch)
	case stats.LastError != "":
		why = ": " + oneLine(stats.LastError)
	}
	if r.wait == 0 {
		return fmt.Errorf("quorum run: lease %q is not to be had now%s", r.lease, why)
	}
	return fmt.Errorf("quorum run: not primary of lease %q within %v%s", r.lease, r.wait, why)
}

// runCommand runs the command in a hold of the lease, and tells whether it has ended by
// itself. The error is an exitStatus.
func (r *leaseRun) runCommand(lease baldur.QuorumLease) (ended bool, err error) {
	cmd := exec.Command(r.argv[0], r.argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, envDSN+"=") })
	cmd.Env = append(cmd.Env, "BALDUR_LEASE="+r.lease, "BALDUR_REGION="+r.region, fmt.Sprintf("BALDUR_EPOCH=%d", lease.Epoch))
	say("primary of lease %q, epoch %d: starting the command", r.lease, lease.Epoch)
	asleep := suspended()
	c, err := startChild(cmd, r.signals)
	if err != nil {
		return false, cannotRun(err)
	}
	for {
		select {
		case <-c.exited:
			at := time.Now()
			c.end(func() time.Duration {
				if now, ok := r.q.Lease(); !ok || now.Epoch != lease.Epoch {
					return 0
				}
				return r.grace - time.Since(at)
			})
			return true, c.status()
		case s := <-r.signals:
			c.signal(s)
		case change := <-r.changes:
			if change.lost == "" || change.lease.Epoch != lease.Epoch {
				continue
			}
			say("lease %q of epoch %d is lost (%s): the command is ended", r.lease, lease.Epoch, change.lost)
			noticed := time.Now()
			killed := c.end(func() time.Duration {
				if change.lost == baldur.LossFenced {
					return 0 // there is another one already
				}
				ends := time.Until(change.lease.ExpiresAt) - (suspended() - asleep)
				return min(ends-r.margin(), r.grace-time.Since(noticed))
			})
			if killed {
				say("the command did not end in time and was killed")
			}
			return false, exitLost
		}
	}
}

var started = time.Now()

// suspended is for how long the machine was suspended since a fixed moment,
// where that is known.
func suspended() time.Duration { return baldur.BootTime() - time.Since(started) }

// cannotRun is about a command that could not be started. Shells, env and
// timeout use the same exit statuses.
func cannotRun(err error) error {
	say("quorum run: %v", err)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return exitStatus(127)
	}
	return exitStatus(126)
}

// troubles is a slog.Handler that tells the errors of the witness, one in every
// ten seconds at most. What else there is to say is said where it is acted on.
type troubles struct {
	mu   sync.Mutex // guards next
	next time.Time
}

const troubleEvery = 10 * time.Second

// attempted names the requests.
var attempted = map[string]string{"observe": "looked at", "acquire": "acquired", "renew": "renewed"}

func (t *troubles) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

func (t *troubles) Handle(_ context.Context, record slog.Record) error {
	var err, request string
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "error":
			err = a.Value.String()
		case "request":
			request = attempted[a.Value.String()]
		}
		return true
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); request != "" && !now.Before(t.next) {
		t.next = now.Add(troubleEvery)
		say("the lease cannot be %s now: %s", request, oneLine(err))
	}
	return nil
}

func (t *troubles) WithAttrs([]slog.Attr) slog.Handler { return t }
func (t *troubles) WithGroup(string) slog.Handler      { return t }
