package compat

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/database/postgres"
	"github.com/golang-migrate/migrate/v4/source/iofs"

	"github.com/baldur-go/baldur"
)

var migrateFiles = fstest.MapFS{
	"1_items.up.sql":   {Data: []byte(createItems)},
	"1_items.down.sql": {Data: []byte("DROP TABLE items")},
	"2_nail.up.sql":    {Data: []byte("INSERT INTO items (name) VALUES ('nail')")},
	"2_nail.down.sql":  {Data: []byte("DELETE FROM items")},
	"3_bad.up.sql":     {Data: []byte("INSERT INTO items (name) VALUES ('nail')")},
	"4_bad.up.sql":     {Data: []byte("SELECT 1\nFROM nowhere")},
}

// useMigrate runs the migrations up to the first that fails, by conflict, the
// next, which fails at its second line, and goes back.
func useMigrate(t *testing.T, driver database.Driver) *migrate.Migrate {
	t.Helper()
	source, err := iofs.New(migrateFiles, ".")
	check(t, err)
	m, err := migrate.NewWithInstance("iofs", source, "postgres", driver)
	check(t, err)
	check(t, m.Migrate(2))
	var e database.Error
	if err := m.Up(); errors.As(err, &e) {
		wantBareConflict(t, e.OrigErr)
	} else {
		t.Errorf("got %T: %v", err, err)
	}
	check(t, m.Force(3))
	// golang-migrate finds the line by a bare assertion of the error.
	if err := m.Up(); !errors.As(err, &e) || e.Line != 2 {
		t.Errorf("got line %d of %T: %v", e.Line, err, err)
	}
	check(t, m.Force(2))
	check(t, m.Steps(-1))
	return m
}

// TestMigrate: WithInstance takes a connection, keeps it until Close, and is
// accused. Close closes the pool.
func TestMigrate(t *testing.T) {
	db, err := sql.Open("baldur-pq", trackedDSN(t))
	check(t, err)
	tracker := baldur.TrackerOf(db)
	line := nextLine()
	driver, err := postgres.WithInstance(db, &postgres.Config{})
	check(t, err)
	wantHolder(t, db, line)
	m := useMigrate(t, driver)
	wantNames(t, db, "")
	wantHolder(t, db, line)
	eventually(t, "it is suspected", func() bool { return tracker.Report().LeakCount() == 1 })
	check(t, errors.Join(m.Close()))
	if n := len(tracker.Holders()); n != 0 {
		t.Errorf("%d holders are left", n)
	}
	if err := db.Ping(); err == nil {
		t.Error("the pool is still open")
	}
	verifySites(t)
}

// TestMigrateLabelled: on a connection that has a name it is not accused.
func TestMigrateLabelled(t *testing.T) {
	db := open(t)
	tracker := baldur.TrackerOf(db)
	ctx := context.Background()
	line := nextLine()
	conn, err := db.Conn(ctx)
	check(t, err)
	check(t, baldur.Label(conn, "golang-migrate"))
	driver, err := postgres.WithConnection(ctx, conn, &postgres.Config{})
	check(t, err)
	m := useMigrate(t, driver)
	wantHolder(t, db, line)
	eventually(t, "it is expected", func() bool {
		held := tracker.Report().LongHeld
		return len(held) == 1 && held[0].Label == "golang-migrate" && held[0].Idle > leakThreshold*3/2
	})
	check(t, errors.Join(m.Close()))
}
