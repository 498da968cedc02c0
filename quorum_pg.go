package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/baldur-go/baldur/internal/aside"
	"github.com/baldur-go/baldur/internal/lease"
	"github.com/baldur-go/baldur/internal/leasepg"
	"github.com/baldur-go/baldur/internal/pqconn"
)

// PGQuorum is a [QuorumWitness] on PostgreSQL: a lease kept in a row of the table
// baldur_lease, which [MigrateQuorum] makes. It may be used by any goroutine.
//
// # What holds
//
// At most one PGQuorum of a lease is primary at any time, on machines whose
// clocks may show any time and be set at any moment, provided that their rates
// are right to 1 in 1000, and that the witness does not forget what it has
// committed (see below for failovers).
//
//   - The holder believes until TTL − margin ([WithSafetyMargin]) after it has sent the request
//     that was confirmed; not after the reply: the two can be any time apart.
//   - A candidate takes the lease of another one only when it has watched the row
//     unchanged for the row's TTL, counted from when it received it; not from when
//     it asked. The server's clock must agree that the lease has expired, for up
//     to three TTLs. No wall clock decides alone.
//   - Taking is a compare-and-swap on the version that was watched, so that it
//     does not matter how late a request is carried out. Renewing and releasing
//     name the epoch.
//   - A request without an answer (a cut connection, a commit with a warning) has
//     an unknown result: the holder's deadline stays as it was, and a candidate is
//     not primary. If the row turns out to be the candidate's own it takes it
//     again, by another compare-and-swap: an epoch names one unbroken belief.
//   - The lease is committed with synchronous_commit = on, whatever the session
//     or server has, in a LOGGED table.
//   - After a failover, which shows in the server's timeline, or a change of the
//     server, or where an epoch has gone back, the row may have lost the last
//     acquisitions. Until an epoch was given by this server in this timeline, a
//     candidate waits a TTL from when it has first heard of it; who believes goes
//     on, and renews. Epochs rise with the timeline, so that none is given twice.
//   - A belief ends by the clock: IsPrimary reads it, and a timer ends the
//     contexts of PrimaryContext and calls WithOnLost's function, whatever the
//     network does. If the machine was suspended it ends some hundredths of the
//     TTL after it wakes, or at once with WithQuorumClock(BootTime).
//
// The protocol was explored state by state: see internal/leadershipmodel, for
// what was covered, and which errors it finds.
//
// # What does not
//
// A check and an action after it are two things: a process can be paused in
// between for any time. Only [PGQuorum.RequirePrimary], in the transaction that
// acts, closes that gap. A witness that forgets by other ways than a failover to
// a new timeline gives no promise: fsync = off, rows deleted or restored, two
// standbys promoted to the same timeline, an old primary server that goes on
// beside the new one, or pg_upgrade after a failover before anyone has taken the
// lease. Servers that only speak PostgreSQL's protocol are refused.
//
// # Its connection and its table
//
// It keeps one connection of its own, which the pool's connector makes beside the pool. It takes
// none of the pool's, and meets nothing that a program has left on one. Stats has its process
// id. If the server has no connection left, an idle one of the pool is closed to make room.
// Loss of the connection does not end a belief: it connects again and renews. The pool must be
// baldur's, so that a call on a silent network can be cut: connections that baldur does not dial
// itself (Wrap, OpenDB) are interrupted only as well as their driver heeds a ctx. Behind
// PgBouncer, in any mode but statement, all works but [WithFenceKill] and LISTEN: a successor
// learns of a release by polling, every 0.2 TTL, not at once. The same holds for drivers other than
// lib/pq.
// In session mode the lease keeps one of PgBouncer's connections to the server: where there is
// only one, so that the lease or the program would wait for ever, requests end with an error
// that says so.
//
// Each request is a transaction of its own, with a lock_timeout and a statement_timeout, so that
// the server gives up too, half a second after the attempt's time at the latest. What it means
// does not depend on the session: neither on the search_path nor the role, the encoding, or the
// defaults of a role, a database or a DSN. Read-only defaults of these are overruled; the
// server's configuration is not.
//
// The table is looked for in all schemas: see [WithLeaseTable]. It must be plain: a
// trigger, a rule, row level security, inheritance, a foreign key, and functions of
// others in its defaults, constraints and indexes are refused, and so is an owner who
// is not one of [WithLeaseOwner].
type PGQuorum struct {
	cfg     *quorumConfig
	t       *Tracker
	db      *sql.DB
	witness *leasepg.Witness
	elector *lease.Elector

	mu       sync.Mutex // guards the fields below; never held while the elector is called
	closed   bool
	watchers map[chan QuorumEvent]bool
	told     QuorumEvent // the last one; State "": none yet
	stats    QuorumStats // the counts, and LastError
	calls    aside.Queue
}

