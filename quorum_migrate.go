package baldur

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// The lease table. Its version is in its comment, which a dump keeps.
//
// The unique index makes epoch a key column: a takeover, which changes it, then
// waits for FOR KEY SHARE, and a renewal, which does not, passes: see
// RequirePrimary. The other columns are in no index and the pages are half
// empty, so that a renewal is a HOT update.
const (
	leaseTable   = "baldur_lease"
	leaseComment = "baldur quorum, version "
	leaseVersion = 1

	leaseSchema = `
CREATE TABLE IF NOT EXISTS ` + leaseTable + ` (
	name        text PRIMARY KEY,
	epoch       bigint NOT NULL,             -- fencing token, never decreases
	system_id   bigint,                      -- which server gave the epoch: NULL where none has
	timeline    bigint,                      -- and in which of its timelines
	lease_id    text,                        -- of the holder; NULL: free
	region      text,                        -- of the holder, or the last one
	renew_seq   bigint NOT NULL DEFAULT 0,
	ttl_ms      integer NOT NULL DEFAULT 0,
	acquired_at timestamptz,
	renewed_at  timestamptz,
	expires_at  timestamptz NOT NULL DEFAULT 'epoch'
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX IF NOT EXISTS ` + leaseTable + `_fence ON ` + leaseTable + ` (name, epoch);
COMMENT ON TABLE ` + leaseTable + ` IS '` + leaseComment + `1';`
)

// MigrateQuorum creates the lease table, baldur_lease, in the first schema of the
// search_path, or brings it up to date. It may be called any number of times, by
// any number of processes at once. It needs the right to create a table; a role
// that only uses it needs SELECT, INSERT and UPDATE on it (one that only calls
// RequirePrimary: SELECT and UPDATE).
//
// The table must stay LOGGED, and its rows must not be deleted, nor restored
// from a backup while a lease is held: the witness must not forget.
func MigrateQuorum(ctx context.Context, db *sql.DB) error {
	if db == nil {
		return errors.New("baldur: MigrateQuorum: the pool is nil")
	}
	if err := migrateQuorum(ctx, db); err != nil {
		return fmt.Errorf("baldur: MigrateQuorum: %w", err)
	}
	return nil
}

func migrateQuorum(ctx context.Context, on interface {
	BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error)
}) error {
	tx, err := on.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	// CREATE TABLE IF NOT EXISTS fails if two do it at once.
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("SELECT pg_catalog.pg_advisory_xact_lock(%d)", leaseLockKey(leaseTable))); err != nil {
		return err
	}
	var comment sql.NullString
	if err := tx.QueryRowContext(ctx, "SELECT pg_catalog.obj_description(pg_catalog.to_regclass('"+leaseTable+"'), 'pg_class')").Scan(&comment); err != nil {
		return err
	}
	version, err := leaseTableVersion(comment.String)
	if err != nil {
		return err
	}
	if version < leaseVersion {
		if _, err := tx.ExecContext(ctx, leaseSchema); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// leaseTableVersion reads the version in the table's comment; 0: there is none.
func leaseTableVersion(comment string) (int, error) {
	text, ok := strings.CutPrefix(comment, leaseComment)
	if !ok {
		return 0, nil
	}
	var version int
	if _, err := fmt.Sscanf(text, "%d", &version); err != nil {
		return 0, fmt.Errorf("the comment of table %s, %q, has no version that can be read", leaseTable, comment)
	}
	if version > leaseVersion {
		return 0, fmt.Errorf("table %s is of version %d and this program knows version %d: it is older than the table", leaseTable, version, leaseVersion)
	}
	return version, nil
}
