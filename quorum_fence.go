package baldur

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lib/pq"
)

// RequirePrimary makes sure that this process is the primary until tx ends, and
// returns its epoch: no other process can become primary before tx has committed
// or rolled back, and so no transaction of an epoch commits after one of a later
// epoch has begun to be guarded. tx must be of the database that has the lease. It
// may come at any point of the transaction: first to fail early, last to keep a
// takeover waiting least. It is one round trip, and right in every isolation level.
//
// It returns ErrNotPrimary if this process is not primary, by its clock, without
// asking; ErrFenced if another process has become primary, after which this one is
// none. Other errors are the server's: in REPEATABLE READ and SERIALIZABLE a
// serialization failure (SQLSTATE 40001) where it is no takeover that has caused
// it. After an error the transaction must be rolled back.
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
	t := q.valid()
	if t == nil {
		q.count(func(s *QuorumStats) { s.GuardRejections++ })
		return 0, ErrNotPrimary
	}
	table, err := q.fenceTable()
	if err != nil {
		return 0, err
	}
	idle := ""
	if d := q.cfg.idleTimeout; d > 0 {
		const name = "'idle_in_transaction_session_timeout'"
		idle = fmt.Sprintf(", CASE WHEN pg_catalog.current_setting(%[1]s) = '0' OR pg_catalog.current_setting(%[1]s)::interval > %[2]d * interval '1 ms'"+
			" THEN pg_catalog.set_config(%[1]s, '%[2]dms', true) END", name, max(1, d.Milliseconds()))
	}
	var ignored sql.NullString
	dest := []any{&epoch}
	if idle != "" {
		dest = append(dest, &ignored)
	}
	err = tx.QueryRowContext(ctx, fmt.Sprintf("SELECT epoch%s FROM %s WHERE %s FOR KEY SHARE", idle, table, q.isHolder(t))).Scan(dest...)
	return q.fenced(ctx, t, epoch, err)
}

// fenced makes an answer of what the fence has said.
func (q *PGQuorum) fenced(ctx context.Context, t *term, epoch int64, err error) (int64, error) {
	code, _ := sqlState(err)
	switch {
	case err == nil:
		return epoch, nil
	case errors.Is(err, sql.ErrNoRows):
		q.count(func(s *QuorumStats) { s.GuardRejections++ })
		if now := q.term.Load(); now != nil && now.tenure == t.tenure {
			q.lose(LossFenced)
		}
		return 0, ErrFenced
	case code == "40001":
		// A takeover, or another row of the transaction: the witness knows.
		if ok, verr := q.IsPrimaryVerified(ctx); !ok && verr == nil {
			q.count(func(s *QuorumStats) { s.GuardRejections++ })
			return 0, fmt.Errorf("%w: %w", ErrFenced, err)
		}
	}
	return 0, err
}

// isHolder is the condition that the row is t's.
func (q *PGQuorum) isHolder(t *term) string {
	return fmt.Sprintf("name=%s AND lease_id=%s AND epoch=%d", pq.QuoteLiteral(q.cfg.name), pq.QuoteLiteral(q.id), t.lease.Epoch)
}

func (q *PGQuorum) fenceTable() (string, error) {
	l, ok := q.line.(*link)
	if !ok {
		return "", errors.New("baldur: there is no lease table")
	}
	if table := l.table.Load(); table != nil {
		return *table, nil
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
// A statement that comes through it with no row is fenced: that no row was
// affected must be taken for ErrFenced. In REPEATABLE READ and SERIALIZABLE a
// takeover shows as a serialization failure (SQLSTATE 40001).
//
// It returns ErrNotPrimary if this process is not primary, by its clock. The
// text is of this hold of the lease: do not keep it.
func (q *PGQuorum) FenceCTE() (string, error) {
	t := q.valid()
	if t == nil {
		q.count(func(s *QuorumStats) { s.GuardRejections++ })
		return "", ErrNotPrimary
	}
	table, err := q.fenceTable()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("baldur_fence AS MATERIALIZED (SELECT epoch FROM %s WHERE %s FOR KEY SHARE)", table, q.isHolder(t)), nil
}

const (
	fenceTable  = "baldur_fence"
	fenceSchema = "CREATE TABLE IF NOT EXISTS " + fenceTable + ` (
	name  text PRIMARY KEY,
	epoch bigint NOT NULL -- the highest that was sealed
);
CREATE UNIQUE INDEX IF NOT EXISTS ` + fenceTable + `_fence ON ` + fenceTable + ` (name, epoch);`
)

// A Seal is the fence of one epoch in a database that does not have the lease.
type Seal struct {
	q *PGQuorum
	t *term
}

// SealEpoch carries this process's epoch to another database, db, whose data are
// to be fenced too: a new primary calls it before all else. It waits for the
// transactions that earlier epochs guard there, and from then on none of these
// commits. It keeps the highest epoch of each lease in the table baldur_fence,
// which it makes if it may.
//
// It returns ErrNotPrimary if this process is not primary, and ErrFenced if a
// later epoch was sealed there.
func (q *PGQuorum) SealEpoch(ctx context.Context, db *sql.DB) (*Seal, error) {
	t := q.valid()
	if t == nil {
		return nil, ErrNotPrimary
	}
	seal := fmt.Sprintf("INSERT INTO %[1]s AS f (name, epoch) VALUES (%[2]s, %[3]d)"+
		" ON CONFLICT (name) DO UPDATE SET epoch=excluded.epoch WHERE f.epoch <= excluded.epoch RETURNING epoch",
		fenceTable, pq.QuoteLiteral(q.cfg.name), t.lease.Epoch)
	var epoch int64
	err := db.QueryRowContext(ctx, seal).Scan(&epoch)
	if code, _ := sqlState(err); code == "42P01" {
		if err := makeFence(ctx, db); err != nil {
			return nil, fmt.Errorf("baldur: SealEpoch: there is no table %s, and it cannot be made: %w", fenceTable, err)
		}
		err = db.QueryRowContext(ctx, seal).Scan(&epoch)
	}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, ErrFenced
	case err != nil:
		return nil, fmt.Errorf("baldur: SealEpoch: %w", err)
	}
	return &Seal{q, t}, nil
}

func makeFence(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("SELECT pg_catalog.pg_advisory_xact_lock(%d)", leaseLockKey(fenceTable))); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, fenceSchema); err != nil {
		return err
	}
	return tx.Commit()
}

// Require is RequirePrimary for a transaction of the sealed database: no later
// epoch is sealed there until tx ends. It returns ErrNotPrimary if this process is
// not primary any more, by its clock, or is so by another epoch, which wants a
// seal of its own; ErrFenced if a later epoch was sealed.
func (s *Seal) Require(ctx context.Context, tx *sql.Tx) (epoch int64, err error) {
	if tx == nil {
		return 0, errors.New("baldur: Seal.Require: the transaction is nil")
	}
	if t := s.q.valid(); t == nil || t.tenure != s.t.tenure {
		s.q.count(func(s *QuorumStats) { s.GuardRejections++ })
		return 0, ErrNotPrimary
	}
	err = tx.QueryRowContext(ctx, fmt.Sprintf("SELECT epoch FROM %s WHERE name=%s AND epoch=%d FOR KEY SHARE",
		fenceTable, pq.QuoteLiteral(s.q.cfg.name), s.t.lease.Epoch)).Scan(&epoch)
	if errors.Is(err, sql.ErrNoRows) {
		s.q.count(func(s *QuorumStats) { s.GuardRejections++ })
		return 0, ErrFenced
	}
	return epoch, err
}
