package baldur

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/lease"
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
	g, err := guard(ctx, tx, table, q.isHolder(b.Term), q.cfg.idleTimeout)
	code, _ := pqconn.SQLState(err)
	switch {
	case err == nil && g.held:
		return g.epoch(q, b.Epoch)
	case err == nil && !g.snapshot:
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

func (q *PGQuorum) rejected() { q.count(func(s *QuorumStats) { s.GuardRejections++ }) }

// guardState is what guard has found.
type guardState struct {
	held     bool // the row is as it must be, and locked
	level    bool // by the transaction itself, not by a subtransaction of it
	snapshot bool // the transaction has one for all its statements
}

// epoch returns the epoch, if the lock is the transaction's own.
func (g guardState) epoch(q *PGQuorum, epoch int64) (int64, error) {
	if !g.level {
		q.rejected()
		return 0, ErrSubtransaction
	}
	return epoch, nil
}

// guard locks the row of a table for which a condition holds.
func guard(ctx context.Context, tx *sql.Tx, table, condition string, idle time.Duration) (g guardState, err error) {
	limit := "NULL::pg_catalog.text"
	if idle > 0 {
		limit = strings.NewReplacer("{setting}", "'idle_in_transaction_session_timeout'::pg_catalog.text", "{ms}", strconv.FormatInt(max(1, idle.Milliseconds()), 10)).
			Replace(`CASE WHEN g.epoch IS NOT NULL AND (pg_catalog.current_setting({setting}) {=} '0'::pg_catalog.text
		OR pg_catalog.current_setting({setting})::pg_catalog.interval {>} '{ms} milliseconds'::pg_catalog.interval)
		THEN pg_catalog.set_config({setting}, '{ms}ms'::pg_catalog.text, true) END`)
	}
	var ignored sql.NullString
	err = tx.QueryRowContext(ctx, sqlFill(`WITH g AS MATERIALIZED (`+guardedRow+`)
SELECT g.epoch IS NOT NULL, coalesce(`+guardIsTop+`, false), i.level {=} 'repeatable read'::pg_catalog.text OR i.level {=} 'serializable'::pg_catalog.text, `+limit+`
FROM (SELECT pg_catalog.current_setting('transaction_isolation'::pg_catalog.text)) AS i(level) LEFT JOIN g ON true`,
		"{table}", table, "{condition}", condition)).Scan(&g.held, &g.level, &g.snapshot, &ignored)
	return g, err
}

const (
	guardedRow = `SELECT l.name, l.epoch FROM {table} l WHERE {condition} FOR KEY SHARE OF l`

	// Whether the lock of g is the transaction's own. What a subtransaction has locked is
	// free again when that is rolled back, while the transaction goes on.
	//
	// The row's xmax is then the transaction's id, or a multixact of which it is a member.
	// Of the two kinds of number xmax has no sign, so that it is only looked up as a
	// multixact where there can be such a one. Else, as after a renewal that the snapshot
	// does not see, the transaction's locks tell: a subtransaction that has locked a row
	// has an id of its own, and a lock of that.
	guardIsTop = `(SELECT CASE
	WHEN t.xmax {=} x.id THEN true
	WHEN pg_catalog.mxid_age(t.xmax) {>} 0 AND pg_catalog.mxid_age(t.xmax) {<=} (
			SELECT pg_catalog.mxid_age(d.datminmxid) FROM pg_catalog.pg_database d WHERE d.datname {=} pg_catalog.current_database())
		AND EXISTS (SELECT FROM pg_catalog.pg_get_multixact_members(t.xmax) m WHERE m.xid {=} x.id) THEN true
	ELSE NOT EXISTS (SELECT FROM pg_catalog.pg_locks k WHERE k.pid {=} pg_catalog.pg_backend_pid() AND k.locktype {=} 'transactionid'::pg_catalog.text
		AND k.mode {=} 'ExclusiveLock'::pg_catalog.text AND k.granted AND k.transactionid {<>} x.id) END
	FROM {table} t, (SELECT pg_catalog.pg_current_xact_id()::pg_catalog.xid) AS x(id) WHERE t.name {=} g.name AND t.epoch {=} g.epoch)`
)

// isHolder is the condition that the row is t's.
func (q *PGQuorum) isHolder(t *lease.Term) string {
	return "l.name {=} " + sqlText(q.cfg.name) + " AND l.lease_id {=} " + sqlText(q.elector.ID()) + " AND l.epoch {=} " + quoted(t.Epoch) + "::pg_catalog.int8"
}

// leaseTableName is the name, quoted and with its schema, of the table that the link has found.
func (q *PGQuorum) leaseTableName() (string, error) {
	if table := q.link.table.Load(); table != nil {
		return table.name, nil
	}
	return "", ErrNotPrimary // it has never been connected
}

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
	return sqlFill("baldur_guard AS MATERIALIZED ("+guardedRow+"), baldur_fence AS MATERIALIZED (SELECT g.epoch FROM baldur_guard g WHERE CASE WHEN "+guardIsTop+
		" THEN true ELSE ('baldur: the transaction is within a savepoint: '::pg_catalog.text {||} g.name)::pg_catalog.bool END)",
		"{table}", table, "{condition}", q.isHolder(b.Term)), nil
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
	conn, tx, err := beginClean(ctx, q.link.db, opts)
	if err != nil {
		return fmt.Errorf("baldur: InTx: begin: %w", err)
	}
	defer func() { _ = conn.Close() }()
	defer func() { _ = tx.Rollback() }()
	epoch, err := q.RequirePrimary(ctx, tx)
	if err != nil {
		return err
	}
	if err := f(tx, epoch); err != nil {
		return err
	}
	if ctx.Err() != nil { // not sent yet
		return context.Cause(ctx)
	}
	return commitError(tx.Commit())
}