var _ QuorumWitness = (*PGQuorum)(nil)

// NewPGQuorum returns the quorum of this process on db, a pool of baldur's that
// stays the caller's. It connects to nothing yet. The region is a label, which
// others get from CurrentPrimary: processes of one region compete as those of two do.
//
// An error names the option that is wrong, and the inequality that it breaks.
func NewPGQuorum(db *sql.DB, region string, opts ...QuorumOption) (*PGQuorum, error) {
	cfg, err := newQuorumConfig(region, opts)
	if err != nil {
		return nil, fmt.Errorf("baldur: NewPGQuorum: %w", err)
	}
	t := TrackerOf(db)
	if t == nil {
		return nil, fmt.Errorf("baldur: NewPGQuorum: %w", leasepg.ErrNotOurs)
	}
	cfg.Gone = t.whenClosed
	q := &PGQuorum{cfg: cfg, t: t, db: db, witness: leasepg.New(cfg.Config, leasePool(db)), watchers: map[chan QuorumEvent]bool{}}
	q.stats.Losses = map[LossReason]int64{}
	for _, r := range lossReasons {
		q.stats.Losses[r] = 0
	}
	q.elector = lease.New(cfg.Config.Config, q.witness, q.witness, quorumObserver{q})
	return q, nil
}

// leasePool is what package leasepg needs of a pool.
func leasePool(db *sql.DB) leasepg.Pool {
	p := leasepg.Pool{DB: db}
	if d, ok := db.Driver().(interface {
		dial(context.Context) (driver.Conn, *pqconn.Socket, error)
		untracked() driver.Connector
	}); ok {
		t := TrackerOf(db)
		p.Dial, p.Untracked, p.State, p.Closed = d.dial, d.untracked(), t.pool, t.isClosed
	}
	return p
}

// MigrateQuorum creates the lease table, public.baldur_lease, or finds the one that
// there is, in any schema, and makes sure that it is what it must be. It may be called
// any number of times, by any number of processes at once. It takes a minute at most.
//
// It needs the right to create a table in the schema. A role that only uses the table
// needs USAGE on the schema, SELECT, INSERT and UPDATE on the table (one that only calls
// RequirePrimary: SELECT and UPDATE), and EXECUTE on pg_catalog.pg_control_system, which
// everyone has unless it was revoked. The table's owner must be the role itself, the
// database's owner, a superuser, one that the role was made a member of by these, or one
// of WithLeaseOwner.
//
// Of opts, WithLeaseTable and WithLeaseOwner count. With WithLeaseTable the table is made
// although there is one of another name. Without, an error names the tables if there are
// several that could be meant.
//
// The table must stay LOGGED, and its rows must not be deleted, nor restored
// from a backup while a lease is held: the witness must not forget.
func MigrateQuorum(ctx context.Context, db *sql.DB, opts ...QuorumOption) error {
	if db == nil {
		return errors.New("baldur: MigrateQuorum: the pool is nil")
	}
	cfg, err := newQuorumConfig(anyRegion, opts)
	if err == nil {
		err = leasepg.Migrate(ctx, leasePool(db), cfg.Config)
	}
	if err != nil {
		return fmt.Errorf("baldur: MigrateQuorum: %w", err)
	}
	return nil
}

// LeaseTable returns the name, quoted and with its schema, of the table that MigrateQuorum
// and PGQuorum use in the database of db; "" if there is none yet. It changes nothing,
// works on a standby, and takes a minute at most. Of opts, WithLeaseTable and WithLeaseOwner count.
func LeaseTable(ctx context.Context, db *sql.DB, opts ...QuorumOption) (name string, err error) {
	if db == nil {
		return "", errors.New("baldur: LeaseTable: the pool is nil")
	}
	cfg, err := newQuorumConfig(anyRegion, opts)
	if err == nil {
		name, err = leasepg.FindTable(ctx, leasePool(db), cfg.Config)
	}
	if err != nil {
		return "", fmt.Errorf("baldur: LeaseTable: %w", err)
	}
	return name, nil
}

