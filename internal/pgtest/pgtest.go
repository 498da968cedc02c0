// Package pgtest gives tests a PostgreSQL.
//
// The tests of one process share one server, started when the first asks for
// it; each has a database of its own. A package that uses it has
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// which stops the server at the end and on Ctrl-C. Without it the server still
// ends with the process (see pgserver), but its directory stays until the next one starts.
//
// BALDUR_TEST_DSN names a running server to use instead; its role must be
// allowed to create databases. BALDUR_PGBIN chooses the version: see pgserver.
//
// Where no PostgreSQL can be had a test is skipped, or fails if CI is set.
package pgtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/lack"
	"github.com/baldur-go/baldur/internal/pgserver"
)

// EnvDSN names the environment variable with the DSN of a server to use.
const EnvDSN = "BALDUR_TEST_DSN"

const queryTimeout = time.Minute

// Main runs the tests and then stops the server. It returns to TestMain, after
// which the testing package exits with the status of the tests.
func Main(m *testing.M) {
	defer stopAll()
	defer func() {
		for _, f := range atEnd {
			f()
		}
	}()
	m.Run()
}

// shared is the server of this process. One for all packages of a go test would
// save each of them 1.5 s of processor time, which is initdb's. It would need a
// keeper that outlives every test process, and tests that count the waiters of
// the whole server in pg_locks would disturb each other.
var shared = sync.OnceValues(func() (*pgserver.Server, error) {
	return start(pgserver.Config{})
})

// DSN returns the DSN of a new, empty database, which is dropped when the test ends.
func DSN(t testing.TB) string {
	t.Helper()
	return database(t, (*pgserver.Server).DSN)
}

// SocketDSN is DSN over the server's Unix socket, where connecting costs a tenth
// (over TCP the password is asked for).
func SocketDSN(t testing.TB) string {
	t.Helper()
	return database(t, (*pgserver.Server).SocketDSN)
}

func database(t testing.TB, dsnOf func(*pgserver.Server, string) string) string {
	t.Helper()
	name := databaseName(t.Name())
	if dsn := os.Getenv(EnvDSN); dsn != "" {
		createDatabase(t, dsn, name)
		return withDatabase(t, dsn, name)
	}
	server, err := shared()
	if err != nil {
		unavailable(t, err)
	}
	createDatabase(t, server.SocketDSN("postgres"), name)
	return dsnOf(server, name)
}

// Server returns a server of the test's own, to crash and to restart. Settings
// are as "fsync=on". It is stopped when the test ends.
func Server(t testing.TB, settings ...string) *pgserver.Server {
	t.Helper()
	return ServerEnv(t, nil, settings...)
}

// ServerEnv is Server with variables, as "NAME=value", in its environment.
func ServerEnv(t testing.TB, env []string, settings ...string) *pgserver.Server {
	t.Helper()
	cfg := pgserver.Config{Progress: func(s string) { t.Log(s) }, Settings: map[string]string{}, Env: env}
	for _, setting := range settings {
		name, value, ok := strings.Cut(setting, "=")
		if !ok {
			t.Fatalf("pgtest: setting %q is not of the form name=value", setting)
		}
		cfg.Settings[name] = value
	}
	server, err := start(cfg)
	if err != nil {
		unavailable(t, err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// Proxy is DSN through a proxy that can make the network fail.
func Proxy(t testing.TB) (dsn string, proxy *faultproxy.Proxy) {
	t.Helper()
	dsn = DSN(t)
	cfg, err := pq.NewConfig(dsn)
	if err != nil {
		t.Fatal("pgtest: the server's DSN is not valid") // the error may hold the password
	}
	if strings.HasPrefix(cfg.Host, "/") {
		t.Skipf("pgtest: %s is a Unix socket, and a proxy needs TCP", cfg.Host)
	}
	proxy, err = faultproxy.New(net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	return withAddr(t, dsn, proxy.Addr()), proxy
}

// unavailable ends the test. Only the lack of a PostgreSQL is forgiven.
func unavailable(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, pgserver.ErrNoPostgres) {
		lack.Of(t, "PostgreSQL", err.Error())
	}
	t.Fatal(err)
}

// createDatabase creates a database on the server of dsn, perhaps as a copy, and drops it when the test ends.
func createDatabase(t testing.TB, dsn, name string, template ...string) {
	t.Helper()
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		t.Fatal("pgtest: the server's DSN is not valid") // the error may hold the password
	}
	exec := func(query string) error {
		ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
		defer cancel()
		db := sql.OpenDB(connector)
		defer db.Close()
		if _, err := db.ExecContext(ctx, query); err != nil {
			return fmt.Errorf("pgtest: %s: %w", query, err)
		}
		return nil
	}
	create := "CREATE DATABASE " + pq.QuoteIdentifier(name)
	for _, other := range template {
		create += " TEMPLATE " + pq.QuoteIdentifier(other)
	}
	if err := exec(create); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := exec("DROP DATABASE " + pq.QuoteIdentifier(name) + " WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
}

// withDatabase returns dsn with another database.
func withDatabase(t testing.TB, dsn, name string) string {
	t.Helper()
	return edit(t, dsn, func(u *url.URL) { u.Path = "/" + name }, "dbname="+name)
}

// withAddr returns dsn with another TCP address.
func withAddr(t testing.TB, dsn, addr string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return edit(t, dsn, func(u *url.URL) {
		u.Host = addr
		q := u.Query() // whose address goes before the URL's, in pgx
		q.Del("host")
		q.Del("port")
		u.RawQuery = encode(q)
	}, "host="+host+" port="+port)
}

// edit changes a DSN of either form: in a URL by the function, in a list of
// key=value by adding to it, since there the last one wins.
func edit(t testing.TB, dsn string, change func(*url.URL), add string) string {
	t.Helper()
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		return dsn + " " + add
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal("pgtest: the server's DSN is not a valid URL") // the error would hold the password
	}
	change(u)
	return u.String()
}

// encode is q.Encode, but with no plus for a space, which pgx takes for a plus.
func encode(q url.Values) string { return strings.ReplaceAll(q.Encode(), "+", "%20") }

// databaseName makes a name that says whose database it is and that no other
// process takes. PostgreSQL's names have at most 63 bytes.
func databaseName(test string) string {
	test = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(test))
	random := make([]byte, 6)
	rand.Read(random)
	return fmt.Sprintf("t_%.40s_%s", test, hex.EncodeToString(random))
}
