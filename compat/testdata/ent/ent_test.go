package compat

import (
	"context"
	"strings"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/compat/internal/ent"
	"github.com/baldur-go/baldur/compat/internal/ent/item"
)

func TestEnt(t *testing.T) {
	// ent's generated code is of this module, and not of ent.
	db, err := baldur.Open(trackedDSN(t), baldur.WithSkipPackages("github.com/baldur-go/baldur/compat/internal/ent"))
	check(t, err)
	watch(t, db)
	client := ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, db)))
	ctx := context.Background()
	for range 2 { // the second finds the table and compares it
		check(t, client.Schema.Create(ctx))
	}

	check(t, client.Item.CreateBulk(client.Item.Create().SetName("nail").SetQuantity(100), client.Item.Create().SetName("saw")).Exec(ctx))
	nail, err := client.Item.Query().Where(item.QuantityGT(1)).Only(ctx)
	check(t, err)
	check(t, nail.Update().AddQuantity(-1).Exec(ctx))
	if n := client.Item.GetX(ctx, nail.ID).Quantity; n != 99 {
		t.Errorf("got %d", n)
	}

	err = client.Item.Create().SetName("nail").Exec(ctx)
	if !ent.IsConstraintError(err) {
		t.Errorf("got %T: %v", err, err)
	}
	wantConflict(t, err)

	line := nextLine()
	tx, err := client.Tx(ctx)
	check(t, err)
	wantHolder(t, db, line)
	check(t, tx.Item.Create().SetName("axe").Exec(ctx))
	check(t, tx.Rollback())
	wantNames(t, db, "nail saw")

	wantCancel(t, db, func(ctx context.Context) error {
		_, err := client.Item.Query().Where(func(s *entsql.Selector) { s.Where(entsql.ExprP("pg_sleep(60) IS NOT NULL")) }).All(ctx)
		return err
	})
}

// TestEntName shows that ent takes the driver's name for a dialect.
func TestEntName(t *testing.T) {
	dsn := trackedDSN(t)
	if _, err := ent.Open("baldur-pq", dsn); err == nil || !strings.Contains(err.Error(), "unsupported driver") {
		t.Errorf("ent opens it by name now: %v", err)
	}
	driver, err := entsql.Open("baldur-pq", dsn)
	check(t, err)
	watch(t, driver.DB())
	if err := ent.NewClient(ent.Driver(driver)).Schema.Create(context.Background()); err == nil {
		t.Error("ent knows the dialect of the name now")
	}
}