// anyRegion stands where no lease is taken.
const anyRegion = "-"

// MoveLeaseTable gives the lease table the name to, as "ops.baldur_lease", while no
// process uses it. Processes that run when it is moved may go on with it; those of a
// version before this one would not find it, and make a second one: stop all of them.
//
// It returns an error, and moves nothing, if a lease is held, or has not been expired for
// its TTL, by the server's clock. Processes that start afterwards find the table where it
// is; WithLeaseTable is needed if its name is another one than baldur_lease. Of opts,
// WithLeaseTable, for the table as it is, and WithLeaseOwner count. It needs to be the
// table's owner and the right to create in the new schema. It takes a minute at most.
func MoveLeaseTable(ctx context.Context, db *sql.DB, to string, opts ...QuorumOption) error {
	if db == nil {
		return errors.New("baldur: MoveLeaseTable: the pool is nil")
	}
	cfg, err := newQuorumConfig(anyRegion, opts)
	if err == nil {
		err = leasepg.Move(ctx, leasePool(db), cfg.Config, to)
	}
	if err != nil {
		return fmt.Errorf("baldur: MoveLeaseTable: %w", err)
	}
	return nil
}

// TryAcquirePrimary makes this process primary if it can be now, and tells whether
// it is. If it is already, it renews. It does not wait: a candidate calls it again
// and again, or StartAutoRenew does; the first call of a candidate cannot succeed
// while the lease is another's, nor before that has been seen unchanged for its TTL.
//
// With an error, the result of the acquisition is unknown, and this process is
// not primary, or as long as it was before. After Close it is [ErrQuorumClosed].
func (q *PGQuorum) TryAcquirePrimary(ctx context.Context) (bool, error) {
	ok, err := q.elector.TryAcquire(ctx)
	return ok, quorumError(err)
}

// RenewLease renews the lease, if this process is primary, and tells whether it
// still is. With an error it is unknown whether the lease was renewed, and the
// belief ends when it would have.
func (q *PGQuorum) RenewLease(ctx context.Context) (bool, error) {
	ok, err := q.elector.Renew(ctx)
	return ok, quorumError(err)
}

// ReleaseLease ends the belief, if there is one, and then the lease, so that
// another process can be primary at once. A loop of StartAutoRenew goes on as a
// candidate after a TTL. It takes no longer than two attempts. With an error it is
// unknown whether the witness has heard of the release; if not, the lease ends
// after its TTL.
func (q *PGQuorum) ReleaseLease(ctx context.Context) error {
	return quorumError(q.elector.Release(ctx))
}

// CurrentPrimary returns the region of the primary, by the witness and by its
// clock; false if there is none. It is for people and for routing: it is out of
// date when it arrives, and proves nothing.
func (q *PGQuorum) CurrentPrimary(ctx context.Context) (region string, ok bool, err error) {
	row, err := q.elector.Look(ctx)
	if err != nil || row.LeaseID == "" || row.Expired {
		return "", false, quorumError(err)
	}
	return row.Region, true, nil
}

// IsPrimary tells whether this process is the primary at this moment: it does no
// I/O, takes no lock and allocates nothing. It reads the clock, since a flag that
// a timer puts down is put down late, after a pause of the process by any amount.
//
// What you do after it may still be too late, if the process is paused in
// between. What must not happen twice belongs in a transaction that
// [PGQuorum.RequirePrimary] guards.
func (q *PGQuorum) IsPrimary() bool { return q.elector.Belief() != nil }

// IsPrimaryVerified asks the witness whether this process is primary: that was so
// when it answered, and is so by the clock now. If the witness says that it is
// not, the belief ends.
func (q *PGQuorum) IsPrimaryVerified(ctx context.Context) (bool, error) {
	ok, err := q.elector.Verify(ctx)
	return ok, quorumError(err)
}

