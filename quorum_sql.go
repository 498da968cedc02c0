package baldur

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
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

// The columns of a reply. %[1]s is the table.
const (
	leaseTimeline = "('x'||substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()),1,8))::bit(32)::bigint"
	leaseColumns  = "epoch, renew_seq, coalesce(lease_id,''), coalesce(region,''), ttl_ms, expires_at <= pg_catalog.clock_timestamp()," +
		" coalesce(acquired_at,'epoch'), expires_at, " + leaseTimeline

	// What a commit of the lease must not lose in a crash: a session's, or the
	// server's, own setting may be less.
	leaseDurable = "CASE WHEN pg_catalog.current_setting('synchronous_commit') IN ('off','local','remote_write')" +
		" THEN pg_catalog.set_config('synchronous_commit','on',true) END"

	// The row as it has become, or else as it was.
	leaseReply = " SELECT true, " + leaseColumns + " FROM u UNION ALL" +
		" SELECT false, " + leaseColumns + " FROM %[1]s WHERE name=%[2]s AND NOT EXISTS (SELECT FROM u)"
)

func (w pgWitness) observe(ctx context.Context) (leaseRow, error) {
	row, _, err := w.ask(ctx, func() string {
		return fmt.Sprintf("SELECT true, "+leaseColumns+" FROM %s WHERE name=%s", w.link.table, w.name())
	})
	return row, err
}

func (w pgWitness) acquire(ctx context.Context, id string, seen leaseRow, ignoreClock bool) (leaseRow, bool, error) {
	if err := w.link.open(ctx); err != nil {
		return leaseRow{}, false, refusal{err}
	}
	defer w.link.killGuards(ctx)()
	return w.ask(ctx, func() string {
		expired := "l.expires_at <= pg_catalog.clock_timestamp()"
		if ignoreClock {
			expired = "true"
		}
		// One candidate at a time: the others need not queue for the row's lock,
		// behind the transactions that the holder guards. The lock_timeout makes a
		// wait for these end as a refusal, before the attempt is cut.
		return fmt.Sprintf("WITH g AS MATERIALIZED (SELECT pg_catalog.pg_try_advisory_xact_lock(%[3]d) AS got, pg_catalog.set_config('lock_timeout','%[4]dms',true), "+leaseDurable+
			"), u AS (UPDATE %[1]s l SET epoch=greatest(l.epoch,"+leaseTimeline+"<<%[5]d)+1, lease_id=%[6]s, region=%[7]s, renew_seq=0, ttl_ms=%[8]d,"+
			" acquired_at=pg_catalog.clock_timestamp(), renewed_at=pg_catalog.clock_timestamp(), expires_at=pg_catalog.clock_timestamp()+%[8]d*interval '1 ms'"+
			" FROM g WHERE g.got AND l.name=%[2]s AND l.epoch=%[9]d AND l.renew_seq=%[10]d AND (l.lease_id IS NULL OR l.lease_id=%[6]s OR %[11]s)"+
			" RETURNING l.*, pg_catalog.pg_notify(%[12]s,''))"+leaseReply,
			w.link.table, w.name(), leaseLockKey(leaseTable+":"+w.cfg.name), max(1, (w.cfg.attempt*4/5).Milliseconds()), timelineShift,
			pq.QuoteLiteral(id), pq.QuoteLiteral(w.cfg.region), w.cfg.ttl.Milliseconds(), seen.epoch, seen.seq, expired, w.channel())
	})
}

// renew does not look at the expiry: nobody else has taken the epoch, and the
// holder asks only while it believes. So a server's clock that is set forward
// deposes nobody.
func (w pgWitness) renew(ctx context.Context, id string, epoch int64) (leaseRow, bool, error) {
	return w.update(ctx, id, epoch, fmt.Sprintf("renewed_at=pg_catalog.clock_timestamp(), expires_at=pg_catalog.clock_timestamp()+%d*interval '1 ms'", w.cfg.ttl.Milliseconds()))
}

func (w pgWitness) release(ctx context.Context, id string, epoch int64) (leaseRow, bool, error) {
	return w.update(ctx, id, epoch, "lease_id=NULL, expires_at=pg_catalog.clock_timestamp()")
}

func (w pgWitness) update(ctx context.Context, id string, epoch int64, set string) (leaseRow, bool, error) {
	return w.ask(ctx, func() string {
		return fmt.Sprintf("WITH g AS MATERIALIZED (SELECT "+leaseDurable+"), u AS (UPDATE %[1]s l SET renew_seq=l.renew_seq+1, %[3]s"+
			" FROM g WHERE l.name=%[2]s AND l.lease_id=%[4]s AND l.epoch=%[5]d RETURNING l.*, pg_catalog.pg_notify(%[6]s,''))"+leaseReply,
			w.link.table, w.name(), set, pq.QuoteLiteral(id), epoch, w.channel())
	})
}

func (w pgWitness) name() string    { return pq.QuoteLiteral(w.cfg.name) }
func (w pgWitness) channel() string { return pq.QuoteLiteral(leaseChannel(w.cfg.name)) }

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

// ask sends one statement, which is made once there is a connection.
func (w pgWitness) ask(ctx context.Context, query func() string) (row leaseRow, ok bool, err error) {
	if err := w.link.open(ctx); err != nil {
		return row, false, refusal{err} // nothing was sent
	}
	var ttl int64
	row.witness.system = w.link.system
	err = w.link.queryRow(ctx, query(), &ok, &row.epoch, &row.seq, &row.leaseID, &row.region, &ttl, &row.expired, &row.acquired, &row.expires, &row.witness.timeline)
	if err != nil {
		return leaseRow{}, false, err
	}
	row.ttl = time.Duration(ttl) * time.Millisecond
	return row, ok, nil
}

// leaseInsert makes the row of a lease that is new. Its epoch is of no timeline,
// so that the first candidate waits as after a failover, which may have lost the
// row; but in the first timeline there was none.
func (w pgWitness) leaseInsert() string {
	return fmt.Sprintf("INSERT INTO %s (name, epoch) SELECT %s, CASE t WHEN 1 THEN t<<%d ELSE 0 END FROM (SELECT %s) AS x(t) ON CONFLICT DO NOTHING",
		w.link.table, w.name(), timelineShift, leaseTimeline)
}

// refuse explains an answer of the server's to which there is more to say.
func refuse(err error, lease string) error {
	var e *pq.Error
	if !errors.As(err, &e) {
		return err
	}
	why := ""
	switch {
	case e.Code == "55P03":
		why = "transactions that the last primary guards (RequirePrimary) are still open"
	case e.Code == "42501":
		why = "the role needs SELECT, INSERT and UPDATE on the lease table"
	case e.Code == "25006":
		why = "the server or the session is read-only"
	case e.Code == "55000" && strings.Contains(e.Message, "recovery"):
		why = "the server is a standby"
	default:
		return err
	}
	return fmt.Errorf("baldur: lease %q: %s: %w", lease, why, err)
}
