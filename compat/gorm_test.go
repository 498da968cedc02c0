package compat

import (
	"context"
	"errors"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"

	"github.com/baldur-go/baldur"
)

// gormItem is a row of items to gorm.
type gormItem struct {
	ID       int64
	Name     string `gorm:"uniqueIndex"`
	Quantity int
}

func (gormItem) TableName() string { return "items" }

func openGorm(t *testing.T, cfg postgres.Config, opts *gorm.Config) *gorm.DB {
	t.Helper()
	opts.Logger = logger.Discard
	g, err := gorm.Open(postgres.New(cfg), opts)
	check(t, err)
	return g
}

func TestGorm(t *testing.T) {
	db := open(t)
	useGorm(t, openGorm(t, postgres.Config{Conn: db, DriverName: "baldur-pq"}, &gorm.Config{}))
}

// TestGormPrepared: with gorm's cache of prepared statements.
func TestGormPrepared(t *testing.T) {
	db := open(t)
	g := openGorm(t, postgres.Config{Conn: db, DriverName: "baldur-pq"}, &gorm.Config{PrepareStmt: true})
	useGorm(t, g)
}

// TestGormName: gorm opens the pool itself.
func TestGormName(t *testing.T) {
	dsn := trackedDSN(t)
	g := openGorm(t, postgres.Config{DriverName: "baldur-pq", DSN: dsn}, &gorm.Config{})
	watch(t, must(g.DB()))
	useGorm(t, g)
}

func useGorm(t *testing.T, g *gorm.DB) {
	t.Helper()
	db := must(g.DB())
	for range 2 { // the second finds the table and compares it
		check(t, g.AutoMigrate(&gormItem{}))
	}
	items := []gormItem{{Name: "nail", Quantity: 100}, {Name: "saw"}}
	check(t, g.Create(&items).Error)
	check(t, g.Clauses(clause.OnConflict{Columns: []clause.Column{{Name: "name"}}, DoUpdates: clause.AssignmentColumns([]string{"quantity"})}).
		Create(&gormItem{Name: "saw", Quantity: 3}).Error)
	var saw gormItem
	check(t, g.Where("name = ?", "saw").First(&saw).Error)
	if saw.ID != items[1].ID || saw.Quantity != 3 {
		t.Errorf("got %v", saw)
	}

	wantBareConflict(t, g.Create(&gormItem{Name: "nail"}).Error)
	if err := g.Session(&gorm.Session{}).First(&saw, "name = ?", "axe").Error; !errors.Is(err, gorm.ErrRecordNotFound) {
		t.Errorf("got %v", err)
	}

	no := errors.New("no")
	err := g.Transaction(func(tx *gorm.DB) error {
		check(t, tx.Create(&gormItem{Name: "axe"}).Error)
		// A transaction in it is a savepoint.
		wantConflict(t, tx.Transaction(func(tx *gorm.DB) error { return tx.Create(&gormItem{Name: "axe"}).Error }))
		check(t, tx.Create(&gormItem{Name: "rasp"}).Error)
		return no
	})
	if err != no {
		t.Errorf("got %v", err)
	}
	wantNames(t, db, "nail saw")

	line := nextLine()
	tx := g.Begin()
	check(t, tx.Error)
	wantHolder(t, db, line)
	check(t, tx.Create(&gormItem{Name: "vice"}).Error)
	check(t, tx.Commit().Error)
	wantNames(t, db, "nail saw vice")

	line = nextLine()
	rows, err := g.Model(&gormItem{}).Rows()
	check(t, err)
	wantHolder(t, db, line)
	rows.Next()
	check(t, g.ScanRows(rows, &saw))
	check(t, rows.Close())

	wantCancel(t, db, func(ctx context.Context) error {
		return g.WithContext(ctx).Exec("SELECT pg_sleep(60)").Error
	})
}

// TestGormTranslate: gorm's own errors are made from lib/pq's.
func TestGormTranslate(t *testing.T) {
	db := open(t)
	g := openGorm(t, postgres.Config{Conn: db, DriverName: baldur.DriverName}, &gorm.Config{TranslateError: true})
	check(t, g.AutoMigrate(&gormItem{}))
	check(t, g.Create(&gormItem{Name: "nail"}).Error)
	if err := g.Create(&gormItem{Name: "nail"}).Error; !errors.Is(err, gorm.ErrDuplicatedKey) {
		t.Errorf("got %T: %v", err, err)
	}
}

// TestGormUnnamed shows what it is without DriverName: gorm takes the driver for
// pgx, and gives it an argument of pgx's when it looks at a table.
func TestGormUnnamed(t *testing.T) {
	db := open(t)
	g := openGorm(t, postgres.Config{Conn: db}, &gorm.Config{})
	check(t, g.AutoMigrate(&gormItem{}))
	if err := g.AutoMigrate(&gormItem{}); err == nil {
		t.Error("AutoMigrate needs no DriverName any more")
	}
}
