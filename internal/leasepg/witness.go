package leasepg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/baldur-go/baldur/internal/lease"
	"github.com/baldur-go/baldur/internal/pgsql"
)

var (
	_ lease.Witness = (*Witness)(nil)
	_ lease.Line    = (*Witness)(nil)
)

// The statements. What is in braces is filled in by Witness.fill.
var (
	// Times are read as counts of microseconds, since the text of a timestamp depends on the
	// session's DateStyle. Texts are cut: what is longer than the limit is not ours.
	leaseColumns = `l.epoch, l.renew_seq, ` + pgsql.Hex(`coalesce(pg_catalog.left(l.lease_id, 200::pg_catalog.int4), ''::pg_catalog.text)`) + `,
	` + pgsql.Hex(`coalesce(pg_catalog.left(l.region, 200::pg_catalog.int4), ''::pg_catalog.text)`) + `,
	l.ttl_ms, l.expires_at {<=} pg_catalog.clock_timestamp(), ` + sqlMicros("l.acquired_at") + `, ` + sqlMicros("l.expires_at") + `,
	coalesce(l.system_id, 0::pg_catalog.int8), coalesce(l.timeline, 0::pg_catalog.int8), {system}, {timeline},
	pg_catalog.transaction_timestamp() {=} pg_catalog.statement_timestamp()`

	leaseObserve = `SELECT true, true, ` + leaseColumns + ` FROM {table} l WHERE l.name {=} {name} AND {same}`

	// The row as it has become, or else as it was.
	leaseReply = `
SELECT true, g.got, ` + leaseColumns + ` FROM u l CROSS JOIN g UNION ALL
SELECT false, g.got, ` + leaseColumns + ` FROM {table} l CROSS JOIN g WHERE l.name {=} {name} AND {same} AND NOT EXISTS (SELECT FROM u)`

	// Without the unique index a takeover would not wait for guarded transactions. The index
	// was there when the connection was made, but it looks unused, and people drop unused
	// indexes. The error has the table examined anew.
	//
	// The advisory lock lets one candidate at a time wait for the row's lock, behind the
	// transactions that the holder guards. It is a courtesy, which anyone who may connect
	// can deny us: see Witness.Acquire.
	leaseAcquire = `
WITH g AS MATERIALIZED (
	SELECT pg_catalog.pg_try_advisory_xact_lock({key}::pg_catalog.int8) AS got, {durable}
), u AS (
	UPDATE {table} l SET epoch = ` + nextEpoch + `,
		system_id = {system}, timeline = {timeline}, lease_id = {id}, region = {region}, renew_seq = 0::pg_catalog.int8, ttl_ms = {ttl},
		acquired_at = pg_catalog.clock_timestamp(), renewed_at = pg_catalog.clock_timestamp(), expires_at = {expiry}
	FROM g WHERE (g.got OR {ignore_lock}) AND l.name {=} {name} AND {same}
		AND l.epoch {=} {seen_epoch}::pg_catalog.int8 AND l.renew_seq {=} {seen_seq}::pg_catalog.int8
		AND {timeline} {=} {seen_timeline}::pg_catalog.int8 AND {system} {=} {seen_system}::pg_catalog.int8
		AND (l.lease_id IS NULL OR l.lease_id {=} {id} OR l.expires_at {<=} pg_catalog.clock_timestamp() OR {ignore_clock})
		AND CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid {=} l.tableoid AND EXISTS (` + sqlFenceIndex + `)) THEN true
			ELSE ('baldur: no unique index of (name, epoch) for '::pg_catalog.text {||} l.name)::pg_catalog.bool END
	RETURNING l.*
)` + leaseReply

	// The expiry is not compared: nobody else has taken the epoch, and the holder asks only
	// while it believes. So a server's clock that is set forward deposes nobody.
	leaseRenew = `
WITH g AS MATERIALIZED (SELECT true AS got, {durable}), u AS (
	UPDATE {table} l SET renew_seq = l.renew_seq {+} 1::pg_catalog.int8, renewed_at = pg_catalog.clock_timestamp(), expires_at = {expiry}
	FROM g WHERE l.name {=} {name} AND l.lease_id {=} {id} AND l.epoch {=} {epoch}::pg_catalog.int8
		AND {same}
	RETURNING l.*
)` + leaseReply

	leaseRelease = `
WITH g AS MATERIALIZED (SELECT true AS got, {durable}), u AS (
	UPDATE {table} l SET renew_seq = l.renew_seq {+} 1::pg_catalog.int8, lease_id = NULL, expires_at = pg_catalog.clock_timestamp()
	FROM g WHERE l.name {=} {name} AND l.lease_id {=} {id} AND l.epoch {=} {epoch}::pg_catalog.int8
		AND {same}
	RETURNING l.*
)` + leaseReply

	// The epoch of a new row was given by no server, so that the first candidate waits as
	// after a failover, which may have lost the row. In the first timeline there was none.
	leaseInsert = `
INSERT INTO {table} (name, epoch, system_id, timeline)
SELECT {name}, x.t {<<} {shift}, x.s, x.t FROM (SELECT 1::pg_catalog.int8, {system}) AS x(t, s) WHERE {timeline} {=} 1::pg_catalog.int8
UNION ALL SELECT {name}, 0::pg_catalog.int8, NULL, NULL WHERE {timeline} {>} 1::pg_catalog.int8 ON CONFLICT DO NOTHING`

	leaseExists = `SELECT EXISTS (SELECT FROM {table} l WHERE l.name {=} {name})`

	// Who holds the courtesy lock.
	leaseBarred = `
SELECT coalesce(pg_catalog.min(k.pid), 0::pg_catalog.int4), ` + pgsql.Hex(`coalesce(pg_catalog.min(a.usename::pg_catalog.text), ''::pg_catalog.text)`) + `
FROM pg_catalog.pg_locks k LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid {=} k.pid
WHERE k.locktype {=} 'advisory'::pg_catalog.text AND k.granted AND k.objsubid {=} 1::pg_catalog.int2
	AND k.classid::pg_catalog.int8 {=} {key_high}::pg_catalog.int8 AND k.objid::pg_catalog.int8 {=} {key_low}::pg_catalog.int8
	AND k.database {=} (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname {=} pg_catalog.current_database())`
)

