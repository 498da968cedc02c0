package baldur

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/lease"
	"github.com/baldur-go/baldur/internal/leasepg"
	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pqconn"
)

// RequirePrimary makes sure that this process is the primary until tx ends, and
// returns its epoch: no other process can become primary before tx has committed
// or rolled back, and so no transaction of an epoch commits after one of a later
// epoch has begun to be guarded. tx must be of the database that has the lease: one
// of another database is refused. It may come at any point of the transaction: first to fail
// early, last to keep a takeover waiting least. It is one round trip, and right in every
// isolation level.
//
// After an error the transaction must be rolled back. The errors are
//
//   - [ErrNotPrimary]: this process is not primary, by its clock. The server was not asked.
//   - [ErrFenced]: another process has become primary. This one has given up its belief.
//   - [ErrSubtransaction]: tx is within a SAVEPOINT, and ROLLBACK TO would end the guard.
//   - A serialization failure (SQLSTATE 40001), in REPEATABLE READ and SERIALIZABLE, that no
//     takeover has caused, or because the snapshot of tx is older than this hold of the lease.
//   - Any other: the server's or the driver's.
//
// The guard is a lock on the lease's row, FOR KEY SHARE, which renewals pass and
// takeovers wait for: see [WithFenceKill] and [WithFenceIdleTimeout]. A role needs
// SELECT and UPDATE on the table. It writes a multixact for each transaction that
// runs beside another guarded one: from some thousands of transactions a second on,
// keep an eye on autovacuum_multixact_freeze_max_age.
func (q *PGQuorum) RequirePrimary(ctx context.Context, tx *sql.Tx) (epoch int64, err error) {
	if tx == nil {
		return 0, errors.New("baldur: RequirePrimary: the transaction is nil")
	}
	b := q.elector.Belief()
	if b == nil {
		q.rejected()
		return 0, ErrNotPrimary
	}
	table, err := q.leaseTableName()
	if err != nil {
		return 0, err
	}
	g, err := leasepg.GuardLease(ctx, tx, table, q.cfg.Name, q.elector.ID(), b.Epoch, q.cfg.FenceIdle)
	code, _ := pqconn.SQLState(err)
	switch {
	case err == nil && g.Held:
		return q.guarded(g, b.Epoch)
	case err == nil && !g.Snapshot:
		ok, verr := q.IsPrimaryVerified(ctx)
		if ok && verr == nil && q.elector.Holds(b.Term) {
			return 0, errNotInSight
		}
		q.elector.Fenced(b.Term)
		q.rejected()
		return 0, ErrFenced
	case err == nil || code == "40001":
		// A takeover, or another row of the transaction; or the transaction sees the
		// lease as it was when it began. The witness knows.
		if err == nil {
			err = errOldSnapshot
		}
		if ok, verr := q.IsPrimaryVerified(ctx); !ok && verr == nil {
			q.rejected()
			return 0, fmt.Errorf("%w: %w", ErrFenced, err)
		}
	}
	return 0, err
}

// ErrSubtransaction is returned by RequirePrimary and Seal.Require after a SAVEPOINT.
var ErrSubtransaction = errors.New("baldur: the transaction is within a savepoint, which can be rolled back without it: guard it before SAVEPOINT, or after RELEASE")

// errOldSnapshot is as the server's error where a row was changed since.
var errOldSnapshot = fmt.Errorf("baldur: the transaction's snapshot is older than this hold of the lease: begin it anew: %w",
	&pq.Error{Severity: "ERROR", Code: "40001", Message: "could not serialize access due to an older snapshot"})

// errNotInSight is of a transaction that does not see what the witness confirms.
var errNotInSight = errors.New("baldur: RequirePrimary: this process is the primary, and the transaction does not see its lease: it is of another database, or server")

// guarded returns the epoch, if the guard is the transaction's own.
func (q *PGQuorum) guarded(g leasepg.Guarded, epoch int64) (int64, error) {
	if !g.Level {
		q.rejected()
		return 0, ErrSubtransaction
	}
	return epoch, nil
}

// leaseTableName is the name, quoted and with its schema, of the lease table.
func (q *PGQuorum) leaseTableName() (string, error) {
	if name := q.witness.Table(); name != "" {
		return name, nil
	}
	return "", ErrNotPrimary // it has never been connected
}

func (q *PGQuorum) rejected() { q.count(func(s *QuorumStats) { s.GuardRejections++ }) }

// FenceCTE is RequirePrimary for a statement that is to carry the fence itself,
// which saves the round trip: a common table expression named baldur_fence, to be
// put after WITH, that has a row, with the column epoch, as long as this process
// is primary, and holds it until the transaction ends.
//
//	cte, err := q.FenceCTE()
//	res, err := tx.ExecContext(ctx, "WITH "+cte+" INSERT INTO orders (id) SELECT $1::bigint FROM baldur_fence", id)
//
// A statement that affects no row is fenced: take that for ErrFenced. Within a SAVEPOINT it fails
// (SQLSTATE 22P02, with a message that says so). In REPEATABLE READ and SERIALIZABLE a takeover
// shows as a serialization failure (SQLSTATE 40001), and a snapshot that is older than this hold
// of the lease as no row. It sets no idle timeout: see [WithFenceIdleTimeout].
//
// It returns ErrNotPrimary if this process is not primary, by its clock. The text is valid for
// this hold of the lease only: do not keep it. It also defines the name baldur_guard.
func (q *PGQuorum) FenceCTE() (string, error) {
	b := q.elector.Belief()
	if b == nil {
		q.rejected()
		return "", ErrNotPrimary
	}
	table, err := q.leaseTableName()
	if err != nil {
		return "", err
	}
	return leasepg.FenceCTE(table, q.cfg.Name, q.elector.ID(), b.Epoch), nil
}

