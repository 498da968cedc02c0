package baldur_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// The cases that were found in use and by attack, each with the others of its kind.

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// logBuffer is a log that a test reads.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// within polls ok, for what gives no event, and tells whether it came in time.
func within(most time.Duration, ok func() bool) bool {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(most)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			return ok()
		}
	}
	return true
}

// soon fails the test unless ok comes within most.
func soon(t testing.TB, what string, most time.Duration, ok func() bool) {
	t.Helper()
	if !within(most, ok) {
		t.Fatalf("not within %v: %s", most, what)
	}
}

// plainPool opens a pool of lib/pq's, for what the test does itself.
func plainPool(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// withParams adds parameters, as name, value, to a DSN.
func withParams(t testing.TB, dsn string, pairs ...string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("the DSN is not a URL")
	}
	q := u.Query()
	for i := 0; i < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	return u.String()
}

var roleNumber atomic.Int64

// newRole makes a role that can log in and returns its name and DSN.
func newRole(t testing.TB, adm *sql.DB, dsn, name, attributes string) (role, as string) {
	t.Helper()
	role = fmt.Sprintf("t_%s_%d_%d", name, os.Getpid(), roleNumber.Add(1))
	mustExec(t, adm, "CREATE ROLE "+role+" LOGIN PASSWORD 'secret' "+attributes)
	t.Cleanup(func() {
		ctx := context.Background()
		_, _ = adm.ExecContext(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)
		if _, err := adm.ExecContext(ctx, "DROP OWNED BY "+role+" CASCADE"); err != nil {
			t.Error(err)
		}
		if _, err := adm.ExecContext(ctx, "DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("the DSN is not a URL")
	}
	if u.User != nil {
		u.User = url.UserPassword(role, "secret")
	} else {
		q := u.Query()
		q.Set("user", role)
		q.Set("password", "secret")
		u.RawQuery = q.Encode()
	}
	return role, u.String()
}

func scan[T any](t testing.TB, db *sql.DB, query string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRowContext(testCtx(t), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// onlyTable returns the lease table of a database, which has one, qualified.
func onlyTable(t testing.TB, db *sql.DB) string {
	t.Helper()
	tables, err := leaseTables(testCtx(t), db)
	if err != nil || len(tables) != 1 {
		t.Fatalf("lease tables %q, %v; want one", tables, err)
	}
	return tables[0]
}

func schemaOf(table string) string {
	schema, _, _ := strings.Cut(table, ".")
	return schema
}

// migrated makes the lease table, as a superuser.
func migrated(t testing.TB, dsn string) (table string) {
	t.Helper()
	if err := baldur.MigrateQuorum(testCtx(t), openPool(t, dsn)); err != nil {
		t.Fatal(err)
	}
	return onlyTable(t, plainPool(t, dsn))
}

// grantLease gives a role what it needs to use the lease table.
func grantLease(t testing.TB, adm *sql.DB, table, role string) {
	t.Helper()
	mustExec(t, adm, "GRANT USAGE ON SCHEMA "+schemaOf(table)+" TO "+role, "GRANT SELECT, INSERT, UPDATE ON "+table+" TO "+role)
}

// fenceTables are the fence tables of a database.
func fenceTables(t testing.TB, db *sql.DB) (names []string) {
	t.Helper()
	rows, err := db.QueryContext(testCtx(t), `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relname = 'baldur_fence' AND c.relkind IN ('r', 'p', 'v') AND c.relpersistence <> 't' ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// loseLinks has the server end the sessions of an application name, but those in
// spare, and waits until they are gone.
func loseLinks(t testing.TB, adm *sql.DB, app string, spare ...int64) {
	t.Helper()
	if n := scan[int](t, adm, `SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name LIKE $1 AND NOT pid = ANY (coalesce($2::int[], '{}'))`, app, pq.Array(spare)); n == 0 {
		t.Error("no connection was there to be lost")
	}
}

// leave leaves statements' effects on pooled connections of a pool and returns
// their backends.
func leave(t testing.TB, db *sql.DB, n int, statements ...string) (pids []int64) {
	t.Helper()
	ctx := testCtx(t)
	db.SetMaxIdleConns(n)
	for range n {
		c, err := db.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		var pid int64
		if err := c.QueryRowContext(ctx, "SELECT pg_catalog.pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
		for _, s := range statements {
			s, fails := strings.CutPrefix(s, "!")
			if _, err := c.ExecContext(ctx, s); err != nil && !fails {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
	return pids
}

// sampled watches quorums until the function that it returns, which fails the
// test if two of them were primary at once.
func sampled(t testing.TB, qs ...*baldur.PGQuorum) (end func()) {
	s := startSampler(qs...)
	return sync.OnceFunc(func() {
		t.Helper()
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
}

// sees waits until q's link is there and says whose the lease is.
func sees(t testing.TB, q *baldur.PGQuorum, region string) {
	t.Helper()
	var got string
	var ok bool
	var err error
	if !within(6*shortTTL, func() bool {
		got, ok, err = q.CurrentPrimary(testCtx(t))
		return ok && got == region
	}) {
		t.Fatalf("the primary that it sees: %q, %v, %v; want %q", got, ok, err, region)
	}
}

// TestCase1SearchPath: a search_path that a program has left on a pooled connection
// makes no second lease.
func TestCase1SearchPath(t *testing.T) {
	t.Parallel()
	for name, statements := range map[string][]string{
		"a tenant's":        {"SET search_path = tenant_42"},
		"empty":             {"SET search_path = ''"},
		"temporary":         {"SET search_path = pg_temp", "CREATE TEMP TABLE IF NOT EXISTS x (i int)"},
		"in a schema first": {"SET search_path = tenant_42, public"},
	} {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.SocketDSN(t)
			adm := plainPool(t, dsn)
			mustExec(t, adm, "CREATE SCHEMA tenant_42")
			dbB := openPool(t, withParams(t, dsn, "application_name", "lease b"))
			a := newQuorum(t, openPool(t, withParams(t, dsn, "application_name", "lease a")), "a", baldur.WithLeaseTTL(shortTTL))
			b := newQuorum(t, dbB, "b", baldur.WithLeaseTTL(shortTTL))
			takeOver(t, a)
			end := sampled(t, a, b)
			defer end()
			b.StartAutoRenew()
			sees(t, b, "a")
			for range 3 {
				dirty := leave(t, dbB, 1, statements...)
				loseLinks(t, adm, "lease %", dirty...)
				sees(t, b, "a")
				if b.IsPrimary() {
					t.Fatal("b is primary, too")
				}
			}
			end()
			onlyTable(t, adm)
			if _, err := guard(testCtx(t), b, dbB); err == nil {
				t.Error("b guards")
			}
			if _, err := guard(testCtx(t), a, adm); err != nil {
				t.Error("a guards not:", err)
			}
		})
	}
}

// TestCase1Roles: roles with schemas of their own make no two leases.
func TestCase1Roles(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.SocketDSN(t)
	adm := plainPool(t, dsn)
	var qs []*baldur.PGQuorum
	var roles []string
	for _, name := range []string{"app", "batch"} {
		role, as := newRole(t, adm, dsn, name, "")
		mustExec(t, adm, "CREATE SCHEMA "+role+" AUTHORIZATION "+role, "GRANT CREATE ON DATABASE "+scan[string](t, adm, "SELECT current_database()")+" TO "+role)
		qs, roles = append(qs, newQuorum(t, openPool(t, as), name, baldur.WithLeaseTTL(shortTTL))), append(roles, role)
	}
	end := sampled(t, qs...)
	defer end()
	for _, q := range qs {
		q.StartAutoRenew()
	}
	// Each has been primary, or been refused.
	soon(t, "an answer for both", 5*shortTTL, func() bool {
		return !slices.ContainsFunc(qs, func(q *baldur.PGQuorum) bool {
			s := q.Stats()
			return s.Elections == 0 && s.LastError == "" && s.Holder.State == ""
		})
	})
	// Then they are given a table.
	tables, err := leaseTables(ctx, adm)
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) > 1 {
		t.Fatalf("lease tables %q", tables)
	}
	if err := baldur.MigrateQuorum(ctx, openPool(t, dsn)); err != nil {
		t.Fatal(err)
	}
	for _, role := range roles {
		grantLease(t, adm, onlyTable(t, adm), role)
	}
	soon(t, "one is primary", 10*shortTTL, func() bool { return qs[0].IsPrimary() || qs[1].IsPrimary() })
	for _, role := range roles { // and after a loss of their connections
		mustExec(t, adm, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = "+pq.QuoteLiteral(role))
	}
	before := qs[0].Stats().Renewals + qs[1].Stats().Renewals
	soon(t, "renewals", 5*shortTTL, func() bool { return qs[0].Stats().Renewals+qs[1].Stats().Renewals >= before+4 })
	end()
	onlyTable(t, adm)
}

// TestCase1Encoding: a name is the same whatever client_encoding a session has.
func TestCase1Encoding(t *testing.T) {
	for _, encoding := range []string{"LATIN1", "SQL_ASCII", "WIN1252"} {
		t.Run(encoding, func(t *testing.T) {
			dsn := pgtest.SocketDSN(t)
			adm := plainPool(t, dsn)
			dbB := openPool(t, withParams(t, dsn, "application_name", "lease b"))
			opts := []baldur.QuorumOption{baldur.WithLeaseTTL(shortTTL), baldur.WithLeaseName("Zürich")}
			a := newQuorum(t, openPool(t, withParams(t, dsn, "application_name", "lease a")), "Genève", opts...)
			b := newQuorum(t, dbB, "Zürich", opts...)
			takeOver(t, a)
			end := sampled(t, a, b)
			defer end()
			b.StartAutoRenew()
			sees(t, b, "Genève")
			dirty := leave(t, dbB, 2, "SET client_encoding = '"+encoding+"'")
			loseLinks(t, adm, "lease %", dirty...)
			sees(t, b, "Genève")
			if b.IsPrimary() {
				t.Fatal("b is primary, too")
			}
			a.StopAutoRenew()
			if _, err := b.AwaitPrimary(testCtx(t)); err != nil {
				t.Fatal(err)
			}
			sees(t, a, "Zürich")
			end()
			if n := scan[int](t, adm, "SELECT count(*) FROM "+onlyTable(t, adm)); n != 1 {
				t.Errorf("%d rows", n)
			}
		})
	}
}

// TestCase1Seal: the fence is one for the database, whatever the session's path.
func TestCase1Seal(t *testing.T) {
	ctx := testCtx(t)
	old, next := stale(t, pgtest.SocketDSN(t))
	dataDSN := pgtest.SocketDSN(t)
	adm := plainPool(t, dataDSN)
	mustExec(t, adm, "CREATE SCHEMA tenant_42", "CREATE TABLE public.payload (epoch bigint)")
	tenant := openPool(t, dataDSN)
	tenant.SetMaxOpenConns(1)
	mustExec(t, tenant, "SET search_path = tenant_42")
	seal, err := old.SealEpoch(ctx, tenant)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := adm.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(ctx, "SET LOCAL search_path = tenant_42"); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.Require(ctx, tx); err != nil {
		t.Error("with a search_path of its own:", err)
	}
	_ = tx.Rollback()
	guarded, err := tenant.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = guarded.Rollback() }()
	if epoch, err := seal.Require(ctx, guarded); err != nil {
		t.Fatal(err)
	} else if _, err := guarded.ExecContext(ctx, "INSERT INTO public.payload VALUES ("+strconv.FormatInt(epoch, 10)+")"); err != nil {
		t.Fatal(err)
	}
	takeOver(t, next)
	var committed atomic.Bool
	sealed := make(chan error, 1)
	go func() {
		_, err := next.SealEpoch(ctx, openPool(t, dataDSN))
		if !committed.Load() {
			err = errors.Join(err, errors.New("the seal has not waited for the transaction of the epoch before"))
		}
		sealed <- err
	}()
	soon(t, "the seal waits", 5*shortTTL, func() bool {
		return len(sealed) > 0 || scan[bool](t, adm, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')")
	})
	committed.Store(true)
	if err := guarded.Commit(); err != nil {
		t.Error(err)
	}
	if err := <-sealed; err != nil {
		t.Error(err)
	}
	if tables := fenceTables(t, adm); len(tables) != 1 {
		t.Errorf("fence tables %q", tables)
	}
}

// TestCase2OpenTransaction: who is told that it is primary is so for others, too,
// whatever was left open on the pooled connections.
func TestCase2OpenTransaction(t *testing.T) {
	for name, statements := range map[string][]string{
		"BEGIN":        {"BEGIN"},
		"failed":       {"BEGIN", "!SELECT 1/0"},
		"old snapshot": {"BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1 FROM pg_class"},
		"read only":    {"BEGIN READ ONLY"},
		"savepoint":    {"BEGIN", "SAVEPOINT s"},
		"local":        {"BEGIN", "SET LOCAL search_path = ''"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const ttl = 4 * time.Second
			ctx := testCtx(t)
			dsn := pgtest.SocketDSN(t)
			adm := plainPool(t, dsn)
			dbB := openPool(t, withParams(t, dsn, "application_name", "lease b", "idle_in_transaction_session_timeout", "1000"))
			a := newQuorum(t, openPool(t, dsn), "a", baldur.WithLeaseTTL(ttl))
			b := newQuorum(t, dbB, "b", baldur.WithLeaseTTL(ttl))
			mustAcquire(t, b)
			if err := b.ReleaseLease(ctx); err != nil {
				t.Fatal(err)
			}
			dirty := leave(t, dbB, 2, statements...)
			loseLinks(t, adm, "lease b", dirty...)
			end := sampled(t, a, b)
			defer end()
			var ok bool
			var err error
			soon(t, "b is primary", 2*ttl, func() bool {
				ok, err = b.TryAcquirePrimary(ctx)
				return ok && err == nil
			})
			if n := scan[int](t, adm, "SELECT count(*) FROM "+onlyTable(t, adm)+" WHERE lease_id IS NOT NULL AND region = 'b'"); n != 1 {
				t.Error("b believes, and others do not see it")
			}
			if _, err := guard(ctx, b, adm); err != nil {
				t.Error("b cannot guard:", err)
			}
			a.StartAutoRenew()
			soon(t, "the server ends what is idle in a transaction", ttl, func() bool {
				return scan[bool](t, adm, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY ($1::int[]) AND state LIKE 'idle in transaction%')", pq.Array(dirty))
			})
			sees(t, a, "b")
			if a.IsPrimary() {
				t.Error("a is primary, too")
			}
		})
	}
}

// TestCase3Locked: whatever is locked, a candidate has no more than one request at
// the server, and none when it is closed.
func TestCase3Locked(t *testing.T) {
	const attempt = 200 * time.Millisecond
	for _, c := range []struct {
		name, lock string
		held       []bool // when it is locked, by one of the candidates
	}{
		{"access exclusive", "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", []bool{true, false}},
		{"exclusive", "LOCK TABLE {table} IN EXCLUSIVE MODE", []bool{true}},
		{"share", "LOCK TABLE {table} IN SHARE MODE", []bool{false}},
		{"row", "SELECT FROM {table} FOR UPDATE", []bool{true, false}},
		{"pg_description", "LOCK TABLE pg_catalog.pg_description IN ACCESS EXCLUSIVE MODE", []bool{false}},
		{"pg_trigger", "LOCK TABLE pg_catalog.pg_trigger, pg_catalog.pg_inherits, pg_catalog.pg_policy IN ACCESS EXCLUSIVE MODE", []bool{false}},
		{"a forgotten ALTER", "ALTER TABLE {table} ADD COLUMN forgotten integer", []bool{true, false}},
	} {
		for _, held := range c.held {
			t.Run(fmt.Sprintf("%s held=%v", c.name, held), func(t *testing.T) {
				t.Parallel()
				ctx := testCtx(t)
				dsn := pgtest.SocketDSN(t)
				table := migrated(t, dsn)
				adm := plainPool(t, dsn)
				var qs []*baldur.PGQuorum
				for i := range 3 {
					qs = append(qs, newQuorum(t, openPool(t, withParams(t, dsn, "application_name", fmt.Sprint("candidate ", i))), fmt.Sprint(i),
						baldur.WithLeaseTTL(shortTTL), baldur.WithAttemptTimeout(attempt)))
				}
				// The row is there.
				mustAcquire(t, qs[0])
				if held {
					for _, q := range qs {
						q.StartAutoRenew()
					}
					sees(t, qs[1], "0")
					sees(t, qs[2], "0")
				} else if err := qs[0].ReleaseLease(ctx); err != nil {
					t.Log("it ends after its TTL:", err)
				}
				end := sampled(t, qs...)
				defer end()
				tx, err := adm.BeginTx(ctx, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = tx.Rollback() }()
				if _, err := tx.ExecContext(ctx, strings.ReplaceAll(c.lock, "{table}", table)); err != nil {
					t.Fatal(err)
				}
				for _, q := range qs {
					q.StartAutoRenew()
				}
				// More than one of a candidate, for longer than what is cut and sent anew overlaps.
				var since time.Time
				within(3*shortTTL, func() bool {
					most := scan[int](t, adm, `SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM pg_stat_activity
						WHERE datname = current_database() AND application_name LIKE 'candidate %' AND wait_event_type = 'Lock' GROUP BY application_name) x`)
					switch {
					case most > 2:
						t.Errorf("%d requests of one candidate wait", most)
					case most < 2:
						since = time.Time{}
					case since.IsZero():
						since = time.Now()
					case time.Since(since) > attempt:
						t.Error("two requests of one candidate wait")
						since = time.Time{}
					}
					return t.Failed()
				})
				for _, q := range qs {
					q.StopAutoRenew()
				}
				soon(t, "nothing is left on the server", attempt+time.Second, func() bool {
					return scan[int](t, adm, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'candidate %' AND state = 'active'") == 0
				})
				_ = tx.Rollback()
				for _, q := range qs {
					q.StartAutoRenew()
				}
				soon(t, "a primary when the lock is gone", 4*shortTTL, func() bool { return slices.ContainsFunc(qs, (*baldur.PGQuorum).IsPrimary) })
			})
		}
	}
}

// TestCase4OldSnapshot: what an old snapshot does not show is no loss.
func TestCase4OldSnapshot(t *testing.T) {
	for name, fence := range fences {
		for _, level := range isolations[1:] {
			t.Run(fmt.Sprint(name, " ", level), func(t *testing.T) {
				ctx := testCtx(t)
				dsn := pgtest.SocketDSN(t)
				db := openPool(t, dsn)
				mustExec(t, db, "CREATE TABLE payload (epoch bigint)")
				migrated(t, dsn)
				q := newQuorum(t, db, "a")
				other := newQuorum(t, openPool(t, dsn), "b")
				begin := func() *sql.Tx {
					tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: level})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = tx.Rollback() })
					if _, err := tx.ExecContext(ctx, "SELECT count(*) FROM pg_class"); err != nil {
						t.Fatal(err)
					}
					return tx
				}
				// Snapshots of before the row is there, of when it was another's, and of an own earlier hold.
				early := []*sql.Tx{begin()}
				mustAcquire(t, other)
				early = append(early, begin())
				if err := other.ReleaseLease(ctx); err != nil {
					t.Fatal(err)
				}
				early = append(early, begin())
				mustAcquire(t, q)
				if err := q.ReleaseLease(ctx); err != nil {
					t.Fatal(err)
				}
				early = append(early, begin())
				mustAcquire(t, q)
				for i, tx := range early {
					var e *pq.Error
					if err := fence(ctx, q, tx); err == nil || !errors.Is(err, baldur.ErrFenced) && !(errors.As(err, &e) && e.Code == "40001") {
						t.Errorf("snapshot %d: %v", i, err)
					}
					if !q.IsPrimary() {
						t.Fatalf("snapshot %d has cost the lease", i)
					}
				}
				s := q.Stats()
				for reason, n := range s.Losses {
					if n > 0 && reason != baldur.LossReleased {
						t.Errorf("%d losses: %s", n, reason)
					}
				}
				if err := fence(ctx, q, begin()); err != nil {
					t.Error("a snapshot of now:", err)
				}
			})
		}
	}
}

// subFences are the ways to guard a transaction that a savepoint could undo.
func subFences(t *testing.T, q *baldur.PGQuorum, db *sql.DB) map[string]func(context.Context, *sql.Tx) error {
	seal, err := q.SealEpoch(testCtx(t), db)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]func(context.Context, *sql.Tx) error{
		"Seal.Require": func(ctx context.Context, tx *sql.Tx) error { _, err := seal.Require(ctx, tx); return err },
	}
	for name, fence := range fences {
		all[name] = func(ctx context.Context, tx *sql.Tx) error { return fence(ctx, q, tx) }
	}
	return all
}

var saysSavepoint = regexp.MustCompile(`(?i)savepoint|subtransaction`)

// TestCase5Savepoint: a guard that a savepoint could undo is refused.
func TestCase5Savepoint(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.SocketDSN(t)
	db := openPool(t, dsn)
	mustExec(t, db, "CREATE TABLE payload (epoch bigint)")
	q := newQuorum(t, db, "a")
	mustAcquire(t, q)
	for name, fence := range subFences(t, q, db) {
		for _, level := range isolations {
			for _, others := range []int{0, 1, 3} { // other guarded transactions beside: multixacts
				t.Run(fmt.Sprint(name, " ", level, " beside ", others), func(t *testing.T) {
					begin := func() *sql.Tx {
						tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: level})
						if err != nil {
							t.Fatal(err)
						}
						t.Cleanup(func() { _ = tx.Rollback() })
						return tx
					}
					for i := range others {
						tx := begin()
						if i == 2 { // one that has subtransactions behind it
							mustTx(t, tx, "SAVEPOINT o", "INSERT INTO payload VALUES (0)", "RELEASE o")
						}
						if err := fence(ctx, tx); err != nil {
							t.Fatal("beside:", err)
						}
					}
					for _, c := range []struct {
						name    string
						before  []string
						refused bool
					}{
						{"plain", nil, false},
						{"within", []string{"SAVEPOINT s"}, true},
						{"within, after work", []string{"INSERT INTO payload VALUES (1)", "SAVEPOINT s", "INSERT INTO payload VALUES (2)"}, true},
						{"two deep", []string{"SAVEPOINT s", "SAVEPOINT t"}, true},
						{"one of two released", []string{"SAVEPOINT s", "SAVEPOINT t", "RELEASE t"}, true},
						{"rolled back to", []string{"SAVEPOINT s", "INSERT INTO payload VALUES (1)", "ROLLBACK TO s"}, true},
						{"released", []string{"SAVEPOINT s", "INSERT INTO payload VALUES (1)", "RELEASE s"}, false},
						{"rolled back to and released", []string{"SAVEPOINT s", "INSERT INTO payload VALUES (1)", "ROLLBACK TO s", "RELEASE s"}, false},
						{"rolled back to after an error", []string{"SAVEPOINT s", "!SELECT 1/0", "ROLLBACK TO s", "RELEASE s"}, false},
						{"after work at the top", []string{"INSERT INTO payload VALUES (1)"}, false},
					} {
						tx := begin()
						mustTx(t, tx, c.before...)
						err := fence(ctx, tx)
						if c.refused && (err == nil || !saysSavepoint.MatchString(err.Error())) {
							t.Errorf("%s: %v; want a refusal that names the savepoint", c.name, err)
						} else if !c.refused && err != nil {
							t.Errorf("%s: %v", c.name, err)
						}
						if c.refused { // and once it is undone the transaction can be guarded
							mustTx(t, tx, "ROLLBACK TO s", "RELEASE s")
							if err := fence(ctx, tx); err != nil {
								t.Errorf("%s, undone: %v", c.name, err)
							} else if err := tx.Commit(); err != nil {
								t.Errorf("%s, undone: %v", c.name, err)
							}
						}
						_ = tx.Rollback()
						if !q.IsPrimary() {
							t.Fatalf("%s has cost the lease", c.name)
						}
					}
				})
			}
		}
	}
}

// mustTx executes statements; those that begin with ! fail.
func mustTx(t testing.TB, tx *sql.Tx, statements ...string) {
	t.Helper()
	for _, s := range statements {
		s, fails := strings.CutPrefix(s, "!")
		if _, err := tx.Exec(s); (err != nil) != fails {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// TestCase12Comment: the table's comment is people's.
func TestCase12Comment(t *testing.T) {
	t.Parallel()
	for _, comment := range []string{"'owner: team payments'", "NULL", "''", "'baldur quorum'", "'baldur quorum, version'", "E'baldur quorum, version x\\n'"} {
		t.Run(comment, func(t *testing.T) {
			ctx := testCtx(t)
			dsn := pgtest.SocketDSN(t)
			table := migrated(t, dsn)
			adm := plainPool(t, dsn)
			role, as := newRole(t, adm, dsn, "app", "") // which may not migrate
			grantLease(t, adm, table, role)
			q := newQuorum(t, openPool(t, withParams(t, as, "application_name", "lease a")), "a", baldur.WithLeaseTTL(shortTTL))
			takeOver(t, q)
			mustExec(t, adm, "COMMENT ON TABLE "+table+" IS "+comment)
			loseLinks(t, adm, "lease a")
			before := q.Stats()
			if !within(5*shortTTL, func() bool {
				s := q.Stats()
				return s.IsPrimary && s.Renewals+s.Elections > before.Renewals+before.Elections+2
			}) {
				t.Error("no primary:", q.Stats().LastError)
			}
			mustExec(t, adm, "COMMENT ON TABLE "+table+" IS "+comment)
			if err := baldur.MigrateQuorum(ctx, openPool(t, dsn)); err != nil {
				t.Error("MigrateQuorum:", err)
			}
			onlyTable(t, adm)
		})
	}
}

// TestCase12Rights: what is missing is named, and what is not missing is not.
func TestCase12Rights(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		revoke []string // {table}, {schema}, {role}
		want   string
		not    []string
	}{
		{"SELECT", []string{"REVOKE SELECT ON {table} FROM {role}"}, "SELECT", []string{"INSERT", "UPDATE", "USAGE", "EXECUTE", "pg_control_system"}},
		{"INSERT", []string{"REVOKE INSERT ON {table} FROM {role}"}, "INSERT", []string{"SELECT", "UPDATE", "USAGE", "EXECUTE", "pg_control_system"}},
		{"UPDATE", []string{"REVOKE UPDATE ON {table} FROM {role}"}, "UPDATE", []string{"SELECT", "INSERT", "USAGE", "EXECUTE", "pg_control_system"}},
		{"UPDATE of some columns", []string{"REVOKE UPDATE ON {table} FROM {role}", "GRANT UPDATE (epoch, region) ON {table} TO {role}"}, "UPDATE", []string{"INSERT", "USAGE", "EXECUTE"}},
		{"USAGE", []string{"REVOKE USAGE ON SCHEMA {schema} FROM {role}", "REVOKE USAGE ON SCHEMA {schema} FROM PUBLIC"}, "USAGE", []string{"INSERT", "UPDATE", "EXECUTE"}},
		{"EXECUTE", []string{"REVOKE EXECUTE ON FUNCTION pg_catalog.pg_control_system() FROM PUBLIC"}, "pg_control_system", []string{"SELECT", "INSERT", "UPDATE"}},
		{"row security", []string{"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"}, "row", []string{"SELECT", "INSERT", "UPDATE", "EXECUTE", "pg_control_system"}},
		{"row security with a policy", []string{"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY", "CREATE POLICY p ON {table} USING (true)"}, "row", []string{"SELECT", "INSERT", "UPDATE", "EXECUTE"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dsn := pgtest.SocketDSN(t)
			table := migrated(t, dsn)
			adm := plainPool(t, dsn)
			role, as := newRole(t, adm, dsn, "app", "")
			grantLease(t, adm, table, role)
			for _, s := range c.revoke {
				mustExec(t, adm, strings.NewReplacer("{table}", table, "{schema}", schemaOf(table), "{role}", role).Replace(s))
			}
			ok, err := newQuorum(t, openPool(t, as), "a", baldur.WithLeaseTTL(shortTTL)).TryAcquirePrimary(testCtx(t))
			if ok || err == nil {
				t.Fatal(ok, err)
			}
			if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.want)) {
				t.Errorf("%v; want it to name %s", err, c.want)
			}
			for _, not := range c.not {
				if strings.Contains(err.Error(), not) {
					t.Errorf("%v; it names %s, which is not missing", err, not)
				}
			}
			if tables, err := leaseTables(testCtx(t), adm); len(tables) != 1 || err != nil {
				t.Errorf("lease tables %q, %v", tables, err)
			}
		})
	}
}

// TestReadOnlyDefaults: a default of the role's, the database's, the DSN's or the
// session's does not hinder the lease; the server's own does.
func TestReadOnlyDefaults(t *testing.T) {
	const set = " SET default_transaction_read_only = on"
	for _, c := range []string{"role", "database", "DSN", "options", "session"} {
		t.Run(c, func(t *testing.T) {
			ctx := testCtx(t)
			dsn := pgtest.SocketDSN(t)
			table := migrated(t, dsn)
			adm := plainPool(t, dsn)
			role, as := newRole(t, adm, dsn, "app", "")
			grantLease(t, adm, table, role)
			switch c {
			case "role":
				mustExec(t, adm, "ALTER ROLE "+role+set)
			case "database":
				mustExec(t, adm, "ALTER DATABASE "+scan[string](t, adm, "SELECT current_database()")+set)
			case "DSN":
				as = withParams(t, as, "default_transaction_read_only", "on")
			case "options":
				as = withParams(t, as, "options", "-c default_transaction_read_only=on")
			}
			db := openPool(t, as)
			if c == "session" {
				leave(t, db, 2, "SET default_transaction_read_only = on")
			}
			q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
			mustAcquire(t, q)
			if ok, err := q.RenewLease(ctx); !ok || err != nil {
				t.Error(ok, err)
			}
			if err := q.ReleaseLease(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("server", func(t *testing.T) {
		server := pgtest.Server(t, "default_transaction_read_only=on")
		q := newQuorum(t, openPool(t, server.SocketDSN("postgres")), "a", baldur.WithLeaseTTL(shortTTL))
		if ok, err := q.TryAcquirePrimary(testCtx(t)); ok || err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Error(ok, err)
		}
	})
}

// TestCase16ReadOnlyServer: a server that has become read-only is left, and the
// one that took its place is found.
func TestCase16ReadOnlyServer(t *testing.T) {
	ctx := testCtx(t)
	first := pgtest.Server(t, "wal_level=replica", "max_wal_senders=4")
	second, err := first.Standby(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = second.Stop() })
	proxy, err := faultproxy.New(first.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	adm := plainPool(t, first.SocketDSN("postgres"))
	byProxy := newQuorum(t, openPool(t, first.DSNAt(proxy.Addr(), "postgres")), "proxy", baldur.WithLeaseTTL(shortTTL), baldur.WithLeaseName("proxy"))
	cfg, err := pq.NewConfig(first.DSN("postgres"))
	if err != nil {
		t.Fatal("the server's DSN is not valid")
	}
	hosts := fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%s,%s user=%s password=%s dbname=postgres sslmode=disable target_session_attrs=read-write",
		portOf(first.Addr()), portOf(second.Addr()), cfg.User, cfg.Password)
	byHosts := newQuorum(t, openPool(t, hosts), "hosts", baldur.WithLeaseTTL(shortTTL), baldur.WithLeaseName("hosts"))
	takeOver(t, byProxy)
	takeOver(t, byHosts)
	soon(t, "the standby has the rows", 10*time.Second, func() bool {
		return scan[bool](t, adm, "SELECT count(*) > 0 AND bool_and(replay_lsn >= pg_current_wal_flush_lsn()) FROM pg_stat_replication") || t.Failed()
	})
	before, refused := proxy.Stats().Accepted, byProxy.Stats().Refused
	mustExec(t, adm, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
	soon(t, "the link is dialled anew", 2*shortTTL, func() bool { return proxy.Stats().Accepted > before })
	if n := byProxy.Stats().Refused - refused; n > 2 {
		t.Errorf("dialled anew after %d refusals", n)
	}
	if err := second.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	proxy.Retarget(second.Addr())
	table := onlyTable(t, adm)
	newAdm := plainPool(t, second.SocketDSN("postgres"))
	for _, q := range []*baldur.PGQuorum{byProxy, byHosts} {
		region := q.Stats().Region
		if !within(8*shortTTL, func() bool {
			return q.IsPrimary() && scan[bool](t, newAdm, "SELECT EXISTS (SELECT FROM "+table+" WHERE region = $1 AND lease_id IS NOT NULL)", region)
		}) {
			t.Errorf("%s has not found the other server: %s", region, q.Stats().LastError)
		}
	}
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// TestCase17SealAhead: an epoch that is behind what was sealed is given up, and
// the lease taken again with a higher one.
func TestCase17SealAhead(t *testing.T) {
	for name, ahead := range map[string]string{
		"by one":      "epoch + 1",
		"by a lot":    "epoch + 100000",
		"a timeline":  "epoch + (1::bigint << 32)",
		"the largest": "9223372036854775807", // which nobody can exceed
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testCtx(t)
			dsn := pgtest.SocketDSN(t)
			db := openPool(t, dsn)
			q := newQuorum(t, db, "a", baldur.WithLeaseTTL(shortTTL))
			takeOver(t, q)
			if _, err := q.SealEpoch(ctx, db); err != nil {
				t.Fatal(err)
			}
			first, _ := q.Lease()
			end := sampled(t, q)
			defer end()
			mustExec(t, db, "UPDATE "+fenceTables(t, db)[0]+" SET epoch = "+ahead)
			if _, err := q.SealEpoch(ctx, db); err == nil {
				t.Fatal("sealed what is behind")
			} else if name != "the largest" && !errors.Is(err, baldur.ErrFenced) {
				t.Error(err)
			}
			if name == "the largest" {
				soon(t, "it stays, or becomes again, primary", 5*shortTTL, func() bool {
					l, ok := q.Lease()
					return ok && l.Epoch >= first.Epoch
				})
				return
			}
			var err error
			if !within(2*shortTTL, func() bool {
				_, err = q.SealEpoch(ctx, db)
				return err == nil
			}) {
				l, _ := q.Lease()
				t.Errorf("after two TTLs: %v; it has epoch %d", err, l.Epoch)
			}
			if l, ok := q.Lease(); !ok || l.Epoch <= first.Epoch {
				t.Errorf("epoch %d after %d", l.Epoch, first.Epoch)
			}
		})
	}
}

// TestHostileSearchPath: nothing that lies in the session's path is called: neither
// copies of what pg_catalog has, where the path names it later, nor better matches.
func TestHostileSearchPath(t *testing.T) {
	t.Parallel()
	ctx := testCtx(t)
	dsn := pgtest.SocketDSN(t)
	adm := plainPool(t, dsn)
	mustExec(t, adm, "CREATE TABLE public.payload (epoch bigint)", "CREATE SCHEMA trap", "CREATE TYPE trap.text AS (x int)", "CREATE TYPE trap.regclass AS (x int)",
		copyTraps, betterTraps("public"))
	adm = plainPool(t, withParams(t, dsn, "search_path", "pg_catalog")) // which steps on none itself
	if n := scan[int](t, adm, "SELECT count(*) FROM pg_proc WHERE pronamespace IN ('trap'::regnamespace, 'public'::regnamespace)"); n < 3000 {
		t.Fatalf("%d traps are few", n)
	}
	for _, path := range []string{"public", "trap, pg_catalog", "trap, pg_catalog, public"} {
		t.Run(path, func(t *testing.T) {
			name := baldur.WithLeaseName(path)
			trapped := withParams(t, dsn, "search_path", path)
			db := openPool(t, trapped)
			step := func(what string, err error) {
				t.Helper()
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			step("MigrateQuorum", baldur.MigrateQuorum(ctx, db))
			old := newQuorum(t, db, "old", name, baldur.WithLeaseTTL(shortTTL), baldur.WithQuorumClock(frozenClock))
			next := newQuorum(t, openPool(t, trapped), "next", name, baldur.WithLeaseTTL(shortTTL), baldur.WithFenceKill(50*time.Millisecond))
			ok, err := old.TryAcquirePrimary(ctx)
			step("TryAcquirePrimary", err)
			if !ok {
				return
			}
			_, err = old.RenewLease(ctx)
			step("RenewLease", err)
			if left := scan[float64](t, adm, "SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM "+onlyTable(t, adm)+" WHERE name = $1", path); left > 1 {
				t.Errorf("the lease lasts %v s", left)
			}
			ok, err = old.IsPrimaryVerified(ctx)
			step(fmt.Sprint("IsPrimaryVerified ", ok), err)
			_, _, err = next.CurrentPrimary(ctx)
			step("CurrentPrimary", err)
			seal, err := old.SealEpoch(ctx, db)
			step("SealEpoch", err)
			in := func(what string, f func(*sql.Tx) error) {
				t.Helper()
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = tx.Rollback() }()
				step(what, f(tx))
			}
			in("RequirePrimary", func(tx *sql.Tx) error { _, err := old.RequirePrimary(ctx, tx); return err })
			in("FenceCTE", func(tx *sql.Tx) error {
				cte, err := old.FenceCTE()
				if err == nil {
					_, err = tx.ExecContext(ctx, "WITH "+cte+" INSERT INTO public.payload (epoch) SELECT epoch FROM baldur_fence")
				}
				return err
			})
			if seal != nil {
				in("Require", func(tx *sql.Tx) error { _, err := seal.Require(ctx, tx); return err })
			}
			// A takeover that has to end a session.
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			if _, err := old.RequirePrimary(ctx, tx); err == nil {
				next.StartAutoRenew()
				if !within(8*shortTTL, next.IsPrimary) {
					t.Error("no takeover:", next.Stats().LastError)
				}
			}
			step("ReleaseLease", next.ReleaseLease(ctx))
		})
	}
}

// A wreck is what somebody may have made of a table of baldur's.
type wreck struct {
	name string
	sql  []string // {table}, {schema}, {evil}, and the functions evil makes
	want string   // what the refusal says

	// mended: it is nobody's, and baldur may put it right instead.
	mended bool
}

// evilFunctions are those of role evil. Each notes that it has run.
func evilFunctions(t testing.TB, adm *sql.DB, evil string) {
	t.Helper()
	mustExec(t, adm, "CREATE SCHEMA e AUTHORIZATION "+evil, "GRANT USAGE ON SCHEMA e TO PUBLIC", "CREATE SEQUENCE public.ran", "GRANT USAGE ON SEQUENCE public.ran TO PUBLIC",
		"CREATE FUNCTION e.trig() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.ran'); RETURN NEW; END $$",
		"CREATE FUNCTION e.int() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.ran'); RETURN 0; END $$",
		"CREATE FUNCTION e.ok(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM nextval('public.ran'); RETURN true; END $$",
		"CREATE FUNCTION e.eq(text, text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM nextval('public.ran'); RETURN true; END $$",
		"CREATE OPERATOR e.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = e.eq)",
		"CREATE DOMAIN e.dom AS text CHECK (e.ok(VALUE))")
	for _, s := range []string{"FUNCTION e.trig()", "FUNCTION e.int()", "FUNCTION e.ok(text)", "FUNCTION e.eq(text, text)", "OPERATOR e.=== (text, text)", "DOMAIN e.dom"} {
		mustExec(t, adm, "ALTER "+s+" OWNER TO "+evil)
	}
}

// wrecks are of a table with a column of text and one of numbers.
func wrecks(text, number string) []wreck {
	return []wreck{
		{"foreign owner", []string{"ALTER TABLE {table} OWNER TO {evil}"}, "own", false},
		{"before trigger", []string{"CREATE TRIGGER x BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION e.trig()"}, "trigger", false},
		{"after trigger", []string{"CREATE TRIGGER x AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION e.trig()"}, "trigger", false},
		{"constraint trigger", []string{"CREATE CONSTRAINT TRIGGER x AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION e.trig()"}, "trigger", false},
		{"trigger always", []string{"CREATE TRIGGER x BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION e.trig()", "ALTER TABLE {table} ENABLE ALWAYS TRIGGER x"}, "trigger", false},
		{"rule", []string{"CREATE RULE x AS ON UPDATE TO {table} DO ALSO SELECT e.int()"}, "rule", false},
		{"rule instead", []string{"CREATE RULE x AS ON INSERT TO {table} DO INSTEAD NOTHING"}, "rule", false},
		{"row security", []string{"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY", "CREATE POLICY p ON {table} USING (e.ok(name))"}, "row", false},
		{"forced row security", []string{"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY", "CREATE POLICY p ON {table} USING (true)"}, "row", false},
		{"child", []string{"CREATE TABLE e.child () INHERITS ({table})", "ALTER TABLE e.child OWNER TO {evil}"}, "inherit", false},
		{"parent", []string{"CREATE TABLE e.parent (LIKE {table})", "ALTER TABLE e.parent OWNER TO {evil}", "ALTER TABLE {table} INHERIT e.parent"}, "inherit", false},
		{"default", []string{"ALTER TABLE {table} ALTER COLUMN " + number + " SET DEFAULT e.int()"}, "default|function", false},
		{"generated column", []string{"ALTER TABLE {table} ADD COLUMN g boolean GENERATED ALWAYS AS (e.ok(name)) STORED"}, "generated|default|function", false},
		{"check", []string{"ALTER TABLE {table} ADD CHECK (e.ok(name))"}, "check|function", false},
		{"check by an operator", []string{"ALTER TABLE {table} ADD CHECK (name OPERATOR(e.===) 'x')"}, "check|function|operator", false},
		{"expression index", []string{"CREATE INDEX ON {table} (e.ok(name))"}, "index|function", false},
		{"partial index", []string{"CREATE INDEX ON {table} (name) WHERE e.ok(name)"}, "index|function", false},
		{"domain", []string{"ALTER TABLE {table} ALTER COLUMN " + text + " TYPE e.dom"}, "domain|type|function", false},
		{"type of a column", []string{"ALTER TABLE {table} ALTER COLUMN epoch TYPE numeric"}, "", false},
		{"partitioned", []string{"ALTER TABLE {table} RENAME TO was", "CREATE TABLE {table} (LIKE {schema}.was INCLUDING ALL) PARTITION BY LIST (name)",
			"CREATE TABLE e.part PARTITION OF {table} DEFAULT", "GRANT SELECT, INSERT, UPDATE ON {table} TO PUBLIC", "DROP TABLE {schema}.was"}, "partition", false},
		{"view", []string{"ALTER TABLE {table} RENAME TO was", "ALTER TABLE {schema}.was SET SCHEMA e", "CREATE VIEW {table} AS SELECT * FROM e.was", "GRANT SELECT, INSERT, UPDATE ON {table} TO PUBLIC"}, "view", false},
		{"unlogged", []string{"ALTER TABLE {table} SET UNLOGGED"}, "UNLOGGED", true},
		{"no fence index", []string{"DROP INDEX {table}_fence"}, "index", true},
		{"fence index that is not unique", []string{"DROP INDEX {table}_fence", "CREATE INDEX {name}_fence ON {table} (name, epoch)"}, "index", true},
		{"fence index of some rows", []string{"DROP INDEX {table}_fence", "CREATE UNIQUE INDEX {name}_fence ON {table} (name, epoch) WHERE epoch > 0"}, "index", true},
		{"fence index without the epoch", []string{"DROP INDEX {table}_fence", "CREATE UNIQUE INDEX {name}_fence ON {table} (name) INCLUDE (epoch)"}, "index", true},
		{"no primary key", []string{"ALTER TABLE {table} DROP CONSTRAINT {name}_pkey"}, "key|unique|index", true},
	}
}

func (w wreck) wreck(t testing.TB, adm *sql.DB, table, evil string) {
	t.Helper()
	_, name, _ := strings.Cut(table, ".")
	for _, s := range w.sql {
		mustExec(t, adm, strings.NewReplacer("{table}", table, "{schema}", schemaOf(table), "{name}", name, "{evil}", evil).Replace(s))
	}
}

// whole tells whether a table is such that its fence holds.
func whole(t testing.TB, adm *sql.DB, table string) bool {
	return scan[bool](t, adm, `SELECT c.relpersistence = 'p' AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
			AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = 2
			AND (SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute WHERE attrelid = c.oid AND attnum = ANY (i.indkey::int2[])) = '{epoch,name}')
			AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
				AND i.indnkeyatts = 1 AND i.indkey[0] = (SELECT attnum FROM pg_attribute WHERE attrelid = c.oid AND attname = 'name'))
		FROM pg_class c WHERE c.oid = $1::regclass`, table)
}

// refusedFor checks a refusal, and that no code of evil's has run.
func (w wreck) refusedFor(t testing.TB, adm *sql.DB, table, what string, err error) {
	t.Helper()
	if err == nil && w.mended && whole(t, adm, table) {
		return
	}
	if err == nil || !regexp.MustCompile("(?i)"+w.want).MatchString(err.Error()) {
		t.Errorf("%s: %v; want a refusal for %q", what, err, w.want)
	}
	if scan[bool](t, adm, "SELECT is_called FROM public.ran") {
		t.Errorf("%s: the other role's code has run", what)
		mustExec(t, adm, "SELECT setval('public.ran', 1, false)")
	}
}

// TestForeignLeaseTable: a lease table that is not the application's, or that has
// code in it, is refused by name, at every connect and by MigrateQuorum.
func TestForeignLeaseTable(t *testing.T) {
	t.Parallel()
	for _, w := range wrecks("region", "ttl_ms") {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			ctx := testCtx(t)
			dsn := pgtest.SocketDSN(t)
			table := migrated(t, dsn)
			adm := plainPool(t, dsn)
			role, as := newRole(t, adm, dsn, "app", "")
			evil, _ := newRole(t, adm, dsn, "evil", "")
			evilFunctions(t, adm, evil)
			grantLease(t, adm, table, role)
			q := newQuorum(t, openPool(t, withParams(t, as, "application_name", "lease a")), "a", baldur.WithLeaseTTL(10*shortTTL))
			mustAcquire(t, q)
			if err := q.ReleaseLease(ctx); err != nil {
				t.Fatal(err)
			}
			w.wreck(t, adm, table, evil)
			mustExec(t, adm, "SELECT setval('public.ran', 1, false)") // what was there is checked by the ALTER
			fresh := newQuorum(t, openPool(t, as), "b", baldur.WithLeaseTTL(10*shortTTL), baldur.WithLeaseName("another row"))
			ok, err := fresh.TryAcquirePrimary(ctx)
			w.refusedFor(t, adm, table, "TryAcquirePrimary", err)
			if (ok || fresh.IsPrimary()) && !(w.mended && whole(t, adm, table)) {
				t.Error("primary by a table like that")
			}
			loseLinks(t, adm, "lease a")
			for range 3 { // the first may only notice the loss
				if ok, err = q.TryAcquirePrimary(ctx); ok {
					break
				}
			}
			w.refusedFor(t, adm, table, "TryAcquirePrimary after a loss", err)
			if ok && !(w.mended && whole(t, adm, table)) {
				t.Error("primary again by a table like that")
			}
			w.refusedFor(t, adm, table, "MigrateQuorum", baldur.MigrateQuorum(ctx, openPool(t, as)))
			w.refusedFor(t, adm, table, "MigrateQuorum by a superuser", baldur.MigrateQuorum(ctx, openPool(t, dsn)))
		})
	}
}

// TestForeignFenceTable is the same of the fence's.
func TestForeignFenceTable(t *testing.T) {
	t.Parallel()
	for _, w := range wrecks("name", "epoch") {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			ctx := testCtx(t)
			q := newQuorum(t, openPool(t, pgtest.SocketDSN(t)), "a")
			mustAcquire(t, q)
			dsn := pgtest.SocketDSN(t)
			adm := plainPool(t, dsn)
			if _, err := q.SealEpoch(ctx, openPool(t, dsn)); err != nil {
				t.Fatal(err)
			}
			table := fenceTables(t, adm)[0]
			role, as := newRole(t, adm, dsn, "app", "")
			evil, _ := newRole(t, adm, dsn, "evil", "")
			evilFunctions(t, adm, evil)
			grantLease(t, adm, table, role)
			data := openPool(t, as)
			if _, err := q.SealEpoch(ctx, data); err != nil {
				t.Fatal(err)
			}
			w.wreck(t, adm, table, evil)
			mustExec(t, adm, "SELECT setval('public.ran', 1, false)")
			_, err := q.SealEpoch(ctx, data)
			w.refusedFor(t, adm, table, "SealEpoch", err)
			_, err = q.SealEpoch(ctx, openPool(t, dsn))
			w.refusedFor(t, adm, table, "SealEpoch by a superuser", err)
		})
	}
}

// TestForeignFenceMadeBefore: a fence table that another role has made in time.
func TestForeignFenceMadeBefore(t *testing.T) {
	ctx := testCtx(t)
	q := newQuorum(t, openPool(t, pgtest.SocketDSN(t)), "a")
	mustAcquire(t, q)
	dsn := pgtest.SocketDSN(t)
	adm := plainPool(t, dsn)
	evil, asEvil := newRole(t, adm, dsn, "evil", "")
	mustExec(t, adm, "GRANT CREATE ON SCHEMA public TO "+evil)
	mustExec(t, plainPool(t, asEvil), "CREATE TABLE public.baldur_fence (name text PRIMARY KEY, epoch bigint NOT NULL)",
		"CREATE UNIQUE INDEX baldur_fence_fence ON public.baldur_fence (name, epoch)", "GRANT ALL ON public.baldur_fence TO PUBLIC")
	if _, err := q.SealEpoch(ctx, openPool(t, dsn)); err == nil && len(fenceTables(t, adm)) == 1 {
		t.Error("sealed in a table that another role owns")
	}
}

// TestLeaseOwners: whose table is accepted.
func TestLeaseOwners(t *testing.T) {
	t.Parallel()
	for owner, accepted := range map[string]bool{
		"the role":                                 true,
		"a group of the role's":                    true,
		"a group of a group":                       true,
		"the database's owner":                     true,
		"a superuser":                              true,
		"a member of the role":                     false,
		"another":                                  false,
		"another with CREATEDB":                    false,
		"a superuser's member":                     false,
		"a schema's owner":                         false,
		"a group without SET":                      true, // NOINHERIT
		"who may log in no more":                   false,
		"a group that was granted by its admin":    false, // without asking anyone
		"a group of a group, granted by its admin": false,
		"a group that the database's owner grants": true,
	} {
		t.Run(owner, func(t *testing.T) {
			dsn := pgtest.SocketDSN(t)
			table := migrated(t, dsn)
			adm := plainPool(t, dsn)
			name := scan[string](t, adm, "SELECT current_database()")
			attributes := ""
			if owner == "a group without SET" {
				attributes = "NOINHERIT"
			}
			role, as := newRole(t, adm, dsn, "app", attributes)
			other, _ := newRole(t, adm, dsn, "other", "")
			switch owner {
			case "the role":
				other = role
			case "a group of the role's", "a group without SET":
				mustExec(t, adm, "GRANT "+other+" TO "+role)
			case "a group of a group":
				between, _ := newRole(t, adm, dsn, "between", "")
				mustExec(t, adm, "GRANT "+other+" TO "+between, "GRANT "+between+" TO "+role)
			case "a group that was granted by its admin", "a group of a group, granted by its admin", "a group that the database's owner grants":
				admin, asAdmin := newRole(t, adm, dsn, "admin", "")
				mustExec(t, adm, "GRANT "+other+" TO "+admin+" WITH ADMIN OPTION")
				member := role
				switch {
				case strings.Contains(owner, "database"):
					mustExec(t, adm, "ALTER DATABASE "+name+" OWNER TO "+admin)
					t.Cleanup(func() { mustExec(t, adm, "ALTER DATABASE "+name+" OWNER TO CURRENT_USER") })
				case strings.Contains(owner, "of a group"):
					member, _ = newRole(t, adm, dsn, "between", "")
					mustExec(t, adm, "GRANT "+member+" TO "+role)
				}
				mustExec(t, plainPool(t, asAdmin), "GRANT "+other+" TO "+member)
				t.Cleanup(func() { mustExec(t, adm, "SET ROLE "+admin+"; REVOKE "+other+" FROM "+member+"; RESET ROLE") })
			case "the database's owner":
				mustExec(t, adm, "ALTER DATABASE "+name+" OWNER TO "+other)
				t.Cleanup(func() { mustExec(t, adm, "ALTER DATABASE "+name+" OWNER TO CURRENT_USER") })
			case "a superuser":
				mustExec(t, adm, "ALTER ROLE "+other+" SUPERUSER")
			case "a member of the role":
				mustExec(t, adm, "GRANT "+role+" TO "+other)
			case "another with CREATEDB":
				mustExec(t, adm, "ALTER ROLE "+other+" CREATEDB CREATEROLE")
			case "a superuser's member":
				super, _ := newRole(t, adm, dsn, "super", "SUPERUSER")
				mustExec(t, adm, "GRANT "+super+" TO "+other)
			case "a schema's owner":
				mustExec(t, adm, "ALTER SCHEMA "+schemaOf(table)+" OWNER TO "+other)
				t.Cleanup(func() { mustExec(t, adm, "ALTER SCHEMA "+schemaOf(table)+" OWNER TO CURRENT_USER") })
			case "who may log in no more":
				mustExec(t, adm, "ALTER ROLE "+other+" NOLOGIN")
			}
			mustExec(t, adm, "ALTER TABLE "+table+" OWNER TO "+other)
			grantLease(t, adm, table, role)
			ok, err := newQuorum(t, openPool(t, as), "a").TryAcquirePrimary(testCtx(t))
			switch {
			case accepted && (!ok || err != nil):
				t.Error(ok, err)
			case !accepted && (ok || err == nil || !strings.Contains(err.Error(), other)):
				t.Errorf("%v, %v; want a refusal that names %s", ok, err, other)
			}
		})
	}
}

// TestRowsThatMakeWait: no row makes anyone wait for longer than the largest TTL.
func TestRowsThatMakeWait(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]string{
		"a TTL of 23 days":         "ttl_ms = 2000000000, expires_at = clock_timestamp() + interval '23 days'",
		"expires in 290000":        "ttl_ms = 1000, expires_at = '290000-01-01'",
		"expires never":            "ttl_ms = 1000, expires_at = 'infinity'",
		"never, of 23 days":        "ttl_ms = 2147483647, expires_at = 'infinity', acquired_at = 'infinity', renewed_at = 'infinity'",
		"acquired before all time": "ttl_ms = 1000, acquired_at = '-infinity', expires_at = clock_timestamp() + interval '1 day'",
		"before Christ":            "ttl_ms = 1000, acquired_at = '0044-03-15 BC', renewed_at = '0044-03-15 BC', expires_at = clock_timestamp() + interval '1 day'",
		"no TTL":                   "ttl_ms = 0, expires_at = clock_timestamp() + interval '1 day'",
		"a negative TTL":           "ttl_ms = -2147483648, expires_at = clock_timestamp() + interval '1 day'",
		"the last renewal":         "renew_seq = 9223372036854775807, ttl_ms = 300000, expires_at = clock_timestamp() + interval '1 day'",
		"the last instant":         "ttl_ms = 1000, acquired_at = '294276-12-31', renewed_at = '294276-12-31', expires_at = '294276-12-31'",
		"the first instant":        "ttl_ms = 1000, acquired_at = '4714-11-24 BC', expires_at = clock_timestamp() + interval '1 day'",
		"the first timeline":       "timeline = -9223372036854775808, ttl_ms = 1000, expires_at = clock_timestamp() + interval '1 day'",
		"the last timeline":        "timeline = 9223372036854775807, ttl_ms = 1000, expires_at = clock_timestamp() + interval '1 day'",
		"another's timeline":       "system_id = -9223372036854775808, timeline = -9223372036854775808, ttl_ms = 1000, expires_at = clock_timestamp() + interval '1 day'",
		"a long id":                "lease_id = repeat('x', 50000000), ttl_ms = 1000, expires_at = clock_timestamp() + interval '1 day'",
		"a long region":            "region = repeat('x', 50000000), ttl_ms = 1000, expires_at = clock_timestamp() + interval '1 day'",
		"no names":                 "lease_id = '', region = NULL, ttl_ms = 2000000000, expires_at = 'infinity'",
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testCtx(t)
			dsn := pgtest.SocketDSN(t)
			var clock atomic.Int64
			q := newQuorum(t, openPool(t, dsn), "a", baldur.WithLeaseTTL(shortTTL), baldur.WithQuorumClock(func() time.Duration { return time.Duration(clock.Load()) }))
			mustAcquire(t, q)
			if err := q.ReleaseLease(ctx); err != nil {
				t.Fatal(err)
			}
			adm := plainPool(t, dsn)
			mustExec(t, adm, "UPDATE "+onlyTable(t, adm)+" SET epoch = epoch + 1, lease_id = 'evil', region = 'evil'", "UPDATE "+onlyTable(t, adm)+" SET "+set)
			try := func() bool {
				t.Helper()
				ok, err := q.TryAcquirePrimary(ctx)
				if err != nil {
					t.Error(err)
				}
				return ok
			}
			some := name != "no names" && !strings.Contains(set, "ttl_ms = 0") && !strings.Contains(set, "ttl_ms = -")
			if some && try() {
				t.Fatal("took at once what is another's")
			}
			if _, err := json.Marshal(q.Stats()); err != nil {
				t.Error(err)
			}
			clock.Add(int64(shortTTL) * 9 / 10)
			if some && try() {
				t.Fatal("took within a TTL what is another's")
			}
			if !some && try() {
				return
			}
			clock.Add(int64(301 * time.Second))
			if !try() {
				t.Error("301 s do not do")
			}
		})
	}
}

// fnvKey is the advisory lock of a name: what the landed version uses.
func fnvKey(name string) int64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, name)
	return int64(h.Sum64())
}

// TestForeignAdvisoryLocks: who holds an advisory lock holds nobody up for long,
// and is named.
func TestForeignAdvisoryLocks(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.SocketDSN(t)
	adm := plainPool(t, dsn)
	dataDSN := pgtest.SocketDSN(t)
	evil, asEvil := newRole(t, adm, dsn, "evil", "")
	// It holds the keys in the lease's database and in the other one.
	var pid int
	for _, as := range []string{asEvil, withDatabaseOf(t, asEvil, dataDSN)} {
		db := plainPool(t, as)
		c, err := db.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		for _, name := range []string{"baldur_lease:primary", "baldur_lease", "baldur_fence"} {
			if _, err := c.ExecContext(ctx, "SELECT pg_advisory_lock($1)", fnvKey(name)); err != nil {
				t.Fatal(err)
			}
		}
		if pid == 0 {
			if err := c.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
				t.Fatal(err)
			}
		}
	}
	bounded := func(what string, f func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if err := f(ctx); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	bounded("MigrateQuorum", func(ctx context.Context) error { return baldur.MigrateQuorum(ctx, openPool(t, dsn)) })
	if tables, _ := leaseTables(ctx, adm); len(tables) == 0 {
		// So that the rest is tried as well. The landed version's table, made by itself elsewhere, does.
		mustExec(t, adm, landedLease("public"))
	}
	var log logBuffer
	a := newQuorum(t, openPool(t, dsn), "a", baldur.WithLeaseTTL(shortTTL))
	b := newQuorum(t, openPool(t, dsn), "b", baldur.WithLeaseTTL(shortTTL), baldur.WithQuorumLogger(textLogger(&log)))
	end := sampled(t, a, b)
	defer end()
	a.StartAutoRenew()
	soon(t, "a first primary", 6*shortTTL, a.IsPrimary)
	b.StartAutoRenew()
	sees(t, b, "a")
	bounded("SealEpoch", func(ctx context.Context) error { _, err := a.SealEpoch(ctx, openPool(t, dataDSN)); return err })
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	soon(t, "a successor", 6*shortTTL, b.IsPrimary)
	soon(t, fmt.Sprintf("who holds the lock (process %d, role %s)", pid, evil), 6*shortTTL, func() bool { // it is logged aside
		told := log.String() + b.Stats().LastError
		return strings.Contains(told, strconv.Itoa(pid)) && strings.Contains(told, evil)
	})
}

// withDatabaseOf is a DSN with the database of another.
func withDatabaseOf(t testing.TB, dsn, of string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	o, err2 := url.Parse(of)
	if err != nil || err2 != nil {
		t.Fatal("the DSN is not a URL")
	}
	u.Path = o.Path
	return u.String()
}

// landedLease makes the lease table of the landed version in a schema.
func landedLease(schema string) string {
	return strings.ReplaceAll(`
CREATE TABLE {schema}.baldur_lease (
	name text PRIMARY KEY, epoch bigint NOT NULL, system_id bigint, timeline bigint, lease_id text, region text,
	renew_seq bigint NOT NULL DEFAULT 0, ttl_ms integer NOT NULL DEFAULT 0,
	acquired_at timestamptz, renewed_at timestamptz, expires_at timestamptz NOT NULL DEFAULT 'epoch'
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX baldur_lease_fence ON {schema}.baldur_lease (name, epoch);
COMMENT ON TABLE {schema}.baldur_lease IS 'baldur quorum, version 1';`, "{schema}", schema)
}

var listens = regexp.MustCompile(`LISTEN\s+("[^"]+"|\w+)`)

// TestNotifyStorm: a role that may do nothing but connect cannot make candidates
// work by ringing their bell.
func TestNotifyStorm(t *testing.T) {
	ctx := testCtx(t)
	dsn, proxy := pgtest.Proxy(t)
	adm := openPool(t, dsn)
	a := newQuorum(t, openPool(t, dsn), "a", baldur.WithLeaseTTL(2*shortTTL))
	takeOver(t, a)
	var requests atomic.Int64
	var channel atomic.Pointer[string]
	proxy.OnData(func(d faultproxy.Direction, data []byte) {
		if d != faultproxy.ToServer {
			return
		}
		if m := listens.FindSubmatch(data); m != nil {
			s := string(m[1])
			channel.Store(&s)
		}
		if bytes.Contains(data, []byte("renew_seq")) || bytes.Contains(data, []byte("BEGIN")) {
			requests.Add(1)
		}
	})
	b := newQuorum(t, openPool(t, dsn), "b", baldur.WithLeaseTTL(2*shortTTL))
	b.StartAutoRenew()
	soon(t, "b listens", 5*shortTTL, func() bool { return channel.Load() != nil })
	sees(t, b, "a")
	_, asEvil := newRole(t, adm, directDSN(t, dsn, adm), "evil", "")
	storm := plainPool(t, asEvil)
	c, err := storm.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	before, began, sent := requests.Load(), time.Now(), 0
	for time.Since(began) < 2*time.Second {
		if _, err := c.ExecContext(ctx, "NOTIFY "+*channel.Load()); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	did := requests.Load() - before
	t.Logf("%d notifications, %d requests", sent, did)
	if sent < 200 {
		t.Skip("the machine is too slow for a storm")
	}
	if did > 100 { // a's renewals, b's polling, and fifty a second
		t.Errorf("%d requests in 2 s", did)
	}
	// And news is still heard, in the storm.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = c.ExecContext(ctx, "NOTIFY "+*channel.Load())
			}
		}
	})
	a.StopAutoRenew()
	if !within(4*shortTTL, b.IsPrimary) {
		t.Error("no succession in the storm")
	}
	close(stop)
	wg.Wait()
}

// directDSN is the DSN of a proxy's server.
func directDSN(t testing.TB, dsn string, db *sql.DB) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("the DSN is not a URL")
	}
	u.Host = "127.0.0.1:" + scan[string](t, db, "SELECT current_setting('port')")
	return u.String()
}

