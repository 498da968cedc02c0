package compat

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/lib/pq"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/rivermigrate"
)

// addArgs has a worker add an item; an empty name has it sleep in a query.
type addArgs struct {
	Name string `json:"name" river:"unique"`
}

func (addArgs) Kind() string { return "add" }

type addWorker struct {
	river.WorkerDefaults[addArgs]
	db *sql.DB
}

func (w *addWorker) Work(ctx context.Context, job *river.Job[addArgs]) error {
	if job.Args.Name == "" {
		_, err := w.db.ExecContext(ctx, "SELECT pg_sleep(60)")
		return err
	}
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "INSERT INTO items (name) VALUES ($1)", job.Args.Name); err != nil {
		return err
	}
	if _, err := river.JobCompleteTx[*riverdatabasesql.Driver](ctx, tx, job); err != nil {
		return err
	}
	return tx.Commit()
}

func TestRiver(t *testing.T) {
	db := open(t)
	ctx := context.Background()
	must(db.ExecContext(ctx, createItems))
	driver := riverdatabasesql.New(db)
	migrator, err := rivermigrate.New(driver, nil)
	check(t, err)
	must(migrator.Migrate(ctx, rivermigrate.DirectionUp, nil))

	workers := river.NewWorkers()
	river.AddWorker(workers, &addWorker{db: db})
	client, err := river.NewClient(driver, &river.Config{
		FetchCooldown:     time.Millisecond,
		FetchPollInterval: 10 * time.Millisecond,
		Logger:            slog.New(slog.NewTextHandler(io.Discard, nil)),
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2}},
		Workers:           workers,
	})
	check(t, err)

	// A job is of the program's own transaction, and goes with it.
	tx, err := db.BeginTx(ctx, nil)
	check(t, err)
	must(client.InsertTx(ctx, tx, addArgs{"axe"}, nil))
	check(t, tx.Rollback())
	tx, err = db.BeginTx(ctx, nil)
	check(t, err)
	must(client.InsertTx(ctx, tx, addArgs{"nail"}, nil))
	check(t, tx.Commit())

	// What fails in a transaction shows in River's calls as lib/pq's error.
	tx, err = db.BeginTx(ctx, nil)
	check(t, err)
	_, err = tx.ExecContext(ctx, "SELECT 1/0")
	if err == nil {
		t.Error("no error")
	}
	_, err = client.InsertTx(ctx, tx, addArgs{"axe"}, nil)
	var e *pq.Error
	if !errors.As(err, &e) || e.Code != "25P02" {
		t.Errorf("want lib/pq's error of a failed transaction, got %T: %v", err, err)
	}
	check(t, tx.Rollback())

	// River's own conflict.
	unique := &river.InsertOpts{UniqueOpts: river.UniqueOpts{ByArgs: true}}
	for i := range 2 {
		if result := must(client.Insert(ctx, addArgs{"saw"}, unique)); result.UniqueSkippedAsDuplicate != (i == 1) {
			t.Errorf("insert %d: skipped: %v", i+1, result.UniqueSkippedAsDuplicate)
		}
	}
	must(client.InsertMany(ctx, []river.InsertManyParams{{Args: addArgs{"rasp"}}, {Args: addArgs{"vice"}}}))
	must(client.InsertManyFast(ctx, []river.InsertManyParams{{Args: addArgs{"awl"}}, {Args: addArgs{"hoe"}}}))

	completed, unsubscribe := client.Subscribe(river.EventKindJobCompleted)
	defer unsubscribe()
	check(t, client.Start(ctx))
	for range 6 {
		select {
		case <-completed:
		case <-time.After(patience):
			t.Fatal("a job is not completed")
		}
	}
	wantNames(t, db, "awl hoe nail rasp saw vice")

	must(client.Insert(ctx, addArgs{}, nil))
	untilSleeping(t, db)
	stopped, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	check(t, client.StopAndCancel(stopped))
}
