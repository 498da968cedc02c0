package pgtest

import (
	"context"
	"database/sql"
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgserver"
)

//go:embed trap.sql
var trapSQL string

// template is the database that Trap copies, by the server's DSN.
var template struct {
	mu   sync.Mutex // guards the fields below
	name string
	err  error
}

// Trap is DSN of a database with a schema trap. That has a copy of each of
// pg_catalog's functions, operators, types and views that raises an error (of a
// function or an operator: "cannot accept a value of type trigger"), and others
// that match a literal better than pg_catalog's.
//
// path is the search_path of the connections, as "trap, pg_catalog". A test's own
// SQL goes over a connection of plain, which has the default one.
func Trap(t testing.TB, path string) (dsn, plain string) {
	t.Helper()
	admin := os.Getenv(EnvDSN)
	dsnOf := func(name string) string { return withDatabase(t, admin, name) }
	if admin == "" {
		server, err := shared()
		if err != nil {
			unavailable(t, err)
		}
		admin = server.SocketDSN("postgres")
		dsnOf = func(name string) string { return (*pgserver.Server).SocketDSN(server, name) }
	}
	template.mu.Lock()
	defer template.mu.Unlock()
	if template.name == "" && template.err == nil {
		template.name = databaseName("trap")
		template.err = makeTemplate(admin, template.name, dsnOf(template.name))
	}
	if template.err != nil {
		t.Fatal(template.err)
	}
	name := databaseName(t.Name())
	createDatabase(t, admin, name, template.name)
	plain = dsnOf(name)
	return edit(t, plain, func(u *url.URL) {
		q := u.Query()
		q.Set("search_path", path)
		u.RawQuery = encode(q)
	}, "search_path="+quoteDSN(path)), plain
}

func quoteDSN(s string) string {
	b := []byte{'\''}
	for _, c := range []byte(s) {
		if c == '\'' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return string(append(b, '\''))
}

func makeTemplate(admin, name, dsn string) error {
	exec := func(dsn, query string) error {
		ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
		defer cancel()
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			return err
		}
		defer db.Close()
		_, err = db.ExecContext(ctx, query)
		return err
	}
	if err := exec(admin, "CREATE DATABASE "+pq.QuoteIdentifier(name)); err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	if err := exec(dsn, trapSQL); err != nil {
		return fmt.Errorf("pgtest: trap.sql: %w", err)
	}
	atEnd = append(atEnd, func() { _ = exec(admin, "DROP DATABASE "+pq.QuoteIdentifier(name)+" WITH (FORCE)") })
	return nil
}

// atEnd is what Main does after the tests.
var atEnd []func()
