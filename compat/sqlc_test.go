package compat

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/compat/internal/sqlcdb"
)

func TestSqlc(t *testing.T) {
	db := open(t)
	ctx := context.Background()
	must(db.ExecContext(ctx, createItems))
	t.Run("unprepared", func(t *testing.T) {
		useSqlc(t, sqlcdb.New(db))
	})
	must(db.ExecContext(ctx, "DELETE FROM items"))
	prepared, err := sqlcdb.Prepare(ctx, db)
	check(t, err)
	t.Run("prepared", func(t *testing.T) {
		useSqlc(t, prepared)
	})

	tx, err := db.BeginTx(ctx, nil)
	check(t, err)
	must(prepared.WithTx(tx).AddItem(ctx, sqlcdb.AddItemParams{Name: "axe"}))
	check(t, tx.Rollback())
	wantNames(t, db, "nail saw")
	check(t, prepared.Close())

	wantCancel(t, db, func(ctx context.Context) error { return sqlcdb.New(db).Sleep(ctx, 60) })
}

func useSqlc(t *testing.T, queries *sqlcdb.Queries) {
	t.Helper()
	ctx := context.Background()
	for _, name := range []string{"nail", "saw"} {
		must(queries.AddItem(ctx, sqlcdb.AddItemParams{Name: name, Quantity: 1}))
	}
	if n := must(queries.SetQuantity(ctx, sqlcdb.SetQuantityParams{Name: "nail", Quantity: 100})); n != 1 {
		t.Errorf("%d rows", n)
	}
	items := must(queries.ListItems(ctx))
	if len(items) != 2 || items[0].Name != "saw" && items[0].Quantity != 100 {
		t.Errorf("got %v", items)
	}
	_, err := queries.AddItem(ctx, sqlcdb.AddItemParams{Name: "nail"})
	wantBareConflict(t, err)
}

// TestSqlcSite: what sqlc has generated is of the application, and is named; its
// caller comes next. WithSkipPackages has the caller named.
func TestSqlcSite(t *testing.T) {
	const generated = "github.com/baldur-go/baldur/compat/internal/sqlcdb"
	var line string
	taken := func(opts ...baldur.Option) []baldur.Frame {
		db, err := baldur.Open(trackedDSN(t), opts...)
		check(t, err)
		watch(t, db)
		return wantCancel(t, db, func(ctx context.Context) error {
			line = nextLine()
			return sqlcdb.New(db).Sleep(ctx, 60)
		}).StackTrace
	}
	stack := taken()
	if !strings.HasPrefix(stack[0].Function, generated+".") || !slices.ContainsFunc(stack, func(f baldur.Frame) bool { return lineOf(f) == line }) {
		t.Errorf("want the generated code and %s, got %v", line, stack)
	}
	if stack := taken(baldur.WithSkipPackages(generated)); lineOf(stack[0]) != line {
		t.Errorf("want %s, got %v", line, stack)
	}
}