// Lease returns the lease that this process holds; false if it is not primary.
func (q *PGQuorum) Lease() (QuorumLease, bool) {
	b := q.elector.Belief()
	if b == nil {
		return QuorumLease{}, false
	}
	return q.leaseOf(b), true
}

func (q *PGQuorum) leaseOf(b *lease.Belief) QuorumLease {
	return QuorumLease{Region: q.cfg.Region, LeaseID: q.elector.ID(), AcquiredAt: b.Began, ExpiresAt: b.Expires, Epoch: b.Epoch}
}

// PrimaryContext returns a context that ends when this process stops being primary, at
// the end of its belief at the latest, whatever the network does; its
// [context.Cause] is then a [*LeaseLostError]. It ends with ctx, too.
//
// It returns ErrNotPrimary if this process is not primary now. To wait until it
// is, see [PGQuorum.AwaitPrimary].
func (q *PGQuorum) PrimaryContext(ctx context.Context) (context.Context, error) {
	b := q.elector.Belief()
	if b == nil {
		return nil, ErrNotPrimary
	}
	return q.primaryContext(ctx, b.Term), nil
}

// primaryContext is PrimaryContext of a term.
func (q *PGQuorum) primaryContext(ctx context.Context, t *lease.Term) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.Context(), func() { cancel(q.lossOf(t)) })
	context.AfterFunc(ctx, func() { stop() })
	return ctx
}

// AwaitPrimary waits until this process is primary, for which StartAutoRenew must
// be in effect or someone call TryAcquirePrimary, and returns PrimaryContext's.
// It returns ctx's cause if that ends, or has ended, before, and [ErrQuorumClosed] if
// the quorum or its pool is closed.
func (q *PGQuorum) AwaitPrimary(ctx context.Context) (context.Context, error) {
	b, err := q.elector.Await(ctx)
	if err != nil {
		return nil, quorumError(err)
	}
	return q.primaryContext(ctx, b.Term), nil
}

// StartAutoRenew has this process renew the lease while it is primary, and be a
// candidate while it is not, on a goroutine of its own, until StopAutoRenew.
// Errors are logged, counted in Stats, and tried again. A second call does
// nothing, and neither does one after Close. When the pool is closed it stops.
func (q *PGQuorum) StartAutoRenew() { q.elector.Start() }

// StopAutoRenew ends StartAutoRenew, releases the lease if this process is
// primary, and returns when that is done, or has failed twice, with no goroutine
// left, and no connection unless Watch has need of it. It may be called at any
// time, also by WithOnAcquired's and WithOnLost's functions; if it was stopped
// already, it does nothing.
func (q *PGQuorum) StopAutoRenew() { q.stopAutoRenew(false) }

// stopAutoRenew is StopAutoRenew; with release the lease is also released if it was stopped
// already.
func (q *PGQuorum) stopAutoRenew(release bool) {
	q.elector.Stop(release)
	q.calls.Drain(0)
	q.cfg.logs.Drain(logsWait)
}

// logsWait is for how long Close and StopAutoRenew wait for the logger.
const logsWait = time.Second

// Close is StopAutoRenew for good. It also ends the channels of Watch, releases what
// TryAcquirePrimary has got, and gives the connection up. Calls that wait for the
// lease, and later ones, end with [ErrQuorumClosed]. The error is that of the release.
func (q *PGQuorum) Close() error {
	q.mu.Lock()
	q.closed = true
	q.dropWatchersLocked()
	q.mu.Unlock()
	err := q.elector.Close()
	q.calls.Drain(0)
	q.cfg.logs.Drain(logsWait)
	return quorumError(err)
}

