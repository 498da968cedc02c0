package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgserver"
	"github.com/baldur-go/baldur/internal/text"
)

// envDSN names a running PostgreSQL to work in.
const envDSN = "BALDUR_DSN"

// playground is a PostgreSQL in which tables can be made and forgotten.
type playground struct {
	params map[string]string // for every connection
	dsn    string
	leave  func() error // removes everything
}

// enterPlayground makes a schema in the server of BALDUR_DSN, or starts a server.
func enterPlayground(ctx context.Context, tell func(string)) (*playground, error) {
	if dsn := os.Getenv(envDSN); dsn != "" {
		tell("connecting to the server of " + envDSN)
		p, err := newSchema(ctx, dsn)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", envDSN, err)
		}
		return p, nil
	}
	tell("looking for PostgreSQL")
	server, err := pgserver.Start(ctx, pgserver.Config{Progress: tell})
	if errors.Is(err, pgserver.ErrNoPostgres) {
		// The download's error is whatever it is.
		return nil, fmt.Errorf("%s; or set %s to the DSN of a running one", text.OneLine(err.Error(), 2000), envDSN)
	}
	if err != nil {
		return nil, err
	}
	return &playground{dsn: server.DSN(pgserver.Superuser), leave: server.Stop}, nil
}

// leaveTimeout is how long the removal of a schema may take.
const leaveTimeout = 10 * time.Second

// newSchema makes a schema of a name that nobody has.
func newSchema(ctx context.Context, dsn string) (*playground, error) {
	var b [4]byte
	rand.Read(b[:])
	name := "baldur_demo_" + hex.EncodeToString(b[:])
	// Baldur's own driver here too: it gives up when ctx ends, also on a
	// server that is silent, and keeps the password out of its errors.
	admin, err := sql.Open(baldur.DriverName, dsn)
	if err != nil {
		return nil, err
	}
	admin.SetMaxOpenConns(1)
	if _, err := admin.ExecContext(ctx, "CREATE SCHEMA "+pq.QuoteIdentifier(name)); err != nil {
		admin.Close()
		return nil, err
	}
	return &playground{
		params: map[string]string{"search_path": name, "application_name": name},
		dsn:    dsn,
		leave: func() error {
			defer admin.Close()
			// Of its own: the demo's may have ended.
			ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
			defer cancel()
			// A leaked transaction has locks on the tables. The application's
			// name is the schema's, so it is nobody else's.
			_, err := admin.ExecContext(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()", name)
			if err == nil {
				_, err = admin.ExecContext(ctx, "DROP SCHEMA "+pq.QuoteIdentifier(name)+" CASCADE")
			}
			if err != nil {
				return fmt.Errorf("%s: schema %s is left behind: %w", envDSN, name, err)
			}
			return nil
		},
	}, nil
}

// check tells whether db works in the playground's schema. A proxy may have
// dropped the parameter, and the tables would be made among those of others.
func (p *playground) check(ctx context.Context, db *sql.DB) error {
	want := p.params["search_path"]
	if want == "" {
		return nil
	}
	var got sql.NullString
	if err := db.QueryRowContext(ctx, "SELECT current_schema()").Scan(&got); err != nil {
		return err
	}
	if got.String != want {
		return fmt.Errorf("%s: the parameter search_path does not reach the server, so the demo would work in schema %q; is there a PgBouncer between?", envDSN, got.String)
	}
	return nil
}

// withParams adds parameters to a DSN, whose own of the same name they replace.
func withParams(dsn string, params ...map[string]string) (string, error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		u, err := url.Parse(dsn)
		if err != nil {
			return "", errors.New("not a valid URL") // err quotes it, password and all
		}
		query := u.Query()
		for _, m := range params {
			for k, v := range m {
				query.Set(k, v)
			}
		}
		u.RawQuery = query.Encode()
		return u.String(), nil
	}
	if strings.HasSuffix(strings.TrimSpace(dsn), "=") {
		dsn += "''" // else the first addition would be the value
	}
	for _, m := range params {
		for k, v := range m {
			dsn += fmt.Sprintf(" %s='%s'", k, strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v))
		}
	}
	return dsn, nil
}
