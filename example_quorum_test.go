package baldur_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/baldur-go/baldur"
)

// One of many processes does the work, and another one goes on when it ends.
func ExamplePGQuorum() {
	db, err := sql.Open("baldur-pq", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	q, err := baldur.NewPGQuorum(db, "eu-west", baldur.WithLeaseName("billing"))
	if err != nil {
		log.Fatal(err)
	}
	q.StartAutoRenew()
	defer q.StopAutoRenew() // hands over

	ctx := context.Background()
	for {
		primary, err := q.AwaitPrimary(ctx) // ends when the lease is lost
		if err != nil {
			return
		}
		for primary.Err() == nil {
			bill(primary, db, q)
			select {
			case <-time.After(time.Minute):
			case <-primary.Done():
				log.Print(context.Cause(primary)) // baldur: lease "billing" of epoch 4294967300 is lost: fenced
			}
		}
	}
}

// bill writes nothing if another process has become primary before it commits.
func bill(ctx context.Context, db *sql.DB, q *baldur.PGQuorum) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return
	}
	defer tx.Rollback()
	epoch, err := q.RequirePrimary(ctx, tx)
	if err != nil {
		return
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO bills (epoch) VALUES ($1)", epoch); err != nil {
		return
	}
	_ = tx.Commit()
}

func ExampleNewPGQuorum_badOptions() {
	db, _ := sql.Open("baldur-pq", "host=localhost")
	_, err := baldur.NewPGQuorum(db, "eu-west", baldur.WithLeaseTTL(3*time.Second), baldur.WithRenewInterval(time.Second))
	fmt.Println(err)
	// Output: baldur: NewPGQuorum: renew interval (WithRenewInterval) is 1s; it must be above 0 and at most 900ms: renew <= (TTL-margin)/3
}
