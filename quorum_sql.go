package baldur

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"
)

// pgWitness is the lease table of a PostgreSQL. Each request is one statement in
// a transaction of its own: the row's lock and the re-check after it make the
// compare-and-swap atomic in READ COMMITTED. The times are clock_timestamp(),
// not now(), which is that of a transaction's begin.
//
// The statements have no parameters: see [PGAdmin].
type pgWitness struct {
	cfg  *quorumConfig
	link *link
}

var _ witness = pgWitness{}

// The statements. What is in braces is filled in by pgWitness.sql.
const (
	leaseColumns = `epoch, renew_seq, coalesce(lease_id, ''), coalesce(region, ''), ttl_ms, expires_at <= pg_catalog.clock_timestamp(),
	coalesce(acquired_at, 'epoch'), expires_at, coalesce(system_id, 0), coalesce(timeline, 0), {system}, {timeline}`

	leaseObserve = `SELECT true, ` + leaseColumns + ` FROM {table} WHERE name = {name}`

	// The row as it has become, or else as it was.
	leaseReply = `
SELECT true, ` + leaseColumns + ` FROM u UNION ALL
SELECT false, ` + leaseColumns + ` FROM {table} WHERE name = {name} AND NOT EXISTS (SELECT FROM u)`

	// One candidate at a time: the others need not queue for the row's lock, behind
	// the transactions that the holder guards. The lock_timeout makes a wait for
	// these end as a refusal, before the attempt is cut.
	leaseAcquire = `
WITH g AS MATERIALIZED (
	SELECT pg_catalog.pg_try_advisory_xact_lock({key}) AS got, pg_catalog.set_config('lock_timeout', '{patience}', true), {durable}
), u AS (
	UPDATE {table} l SET epoch = greatest(l.epoch + 1, {floor} + 1, CASE
			WHEN l.system_id = {system} AND l.timeline = {timeline} THEN 0
			WHEN l.system_id = {system} THEN ((l.epoch >> {shift}) + {timeline} - l.timeline << {shift}) + 1
			ELSE ((l.epoch >> {shift}) + {timeline} << {shift}) + 1 END),
		system_id = {system}, timeline = {timeline}, lease_id = {id}, region = {region}, renew_seq = 0, ttl_ms = {ttl},
		acquired_at = pg_catalog.clock_timestamp(), renewed_at = pg_catalog.clock_timestamp(), expires_at = {expiry}
	FROM g WHERE g.got AND l.name = {name}
		AND l.epoch = {seen_epoch} AND l.renew_seq = {seen_seq} AND {timeline} = {seen_timeline} AND {system} = {seen_system}
		AND (l.lease_id IS NULL OR l.lease_id = {id} OR l.expires_at <= pg_catalog.clock_timestamp() OR {ignore_clock})
	RETURNING l.*, pg_catalog.pg_notify({channel}, '')
)` + leaseReply

	// It does not look at the expiry: nobody else has taken the epoch, and the
	// holder asks only while it believes. So a server's clock that is set forward
	// deposes nobody.
	leaseRenew = `
WITH g AS MATERIALIZED (SELECT {durable}), u AS (
	UPDATE {table} l SET renew_seq = l.renew_seq + 1, renewed_at = pg_catalog.clock_timestamp(), expires_at = {expiry}
	FROM g WHERE l.name = {name} AND l.lease_id = {id} AND l.epoch = {epoch}
	RETURNING l.*, pg_catalog.pg_notify({channel}, '')
)` + leaseReply

	leaseRelease = `
WITH g AS MATERIALIZED (SELECT {durable}), u AS (
	UPDATE {table} l SET renew_seq = l.renew_seq + 1, lease_id = NULL, expires_at = pg_catalog.clock_timestamp()
	FROM g WHERE l.name = {name} AND l.lease_id = {id} AND l.epoch = {epoch}
	RETURNING l.*, pg_catalog.pg_notify({channel}, '')
)` + leaseReply

	// A new row is no server's, so that the first candidate waits as after a
	// failover, which may have lost it; but in the first timeline there was none.
	leaseInsert = `
INSERT INTO {table} (name, epoch, system_id, timeline)
SELECT {name}, t << {shift}, s, t FROM (SELECT 1::bigint, {system}) AS x(t, s) WHERE {timeline} = 1
UNION ALL SELECT {name}, 0, NULL, NULL WHERE {timeline} > 1 ON CONFLICT DO NOTHING`

	leaseExists = `SELECT EXISTS (SELECT FROM {table} WHERE name = {name})`
)

