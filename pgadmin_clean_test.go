package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// adminCalls are all that PGAdmin, Session and Cursor send. Each returns what must
// be the same whatever somebody has left on the pool's connections. See
// newRival for what is in the database.
var adminCalls = map[string]func(p *baldur.PGAdmin) (any, error){
	"Ping": func(p *baldur.PGAdmin) (any, error) { return nil, p.Ping(ctx) },
	"ConnectionStats": func(p *baldur.PGAdmin) (any, error) {
		s, err := p.ConnectionStats(ctx)
		return []bool{s.TotalConnections >= 3, s.Active >= 2, s.Hidden == 0}, err
	},
	"ActiveConnectionCount": func(p *baldur.PGAdmin) (any, error) {
		n, err := p.ActiveConnectionCount(ctx)
		return n >= 2, err // it, and who waits for lock 77
	},
	"Sleep":            func(p *baldur.PGAdmin) (any, error) { return nil, p.Sleep(ctx, 30*time.Millisecond) },
	"ExecuteSlowQuery": func(p *baldur.PGAdmin) (any, error) { return nil, p.ExecuteSlowQuery(ctx, 30*time.Millisecond) },
	"BackendPIDWithDelay": func(p *baldur.PGAdmin) (any, error) {
		pid, err := p.BackendPIDWithDelay(ctx, 30*time.Millisecond)
		return pid > 0, err
	},
	"ExecuteAggregateQuery": func(p *baldur.PGAdmin) (any, error) {
		a, err := p.ExecuteAggregateQuery(ctx, "public.orders")
		b, err2 := p.ExecuteAggregateQuery(ctx, "public.Größe\\")
		return []baldur.Aggregate{a, b}, errors.Join(err, err2)
	},
	"ExecuteNonexistentTableQuery": func(p *baldur.PGAdmin) (any, error) {
		return sqlState(p.ExecuteNonexistentTableQuery(ctx)), nil
	},
	"ExecuteTimeoutQuery": func(p *baldur.PGAdmin) (any, error) {
		return sqlState(p.ExecuteTimeoutQuery(ctx, 30*time.Millisecond, time.Minute)), p.ExecuteTimeoutQuery(ctx, time.Minute, 30*time.Millisecond)
	},
	"AcquireAdvisoryLock": func(p *baldur.PGAdmin) (any, error) {
		return keeping(p, p.AcquireAdvisoryLock, p.ReleaseAdvisoryLock)
	},
	"AcquireAdvisoryLockShared": func(p *baldur.PGAdmin) (any, error) {
		return keeping(p, p.AcquireAdvisoryLockShared, p.ReleaseAdvisoryLockShared)
	},
	"TryAdvisoryLock": func(p *baldur.PGAdmin) (any, error) {
		ok, err := p.TryAdvisoryLock(ctx, 77)
		s, err2 := keeping(p, func(ctx context.Context, id int64, _ bool) (bool, error) { return p.TryAdvisoryLock(ctx, id) }, p.ReleaseAdvisoryLock)
		return []any{ok, s}, errors.Join(err, err2)
	},
	"AcquireAdvisoryLock, in vain": func(p *baldur.PGAdmin) (any, error) {
		short, cancel := context.WithTimeout(ctx, 60*time.Millisecond)
		defer cancel()
		ok, err := p.AcquireAdvisoryLock(short, 77, true)
		return []bool{ok, errors.Is(err, context.DeadlineExceeded)}, nil
	},
	"WithAdvisoryLock": func(p *baldur.PGAdmin) (got any, err error) {
		err = p.WithAdvisoryLock(ctx, 5, baldur.LockOptions{}, func(ctx context.Context, s *baldur.Session, acquired bool) error {
			got = acquired
			return nil
		})
		return got, err
	},
	"WithAdvisoryLock, in vain": func(p *baldur.PGAdmin) (got any, err error) {
		err = p.WithAdvisoryLock(ctx, 77, baldur.LockOptions{Timeout: 60 * time.Millisecond}, nil)
		var late *baldur.LockTimeoutError
		return errors.As(err, &late) && late.Waited >= 60*time.Millisecond, nil
	},
	"WithTxAdvisoryLock": func(p *baldur.PGAdmin) (any, error) {
		var got [2]string
		err := p.WithTxAdvisoryLock(ctx, 6, baldur.LockOptions{}, func(ctx context.Context, tx *sql.Tx, acquired bool) error {
			return tx.QueryRow("SELECT pg_catalog.current_setting('transaction_isolation'::pg_catalog.text), pg_catalog.current_setting('transaction_read_only'::pg_catalog.text)").Scan(&got[0], &got[1])
		})
		return got, err
	},
	"WithTxAdvisoryLock, NoWait": func(p *baldur.PGAdmin) (got any, err error) {
		err = p.WithTxAdvisoryLock(ctx, 77, baldur.LockOptions{NoWait: true}, func(_ context.Context, _ *sql.Tx, acquired bool) error {
			got = acquired
			return nil
		})
		return got, err
	},
	"WithTxAdvisoryLock, in vain": func(p *baldur.PGAdmin) (got any, err error) {
		err = p.WithTxAdvisoryLock(ctx, 77, baldur.LockOptions{Timeout: 60 * time.Millisecond}, nil)
		var late *baldur.LockTimeoutError
		return errors.As(err, &late) && late.Waited >= 60*time.Millisecond, nil
	},
	"WithTimeouts": func(p *baldur.PGAdmin) (any, error) {
		var got [2]string
		err := p.WithTimeouts(ctx, 70*time.Second, 80*time.Second, func(ctx context.Context, s *baldur.Session) error {
			return s.QueryRowContext(ctx, "SELECT pg_catalog.current_setting('lock_timeout'::pg_catalog.text), pg_catalog.current_setting('statement_timeout'::pg_catalog.text)").Scan(&got[0], &got[1])
		})
		return got, err
	},
	"Session": func(p *baldur.PGAdmin) (any, error) {
		s, err := p.Session(ctx)
		if err != nil {
			return nil, err
		}
		var got []any
		note := func(v any, e error) { got, err = append(got, v), errors.Join(err, e) }
		for _, f := range []func(context.Context, int64, bool) (bool, error){s.AcquireAdvisoryLock, s.AcquireAdvisoryLockShared} {
			ok, err := f(ctx, 8, true)
			note(ok, err)
		}
		for _, f := range []func(context.Context, int64) (bool, error){s.TryAdvisoryLock, s.ReleaseAdvisoryLock, s.ReleaseAdvisoryLockShared, s.ReleaseAdvisoryLock} {
			ok, err := f(ctx, 8)
			note(ok, err)
		}
		note(nil, s.SetLockTimeout(ctx, 70*time.Second))
		note(nil, s.SetStatementTimeout(ctx, 80*time.Second))
		_, e := s.ExecContext(ctx, "SELECT pg_catalog.pg_sleep('0.03'::pg_catalog.float8)")
		note(nil, e)
		note(nil, s.ResetTimeouts(ctx))
		rows, e := s.QueryContext(ctx, "SELECT pg_catalog.pg_backend_pid()")
		note(e == nil && rows.Next() && rows.Close() == nil, e)
		tx, e := s.BeginTx(ctx, nil)
		note(nil, e)
		if e == nil {
			note(nil, tx.Commit())
		}
		note(s.BackendPID() != 0, nil)
		note(nil, s.Close())
		return got, err
	},
	"CreateCursor": func(p *baldur.PGAdmin) (any, error) {
		c, err := p.CreateCursor(ctx)
		if err != nil {
			return nil, err
		}
		rows, err := c.Query(ctx, "SELECT pg_catalog.pg_backend_pid()")
		return err == nil && rows.Next() && rows.Close() == nil, errors.Join(err, c.QueryRow(ctx, "SELECT 1").Scan(new(int)), c.Close())
	},
	"LockHolders": func(p *baldur.PGAdmin) (any, error) {
		h, err := p.LockHolders(ctx, 77)
		if err != nil || len(h) != 1 {
			return h, err
		}
		now := func(t time.Time) bool { return time.Since(t).Abs() < time.Hour }
		return []any{h[0].ApplicationName, h[0].Query, h[0].State, h[0].ClientAddr, now(h[0].BackendStart), now(h[0].QueryStart), h[0].XactStart.IsZero()}, nil
	},
	"BlockingTree": func(p *baldur.PGAdmin) (any, error) {
		tree, err := p.BlockingTree(ctx)
		if err != nil || len(tree) != 1 {
			return tree, err
		}
		return []any{tree[0].ApplicationName, tree[0].Query, len(tree[0].Blocks), len(tree[0].Blocks[0].BlockedBy), tree[0].Blocks[0].WaitEvent}, nil
	},
	"Terminate":   func(p *baldur.PGAdmin) (any, error) { return p.Terminate(ctx, 1<<30) },
	"Cancel":      func(p *baldur.PGAdmin) (any, error) { return p.Cancel(ctx, 1<<30) },
	"PoolerMode":  func(p *baldur.PGAdmin) (any, error) { return p.PoolerMode(ctx) },
	"Close":       func(p *baldur.PGAdmin) (any, error) { return nil, nil }, // after each
	"IsAvailable": func(p *baldur.PGAdmin) (any, error) { return p.IsAvailable(), nil },
}

