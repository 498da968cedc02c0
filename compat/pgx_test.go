package compat

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// openPgx opens a pool on pgx, tracked.
func openPgx(t *testing.T) *sql.DB {
	t.Helper()
	config, err := pgx.ParseConfig(pgtest.DSN(t))
	check(t, err)
	db := baldur.OpenDB(stdlib.GetConnector(*config), baldur.WithLeakThreshold(leakThreshold))
	watch(t, db)
	return db
}

func TestPgx(t *testing.T) {
	db := openPgx(t)
	ctx := context.Background()
	must(db.ExecContext(ctx, createItems))
	const insert = "INSERT INTO items (name) VALUES ($1)"
	must(db.ExecContext(ctx, insert, "nail"))
	var nail Item
	// An argument that is pgx's own option.
	row := db.QueryRowContext(ctx, "SELECT * FROM items WHERE name = $1", pgx.QueryExecModeSimpleProtocol, "nail")
	check(t, row.Scan(&nail.ID, &nail.Name, &nail.Quantity))
	// And one of a type that only pgx takes.
	check(t, db.QueryRowContext(ctx, "SELECT name FROM items WHERE id = ANY($1)", []int64{nail.ID, 0}).Scan(&nail.Name))

	_, err := db.ExecContext(ctx, insert, "nail")
	wantPgxConflict(t, err)

	line := nextLine()
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable})
	check(t, err)
	wantHolder(t, db, line)
	if kind := baldur.TrackerOf(db).Holders()[0].Kind; kind != baldur.KindTx {
		t.Errorf("a transaction is a %s", kind)
	}
	must(tx.ExecContext(ctx, insert, "axe"))
	check(t, tx.Rollback())
	wantNames(t, db, "nail")

	// COPY is a call of pgx's own connection.
	line = nextLine()
	conn, err := db.Conn(ctx)
	check(t, err)
	check(t, conn.Raw(func(dc any) error {
		own := baldur.Unwrap(dc.(driver.Conn)).(*stdlib.Conn).Conn()
		_, err := own.CopyFrom(ctx, pgx.Identifier{"items"}, []string{"name", "quantity"}, pgx.CopyFromRows([][]any{{"saw", 1}, {"vice", 2}}))
		return err
	}))
	wantHolder(t, db, line)
	check(t, conn.Close())
	wantNames(t, db, "nail saw vice")

	wantCancel(t, db, func(ctx context.Context) error {
		_, err := db.ExecContext(ctx, "SELECT pg_sleep(60)")
		return err
	})
}

// TestPgxCopy: who is in a long COPY by pgx's own connection is not accused.
func TestPgxCopy(t *testing.T) {
	const threshold = leakThreshold / 10
	config, err := pgx.ParseConfig(pgtest.DSN(t))
	check(t, err)
	db := baldur.OpenDB(stdlib.GetConnector(*config), baldur.WithLeakThreshold(threshold))
	defer db.Close()
	tracker := baldur.TrackerOf(db)
	ctx := context.Background()
	conn, err := db.Conn(ctx)
	check(t, err)
	defer conn.Close()
	must(conn.ExecContext(ctx, createItems))
	looked := 0
	source := pgx.CopyFromFunc(func() ([]any, error) {
		eventually(t, "the last use is old enough", func() bool {
			h := tracker.Holders()
			return len(h) == 1 && max(h[0].Idle, h[0].InCall) > 3*threshold
		})
		if r := tracker.Report(); r.LeakCount() != 0 {
			t.Errorf("accused: %v", r)
		}
		if looked++; looked > 2 {
			return nil, nil
		}
		return []any{fmt.Sprint("saw ", looked)}, nil
	})
	copyIn := func(own driver.Conn) error {
		_, err := own.(*stdlib.Conn).Conn().CopyFrom(ctx, pgx.Identifier{"items"}, []string{"name"}, source)
		return err
	}
	check(t, conn.Raw(func(dc any) error { return copyIn(baldur.Unwrap(dc.(driver.Conn))) }))
	must(conn.ExecContext(ctx, "DELETE FROM items"))
	looked = 0
	check(t, baldur.Raw(conn, copyIn))
}

func TestPgxSqlx(t *testing.T) {
	db := openPgx(t)
	x := sqlx.NewDb(db, "pgx")
	x.MustExec(createItems)
	const insert = "INSERT INTO items (name, quantity) VALUES (:name, :quantity)"
	must(x.NamedExec(insert, []Item{{Name: "nail"}, {Name: "saw"}}))
	var items []Item
	check(t, x.Select(&items, x.Rebind("SELECT * FROM items WHERE name = ?"), "saw"))
	if len(items) != 1 {
		t.Errorf("got %v", items)
	}
	_, err := x.NamedExec(insert, Item{Name: "nail"})
	wantPgxConflict(t, err)
}

// TestPgxGorm: to gorm's driver, which uses pgx, the wrapped pgx is the one that
// it knows, without DriverName.
func TestPgxGorm(t *testing.T) {
	db := openPgx(t)
	g := openGorm(t, postgres.Config{Conn: db}, &gorm.Config{})
	for range 2 {
		check(t, g.AutoMigrate(&gormItem{}))
	}
	check(t, g.Create(&gormItem{Name: "nail"}).Error)
	wantPgxConflict(t, g.Create(&gormItem{Name: "nail"}).Error)
	translating := openGorm(t, postgres.Config{Conn: db}, &gorm.Config{TranslateError: true})
	err := translating.Create(&gormItem{Name: "nail"}).Error
	if !errors.Is(err, gorm.ErrDuplicatedKey) {
		t.Errorf("got %T: %v", err, err)
	}
	check(t, g.Transaction(func(tx *gorm.DB) error { return tx.Create(&gormItem{Name: "saw"}).Error }))
	wantNames(t, db, "nail saw")
}

func wantPgxConflict(t *testing.T, err error) {
	t.Helper()
	if e, ok := err.(*pgconn.PgError); !ok || e.Code != "23505" {
		t.Errorf("want a bare conflict of pgx's, got %T: %v", err, err)
	}
}
