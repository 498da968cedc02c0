package compat

import (
	"context"
	"testing"

	sq "github.com/Masterminds/squirrel"
)

func TestSquirrel(t *testing.T) {
	db := open(t)
	ctx := context.Background()
	must(db.ExecContext(ctx, createItems))
	psql := sq.StatementBuilder.PlaceholderFormat(sq.Dollar).RunWith(db)

	var id int64
	insert := psql.Insert("items").Columns("name", "quantity")
	check(t, insert.Values("nail", 100).Values("saw", 1).Suffix("RETURNING id").QueryRowContext(ctx).Scan(&id))
	var quantity int
	check(t, psql.Select("quantity").From("items").Where(sq.Eq{"id": id}).QueryRowContext(ctx).Scan(&quantity))
	if quantity != 100 {
		t.Errorf("got %d", quantity)
	}

	_, err := insert.Values("nail", 1).ExecContext(ctx)
	wantBareConflict(t, err)

	tx, err := db.BeginTx(ctx, nil)
	check(t, err)
	must(insert.RunWith(tx).Values("axe", 1).ExecContext(ctx))
	check(t, tx.Rollback())
	wantNames(t, db, "nail saw")

	line := nextLine()
	rows, err := psql.Select("*").From("items").QueryContext(ctx)
	check(t, err)
	wantHolder(t, db, line)
	check(t, rows.Close())

	// Its cache of prepared statements.
	cache := sq.NewStmtCache(db)
	cached := psql.RunWith(cache)
	for range 3 {
		must(cached.Update("items").Set("quantity", sq.Expr("quantity + ?", 1)).Where(sq.Eq{"name": "saw"}).ExecContext(ctx))
	}
	check(t, cached.Select("quantity").From("items").Where(sq.Eq{"name": "saw"}).QueryRowContext(ctx).Scan(&quantity))
	if quantity != 4 {
		t.Errorf("got %d", quantity)
	}
	line = nextLine()
	rows, err = cached.Select("*").From("items").QueryContext(ctx)
	check(t, err)
	wantHolder(t, db, line)
	check(t, rows.Close())
	check(t, cache.Clear())

	wantCancel(t, db, func(ctx context.Context) error {
		_, err := psql.Select("pg_sleep(60)").ExecContext(ctx)
		return err
	})
}