func sqlState(err error) string {
	var e interface{ SQLState() string }
	if !errors.As(err, &e) {
		return fmt.Sprint(err)
	}
	return e.SQLState()
}

// keeping tells the state of a lock's session while it is held for longer than a
// session that is left alone may live.
func keeping(p *baldur.PGAdmin, acquire func(context.Context, int64, bool) (bool, error), release func(context.Context, int64) (bool, error)) (any, error) {
	ok, err := acquire(ctx, 7, true)
	if err != nil {
		return ok, err
	}
	err = p.Sleep(ctx, 120*time.Millisecond)
	h, err2 := p.LockHolders(ctx, 7)
	released, err3 := release(ctx, 7)
	state := ""
	if len(h) == 1 {
		state = h[0].State
	}
	return []any{ok, state, released}, errors.Join(err, err2, err3)
}

// TestAdminCallsAreAll: no method is missing in adminCalls.
func TestAdminCallsAreAll(t *testing.T) {
	in := []string{"ReleaseAdvisoryLock", "ReleaseAdvisoryLockShared", "AdvisoryLock", "QueryRowContext", "QueryRow", "Query",
		"ExecContext", "QueryContext", "BeginTx", "BackendPID", "SetLockTimeout", "SetStatementTimeout", "ResetTimeouts", "LockContext"} // within others
	for _, typ := range []reflect.Type{reflect.TypeFor[*baldur.PGAdmin](), reflect.TypeFor[*baldur.Session](), reflect.TypeFor[*baldur.Cursor]()} {
		for m := range typ.Methods() {
			if adminCalls[m.Name] == nil && !slices.Contains(in, m.Name) {
				t.Errorf("%v.%s is not tried", typ, m.Name)
			}
		}
	}
}

