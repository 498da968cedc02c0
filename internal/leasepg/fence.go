package leasepg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
)

// Guarded is what the guard of a transaction has found.
type Guarded struct {
	Held     bool // the row is as it must be, and locked
	Level    bool // by the transaction itself, not by a subtransaction of it
	Snapshot bool // the transaction has one for all its statements
}

// GuardLease locks the row of a lease until tx ends, if it is id's with that epoch. With idle,
// the server ends the session when the transaction has been idle for so long.
func GuardLease(ctx context.Context, tx *sql.Tx, table, name, id string, epoch int64, idle time.Duration) (Guarded, error) {
	return guard(ctx, tx, table, heldBy(name, id, epoch), idle)
}

// GuardSeal locks the row of a sealed epoch until tx ends, if it is still the last one.
func GuardSeal(ctx context.Context, tx *sql.Tx, table, name string, epoch int64) (Guarded, error) {
	return guard(ctx, tx, table, "l.name {=} "+pgsql.Text(name)+" AND l.epoch {=} "+pgsql.Int(epoch)+"::pg_catalog.int8", 0)
}

// FenceCTE is GuardLease as common table expressions: baldur_fence has the row, and
// baldur_guard is an auxiliary expression.
func FenceCTE(table, name, id string, epoch int64) string {
	return pgsql.Fill("baldur_guard AS MATERIALIZED ("+guardedRow+"), baldur_fence AS MATERIALIZED (SELECT g.epoch FROM baldur_guard g WHERE CASE WHEN "+guardIsTop+
		" THEN true ELSE ('baldur: the transaction is within a savepoint: '::pg_catalog.text {||} g.name)::pg_catalog.bool END)",
		"{table}", table, "{condition}", heldBy(name, id, epoch))
}

// heldBy is the condition that the row is id's with that epoch.
func heldBy(name, id string, epoch int64) string {
	return "l.name {=} " + pgsql.Text(name) + " AND l.lease_id {=} " + pgsql.Text(id) + " AND l.epoch {=} " + pgsql.Int(epoch) + "::pg_catalog.int8"
}

// guard locks the row of a table that satisfies a condition.
func guard(ctx context.Context, tx *sql.Tx, table, condition string, idle time.Duration) (g Guarded, err error) {
	limit := "NULL::pg_catalog.text"
	if idle > 0 {
		limit = strings.NewReplacer("{setting}", "'idle_in_transaction_session_timeout'::pg_catalog.text", "{ms}", strconv.FormatInt(max(1, idle.Milliseconds()), 10)).
			Replace(`CASE WHEN g.epoch IS NOT NULL AND (pg_catalog.current_setting({setting}) {=} '0'::pg_catalog.text
		OR pg_catalog.current_setting({setting})::pg_catalog.interval {>} '{ms} milliseconds'::pg_catalog.interval)
		THEN pg_catalog.set_config({setting}, '{ms}ms'::pg_catalog.text, true) END`)
	}
	var ignored sql.NullString
	err = tx.QueryRowContext(ctx, pgsql.Fill(`WITH g AS MATERIALIZED (`+guardedRow+`)
SELECT g.epoch IS NOT NULL, coalesce(`+guardIsTop+`, false), i.level {=} 'repeatable read'::pg_catalog.text OR i.level {=} 'serializable'::pg_catalog.text, `+limit+`
FROM (SELECT pg_catalog.current_setting('transaction_isolation'::pg_catalog.text)) AS i(level) LEFT JOIN g ON true`,
		"{table}", table, "{condition}", condition)).Scan(&g.Held, &g.Level, &g.Snapshot, &ignored)
	return g, err
}

const (
	guardedRow = `SELECT l.name, l.epoch FROM {table} l WHERE {condition} FOR KEY SHARE OF l`

	// Whether the lock of g is the transaction's own. A lock taken by a subtransaction is
	// released when that is rolled back, while the transaction goes on.
	//
	// The row's xmax is then the transaction's id, or a multixact of which it is a member.
	// xmax does not say which of the two kinds of number it is, so it is looked up as a
	// multixact only if such a one can exist. Otherwise, as after a renewal that the snapshot
	// does not see, the transaction's locks tell: a subtransaction that has locked a row has
	// an id of its own, and holds a lock on it.
	guardIsTop = `(SELECT CASE
	WHEN t.xmax {=} x.id THEN true
	WHEN pg_catalog.mxid_age(t.xmax) {>} 0 AND pg_catalog.mxid_age(t.xmax) {<=} (
			SELECT pg_catalog.mxid_age(d.datminmxid) FROM pg_catalog.pg_database d WHERE d.datname {=} pg_catalog.current_database())
		AND EXISTS (SELECT FROM pg_catalog.pg_get_multixact_members(t.xmax) m WHERE m.xid {=} x.id) THEN true
	ELSE NOT EXISTS (SELECT FROM pg_catalog.pg_locks k WHERE k.pid {=} pg_catalog.pg_backend_pid() AND k.locktype {=} 'transactionid'::pg_catalog.text
		AND k.mode {=} 'ExclusiveLock'::pg_catalog.text AND k.granted AND k.transactionid {<>} x.id) END
	FROM {table} t, (SELECT pg_catalog.pg_current_xact_id()::pg_catalog.xid) AS x(id) WHERE t.name {=} g.name AND t.epoch {=} g.epoch)`
)

const fenceTable = "baldur_fence"

func (c Config) fenceTable() *tableSpec {
	return &tableSpec{
		usual: fenceTable, table: fenceTable, owners: c.Owners, columns: map[string]string{"name": "text", "epoch": "int8"},
		create: []string{`CREATE TABLE IF NOT EXISTS {table} (
	name  pg_catalog.text PRIMARY KEY,
	epoch pg_catalog.int8 NOT NULL -- the highest that was sealed
)`},
		fence:  fenceIndex,
		remedy: "only one may be there",
	}
}

// Seal carries an epoch to the table baldur_fence of a database. It returns that table's name
// and the highest epoch that is sealed there; again means: call it again.
func Seal(ctx context.Context, pool Pool, cfg Config, epoch int64) (table string, top int64, again bool, err error) {
	err = onCleanConn(ctx, pool, func(ctx context.Context, conn *sql.Conn) (err error) {
		table, top, again, err = sealOn(ctx, conn, cfg, epoch)
		return err
	})
	return table, top, again, err
}

func sealOn(ctx context.Context, conn *sql.Conn, cfg Config, epoch int64) (table string, top int64, again bool, err error) {
	spec := cfg.fenceTable()
	tx, err := beginChange(ctx, conn, cfg.TTL)
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
	err = tx.QueryRowContext(ctx, pgsql.Fill(`WITH s AS (
	INSERT INTO {table} AS f (name, epoch) VALUES ({name}, {epoch}::pg_catalog.int8)
	ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch WHERE f.epoch {<=} excluded.epoch RETURNING f.epoch
) SELECT true, s.epoch FROM s UNION ALL SELECT false, f.epoch FROM {table} f WHERE f.name {=} {name} AND NOT EXISTS (SELECT FROM s)`,
		"{table}", t.name, "{name}", pgsql.Text(cfg.Name), "{epoch}", pgsql.Int(epoch))).Scan(&sealed, &top)
	if err == nil {
		err = tx.Commit()
	}
	again = pqconn.HasState(err, "55P03") || // guarded transactions, for longer than a TTL
		errors.Is(err, sql.ErrNoRows) || err == nil && !sealed && top <= epoch // the row that is in the way is newer than the snapshot
	return t.name, top, again, err
}