// Run calls f whenever this process becomes primary, with a ctx that ends when it stops being
// primary, as PrimaryContext's. It contends for the lease by StartAutoRenew until
// then, and again when f has returned: never while f still runs, so that no other process
// waits for one that only believes to be at work. When it returns it has released the lease.
//
// It returns when f returns while this process is still primary, with f's error, nil or
// not; when ctx ends, with its cause; and, when the quorum or its pool is closed, with
// [ErrQuorumClosed]; in each case after f has returned. An error of an f whose lease was
// lost is logged. A panic of f passes, and the lease is released.
//
// Call neither StartAutoRenew nor StopAutoRenew beside it. What f must not do twice belongs in
// a transaction: see [PGQuorum.InTx].
func (q *PGQuorum) Run(ctx context.Context, f func(ctx context.Context) error) error {
	defer q.stopAutoRenew(true)
	for {
		q.StartAutoRenew()
		b, err := q.elector.Await(ctx)
		if err != nil {
			return quorumError(err)
		}
		primary := q.primaryContext(ctx, b.Term)
		if !q.elector.EndWith(b.Term) {
			continue // lost already
		}
		err = func() error {
			defer q.elector.EndWith(nil) // also if f panics
			return f(primary)
		}()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case q.elector.Holds(b.Term):
			return err
		}
		if closed := q.elector.Closed(); closed != nil {
			return quorumError(closed)
		}
		if err != nil {
			q.cfg.Log.Warn("baldur: the work of a primary has ended after its lease was lost", "lease", q.cfg.Name, "cause", context.Cause(primary), "error", err)
		}
	}
}

// Watch returns a channel of the changes of who holds the lease, from what is
// known now on, whoever it is; also while this process is no candidate. Who reads
// slowly misses what was changed again meanwhile, but gets the latest. The channel
// is closed when ctx ends, or by Close, or at once after Close.
//
// A change is known at once by NOTIFY; within 0.2 TTL behind a pooler and with other drivers
// than lib/pq, where LISTEN is not used. A lease that is not renewed shows as LeaseExpired
// after its TTL. That is news for people and for routing: it proves nothing about who is
// primary when it is read.
func (q *PGQuorum) Watch(ctx context.Context) <-chan QuorumEvent {
	c := make(chan QuorumEvent, 1)
	q.mu.Lock()
	if ctx.Err() != nil || q.closed {
		q.mu.Unlock()
		close(c)
		return c
	}
	if q.told.State != "" {
		c <- q.told
	}
	q.watchers[c] = true
	q.mu.Unlock()
	q.elector.Follow()
	q.mu.Lock()
	dropped := !q.watchers[c] // the pool was closed meanwhile
	q.mu.Unlock()
	if dropped {
		q.elector.Unfollow()
		return c
	}
	context.AfterFunc(ctx, func() {
		q.mu.Lock()
		watched := q.watchers[c]
		if watched {
			delete(q.watchers, c)
			close(c)
		}
		q.mu.Unlock()
		if watched {
			q.elector.Unfollow()
		}
	})
	return c
}

func (q *PGQuorum) dropWatchersLocked() {
	for c := range q.watchers {
		delete(q.watchers, c)
		close(c)
	}
}

// Stats returns what the quorum has done. It asks nobody.
func (q *PGQuorum) Stats() QuorumStats {
	b, remaining, gap := q.elector.Snapshot()
	q.mu.Lock()
	s := q.stats
	s.Losses = maps.Clone(s.Losses)
	s.Holder = q.told
	q.mu.Unlock()
	s.CheckedAt, s.Lease, s.Region, s.ClockGap = time.Now(), q.cfg.Name, q.cfg.Region, gap
	s.BackendPID = q.witness.PID()
	if b != nil { // as IsPrimary
		s.IsPrimary, s.Epoch, s.Remaining = true, b.Epoch, remaining
	}
	return s
}

func (q *PGQuorum) count(f func(*QuorumStats)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f(&q.stats)
}

// quorumObserver is what the elector tells its quorum: what is for people.
type quorumObserver struct{ *PGQuorum }

func (q quorumObserver) Began(b *lease.Belief, waited time.Duration) {
	q.count(func(s *QuorumStats) { s.Elections++; s.TakeoverWait = waited })
	q.log(slog.LevelInfo, "baldur: this process is primary", "epoch", b.Epoch)
	if f := q.cfg.onAcquired; f != nil {
		l := q.leaseOf(b)
		q.calls.Add(func() { f(l) })
	}
}

func (q quorumObserver) Lost(b *lease.Belief, r lease.Reason) {
	reason := lossReasons[r]
	q.count(func(s *QuorumStats) { s.Losses[reason]++ })
	if reason == LossReleased {
		q.log(slog.LevelInfo, "baldur: this process has released the lease", "epoch", b.Epoch)
	} else {
		q.log(slog.LevelWarn, "baldur: this process has stopped being primary", "epoch", b.Epoch, "reason", string(reason))
	}
	if f := q.cfg.onLost; f != nil {
		l := q.leaseOf(b)
		q.calls.Add(func() { f(l, reason) })
	}
}

