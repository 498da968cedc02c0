//go:build unix

package main

import (
	"database/sql"
	"encoding/json"
	"strings"
	"testing"

	"github.com/baldur-go/baldur/internal/pgtest"
)

// TestDoctor: what is found, at each kind of server, and that the password is
// nowhere.
func TestDoctor(t *testing.T) {
	server := pgtest.Server(t)
	t.Setenv(pgtest.EnvDSN, server.SocketDSN("postgres"))
	mended := pgtest.Server(t, "idle_in_transaction_session_timeout=60000")
	is := func(dsn string) func(testing.TB) string { return func(testing.TB) string { return dsn } }
	bouncer := func(mode string) func(testing.TB) string {
		return func(t testing.TB) string { return pgtest.Bouncer(t, mode) }
	}
	for _, test := range []struct {
		name     string
		dsn      func(testing.TB) string
		poolSize string
		status   int
		want     []string
	}{
		{"plain", is(server.DSN("postgres")), "0", 1, []string{
			"ok    server version: PostgreSQL " + server.Version(), "ok    connection pooler: none seen", "MEND  connections: max_connections 100", "the pool is unlimited",
			"MEND  idle_in_transaction_session_timeout: 0 (off)", "ok    TLS: off, within this machine", `ok    rights: role "postgres" sees all`}},
		{"mended", is(mended.SocketDSN("postgres")), "20", 0, []string{
			"ok    connections", "the pool takes up to 20", "ok    idle_in_transaction_session_timeout: 1min", "off, over a Unix socket"}},
		{"pool too large", is(mended.SocketDSN("postgres")), "98", 1, []string{"MEND  connections", "More than the 97 that max_connections leaves"}},
		{"session", bouncer("session"), "20", 1, []string{"ok    connection pooler: PgBouncer or the like, in session mode"}},
		{"transaction", bouncer("transaction"), "20", 1, []string{"MEND  connection pooler: PgBouncer or the like, in transaction mode", "WithTxAdvisoryLock"}},
		{"statement", bouncer("statement"), "20", 1, []string{"MEND  connection pooler: PgBouncer or the like, in statement mode"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dsn := test.dsn(t)
			p := start(t, nil, "doctor", "--pool-size", test.poolSize, dsn)
			text := p.ends(test.status)
			for _, want := range test.want {
				if !strings.Contains(text, want) {
					t.Errorf("does not say %q:\n%s", want, text)
				}
			}
			if n := strings.Count(text, "\n"); n != 2+2*6 {
				t.Errorf("%d lines:\n%s", n, text)
			}
			said := p.errors()
			if said != "" {
				t.Errorf("and on stderr: %s", said)
			}
			p = start(t, []string{envDSN + "=" + dsn}, "doctor", "--json", "--pool-size="+test.poolSize)
			var d diagnosis
			output := p.ends(test.status)
			if err := json.Unmarshal([]byte(output), &d); err != nil || d.OK != (test.status == 0) || len(d.Checks) != 6 {
				t.Errorf("JSON: %v, %+v", err, d)
			}
			_, secret, _ := strings.Cut(dsn, "://postgres:")
			if secret, _, ok := strings.Cut(secret, "@"); ok && strings.Contains(text+output, secret) {
				t.Error("the password is printed")
			}
		})
	}
	t.Run("without rights", func(t *testing.T) {
		dsn := mended.SocketDSN("postgres")
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec("CREATE ROLE poor LOGIN"); err != nil {
			t.Fatal(err)
		}
		text := start(t, nil, "doctor", "--pool-size", "9", strings.Replace(dsn, "user=postgres", "user=poor", 1)).ends(1)
		if !strings.Contains(text, `MEND  rights: role "poor" sees only its own sessions`) || !strings.Contains(text, `GRANT pg_read_all_stats TO "poor"`) {
			t.Error(text)
		}
	})
}

// TestDoctorTrapped (security.md, H1): it steps on nothing that others have put
// into the search_path.
func TestDoctorTrapped(t *testing.T) {
	for _, path := range []string{"trap, pg_catalog", "pg_catalog, trap"} {
		dsn, _ := pgtest.Trap(t, path)
		dsn, recording := pgtest.Record(t, dsn)
		text := start(t, nil, "doctor", "--pool-size", "9", dsn).ends(1)
		if strings.Count(text, "\n") != 2+2*6 || strings.Count(text, "MEND") != 1 {
			t.Errorf("%s: %s", path, text)
		}
		for _, query := range recording.Statements() {
			for _, fault := range pgtest.LintSQL(query) {
				t.Errorf("%s: %s", query, fault)
			}
		}
	}
}
