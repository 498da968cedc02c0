package baldur_test

import (
	"context"
	"database/sql"
	"errors"
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
	// Until the work is done, or fails, while this process is primary. What is lost on the way
	// is begun anew by the next primary, here or elsewhere.
	err = q.Run(context.Background(), func(ctx context.Context) error { // which ends when the lease is lost
		for {
			if err := bill(ctx, q); err != nil {
				return err
			}
			select {
			case <-time.After(time.Minute):
			case <-ctx.Done():
				return context.Cause(ctx) // baldur: lease "billing" of epoch 4294967300 is lost: fenced
			}
		}
	})
	log.Print(err)
}

// bill writes nothing if another process has become primary before it commits.
func bill(ctx context.Context, q *baldur.PGQuorum) error {
	err := q.InTx(ctx, nil, func(tx *sql.Tx, epoch int64) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO bills (epoch, minute) VALUES ($1, date_trunc('minute', now())) ON CONFLICT DO NOTHING", epoch)
		return err
	})
	if errors.Is(err, baldur.ErrCommitUnknown) {
		return nil // it may be there: the next call of this minute writes no second one
	}
	return err
}

func ExampleNewPGQuorum_badOptions() {
	db, _ := sql.Open("baldur-pq", "host=localhost")
	_, err := baldur.NewPGQuorum(db, "eu-west", baldur.WithLeaseTTL(3*time.Second), baldur.WithRenewInterval(time.Second))
	fmt.Println(err)
	// Output: baldur: NewPGQuorum: renew interval (WithRenewInterval) is 1s; it must be above 0 and at most 900ms: renew <= (TTL-margin)/3
}