// fill fills a statement in: with what pairs has, placeholders and their values in
// turn, and with what is the same in all.
func (w pgWitness) fill(statement string, pairs ...string) string {
	const (
		timeline = "('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::bigint"
		system   = "(SELECT system_identifier FROM pg_catalog.pg_control_system())"

		// What a commit of the lease must not lose in a crash: a session's, or the
		// server's, own setting may be less.
		durable = "CASE WHEN pg_catalog.current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')" +
			" THEN pg_catalog.set_config('synchronous_commit', 'on', true) END"
	)
	ttl := strconv.FormatInt(w.cfg.ttl.Milliseconds(), 10)
	return strings.NewReplacer(append(pairs,
		"{table}", *w.link.table.Load(), "{name}", pq.QuoteLiteral(w.cfg.name), "{region}", pq.QuoteLiteral(w.cfg.region),
		"{channel}", pq.QuoteLiteral(leaseChannel(w.cfg.name)), "{key}", strconv.FormatInt(leaseLockKey(leaseTable+":"+w.cfg.name), 10),
		"{ttl}", ttl, "{expiry}", "pg_catalog.clock_timestamp() + "+ttl+" * interval '1 ms'",
		"{timeline}", timeline, "{system}", system, "{shift}", strconv.Itoa(timelineShift), "{durable}", durable)...).Replace(statement)
}

func (w pgWitness) observe(ctx context.Context) (leaseRow, error) {
	row, _, err := w.ask(ctx, leaseObserve)
	return row, err
}

func (w pgWitness) acquire(ctx context.Context, id string, seen leaseRow, floor int64, ignoreClock bool) (leaseRow, bool, error) {
	if err := w.link.open(ctx); err != nil {
		return leaseRow{}, false, notSent(ctx, err)
	}
	defer w.link.killGuards(ctx)()
	return w.ask(ctx, leaseAcquire, "{id}", pq.QuoteLiteral(id), "{floor}", strconv.FormatInt(floor, 10),
		"{seen_epoch}", strconv.FormatInt(seen.epoch, 10), "{seen_seq}", strconv.FormatInt(seen.seq, 10),
		"{seen_timeline}", strconv.FormatInt(seen.witness.timeline, 10), "{seen_system}", strconv.FormatInt(seen.witness.system, 10),
		"{ignore_clock}", strconv.FormatBool(ignoreClock), "{patience}", fmt.Sprintf("%dms", max(1, (w.cfg.attempt*4/5).Milliseconds())))
}

func (w pgWitness) renew(ctx context.Context, id string, epoch int64) (leaseRow, bool, error) {
	return w.ask(ctx, leaseRenew, "{id}", pq.QuoteLiteral(id), "{epoch}", strconv.FormatInt(epoch, 10))
}

func (w pgWitness) release(ctx context.Context, id string, epoch int64) (leaseRow, bool, error) {
	return w.ask(ctx, leaseRelease, "{id}", pq.QuoteLiteral(id), "{epoch}", strconv.FormatInt(epoch, 10))
}

// leaseChannel is what changes of a lease are notified on.
func leaseChannel(name string) string {
	return fmt.Sprintf("%s_%016x", leaseTable, uint64(leaseLockKey(leaseTable+":"+name)))
}

// leaseLockKey is the advisory lock of a name.
func leaseLockKey(name string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return int64(h.Sum64())
}

var errNoRow = errors.New("the lease has no row")

// notSent: without a connection nothing was sent, and nothing will be done.
func notSent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: connecting: %w", context.Cause(ctx), err)
	}
	return refusal{err}
}

// ask sends a statement and reads its reply.
func (w pgWitness) ask(ctx context.Context, statement string, pairs ...string) (row leaseRow, ok bool, err error) {
	if err := w.link.open(ctx); err != nil {
		return row, false, notSent(ctx, err)
	}
	var ttl int64
	err = w.link.queryRow(ctx, w.fill(statement, pairs...), &ok, &row.epoch, &row.seq, &row.leaseID, &row.region, &ttl, &row.expired,
		&row.acquired, &row.expires, &row.given.system, &row.given.timeline, &row.witness.system, &row.witness.timeline)
	if err != nil {
		return leaseRow{}, false, err
	}
	row.ttl = time.Duration(ttl) * time.Millisecond
	return row, ok, nil
}

// refuse explains an answer of the server's to which there is more to say.
func refuse(err error, code, lease string) error {
	why := ""
	switch code {
	case "55P03":
		why = "transactions that the last primary guards (RequirePrimary) are still open"
	case "42501":
		why = "the role needs SELECT, INSERT and UPDATE on the lease table"
	case "25006":
		why = "the server or the session is read-only"
	default:
		return err
	}
	return fmt.Errorf("baldur: lease %q: %s: %w", lease, why, err)
}