func (q quorumObserver) log(level slog.Level, msg string, args ...any) {
	q.cfg.Log.Log(context.Background(), level, msg, append([]any{"lease", q.cfg.Name, "region", q.cfg.Region}, args...)...)
}

// Heard sends the state of the row to the watchers, if it has changed.
func (q quorumObserver) Heard(row lease.Row, state lease.State, failedOver bool) {
	if failedOver {
		q.cfg.Log.Warn("baldur: the witness has failed over, or its data was restored: until someone takes the lease, nobody does before a TTL has passed",
			"lease", q.cfg.Name, "system", row.Witness.System, "timeline", row.Witness.Timeline)
	}
	e := QuorumEvent{
		State: leaseStates[state],
		Lease: QuorumLease{Region: row.Region, LeaseID: row.LeaseID, AcquiredAt: row.Acquired, ExpiresAt: row.Expires, Epoch: row.Epoch},
		Local: row.LeaseID == q.elector.ID(),
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if last := q.told; last.State == e.State && last.Lease.Epoch == e.Lease.Epoch && last.Lease.LeaseID == e.Lease.LeaseID {
		q.told.Lease.ExpiresAt = e.Lease.ExpiresAt
		return
	}
	if e.State == LeaseFree && q.told.Lease.Epoch == e.Lease.Epoch {
		e.Local = q.told.Local // its own release
	}
	q.told = e
	for c := range q.watchers {
		select {
		case <-c: // the one that was not read
		default:
		}
		c <- e
	}
}

func (q quorumObserver) Renewed(took time.Duration) {
	q.count(func(s *QuorumStats) {
		s.Renewals++
		s.RenewTotal += took
		s.RenewMax = max(s.RenewMax, took)
	})
}

func (q quorumObserver) Failed(request string, err error) {
	q.count(func(s *QuorumStats) {
		if lease.IsRefusal(err) {
			s.Refused++
		} else {
			s.Unanswered++
		}
		s.LastError = err.Error()
	})
	q.cfg.Log.Warn("baldur: the witness has not granted a request", "lease", q.cfg.Name, "request", request, "unknown", !lease.IsRefusal(err), "error", err)
}

// InUse has the tracker list the quorum, or not.
func (q quorumObserver) InUse(inUse bool) {
	q.t.mu.Lock()
	defer q.t.mu.Unlock()
	i := slices.Index(q.t.quorums, quorum(q.PGQuorum))
	switch {
	case inUse && i < 0:
		q.t.quorums = append(q.t.quorums, q.PGQuorum)
	case !inUse && i >= 0:
		q.t.quorums = slices.Delete(q.t.quorums, i, i+1)
	}
}

func (q quorumObserver) Ended() {
	q.mu.Lock()
	q.dropWatchersLocked()
	q.mu.Unlock()
	q.cfg.Log.Info("baldur: the pool is closed; the lease is released", "lease", q.cfg.Name)
}

// What the elector's values are for people: these, quorumError and lossOf are the only
// places where they are told so.
var (
	lossReasons = [lease.ReasonCount]LossReason{
		lease.Expired: LossExpired, lease.Fenced: LossFenced, lease.Suspended: LossSuspended, lease.Released: LossReleased, lease.Failover: LossFailover,
	}
	leaseStates = [lease.StateCount]LeaseState{lease.Free: LeaseFree, lease.Held: LeaseHeld, lease.Lapsed: LeaseExpired}
)

// quorumError is an error of the elector's. Those of a request are the witness's, and stay.
func quorumError(err error) error {
	switch err {
	case lease.ErrClosed:
		return ErrQuorumClosed
	case lease.ErrGone:
		return fmt.Errorf("%w: its pool is", ErrQuorumClosed)
	}
	return err
}

// lossOf is the cause with which a term that has been lost has ended.
func (q *PGQuorum) lossOf(t *lease.Term) error {
	var lost *lease.Lost
	if !errors.As(context.Cause(t.Context()), &lost) {
		return nil
	}
	return &LeaseLostError{q.cfg.Name, lost.Epoch, lossReasons[lost.Reason]}
}
