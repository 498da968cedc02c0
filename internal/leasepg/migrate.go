package leasepg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/baldur-go/baldur/internal/hook"
	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
)

// The lease table. Its version shows in its columns and indexes. The comment, which people
// edit, tells the version only to processes of an earlier one, and to this one if the table is
// of a later one.
//
// The unique index makes epoch a key column: a takeover, which changes it, waits for FOR KEY
// SHARE, and a renewal, which does not change it, passes: see RequirePrimary. No other column is
// indexed, and the pages are half empty, so that a renewal is a HOT update.
const (
	leaseTable   = "baldur_lease"
	leaseComment = "baldur quorum, version "
	leaseVersion = 1

	leaseSchema = `CREATE TABLE IF NOT EXISTS {table} (
	name        pg_catalog.text PRIMARY KEY,
	epoch       pg_catalog.int8 NOT NULL,    -- fencing token, never decreases
	system_id   pg_catalog.int8,             -- which server gave the epoch: NULL where none has
	timeline    pg_catalog.int8,             -- and in which of its timelines
	lease_id    pg_catalog.text,             -- of the holder; NULL: free
	region      pg_catalog.text,             -- of the holder, or the last one
	renew_seq   pg_catalog.int8 NOT NULL DEFAULT 0,
	ttl_ms      pg_catalog.int4 NOT NULL DEFAULT 0,
	acquired_at pg_catalog.timestamptz,
	renewed_at  pg_catalog.timestamptz,
	expires_at  pg_catalog.timestamptz NOT NULL DEFAULT 'epoch'
) WITH (fillfactor = 50)`

	fenceIndex        = `CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {table} (name, epoch)`
	fenceIndexAnyName = `CREATE UNIQUE INDEX ON {table} (name, epoch)`
)

func (c Config) leaseTable() *tableSpec {
	spec := &tableSpec{
		usual: leaseTable, table: leaseTable, owners: c.Owners, mark: leaseComment,
		columns: map[string]string{
			"name": "text", "epoch": "int8", "system_id": "int8", "timeline": "int8", "lease_id": "text", "region": "text", "renew_seq": "int8",
			"ttl_ms": "int4", "acquired_at": "timestamptz", "renewed_at": "timestamptz", "expires_at": "timestamptz",
		},
		create: []string{leaseSchema, `COMMENT ON TABLE {table} IS '` + leaseComment + `1'`},
		fence:  fenceIndex,
		remedy: "name the one that all processes are to use (WithLeaseTable)",
	}
	if c.Table != nil {
		spec.schema, spec.table = c.Table[0], c.Table[1]
		spec.remedy = "MigrateQuorum with WithLeaseTable makes it"
	}
	return spec
}

// Migrate makes the lease table, or finds it, and makes sure that it is what it must be.
func Migrate(ctx context.Context, pool Pool, cfg Config) error {
	return onCleanConn(ctx, pool, func(ctx context.Context, conn *sql.Conn) error {
		return cfg.leaseTable().migrate(ctx, conn, migrateTimeout, true)
	})
}

// FindTable returns the name, quoted and with its schema, of the lease table; "" if there
// is none yet.
func FindTable(ctx context.Context, pool Pool, cfg Config) (name string, err error) {
	spec := cfg.leaseTable()
	err = onCleanConn(ctx, pool, func(ctx context.Context, conn *sql.Conn) error {
		found, err := spec.find(ctx, func(ctx context.Context, query string, each func(*sql.Rows) error) error {
			return eachRow(ctx, conn, query, each)
		})
		if err != nil {
			return err
		}
		t, err := spec.choose(found, 0)
		if t != nil {
			name = t.name
		}
		return err
	})
	return name, err
}

// Move gives the lease table another name, unless a lease in it is live.
func Move(ctx context.Context, pool Pool, cfg Config, to string) error {
	target, err := ParseTable(to)
	if err != nil {
		return err
	}
	return onCleanConn(ctx, pool, func(ctx context.Context, conn *sql.Conn) error { return cfg.leaseTable().move(ctx, conn, target) })
}

