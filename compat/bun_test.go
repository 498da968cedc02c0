package compat

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/lib/pq"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/migrate"
)

// bunItem is a row of items to bun.
type bunItem struct {
	bun.BaseModel `bun:"table:items"`

	ID       int64  `bun:",pk,autoincrement"`
	Name     string `bun:",unique"`
	Quantity int
	Tags     []string `bun:",array"`
}

func TestBun(t *testing.T) {
	db := open(t)
	b := bun.NewDB(db, pgdialect.New())
	ctx := context.Background()
	must(b.NewCreateTable().Model((*bunItem)(nil)).Exec(ctx))

	items := []bunItem{{Name: "nail", Quantity: 100, Tags: []string{"iron", "small"}}, {Name: "saw"}}
	must(b.NewInsert().Model(&items).Exec(ctx))
	var nail bunItem
	check(t, b.NewSelect().Model(&nail).Where("name = ?", "nail").Scan(ctx))
	if nail.ID != items[0].ID || nail.Quantity != 100 || len(nail.Tags) != 2 {
		t.Errorf("got %v", nail)
	}

	_, err := b.NewInsert().Model(&bunItem{Name: "nail"}).Exec(ctx)
	wantBareConflict(t, err)

	no := errors.New("no")
	err = b.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		must(tx.NewInsert().Model(&bunItem{Name: "axe"}).Exec(ctx))
		// A transaction in it is a savepoint.
		wantConflict(t, tx.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
			_, err := tx.NewInsert().Model(&bunItem{Name: "axe"}).Exec(ctx)
			return err
		}))
		must(tx.NewInsert().Model(&bunItem{Name: "rasp"}).Exec(ctx))
		return no
	})
	if err != no {
		t.Errorf("got %v", err)
	}
	wantNames(t, db, "nail saw")

	line := nextLine()
	tx, err := b.BeginTx(ctx, &sql.TxOptions{})
	check(t, err)
	wantHolder(t, db, line)
	stmt, err := tx.PrepareContext(ctx, pq.CopyIn("items", "name"))
	check(t, err)
	must(stmt.Exec("vice"))
	must(stmt.Exec())
	check(t, stmt.Close())
	check(t, tx.Commit())
	wantNames(t, db, "nail saw vice")

	line = nextLine()
	rows, err := b.NewSelect().Model((*bunItem)(nil)).Rows(ctx)
	check(t, err)
	wantHolder(t, db, line)
	rows.Next()
	check(t, b.ScanRow(ctx, rows, &nail))
	check(t, rows.Close())

	line = nextLine()
	conn, err := b.Conn(ctx)
	check(t, err)
	check(t, conn.NewSelect().Model(&nail).Where("name = ?", "saw").Scan(ctx))
	wantHolder(t, db, line)
	check(t, conn.Close())

	wantCancel(t, db, func(ctx context.Context) error {
		_, err := b.NewRaw("SELECT pg_sleep(?)", 60).Exec(ctx)
		return err
	})
}

func TestBunMigrate(t *testing.T) {
	db := open(t)
	ctx := context.Background()
	migrations := migrate.NewMigrations()
	check(t, migrations.Discover(fstest.MapFS{
		"1_items.tx.up.sql":   {Data: []byte(createItems)},
		"1_items.tx.down.sql": {Data: []byte("DROP TABLE items")},
		"2_nail.up.sql":       {Data: []byte("INSERT INTO items (name) VALUES ('nail')\n--bun:split\nINSERT INTO items (name) VALUES ('saw')")},
		"3_nail.tx.up.sql":    {Data: []byte("INSERT INTO items (name) VALUES ('axe')\n--bun:split\nINSERT INTO items (name) VALUES ('nail')")},
	}))
	migrator := migrate.NewMigrator(bun.NewDB(db, pgdialect.New()), migrations)
	check(t, migrator.Init(ctx))
	check(t, migrator.Lock(ctx))
	_, err := migrator.Migrate(ctx)
	wantConflict(t, err)
	wantNames(t, db, "nail saw")
	check(t, migrator.Unlock(ctx))
}
