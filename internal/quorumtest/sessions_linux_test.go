package quorumtest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"
)

// What else uses the database: sessions that are left odd, tables that are locked
// and moved, roles that lose their rights.

// The roles that the clients of TestNemesis connect as, none of them a superuser.
// Each has a schema of its own, which is first in the default search_path.
const (
	roleApp, roleBatch = "nemesis_app", "nemesis_batch"
	rolePassword       = "nemesis"
)

// elsewhere is the schema that the lease table is moved to.
const elsewhere = "nemesis_elsewhere"

// giveRoles makes the roles, with the rights that a lease needs, and with that to
// make tables in schemas that are not the lease's.
func (c *cluster) giveRoles() {
	c.t.Helper()
	for _, role := range []string{roleApp, roleBatch} {
		c.exec("CREATE ROLE " + role + " LOGIN PASSWORD '" + rolePassword + "'; CREATE SCHEMA AUTHORIZATION " + role)
	}
	c.exec("CREATE ROLE nemesis_tenant; GRANT nemesis_tenant TO " + roleApp + ", " + roleBatch)
	c.exec("REVOKE ALL ON SCHEMA public FROM PUBLIC")
	c.makeSchemas("nemesis_tenant, " + roleApp + ", " + roleBatch)
	for _, right := range append(revocable, "SELECT, INSERT ON public.nemesis_write") {
		c.exec("GRANT " + right + " TO " + roleApp + ", " + roleBatch)
	}
}

// makeSchemas makes a tenant's schema, which roles may fill, and the one that the
// lease table is moved to.
func (c *cluster) makeSchemas(roles string) {
	c.t.Helper()
	c.exec("CREATE SCHEMA tenant_42; GRANT ALL ON SCHEMA tenant_42 TO " + roles)
	c.exec("CREATE SCHEMA " + elsewhere + "; GRANT USAGE ON SCHEMA " + elsewhere + " TO " + roles)
}

// revocable are the rights that a role loses for a time.
var revocable = []string{
	"SELECT, INSERT, UPDATE ON public.baldur_lease",
	"UPDATE ON public.baldur_lease",
	"USAGE ON SCHEMA public",
}

// dirt is what programs leave on a pooled connection, the worst first.
var dirt = []string{
	"SET search_path = tenant_42",
	"SET search_path = tenant_42, public",
	"SET search_path = ''",
	"SET ROLE nemesis_tenant",
	"BEGIN",
	"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class",
	"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SELECT FROM pg_class",
	"BEGIN; SELECT 1/0",
	"BEGIN; SAVEPOINT s",
	"CREATE TEMP TABLE baldur_lease (LIKE public.baldur_lease INCLUDING ALL)",
	"SET client_encoding = 'LATIN1'",
	"SET DateStyle = 'German, DMY'",
	"SET IntervalStyle = 'sql_standard'; SET TimeZone = 'Asia/Kathmandu'",
	"SET standard_conforming_strings = off; SET backslash_quote = on",
	"SET default_transaction_read_only = on",
	"SET default_transaction_isolation = 'serializable'; SET default_transaction_deferrable = on",
	"SET statement_timeout = 1",
	"SET lock_timeout = 1",
	"SET idle_in_transaction_session_timeout = 200",
	"SET idle_session_timeout = 200",
	"SET synchronous_commit = off",
	"SET row_security = off; SET quote_all_identifiers = on; SET transform_null_equals = on",
	"SET extra_float_digits = -15; SET bytea_output = 'escape'; SET array_nulls = off",
}

// dirtySession leaves one to three odd states on the pooled connections of one
// client or of all, and ends their other connections, among them the lease's,
// again and again. Each state is left before any comes again.
func (n *nemesis) dirtySession() {
	who := []*proc{n.someone()}
	if n.rand.IntN(2) == 0 {
		who = n.c.running()
	}
	if n.dirt == nil {
		n.dirt = slices.Clone(dirt)
	}
	state := []string{n.dirt[0]}
	if n.dirt = n.dirt[1:]; len(n.dirt) == 0 {
		n.dirt = slices.Clone(dirt)
		n.rand.Shuffle(len(n.dirt), func(i, j int) { n.dirt[i], n.dirt[j] = n.dirt[j], n.dirt[i] })
	}
	for range n.rand.IntN(3) {
		state = append(state, dirt[n.rand.IntN(len(dirt))])
	}
	n.leaveDirt(who, state)
	n.c.oneTable(fmt.Sprintf("sessions were left with %q", state))
}

func (n *nemesis) leaveDirt(who []*proc, state []string) {
	n.c.t.Logf("%d of %d clients: %q", len(who), len(n.c.running()), state)
	names := n.c.dirty(who, state)
	for range 3 {
		n.c.terminate(names...)
		time.Sleep(n.someTime(0.2, 0.6))
	}
	n.primarySince(monotonic(), "sessions were left dirty")
	for _, name := range names {
		n.c.terminate(name + dirtySuffix)
	}
}

// dirty leaves a state on the pooled connections of clients, and returns their names.
func (c *cluster) dirty(who []*proc, state []string) (names []string) {
	c.t.Helper()
	text, err := json.Marshal(state)
	if err != nil {
		c.t.Fatal(err)
	}
	before := map[*proc]int{}
	for _, p := range who {
		before[p] = p.told("dirtied")
		p.tell("dirty " + string(text))
		names = append(names, p.cfg.Name)
	}
	for p, n := range before {
		p.has("dirtied", n+1)
	}
	return names
}

func (c *cluster) terminate(names ...string) {
	_, _ = c.admin.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ANY ($1)", pq.Array(names))
}

