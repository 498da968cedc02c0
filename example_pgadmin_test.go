package baldur_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/baldur-go/baldur"
)

// A job that must not run twice, in this program or in another one.
func ExamplePGAdmin_WithAdvisoryLock() {
	ctx := context.Background()
	db, err := sql.Open("baldur-pq", "postgres://app@db/shop")
	if err != nil {
		log.Fatal(err)
	}
	admin := baldur.NewPGAdmin(db)
	defer admin.Close()

	id := baldur.LockID("nightly report")
	err = admin.WithAdvisoryLock(ctx, id, baldur.LockOptions{NoWait: true}, func(ctx context.Context, s *baldur.Session, acquired bool) error {
		if !acquired {
			return nil // it runs elsewhere
		}
		_, err := s.ExecContext(ctx, "INSERT INTO reports SELECT * FROM night") // needs no second connection
		return err
	})
	var lost *baldur.LockLostError
	if errors.As(err, &lost) {
		log.Print("the report may have been made twice: ", err)
	}
}

// Behind PgBouncer in transaction mode: the lock lives and ends with a transaction.
func ExamplePGAdmin_WithTxAdvisoryLock() {
	ctx := context.Background()
	var admin baldur.PGAdminProvider = baldur.NoopPGAdmin{}
	err := admin.WithTxAdvisoryLock(ctx, 42, baldur.LockOptions{Timeout: time.Second}, func(ctx context.Context, tx *sql.Tx, acquired bool) error {
		if !acquired {
			return nil
		}
		_, err := tx.ExecContext(ctx, "UPDATE stock SET n = n - 1")
		return err
	})
	var late *baldur.LockTimeoutError
	if errors.As(err, &late) {
		fmt.Println("somebody has had it for", late.Waited)
	}
}

func ExamplePGAdmin_AcquireAdvisoryLock() {
	ctx := context.Background()
	var admin *baldur.PGAdmin // of NewPGAdmin
	if ok, err := admin.AcquireAdvisoryLock(ctx, 42, true); !ok {
		log.Fatal(err)
	}
	// From here on a connection is kept, and reports call it "advisory lock 42".
	if _, err := admin.ReleaseAdvisoryLock(ctx, 42); err != nil {
		log.Print(err)
	}
}

func ExamplePGAdmin_WithTimeouts() {
	ctx := context.Background()
	var admin *baldur.PGAdmin // of NewPGAdmin
	err := admin.WithTimeouts(ctx, time.Second, 10*time.Second, func(ctx context.Context, s *baldur.Session) error {
		_, err := s.ExecContext(ctx, "ALTER TABLE orders ADD note text") // waits a second for its lock, and no more
		return err
	})
	fmt.Println(err)
}

// Who has a lock, who blocks whom, and an end to it.
func ExamplePGAdmin_BlockingTree() {
	ctx := context.Background()
	var admin *baldur.PGAdmin // of NewPGAdmin
	holders, err := admin.LockHolders(ctx, 42)
	if err != nil {
		log.Fatal(err)
	}
	for _, h := range holders {
		fmt.Println(h.PID, h.ApplicationName, h.Since, h.Query)
	}
	tree, err := admin.BlockingTree(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, root := range tree {
		fmt.Print(root)
		if root.State == "idle in transaction" && time.Since(root.XactStart) > time.Hour {
			_, _ = admin.Terminate(ctx, root.PID)
		}
	}
}

func ExampleNoopPGAdmin() {
	var admin baldur.PGAdminProvider = baldur.NoopPGAdmin{}
	ok, err := admin.TryAdvisoryLock(context.Background(), 42)
	fmt.Println(admin.IsAvailable(), ok, err)
	// Output: false false <nil>
}