// nextEpoch is lease.Row.NextEpoch.
const nextEpoch = `greatest(l.epoch {+} 1::pg_catalog.int8, {floor}::pg_catalog.int8 {+} 1::pg_catalog.int8, CASE
			WHEN l.system_id {=} {system} AND l.timeline {=} {timeline} THEN 0::pg_catalog.int8
			WHEN l.system_id {=} {system} THEN ((((l.epoch {>>} {shift}) {+} {timeline}) {-} greatest(l.timeline, 1::pg_catalog.int8)) {<<} {shift}) {+} 1::pg_catalog.int8
			ELSE (((l.epoch {>>} {shift}) {+} {timeline}) {<<} {shift}) {+} 1::pg_catalog.int8 END)`

// sqlDurable has a crash lose no commit of a lease or a seal, where the session's or the
// server's own setting would permit that.
const sqlDurable = "CASE WHEN pg_catalog.current_setting('synchronous_commit'::pg_catalog.text) {=} ANY (ARRAY['off', 'local', 'remote_write']::pg_catalog.text[])" +
	" THEN pg_catalog.set_config('synchronous_commit'::pg_catalog.text, 'on'::pg_catalog.text, true) END"

// sqlMicros is a timestamptz as microseconds since 1970; NULL if it is infinite. It is
// clamped to the years 1 to 9998, which JSON can express.
func sqlMicros(x string) string {
	return "CASE WHEN pg_catalog.isfinite(" + x + ") THEN (greatest('-62135000000'::pg_catalog.float8, least('253370000000'::pg_catalog.float8, pg_catalog.date_part('epoch'::pg_catalog.text, " +
		x + "))) {*} 1000000::pg_catalog.float8)::pg_catalog.int8 END"
}

// fill fills in a statement: the placeholders and values that pairs has in turn, and those
// that are the same in all statements.
func (w *Witness) fill(statement string, pairs ...string) string {
	const (
		timeline = "(('x'::pg_catalog.text {||} pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::pg_catalog.bit(32)::pg_catalog.int8)"
		system   = "(SELECT c.system_identifier FROM pg_catalog.pg_control_system() c)"
	)
	ttl := strconv.FormatInt(w.cfg.TTL.Milliseconds(), 10)
	key := leaseLockKey(w.cfg.Name)
	table := w.table.Load()
	// Another table may have got its name since it was found.
	statement = strings.ReplaceAll(statement, "{same}", "l.tableoid {=} "+pgsql.Int(table.oid)+"::pg_catalog.oid")
	return pgsql.Fill(strings.NewReplacer(append(pairs,
		"{table}", table.name, "{name}", pgsql.Text(w.cfg.Name), "{region}", pgsql.Text(w.cfg.Region),
		"{key}", "'"+strconv.FormatInt(key, 10)+"'", "{key_high}", strconv.FormatUint(uint64(key)>>32, 10), "{key_low}", strconv.FormatUint(uint64(key)&0xffffffff, 10),
		"{ttl}", ttl+"::pg_catalog.int4", "{expiry}", "pg_catalog.clock_timestamp() {+} '"+ttl+" milliseconds'::pg_catalog.interval",
		"{timeline}", timeline, "{system}", system, "{shift}", strconv.Itoa(lease.TimelineShift), "{durable}", sqlDurable)...).Replace(statement))
}

// Observe: see lease.Witness.
func (w *Witness) Observe(ctx context.Context) (lease.Row, error) {
	row, _, _, err := w.askRow(ctx, leaseObserve)
	return row, err
}