// TestSeveralLeaseTables: where more than one table could be meant, none is
// chosen, and none is made.
func TestSeveralLeaseTables(t *testing.T) {
	for name, path := range map[string]string{
		"one is in the path":  "tenant_42",
		"both are":            "tenant_42, public",
		"the other is":        "public",
		"none is":             `"$user"`,
		"a third comes first": "third, tenant_42, public",
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testCtx(t)
			dsn := pgtest.SocketDSN(t)
			adm := plainPool(t, dsn)
			mustExec(t, adm, "CREATE SCHEMA tenant_42", "CREATE SCHEMA third", landedLease("public"), landedLease("tenant_42"))
			as := withParams(t, dsn, "search_path", path)
			check := func(what string, err error) {
				t.Helper()
				for _, want := range []string{"public.baldur_lease", "tenant_42.baldur_lease", "WithLeaseTable"} {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%s: %v; want it to say %s", what, err, want)
					}
				}
			}
			check("MigrateQuorum", baldur.MigrateQuorum(ctx, openPool(t, as)))
			q := newQuorum(t, openPool(t, as), "a", baldur.WithLeaseTTL(shortTTL))
			ok, err := q.TryAcquirePrimary(ctx)
			check("TryAcquirePrimary", err)
			if ok {
				t.Error("primary by one of two tables")
			}
			if tables, err := leaseTables(ctx, adm); len(tables) != 2 || err != nil {
				t.Errorf("lease tables %q, %v", tables, err)
			}
		})
	}
}

