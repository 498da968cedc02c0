package compat

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

var gooseFiles = fstest.MapFS{
	"00001_items.sql": {Data: []byte("-- +goose Up\n" + createItems + ";\n-- +goose Down\nDROP TABLE items;\n")},
	"00002_nail.sql":  {Data: []byte("-- +goose Up\nINSERT INTO items (name) VALUES ('nail');\n-- +goose Down\nDELETE FROM items;\n")},
	"00003_index.sql": {Data: []byte("-- +goose NO TRANSACTION\n-- +goose Up\nCREATE INDEX CONCURRENTLY items_quantity ON items (quantity);\n")},
}

func TestGoose(t *testing.T) {
	db := open(t)
	useGoose(t, db)
}

// TestGooseLock: with an advisory lock on one connection.
func TestGooseLock(t *testing.T) {
	db := open(t)
	locker, err := lock.NewPostgresSessionLocker()
	check(t, err)
	useGoose(t, db, goose.WithSessionLocker(locker))
}

func useGoose(t *testing.T, db *sql.DB, opts ...goose.ProviderOption) {
	t.Helper()
	ctx := context.Background()
	var line string
	var before, after error
	conflict := goose.NewGoMigration(4,
		&goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error { // in goose's transaction
			wantHolder(t, db, line)
			_, before = tx.ExecContext(ctx, "INSERT INTO items (name) VALUES ('saw')")
			_, after = tx.ExecContext(ctx, "INSERT INTO items (name) VALUES ('nail')")
			return errors.Join(before, after)
		}}, nil)
	provider, err := goose.NewProvider(goose.DialectPostgres, db, gooseFiles, append(opts, goose.WithGoMigrations(conflict), goose.WithDisableGlobalRegistry(true))...)
	check(t, err)
	line = nextLine()
	results, err := provider.Up(ctx)
	if len(results) != 0 {
		t.Errorf("got %v", results)
	}
	var partial *goose.PartialError
	if !errors.As(err, &partial) || len(partial.Applied) != 3 || before != nil || after == nil {
		t.Errorf("got %v", err)
	}
	wantConflict(t, err)
	wantNames(t, db, "nail")
	must(provider.DownTo(ctx, 1))
	wantNames(t, db, "")
	status, err := provider.Status(ctx)
	check(t, err)
	if len(status) != 4 || status[0].State != goose.StateApplied || status[1].State != goose.StatePending {
		t.Errorf("got %v", status)
	}
}

func TestGooseCancel(t *testing.T) {
	db := open(t)
	provider, err := goose.NewProvider(goose.DialectPostgres, db, fstest.MapFS{
		"00001_sleep.sql": {Data: []byte("-- +goose Up\nSELECT pg_sleep(60);\n")},
	})
	check(t, err)
	wantCancel(t, db, func(ctx context.Context) error {
		_, err := provider.Up(ctx)
		return err
	})
}

// TestGooseName shows that goose does not open a driver that it does not know.
func TestGooseName(t *testing.T) {
	if _, err := goose.OpenDBWithDriver("baldur-pq", trackedDSN(t)); err == nil {
		t.Error("goose opens it by name now")
	}
}

// TestGooseFunctions: goose's older functions go by the dialect, too.
func TestGooseFunctions(t *testing.T) {
	db := open(t)
	goose.SetBaseFS(gooseFiles)
	goose.SetLogger(goose.NopLogger())
	check(t, goose.SetDialect("postgres"))
	check(t, goose.UpContext(context.Background(), db, "."))
	wantNames(t, db, "nail")
	check(t, goose.ResetContext(context.Background(), db, "."))
}