// newRival fills a database, by another program that holds lock 77 and for which a
// third one waits.
func newRival(t *testing.T, dsn string) {
	t.Helper()
	holder := other(t, dsn, `CREATE TABLE public.orders (price float8); INSERT INTO public.orders VALUES (0.1::float8 + 0.2::float8);
		CREATE TABLE public."Größe\" (price int); INSERT INTO public."Größe\" VALUES (7); SET application_name = 'zwölf € 十'`)
	must(holder.ExecContext(ctx, "SELECT pg_advisory_lock(77) /* größer */"))
	waiter := other(t, dsn, "SELECT 1")
	go func() { _, _ = waiter.ExecContext(ctx, "SELECT pg_advisory_lock_shared(77)") }()
	for {
		var n int
		if err := holder.QueryRowContext(ctx, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND "+thisDatabase).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			break
		}
	}
	// The last query is the one that LockHolders shows.
	must(holder.ExecContext(ctx, "SELECT 1 /* größer */"))
}

// leftBehind is what can be left on a pooled connection.
var leftBehind = map[string]string{
	"BEGIN":                 "BEGIN",
	"BEGIN with snapshot":   "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1",
	"read only":             "START TRANSACTION READ ONLY",
	"savepoint":             "BEGIN; SAVEPOINT s",
	"failed":                "BEGIN; SELECT 1/0",
	"BEGIN with SET":        "BEGIN; SET LOCAL statement_timeout = 5; SET LOCAL search_path = ''",
	"statement_timeout":     "SET statement_timeout = 20",
	"lock_timeout":          "SET lock_timeout = 10",
	"transaction_timeout":   "DO $$ BEGIN IF current_setting('transaction_timeout', true) IS NOT NULL THEN PERFORM set_config('transaction_timeout', '20', false); END IF; END $$",
	"idle_session_timeout":  "SET idle_session_timeout = 60",
	"idle in transaction":   "SET idle_in_transaction_session_timeout = 60",
	"LATIN1":                "SET client_encoding = LATIN1",
	"EUC_JP":                "SET client_encoding = EUC_JP",
	"SQL_ASCII":             "SET client_encoding = SQL_ASCII",
	"German":                "SET datestyle = German",
	"SQL, DMY":              "SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Kolkata'",
	"no digits":             "SET extra_float_digits = -15",
	"escape":                "SET bytea_output = escape; SET intervalstyle = sql_standard",
	"read-only by default":  "SET default_transaction_read_only = on",
	"session characteristi": "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
	"serializable":          "SET default_transaction_isolation = serializable; SET default_transaction_deferrable = on; SET default_transaction_read_only = on",
	"no path":               "SET search_path = ''",
	"only pg_temp":          "SET search_path = pg_temp",
	"tables like types": `CREATE TEMP TABLE text (); CREATE TEMP TABLE int4 (); CREATE TEMP TABLE int8 (); CREATE TEMP TABLE oid (); CREATE TEMP TABLE float8 ();
		CREATE TEMP TABLE pg_locks (); CREATE TEMP TABLE pg_stat_activity (); CREATE TEMP TABLE pg_database (); CREATE TEMP TABLE name (); CREATE TEMP TABLE bool ()`,
	"backslashes":           "SET standard_conforming_strings = off; SET escape_string_warning = off",
	"= NULL":                "SET transform_null_equals = on; SET array_nulls = off",
	"plans":                 "SET plan_cache_mode = force_generic_plan; SET enable_hashjoin = off; SET quote_all_identifiers = on; SET xmlbinary = hex",
	"prepared":              "PREPARE p AS SELECT 1; LISTEN x; DECLARE c CURSOR WITH HOLD FOR SELECT 1",
	"SET ROLE":              "SET ROLE pg_read_all_stats",
	"SET ROLE and settings": "GRANT USAGE ON SCHEMA public TO PUBLIC; GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC; SET ROLE pg_monitor; SET statement_timeout = 20",
}