// TestSecondLeaseTable: a process does not change from the table that it knew to
// another one.
func TestSecondLeaseTable(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	adm := plainPool(t, dsn)
	mustExec(t, adm, "CREATE SCHEMA tenant_42")
	table := migrated(t, dsn)
	as := withParams(t, dsn, "application_name", "lease q", "search_path", "tenant_42, public")
	a := newQuorum(t, openPool(t, as), "a", baldur.WithLeaseTTL(shortTTL))
	b := newQuorum(t, openPool(t, as), "b", baldur.WithLeaseTTL(shortTTL))
	end := sampled(t, a, b)
	defer end()
	takeOver(t, a)
	b.StartAutoRenew()
	sees(t, b, "a")
	mustExec(t, adm, landedLease("tenant_42"))
	mustExec(t, adm, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lease q' AND datname = current_database()")
	before := a.Stats().Renewals
	// It goes on with the first, or is refused; a takeover by the second must not be.
	within(3*shortTTL, func() bool { return a.Stats().Renewals > before+6 || b.IsPrimary() })
	if n := scan[int](t, adm, "SELECT count(*) FROM tenant_42.baldur_lease"); n > 0 {
		t.Error("the second table is used")
	}
	end()
	mustExec(t, adm, "DROP TABLE tenant_42.baldur_lease")
	soon(t, "a primary by the first", 6*shortTTL, func() bool { return a.IsPrimary() || b.IsPrimary() })
	if got := onlyTable(t, adm); got != table {
		t.Errorf("%s, was %s", got, table)
	}
}

// TestMovedLeaseTable: a table that is moved under those that use it, and found by
// others, makes no second primary.
func TestMovedLeaseTable(t *testing.T) {
	t.Parallel()
	dsn := pgtest.SocketDSN(t)
	adm := plainPool(t, dsn)
	mustExec(t, adm, "CREATE SCHEMA ops")
	table := migrated(t, dsn)
	as := withParams(t, dsn, "search_path", "ops, public")
	a := newQuorum(t, openPool(t, as), "a", baldur.WithLeaseTTL(shortTTL))
	b := newQuorum(t, openPool(t, as), "b", baldur.WithLeaseTTL(shortTTL))
	c := newQuorum(t, openPool(t, as), "c", baldur.WithLeaseTTL(shortTTL))
	end := sampled(t, a, b, c)
	defer end()
	takeOver(t, a)
	b.StartAutoRenew()
	sees(t, b, "a")
	mustExec(t, adm, "ALTER TABLE "+table+" SET SCHEMA ops")
	c.StartAutoRenew()
	// Somebody is primary by it, or all are refused.
	within(5*shortTTL, func() bool { return b.IsPrimary() || c.IsPrimary() })
	end()
	if tables, err := leaseTables(testCtx(t), adm); err != nil || len(tables) != 1 || tables[0] != "ops.baldur_lease" {
		t.Errorf("lease tables %q, %v", tables, err)
	}
}
