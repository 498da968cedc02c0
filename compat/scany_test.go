package compat

import (
	"context"
	"testing"

	"github.com/georgysavva/scany/v2/sqlscan"
)

func TestScany(t *testing.T) {
	db := open(t)
	ctx := context.Background()
	must(db.ExecContext(ctx, createItems))
	const insert = "INSERT INTO items (name) VALUES ($1) RETURNING *"

	var nail Item
	check(t, sqlscan.Get(ctx, db, &nail, insert, "nail"))
	var items []*Item
	check(t, sqlscan.Select(ctx, db, &items, "SELECT * FROM items"))
	if len(items) != 1 || *items[0] != nail || nail.ID == 0 {
		t.Errorf("got %v and %v", nail, items)
	}
	if err := sqlscan.Get(ctx, db, &nail, "SELECT * FROM items WHERE id = 0"); !sqlscan.NotFound(err) {
		t.Errorf("got %v", err)
	}

	err := sqlscan.Get(ctx, db, &nail, insert, "nail")
	wantConflict(t, err)

	tx, err := db.BeginTx(ctx, nil)
	check(t, err)
	check(t, sqlscan.Get(ctx, tx, &nail, insert, "axe"))
	check(t, tx.Rollback())
	wantNames(t, db, "nail")

	// scany reads to the end and closes; what it leaves open is the program's own.
	line := nextLine()
	rows, err := db.QueryContext(ctx, "SELECT * FROM items")
	check(t, err)
	scanner := sqlscan.NewRowScanner(rows)
	rows.Next()
	check(t, scanner.Scan(&nail))
	wantHolder(t, db, line)
	check(t, rows.Close())

	wantCancel(t, db, func(ctx context.Context) error {
		return sqlscan.Get(ctx, db, new(string), "SELECT pg_sleep(60)::text")
	})
}