// soil leaves something on all connections that the pool may have.
func soil(t *testing.T, db *sql.DB, size int, query string) {
	t.Helper()
	var conns []*sql.Conn
	for range size {
		conn := must(db.Conn(ctx))
		conns = append(conns, conn)
		for _, q := range strings.SplitAfter(query, ";") {
			if strings.Count(query, "$$") == 2 {
				q = query
			}
			_, err := conn.ExecContext(ctx, q)
			if err != nil && !strings.Contains(q, "1/0") {
				t.Fatalf("%s: %v", q, err)
			}
			if q == query {
				break
			}
		}
	}
	for _, conn := range conns {
		conn.Close()
	}
}

// drivers are ways to a server, each of which learns of a transaction in its own way; in the module compat it is pgx.
var drivers = map[string]func(dsn string) *sql.DB{
	"baldur-pq":                   func(dsn string) *sql.DB { return must(sql.Open(baldur.DriverName, dsn)) },
	"pq":                          func(dsn string) *sql.DB { return must(sql.Open("postgres", dsn)) },
	"a driver that does not tell": func(dsn string) *sql.DB { return sql.OpenDB(opaque{must(pq.NewConnector(dsn))}) },
}

// TestDirtyConnections (lease.md, case 2): every call gives what it gives on new
// connections, whatever is left on those of the pool.
func TestDirtyConnections(t *testing.T) {
	const size = 3
	dsn := pgtest.SocketDSN(t)
	newRival(t, dsn)
	for name, open := range drivers {
		want := map[string]any{}
		run := func(t *testing.T, what, left, call string) {
			db := open(dsn)
			defer db.Close()
			db.SetMaxOpenConns(size)
			db.SetMaxIdleConns(size)
			if left != "" {
				soil(t, db, size, left)
			}
			admin := baldur.NewPGAdmin(db)
			limited, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			type result struct {
				got any
				err error
			}
			done := make(chan result, 1)
			go func() {
				got, err := adminCalls[call](admin)
				done <- result{got, err}
			}()
			select {
			case r := <-done:
				if r.err != nil {
					t.Errorf("%s on %q: %v", call, what, r.err)
				}
				if left == "" {
					want[call] = r.got
				} else if !reflect.DeepEqual(r.got, want[call]) {
					t.Errorf("%s on %q: %v, on a new connection %v", call, what, r.got, want[call])
				}
			case <-limited.Done():
				t.Fatalf("%s on %q does not end", call, what)
			}
			if err := admin.Close(); err != nil {
				t.Errorf("%s on %q: Close: %v", call, what, err)
			}
			if n := db.Stats().InUse; n != 0 {
				t.Errorf("%s on %q: %d connections are out", call, what, n)
			}
		}
		t.Run(name, func(t *testing.T) {
			calls := slices.Sorted(maps.Keys(adminCalls))
			for _, call := range calls {
				run(t, "new", "", call)
			}
			for _, what := range slices.Sorted(maps.Keys(leftBehind)) {
				if strings.HasPrefix(what, "SET ROLE") {
					continue
				}
				for i, call := range calls {
					if os.Getenv(envDirtyRuns) == "" && (i+len(what))%4 != 0 { // each state meets a part of the calls
						continue
					}
					run(t, what, leftBehind[what], call)
				}
			}
		})
	}
}

