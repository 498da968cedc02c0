package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"

	"github.com/baldur-go/baldur/internal/pgserver"
)

// throwAwayServer starts a PostgreSQL for this run, as baldur demo does.
func throwAwayServer(ctx context.Context) (dsn string, stop func() error, err error) {
	// It outlives ctx: the connections are closed first.
	server, err := pgserver.Start(context.WithoutCancel(ctx), pgserver.Config{
		Progress: func(s string) { fmt.Fprintln(os.Stderr, "httpserver:", s) },
	})
	if err != nil {
		return "", nil, err
	}
	return server.DSN(pgserver.Superuser), server.Stop, nil
}

// createTables makes the shop, with more orders than listOrders lists.
func createTables(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, `
		CREATE TABLE IF NOT EXISTS httpserver_orders (id int PRIMARY KEY, customer text NOT NULL);
		INSERT INTO httpserver_orders SELECT n, 'customer ' || n % 7 FROM generate_series(1, 100) n ON CONFLICT DO NOTHING;
		CREATE TABLE IF NOT EXISTS httpserver_days (id int PRIMARY KEY, closed int NOT NULL);
		INSERT INTO httpserver_days VALUES (1, 0) ON CONFLICT DO NOTHING`)
	return err
}