// primarySince reports it if within a time beyond reason nobody is primary by a
// grant or a renewal that is younger than since: no belief lasts for a TTL.
func (n *nemesis) primarySince(since int64, after string) {
	n.c.t.Helper()
	if !n.c.untilIn(10*2*n.ttl, func() bool {
		for _, p := range n.c.procs {
			if p.now.Kind == "belief" && p.now.To > since+int64(n.ttl) {
				return true
			}
		}
		return false
	}) {
		n.c.t.Errorf("after %s nobody was primary for %v", after, 10*2*n.ttl)
	}
}

// oneTable finds fault with a second lease table, once.
func (c *cluster) oneTable(after string) {
	c.t.Helper()
	var tables string
	c.poll("the tables are counted", func() bool {
		return c.admin.QueryRow("SELECT coalesce(string_agg(oid::regclass::text, ', '), '') FROM pg_class WHERE relname = 'baldur_lease' AND relkind IN ('r', 'p') AND relpersistence <> 't'").Scan(&tables) == nil
	})
	const what = "not one lease table"
	if (tables == "" || strings.Contains(tables, ",")) && !strings.Contains(strings.Join(c.found, "\n"), what) {
		c.found.add("%s, but %q, after %s", what, tables, after)
	}
}

// tableLocked has somebody lock the lease table; half the time a client has to
// connect meanwhile.
func (n *nemesis) tableLocked() {
	hold := n.someTime(0.3, 2)
	var end []string
	if n.rand.IntN(2) == 0 {
		end = append(end, n.someone().cfg.Name)
	}
	n.c.lockTable(hold, n.ttl/5, end...)
}

// lockTable locks the lease table for a time, as an ALTER does that is forgotten
// in a transaction, ends the connections of some clients, and looks at who waits:
// no client may have two requests waiting, nor one for longer than its attempt and a
// second. Guarded transactions are the program's own.
func (c *cluster) lockTable(hold, attempt time.Duration, end ...string) {
	t := c.t
	t.Helper()
	tx, err := c.admin.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("LOCK TABLE public.baldur_lease IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	c.terminate(end...)
	watch, err := c.admin.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Close() }()
	type crowd struct {
		since   time.Time
		samples int
		told    bool
	}
	crowds, late := map[string]crowd{}, map[int]int{}
	for until := time.Now().Add(hold); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		rows, err := watch.QueryContext(t.Context(), `
SELECT replace(a.application_name, $1, ''), a.pid, extract(epoch FROM clock_timestamp() - a.query_start)
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE NOT l.granted AND l.relation = 'public.baldur_lease'::regclass AND a.query NOT LIKE '%FOR KEY SHARE%'`, dirtySuffix)
		if err != nil {
			t.Fatal(err)
		}
		waiting := map[string]int{}
		for rows.Next() {
			var name string
			var pid int
			var seconds float64
			if err := rows.Scan(&name, &pid, &seconds); err != nil {
				t.Fatal(err)
			}
			waiting[name]++
			if waited := time.Duration(seconds * float64(time.Second)); waited > attempt+time.Second {
				if late[pid]++; late[pid] == 3 { // it is being ended otherwise
					c.found.add("a request of %s waits for the locked table for %v on the server, and its attempt is %v", name, waited.Round(time.Millisecond), attempt)
				}
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		for name, n := range waiting {
			if n < 2 {
				delete(crowds, name)
				continue
			}
			is, ok := crowds[name]
			if !ok {
				is.since = time.Now()
			}
			// A request that was cut may still be there when the next one is sent.
			if is.samples++; is.samples >= 5 && time.Since(is.since) > 250*time.Millisecond && !is.told {
				is.told = true
				c.found.add("%d requests of %s wait for the locked table", n, name)
			}
			crowds[name] = is
		}
	}
}

// moveTable moves the lease table to another schema, and back.
func (n *nemesis) moveTable() {
	for _, way := range [][2]string{{"public", elsewhere}, {elsewhere, "public"}} {
		// It must not queue: all requests would queue behind it.
		n.do("SET lock_timeout = '50ms'; ALTER TABLE " + way[0] + ".baldur_lease SET SCHEMA " + way[1])
		n.primarySince(monotonic(), "the table was moved to "+way[1])
	}
	n.c.oneTable("the table was moved")
}

// revoke takes rights from one role, so that the clients of the other one are
// left, or from both.
func (n *nemesis) revoke() {
	right := revocable[n.rand.IntN(len(revocable))]
	roles := [...]string{roleApp, roleBatch, roleApp + ", " + roleBatch}[n.rand.IntN(3)]
	n.c.t.Logf("%s: %s", roles, right)
	n.do("REVOKE " + right + " FROM " + roles)
	since := monotonic()
	if n.rand.IntN(2) == 0 {
		for _, p := range n.c.running() {
			if strings.Contains(roles, p.cfg.Role) {
				n.c.terminate(p.cfg.Name)
			}
		}
	}
	time.Sleep(n.someTime(0.3, 2))
	if !strings.Contains(roles, ",") {
		n.primarySince(since, "the rights of one role were revoked")
	}
	n.do("GRANT " + right + " TO " + roles)
	n.primarySince(monotonic(), "rights were granted again")
	n.c.oneTable("a role was without rights")
}

// do runs statements until they succeed.
func (n *nemesis) do(statements string) {
	n.c.t.Helper()
	var err error
	n.c.poll(statements, func() bool {
		_, err = n.c.admin.Exec(statements)
		return err == nil
	})
}