// Acquire: see lease.Witness. It also decides for how long the courtesy lock is respected:
// another candidate holds it while it waits for the row, but anyone can hold it for ever.
func (w *Witness) Acquire(ctx context.Context, id string, seen lease.Row, floor int64, ignoreClock bool) (lease.Row, bool, error) {
	if err := w.open(ctx); err != nil {
		return lease.Row{}, false, notSent(ctx, err)
	}
	ignoreLock := w.lockIgnored
	defer w.killGuards(ctx)()
	row, ok, got, err := w.askRow(ctx, leaseAcquire, "{id}", pgsql.Text(id), "{floor}", pgsql.Int(floor),
		"{seen_epoch}", pgsql.Int(seen.Epoch), "{seen_seq}", pgsql.Int(seen.Seq),
		"{seen_timeline}", pgsql.Int(seen.Witness.Timeline), "{seen_system}", pgsql.Int(seen.Witness.System),
		"{ignore_clock}", strconv.FormatBool(ignoreClock), "{ignore_lock}", strconv.FormatBool(ignoreLock))
	switch {
	case err != nil:
	case got:
		w.barredSince, w.lockIgnored = time.Time{}, false
	case w.barredSince.IsZero():
		w.barredSince = time.Now()
	case !ok && !w.lockIgnored && time.Since(w.barredSince) >= w.cfg.Attempt:
		w.lockIgnored = true
		return row, false, lease.Refusal{Err: fmt.Errorf("baldur: lease %q: %s has the advisory lock of its succession; going on without that", w.cfg.Name, w.barredBy(ctx))}
	}
	return row, ok, err
}

// barredBy says who holds the courtesy lock.
func (w *Witness) barredBy(ctx context.Context) string {
	var pid int
	var role pgsql.HexText
	if err := w.queryRow(ctx, readOnly, w.fill(leaseBarred), &pid, &role); err != nil || pid == 0 {
		return "another session"
	}
	return fmt.Sprintf("pid %d (role %q)", pid, string(role))
}

// Renew: see lease.Witness.
func (w *Witness) Renew(ctx context.Context, id string, epoch int64) (lease.Row, bool, error) {
	row, ok, _, err := w.askRow(ctx, leaseRenew, "{id}", pgsql.Text(id), "{epoch}", pgsql.Int(epoch))
	return row, ok, err
}

// Release: see lease.Witness.
func (w *Witness) Release(ctx context.Context, id string, epoch int64) (lease.Row, bool, error) {
	row, ok, _, err := w.askRow(ctx, leaseRelease, "{id}", pgsql.Text(id), "{epoch}", pgsql.Int(epoch))
	return row, ok, err
}

// leaseChannel is the channel on which changes of a lease are notified.
func leaseChannel(name string) string {
	return fmt.Sprintf("%s_%016x", leaseTable, uint64(leaseLockKey(name)))
}

// leaseLockKey is the advisory lock of a lease's succession.
func leaseLockKey(name string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(leaseTable + ":" + name))
	return int64(h.Sum64())
}

var errNoRow = errors.New("the lease has no row")

// notSent is the error of connecting: nothing was sent, so that nothing will be executed.
func notSent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: connecting: %w", context.Cause(ctx), err)
	}
	return lease.Refusal{Err: err}
}

// askRow sends a statement and reads the reply; got tells whether the courtesy lock was had.
// A reply is believed only if it proves that the statement had a transaction of its own: one
// that was open before may yet be rolled back.
func (w *Witness) askRow(ctx context.Context, statement string, pairs ...string) (row lease.Row, ok, got bool, err error) {
	if err := w.open(ctx); err != nil {
		return row, false, false, notSent(ctx, err)
	}
	mode := readWrite
	if statement == leaseObserve {
		mode = readOnly
	}
	var ttl int64
	var own bool
	var id, region pgsql.HexText
	var acquired, expires sql.NullInt64
	err = w.queryRow(ctx, mode, w.fill(statement, pairs...), &ok, &got, &row.Epoch, &row.Seq, &id, &region, &ttl, &row.Expired,
		&acquired, &expires, &row.Given.System, &row.Given.Timeline, &row.Witness.System, &row.Witness.Timeline, &own)
	if err == nil && !own && w.pq {
		w.Close()
		err = fmt.Errorf("baldur: lease %q: the connection was in a transaction that something else had begun", w.cfg.Name)
	}
	if err != nil {
		return lease.Row{}, false, false, err
	}
	row.Table = w.table.Load().oid
	row.LeaseID, row.Region = string(id), string(region)
	if row.LeaseID != "" || ttl != 0 { // whoever wrote it, no holder has a TTL that the options forbid
		row.TTL = min(max(time.Duration(ttl)*time.Millisecond, lease.MinTTL), lease.MaxTTL)
	}
	row.Acquired, row.Expires = time.UnixMicro(acquired.Int64), time.UnixMicro(expires.Int64)
	return row, ok, got, nil
}