func (spec *tableSpec) move(ctx context.Context, conn *sql.Conn, to [2]string) error {
	tx, err := beginChange(ctx, conn, migrateTimeout)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	t, err := spec.findIn(ctx, tx, false)
	if err != nil {
		return err
	}
	if t == nil {
		return errors.New("there is no lease table")
	}
	// First without the lock: while we waited for it, a holder's renewals would queue behind us.
	if err := noneLive(ctx, tx, t.name); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "LOCK TABLE "+t.name+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		return err
	}
	if err := noneLive(ctx, tx, t.name); err != nil {
		return err
	}
	parts, err := pgsql.SplitIdentifier(t.quoted)
	if err != nil {
		return err
	}
	schema, name := parts[0], parts[1]
	if schema != to[0] {
		if _, err := tx.ExecContext(ctx, "ALTER TABLE "+t.name+" SET SCHEMA "+pgsql.QuoteIdentifier(to[0])); err != nil {
			return err
		}
	}
	if name != to[1] {
		if _, err := tx.ExecContext(ctx, "ALTER TABLE "+pgsql.QuoteIdentifier(to[0])+"."+pgsql.QuoteIdentifier(name)+" RENAME TO "+pgsql.QuoteIdentifier(to[1])); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// noneLive returns an error that names the leases of a table that are held, or may be.
func noneLive(ctx context.Context, tx *sql.Tx, table string) error {
	var live []string
	err := eachRow(ctx, tx, pgsql.Fill(`SELECT `+pgsql.Hex("l.name")+` FROM {table} l WHERE l.lease_id IS NOT NULL
	AND (l.expires_at {+} (l.ttl_ms {*} '1 millisecond'::pg_catalog.interval)) {>} pg_catalog.clock_timestamp()`, "{table}", table), func(rows *sql.Rows) error {
		var name pgsql.HexText
		err := rows.Scan(&name)
		live = append(live, string(name))
		return err
	})
	if err == nil && len(live) > 0 {
		err = fmt.Errorf("leases of %s are live, or were until a moment ago: %q", table, live)
	}
	return err
}

// ParseTable splits the name that WithLeaseTable takes into schema and table.
func ParseTable(name string) (table [2]string, err error) {
	parts, err := pgsql.SplitIdentifier(name)
	switch {
	case err != nil:
	case len(parts) != 2 || parts[0] == "" || parts[1] == "":
		err = errors.New(`it must have a schema, as "ops.baldur_lease"`)
	case len(parts[0]) > pgsql.MaxIdentifier || len(parts[1]) > pgsql.MaxIdentifier:
		err = fmt.Errorf("a part of it has more than the %d bytes that PostgreSQL takes", pgsql.MaxIdentifier)
	case strings.HasPrefix(parts[0], "pg_") || parts[0] == "information_schema":
		err = errors.New("that schema is PostgreSQL's own")
	}
	if err != nil {
		return table, fmt.Errorf("lease table %.80q: %w", name, err)
	}
	return [2]string(parts), nil
}

// onCleanConn calls f, for migrateTimeout at most, with a connection whose session is new: it is
// made beside the pool, by its connector, and cut when ctx ends. If the pool is not baldur's, or
// if that takes more than a quarter of the time, it is a pooled one that is in no transaction.
func onCleanConn(ctx context.Context, pool Pool, f func(context.Context, *sql.Conn) error) error {
	ctx, cancel := context.WithTimeout(hook.Own(ctx), migrateTimeout)
	defer cancel()
	var conn *sql.Conn
	err := ErrNotOurs
	if pool.Dial != nil {
		c := &ownConnector{pool: pool}
		own := sql.OpenDB(c)
		defer func() { _ = own.Close() }()
		deadline, _ := ctx.Deadline()
		soon, cancel := context.WithTimeout(ctx, time.Until(deadline)/4)
		conn, err = c.conn(soon, own)
		cancel()
		if err == nil && c.sock != nil {
			defer context.AfterFunc(ctx, c.sock.Cut)()
			defer func() { c.sock.EndBy(time.Now().Add(closeGrace)) }() // for pq's farewell
		}
	}
	if err != nil {
		beside := err
		if conn, err = pgsession.Take(ctx, pool.DB); err != nil && beside == ErrNotOurs {
			return err
		} else if err != nil {
			return fmt.Errorf("%w; and beside the pool: %w", err, beside)
		}
	}
	defer func() { _ = conn.Close() }()
	return f(ctx, conn)
}

// migrateTimeout bounds a migration, which may wait for locks.
const migrateTimeout = time.Minute

// migrate finds the table, or makes it. If asked to, it makes it beside one of another name.
//
// CREATE TABLE IF NOT EXISTS fails if two sessions do it at once. An advisory lock would
// prevent that, but anyone can hold one: it is tried again instead. Not for ever, since a type
// of the table's name gives the same error and does not go away.
func (spec *tableSpec) migrate(ctx context.Context, conn *sql.Conn, limit time.Duration, asked bool) (err error) {
	for range 10 {
		err = spec.migrateOnce(ctx, conn, limit, asked)
		if !pqconn.HasState(err, "23505", "42P07", "42710", "40P01") || ctx.Err() != nil {
			break
		}
	}
	return err
}

func (spec *tableSpec) migrateOnce(ctx context.Context, conn *sql.Conn, limit time.Duration, asked bool) error {
	tx, err := beginChange(ctx, conn, limit)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	t, err := spec.findIn(ctx, tx, asked)
	made := t == nil && err == nil
	if made {
		for _, create := range append(spec.create, spec.fence) {
			if _, err := tx.ExecContext(ctx, pgsql.Fill(create, "{table}", spec.newName(), "{index}", spec.indexName())); err != nil {
				return err
			}
		}
		t, err = spec.findIn(ctx, tx, asked)
	}
	for _, fence := range []string{spec.fence, fenceIndexAnyName} { // the index's name may be taken by another relation
		if errors.Is(err, errNoFence) && (asked || made) {
			if _, cause := tx.ExecContext(ctx, pgsql.Fill(fence, "{table}", t.name, "{index}", spec.indexName())); cause != nil {
				return fmt.Errorf("%w; it cannot be made: %w", err, cause)
			}
			t, err = spec.findIn(ctx, tx, asked)
		}
	}
	switch {
	case err != nil:
		return err
	case t == nil:
		return fmt.Errorf("table %s was made and is not found", spec)
	}
	return tx.Commit()
}

// beginChange begins a transaction that makes or changes a table, or seals an epoch, with the
// settings that it needs.
func beginChange(ctx context.Context, conn *sql.Conn, limit time.Duration) (*sql.Tx, error) {
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline))
	}
	for _, set := range []string{
		"SET TRANSACTION READ WRITE",
		fmt.Sprintf("SET LOCAL lock_timeout = %d", max(1, (limit*4/5).Milliseconds())),
		fmt.Sprintf("SET LOCAL statement_timeout = %d", (limit + serverGrace).Milliseconds()),
		fmt.Sprintf("SET LOCAL idle_in_transaction_session_timeout = %d", (limit + serverGrace).Milliseconds()),
		"SET LOCAL default_tablespace = ''", "SET LOCAL default_table_access_method = heap", pgsql.Fill("SELECT " + sqlDurable + ", " + pgsql.SetConfigIfKnown("transaction_timeout", "'0'")),
	} {
		if _, err := tx.ExecContext(ctx, set); err != nil {
			_ = tx.Rollback()
			return nil, err
		}
	}
	return tx, nil
}

// findIn finds the table that the spec means. If it was asked for by name, tables of other
// names do not matter.
func (spec *tableSpec) findIn(ctx context.Context, tx *sql.Tx, asked bool) (*foundTable, error) {
	found, err := spec.find(ctx, func(ctx context.Context, query string, each func(*sql.Rows) error) error {
		return eachRow(ctx, tx, query, each)
	})
	if err != nil {
		return nil, err
	}
	if asked && spec.schema != "" {
		found = slices.DeleteFunc(found, func(t foundTable) bool { return !t.namesake })
	}
	return spec.choose(found, 0)
}

// indexName is the quoted name of the index of (name, epoch) of a table that is to be made.
func (spec *tableSpec) indexName() string {
	const suffix = "_fence"
	name := spec.table
	for len(name) > pgsql.MaxIdentifier-len(suffix) {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return pgsql.QuoteIdentifier(name + suffix)
}