// beginClean begins a transaction on a connection that was in none. One that has died in the pool is
// replaced, as by sql.DB.BeginTx.
func beginClean(ctx context.Context, db *sql.DB, opts *sql.TxOptions) (*sql.Conn, *sql.Tx, error) {
	for left := maxTakes(db); ; left-- {
		conn, err := takeClean(ctx, db)
		if err != nil {
			return nil, nil, err
		}
		tx, err := conn.BeginTx(ctx, opts)
		if err == nil {
			return conn, tx, nil
		}
		_ = conn.Close()
		if !isBadConn(err) || ctx.Err() != nil || left <= 1 {
			return nil, nil, err
		}
	}
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

const fenceTable = "baldur_fence"

func (c *quorumConfig) fenceTable() *tableSpec {
	return &tableSpec{
		usual: fenceTable, table: fenceTable, owners: c.owners, columns: map[string]string{"name": "text", "epoch": "int8"},
		create: []string{`CREATE TABLE IF NOT EXISTS {table} (
	name  pg_catalog.text PRIMARY KEY,
	epoch pg_catalog.int8 NOT NULL -- the highest that was sealed
)`},
		fence:  fenceIndex,
		remedy: "only one may be there",
	}
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
		again = false
		err = onCleanConn(ctx, db, func(ctx context.Context, conn *sql.Conn) (err error) {
			seal.table, top, again, err = q.sealOn(ctx, conn, t.Epoch)
			return err
		})
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

// sealOn seals an epoch and returns the highest one, or tells that it is to be called again.
func (q *PGQuorum) sealOn(ctx context.Context, conn *sql.Conn, epoch int64) (table string, top int64, again bool, err error) {
	spec := q.cfg.fenceTable()
	tx, err := beginChange(ctx, conn, q.cfg.ttl)
	if err != nil {
		return "", 0, false, err
	}
	defer func() { _ = tx.Rollback() }()
	t, err := spec.findIn(ctx, tx, false)
	if err != nil {
		return "", 0, false, err
	}
	if t == nil {
		_ = tx.Rollback()
		if err := spec.migrate(ctx, conn, migrateTimeout, true); err != nil {
			return "", 0, false, fmt.Errorf("there is no table %s, and it cannot be made: %w", fenceTable, err)
		}
		return "", 0, true, nil
	}
	var sealed bool
	err = tx.QueryRowContext(ctx, sqlFill(`WITH s AS (
	INSERT INTO {table} AS f (name, epoch) VALUES ({name}, {epoch}::pg_catalog.int8)
	ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch WHERE f.epoch {<=} excluded.epoch RETURNING f.epoch
) SELECT true, s.epoch FROM s UNION ALL SELECT false, f.epoch FROM {table} f WHERE f.name {=} {name} AND NOT EXISTS (SELECT FROM s)`,
		"{table}", t.name, "{name}", sqlText(q.cfg.name), "{epoch}", quoted(epoch))).Scan(&sealed, &top)
	if err == nil {
		err = tx.Commit()
	}
	again = pqconn.HasState(err, "55P03") || // guarded transactions, for longer than a TTL
		errors.Is(err, sql.ErrNoRows) || err == nil && !sealed && top <= epoch // the row that is in the way is newer than the snapshot
	return t.name, top, again, err
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
	g, err := guard(ctx, tx, s.table, "l.name {=} "+sqlText(s.q.cfg.name)+" AND l.epoch {=} "+quoted(epoch)+"::pg_catalog.int8", 0)
	switch {
	case err != nil:
		return 0, err
	case g.held:
		return g.epoch(s.q, epoch)
	case g.snapshot:
		return 0, errOldSnapshot
	}
	s.q.rejected()
	return 0, ErrFenced
}