// InTx calls f in a transaction of the quorum's pool that [PGQuorum.RequirePrimary] guards, and
// commits if f returns nil. f must neither commit nor roll back. f is called once at most: the
// caller decides what to try again, by the error:
//
//   - [ErrNotPrimary], [ErrFenced]: this process is not the primary; nothing was done.
//   - [ErrCommitUnknown]: the answer to COMMIT was lost: it may be committed.
//   - Any other, f's, ctx's or the server's: it is not committed.
//
// opts are those of sql.DB.BeginTx. If f panics the transaction is rolled back.
func (q *PGQuorum) InTx(ctx context.Context, opts *sql.TxOptions, f func(tx *sql.Tx, epoch int64) error) error {
	if !q.IsPrimary() { // before it takes a connection
		q.rejected()
		return ErrNotPrimary
	}
	tx, err := pgsession.BeginTx(ctx, q.db, opts)
	if err != nil {
		return fmt.Errorf("baldur: InTx: begin: %w", err)
	}
	defer tx.End()
	epoch, err := q.RequirePrimary(ctx, tx.Tx)
	if err != nil {
		return err
	}
	if err := f(tx.Tx, epoch); err != nil {
		return err
	}
	if ctx.Err() != nil { // not sent yet
		return context.Cause(ctx)
	}
	return commitError(tx.Commit())
}

// pgxCommitRolledBack is pgx.ErrTxCommitRollback, where f has dropped an error.
const pgxCommitRolledBack = "commit unexpectedly resulted in rollback"

// commitError tells a COMMIT that has failed from one of which nothing is known.
func commitError(err error) error {
	if err == nil {
		return nil
	}
	switch code, _ := pqconn.SQLState(err); {
	case errors.Is(err, sql.ErrTxDone): // by f, or rolled back when ctx ended
		return fmt.Errorf("baldur: InTx: the transaction had ended before its commit: %w", err)
	case errors.Is(err, pq.ErrInFailedTransaction), err.Error() == pgxCommitRolledBack:
		return fmt.Errorf("baldur: InTx: commit: %w", err)
	case code == "", code == "40003", code[:2] == "08", code[:2] == "57", code[:2] == "58", code[:2] == "XX":
		return fmt.Errorf("%w: %w", ErrCommitUnknown, err)
	}
	return fmt.Errorf("baldur: InTx: commit: %w", err)
}

// A Seal is the fence of one epoch in a database that does not have the lease.
type Seal struct {
	q     *PGQuorum
	term  *lease.Term
	table string // quoted, with its schema
}

// SealEpoch carries this process's epoch to another database, db, whose data are to be fenced
// too: a new primary calls it before all else. It waits for the transactions that earlier epochs
// guard there, until ctx ends or this process is no longer primary, and from then on none of
// these commits. The table baldur_fence keeps the highest epoch of each lease. It is found as the
// lease table is, and made in the schema public if there is none and the role may.
//
// It returns ErrNotPrimary if this process is not primary, a [*LeaseLostError] if it stopped being
// primary meanwhile, and ErrFenced if a later epoch was sealed there. In that case the lease's
// epochs have gone back, as by a snapshot that was restored: the lease is given up, and taken
// again with a higher epoch than was sealed.
func (q *PGQuorum) SealEpoch(ctx context.Context, db *sql.DB) (*Seal, error) {
	if db == nil {
		return nil, errors.New("baldur: SealEpoch: the pool is nil")
	}
	b := q.elector.Belief()
	if b == nil {
		return nil, ErrNotPrimary
	}
	t := b.Term
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(t.Context(), func() { cancel(q.lossOf(t)) })()
	seal := &Seal{q: q, term: t}
	var top int64
	var err error
	for again := true; again; {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("baldur: SealEpoch: %w", errors.Join(context.Cause(ctx), err))
		}
		seal.table, top, again, err = leasepg.Seal(ctx, leasePool(db), q.cfg.Config, t.Epoch)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("baldur: SealEpoch: %w: %w", context.Cause(ctx), err)
	case err != nil:
		return nil, fmt.Errorf("baldur: SealEpoch: %w", err)
	case top > t.Epoch:
		q.elector.Outdone(ctx, t, top)
		return nil, fmt.Errorf("%w: epoch %d is sealed in the database, and this one is %d", ErrFenced, top, t.Epoch)
	}
	return seal, nil
}

// Require is RequirePrimary for a transaction of the sealed database: no later
// epoch is sealed there until tx ends. It returns ErrNotPrimary if this process is
// not primary any more, by its clock, or is so by another epoch, which wants a
// seal of its own; ErrFenced if a later epoch was sealed; ErrSubtransaction after a SAVEPOINT.
// In REPEATABLE READ and SERIALIZABLE a snapshot that is older than the seal is a
// serialization failure (SQLSTATE 40001).
func (s *Seal) Require(ctx context.Context, tx *sql.Tx) (epoch int64, err error) {
	if tx == nil {
		return 0, errors.New("baldur: Seal.Require: the transaction is nil")
	}
	if b := s.q.elector.Belief(); b == nil || b.Term != s.term {
		s.q.rejected()
		return 0, ErrNotPrimary
	}
	epoch = s.term.Epoch
	g, err := leasepg.GuardSeal(ctx, tx, s.table, s.q.cfg.Name, epoch)
	switch {
	case err != nil:
		return 0, err
	case g.Held:
		return s.q.guarded(g, epoch)
	case g.Snapshot:
		return 0, errOldSnapshot
	}
	s.q.rejected()
	return 0, ErrFenced
}
