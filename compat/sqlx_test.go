package compat

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
)

// TestSqlx: by name, sqlx must be told the placeholders.
func TestSqlx(t *testing.T) {
	sqlx.BindDriver("baldur-pq", sqlx.DOLLAR)
	defer sqlx.BindDriver(baldur.DriverName, sqlx.UNKNOWN) // as without it
	dsn := trackedDSN(t)
	x, err := sqlx.Connect("baldur-pq", dsn)
	check(t, err)
	watch(t, x.DB)
	useSqlx(t, x)
}

// TestSqlxDB: on a pool, it goes by the name that it is given.
func TestSqlxDB(t *testing.T) {
	db := open(t)
	x := sqlx.NewDb(db, "postgres")
	useSqlx(t, x)
}

// TestSqlxUnbound shows what it is without: ? goes to the server.
func TestSqlxUnbound(t *testing.T) {
	x, err := sqlx.Connect("baldur-pq", trackedDSN(t))
	check(t, err)
	watch(t, x.DB)
	if got := x.Rebind("SELECT ?"); got != "SELECT ?" {
		t.Errorf("Rebind needs no BindDriver any more: %s", got)
	}
	if _, err := x.NamedExec("SELECT :n", map[string]any{"n": 1}); err == nil {
		t.Error("NamedExec needs no BindDriver any more")
	}
}

func useSqlx(t *testing.T, x *sqlx.DB) {
	t.Helper()
	ctx := context.Background()
	x.MustExecContext(ctx, createItems)

	const insert = "INSERT INTO items (name, quantity) VALUES (:name, :quantity)"
	must(x.NamedExecContext(ctx, insert, []Item{{Name: "nail", Quantity: 100}, {Name: "saw"}}))
	var items []Item
	check(t, x.SelectContext(ctx, &items, x.Rebind("SELECT * FROM items WHERE quantity > ? ORDER BY id"), 1))
	if len(items) != 1 || items[0].Name != "nail" {
		t.Errorf("got %v", items)
	}
	query, args, err := sqlx.In("SELECT count(*) FROM items WHERE name IN (?)", []string{"nail", "saw", "axe"})
	check(t, err)
	var n int
	check(t, x.GetContext(ctx, &n, x.Rebind(query), args...))
	if n != 2 {
		t.Errorf("got %d", n)
	}
	if err := x.GetContext(ctx, &n, "SELECT id FROM items WHERE name = 'axe'"); err != sql.ErrNoRows {
		t.Errorf("got %v", err)
	}

	_, err = x.NamedExecContext(ctx, insert, Item{Name: "nail"})
	wantBareConflict(t, err)

	line := nextLine()
	tx, err := x.BeginTxx(ctx, nil)
	check(t, err)
	wantHolder(t, x.DB, line)
	must(tx.NamedExecContext(ctx, insert, Item{Name: "axe"}))
	check(t, tx.Rollback())
	wantNames(t, x.DB, "nail saw")

	tx = x.MustBegin()
	stmt, err := tx.PreparexContext(ctx, pq.CopyIn("items", "name", "quantity"))
	check(t, err)
	must(stmt.Exec("rasp", 1))
	must(stmt.Exec("vice", 2))
	must(stmt.Exec())
	check(t, stmt.Close())
	check(t, tx.Commit())
	wantNames(t, x.DB, "nail rasp saw vice")

	line = nextLine()
	rows, err := x.QueryxContext(ctx, "SELECT * FROM items")
	check(t, err)
	wantHolder(t, x.DB, line)
	rows.Next()
	check(t, rows.StructScan(&Item{}))
	check(t, rows.Close())

	line = nextLine()
	named, err := x.NamedQueryContext(ctx, "SELECT * FROM items WHERE name = :name", Item{Name: "saw"})
	check(t, err)
	wantHolder(t, x.DB, line)
	check(t, named.Close())

	wantCancel(t, x.DB, func(ctx context.Context) error {
		return x.GetContext(ctx, new(string), "SELECT pg_sleep(60)")
	})
}