// TestRoleStays: what the program has chosen is in force in the calls, and a
// connection that is fit is not discarded.
func TestRoleStays(t *testing.T) {
	db, admin := adminOn(t, pgtest.SocketDSN(t), 1)
	must(db.Exec("CREATE SCHEMA tenant; GRANT USAGE ON SCHEMA tenant TO PUBLIC; CREATE TABLE tenant.orders (price int); INSERT INTO tenant.orders VALUES (3); SET search_path = tenant"))
	must(db.Exec("PREPARE p AS SELECT 1"))
	pid := must(admin.BackendPIDWithDelay(ctx, 0))
	if a := must(admin.ExecuteAggregateQuery(ctx, "orders")); a.MaxPrice != 3 {
		t.Errorf("%+v", a)
	}
	must(db.Exec("SET ROLE pg_monitor; SET statement_timeout = '7s'; SET client_encoding = LATIN1; SET datestyle = German"))
	if _, err := admin.ExecuteAggregateQuery(ctx, "orders"); sqlState(err) != "42501" {
		t.Errorf("the role is not in force: %v", err)
	}
	must(admin.AcquireAdvisoryLock(ctx, 1, true))
	must(admin.ReleaseAdvisoryLock(ctx, 1))
	fine(t, admin.WithTxAdvisoryLock(ctx, 1, baldur.LockOptions{}, func(_ context.Context, tx *sql.Tx, _ bool) error {
		wantTimeouts(t, tx, "0", "7s") // the program's statements in it meet what the program has set
		return nil
	}))
	var got [4]string
	fine(t, db.QueryRow("SELECT current_user, current_setting('statement_timeout'), current_setting('client_encoding'), current_setting('datestyle')").Scan(&got[0], &got[1], &got[2], &got[3]))
	if got != [4]string{"pg_monitor", "7s", "LATIN1", "German, DMY"} {
		t.Errorf("%v", got)
	}
	if _, err := db.Exec("EXECUTE p"); err != nil {
		t.Error(err)
	}
	if got := must(admin.BackendPIDWithDelay(ctx, 0)); got != pid {
		t.Error("the connection was discarded")
	}
}

// TestTrappedNames (security.md, H1): no call steps on what others have put into
// the search_path, and every statement that is sent says so by itself.
func TestTrappedNames(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"trap, pg_catalog", "pg_catalog, trap", `"$user", public, trap`} {
		for name, open := range drivers {
			t.Run(path+" "+name, func(t *testing.T) {
				dsn, plain := pgtest.Trap(t, path)
				newRival(t, plain)
				dsn, recording := pgtest.Record(t, dsn)
				db := open(dsn)
				defer db.Close()
				db.SetMaxOpenConns(3)
				for _, call := range slices.Sorted(maps.Keys(adminCalls)) {
					admin := baldur.NewPGAdmin(db)
					if _, err := adminCalls[call](admin); err != nil {
						t.Errorf("%s: %v", call, err)
					}
					fine(t, admin.Close())
					for _, query := range recording.Statements() {
						for _, fault := range pgtest.LintSQL(query) {
							t.Errorf("%s: %s: %s", call, query, fault)
						}
					}
				}
			})
		}
	}
}
