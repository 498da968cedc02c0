package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/lib/pq"
)

// Transactions that nobody ends.
var txLeaks = []program{
	txReturnOnError, txCommitIfChanged, txReadOnlyReport, txBeginTwice, txPanicRecovered, txRetryContinue,
	txWrapperInMap, txWrapperInStruct, txInChannel, txFinishClosure, txHandedToGoroutineThatEnds, txSendAfterTimeout,
	txAfterFuncNeverFires, txInCtxValue, txGoexit, txSavepointOnly, txCommitBySQL, txDeferInLongLoop, txAppCtx,
	txUnitOfWork, txHelperBeginsItsOwn, txRowsAndTx, txCopyAborted, txTestAndSet, txInGroup, txSliceOfTx, txStruckByNotFound,
}

// txReturnOnError returns the error of the second statement without Rollback.
func txReturnOnError(w *world) error {
	transfer := func(from, to, amount int) error {
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE customers SET balance = balance - $1 WHERE id = $2", amount, from); err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE customers SET balance = balance + $1 WHERE account = $2", amount, to); err != nil {
			return err // there is no column account
		}
		return tx.Commit()
	}
	if transfer(1, 2, 10) == nil {
		return errors.New("transferred")
	}
	return nil
}

// txCommitIfChanged commits if there was something to change, else returns.
func txCommitIfChanged(w *world) error {
	tx, err := w.db.BeginTx(context.Background(), nil) // LEAK
	if err != nil {
		return err
	}
	res, err := tx.Exec("UPDATE jobs SET state = 'old' WHERE state = 'ancient'")
	if err != nil {
		tx.Rollback()
		return err
	}
	if n, _ := res.RowsAffected(); n > 0 {
		return tx.Commit()
	}
	return nil
}

// txReadOnlyReport reads a snapshot in a read-only transaction: nothing to commit, it thinks.
func txReadOnlyReport(w *world) error {
	tx, err := w.db.BeginTx(context.Background(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}) // LEAK
	if err != nil {
		return err
	}
	var orders, turnover int
	if err := tx.QueryRow("SELECT count(*) FROM orders").Scan(&orders); err != nil {
		return err
	}
	return tx.QueryRow("SELECT sum(amount) FROM orders").Scan(&turnover)
}

// txBeginTwice begins a second transaction in the variable of the first.
func txBeginTwice(w *world) error {
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // of the second
	if _, err = tx.Exec("DELETE FROM jobs WHERE id = 1"); err == nil {
		tx, err = w.db.Begin() // "start over"
	}
	return err
}

// txPanicRecovered panics in a transaction; net/http recovers and logs.
func txPanicRecovered(w *world) error {
	url, err := w.serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		defer func() {
			if recover() != nil {
				rw.WriteHeader(http.StatusOK)
			}
		}()
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			return
		}
		var c *customers
		_, _ = c.all(r.Context())
		_ = tx.Commit()
	}))
	if err != nil {
		return err
	}
	return request(url)
}

// txRetryContinue retries on a serialisation failure, each time with a new transaction.
func txRetryContinue(w *world) error {
	for try := range 3 {
		tx, err := w.db.BeginTx(context.Background(), &sql.TxOptions{Isolation: sql.LevelSerializable}) // LEAK
		if err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE customers SET balance = balance + 1 WHERE id = 9")
		if err == nil && try < 2 {
			err = &pq.Error{Code: "40001", Message: "could not serialize access"} // as a busy server says
		}
		var pqErr *pq.Error
		if errors.As(err, &pqErr) && pqErr.Code == "40001" {
			_, _ = tx.Exec("ROLLBACK") // lets the row go, and keeps the connection
			continue
		}
		return tx.Commit()
	}
	return nil
}

// A session is a transaction that a user of a web page has open.
type session struct {
	tx   *sql.Tx
	user string
	seen time.Time
}

var sessions sync.Map // string → *session

// txWrapperInMap keeps a transaction for each user in a global map, who closes the tab.
func txWrapperInMap(w *world) error {
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	s := &session{tx: tx, user: "ann", seen: time.Now()}
	sessions.Store(fmt.Sprintf("%s/%v", s.user, s.seen), s)
	_, err = tx.Exec("UPDATE orders SET note = 'editing' WHERE id = 11")
	return err
}

type importer struct {
	tx    *sql.Tx
	lines int
	err   error
}

func startImport(db *sql.DB) *importer {
	tx, err := db.Begin() // LEAK txWrapperInStruct
	return &importer{tx: tx, err: err}
}

func (i *importer) line(s string) {
	if i.err != nil {
		return
	}
	i.lines++
	_, i.err = i.tx.Exec("INSERT INTO events (kind, body) VALUES ('import', $1)", s)
}

func (i *importer) finish() error {
	if i.err != nil {
		return i.err // and the transaction?
	}
	return i.tx.Commit()
}

// txWrapperInStruct has a transaction in a struct with a sticky error; finish returns that alone.
func txWrapperInStruct(w *world) error {
	imp := startImport(w.db)
	imp.line("a,b,c")
	imp.line("\x00") // PostgreSQL takes no NUL
	imp.line("d,e,f")
	if imp.finish() == nil {
		return errors.New("imported")
	}
	return nil
}

// txInChannel hands transactions to a worker by a channel that nobody reads any more.
func txInChannel(w *world) error {
	work := make(chan *sql.Tx, 8)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tx := <-work // and then it has enough
		_ = tx.Commit()
	}()
	for range 2 {
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			return err
		}
		work <- tx
	}
	<-done
	return nil
}

// txFinishClosure returns a function that ends the transaction, to a caller that drops it.
func txFinishClosure(w *world) error {
	begin := func() (q querier, finish func(error) error, err error) {
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			return nil, nil, err
		}
		return tx, func(err error) error {
			if err != nil {
				return errors.Join(err, tx.Rollback())
			}
			return tx.Commit()
		}, nil
	}
	q, _, err := begin()
	if err != nil {
		return err
	}
	_, err = q.ExecContext(context.Background(), "UPDATE customers SET balance = 0 WHERE id = 13")
	return err
}

// txHandedToGoroutineThatEnds gives the transaction to a goroutine that returns on an error.
func txHandedToGoroutineThatEnds(w *world) error {
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	failed := make(chan error)
	go func(tx *sql.Tx) {
		if _, err := tx.Exec("UPDATE nowhere SET x = 1"); err != nil {
			failed <- err
			return
		}
		failed <- tx.Commit()
	}(tx)
	if <-failed == nil {
		return errors.New("there is a table nowhere")
	}
	return nil
}

// txSendAfterTimeout sends the begun transaction to somebody who has stopped waiting.
func txSendAfterTimeout(w *world) error {
	ready, late := make(chan *sql.Tx), make(chan struct{})
	go func() {
		<-late
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			return
		}
		w.stands()
		select {
		case ready <- tx:
		case <-w.over: // in life: never
		}
	}()
	expired, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	select {
	case tx := <-ready:
		return tx.Commit()
	case <-expired.Done():
		close(late)
	}
	<-w.over
	return nil
}

// txAfterFuncNeverFires leaves the Rollback to context.AfterFunc, of a ctx that lives on.
func txAfterFuncNeverFires(w *world) error {
	ctx := w.ctx            // meant was that of the request
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = tx.Rollback() })
	_, err = tx.Exec("SELECT 1")
	return err
}

type txKey struct{}

// txInCtxValue is a middleware that puts the transaction into the ctx, and a handler that panics.
func txInCtxValue(w *world) error {
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		tx := r.Context().Value(txKey{}).(*sql.Tx)
		if _, err := tx.Exec("UPDATE orders SET amount = 0 WHERE id = 2"); err != nil {
			panic(err)
		}
		panic(http.ErrAbortHandler)
	})
	url, err := w.serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			http.Error(rw, "busy", http.StatusServiceUnavailable)
			return
		}
		handler.ServeHTTP(rw, r.WithContext(context.WithValue(r.Context(), txKey{}, tx)))
		_ = tx.Commit()
	}))
	if err != nil {
		return err
	}
	if request(url) == nil {
		return errors.New("not aborted")
	}
	return nil
}

// txGoexit ends its goroutine by runtime.Goexit, as t.FailNow does.
func txGoexit(w *world) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			return
		}
		if _, err := tx.Exec("SELECT 1 / 0"); err != nil {
			runtime.Goexit()
		}
		_ = tx.Rollback()
	})
	wg.Wait()
	return nil
}

// txSavepointOnly rolls back to its savepoint and takes that for the end.
func txSavepointOnly(w *world) error {
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	if _, err := tx.Exec("SAVEPOINT before"); err != nil {
		return err
	}
	if _, err := tx.Exec("INSERT INTO orders (customer_id, amount) VALUES (NULL, 1)"); err != nil {
		_, err = tx.Exec("ROLLBACK TO SAVEPOINT before")
		return err
	}
	return tx.Commit()
}

// txCommitBySQL commits by the text of a statement, after which database/sql still has its Tx.
func txCommitBySQL(w *world) error {
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	for _, step := range []string{"UPDATE jobs SET state = 'run' WHERE id = 5", "DELETE FROM jobs WHERE id = 6", "COMMIT"} {
		if _, err := tx.Exec(step); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return nil
}

// txDeferInLongLoop defers Rollback in each turn of a loop that lasts.
func txDeferInLongLoop(w *world) error {
	ticks := make(chan int, 3)
	for i := range cap(ticks) {
		ticks <- i
	}
	for {
		select {
		case id := <-ticks:
			tx, err := w.db.Begin() // LEAK
			if err != nil {
				return err
			}
			defer tx.Rollback()
			if _, err := tx.Exec("UPDATE jobs SET state = 'seen' WHERE id = $1", id); err != nil {
				continue
			}
			if id == 2 {
				w.stands()
			}
		case <-w.over:
			return nil
		}
	}
}

// txAppCtx is under the program's ctx, so that its Rollback comes with the shutdown.
func txAppCtx(w *world) error {
	tx, err := w.db.BeginTx(w.ctx, nil) // LEAK
	if err != nil {
		return err
	}
	var n int
	if err := tx.QueryRowContext(w.ctx, "SELECT count(*) FROM orders WHERE status = 'open'").Scan(&n); err != nil || n > 0 {
		return err
	}
	return tx.Commit()
}

// A unitOfWork is an ORM's: it begins when it is first asked for something.
type unitOfWork struct {
	db    *sql.DB
	tx    *sql.Tx
	dirty bool
}

func (u *unitOfWork) q() (querier, error) {
	if u.tx == nil {
		tx, err := u.db.Begin() // LEAK txUnitOfWork
		if err != nil {
			return nil, err
		}
		u.tx = tx
	}
	return u.tx, nil
}

func (u *unitOfWork) complete() error {
	if !u.dirty {
		return nil
	}
	return u.tx.Commit()
}

// txUnitOfWork is a unit of work that only reads; complete then has nothing to do.
func txUnitOfWork(w *world) error {
	u := &unitOfWork{db: w.db}
	q, err := u.q()
	if err != nil {
		return err
	}
	var name string
	if err := q.QueryRowContext(context.Background(), "SELECT name FROM customers WHERE id = 1").Scan(&name); err != nil {
		return err
	}
	return u.complete()
}

type store struct {
	db *sql.DB
	q  querier // db, or a transaction
}

func (s store) begin() (store, error) {
	tx, err := s.db.Begin() // LEAK txHelperBeginsItsOwn
	return store{s.db, tx}, err
}

func (s store) end() error {
	if tx, ok := s.q.(*sql.Tx); ok {
		return tx.Commit()
	}
	return nil
}

func (s store) placeOrder(ctx context.Context, customer, amount int) error {
	inner, err := s.begin() // also if s is in a transaction already
	if err != nil {
		return err
	}
	if _, err = inner.q.ExecContext(ctx, "INSERT INTO orders (customer_id, amount) VALUES ($1, $2)", customer, amount); err != nil {
		return err
	}
	return s.end() // of the wrong one
}

// txHelperBeginsItsOwn begins in a helper, and commits the store that it was called on.
func txHelperBeginsItsOwn(w *world) error {
	return store{w.db, w.db}.placeOrder(context.Background(), 3, 30)
}

// txRowsAndTx returns out of the loop over a transaction's Rows, with both left open.
func txRowsAndTx(w *world) error {
	tx, err := w.db.Begin() // LEAK
	if err != nil {
		return err
	}
	rows, err := tx.Query("SELECT id FROM jobs FOR UPDATE SKIP LOCKED")
	if err != nil {
		return errors.Join(err, tx.Rollback())
	}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil || id == "2" {
			return err
		}
	}
	return tx.Commit()
}

// txCopyAborted gives up a COPY in the middle: neither statement nor transaction is ended.
func txCopyAborted(w *world) error {
	load := func(events []string) error {
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			return err
		}
		stmt, err := tx.Prepare(`COPY events (kind, body) FROM STDIN`)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e == "" {
				return errors.New("an empty event")
			}
			if _, err := stmt.Exec("bulk", e); err != nil {
				return err
			}
		}
		if _, err := stmt.Exec(); err != nil {
			return err
		}
		return tx.Commit()
	}
	if load([]string{"a", "", "c"}) == nil {
		return errors.New("loaded")
	}
	return nil
}

// txTestAndSet returns false early where somebody else has the job.
func txTestAndSet(w *world) error {
	claim := func(id int) (claimed bool, err error) {
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			return false, err
		}
		var state string
		if err := tx.QueryRow("SELECT state FROM jobs WHERE id = $1 FOR UPDATE", id).Scan(&state); err != nil {
			_ = tx.Rollback()
			return false, err
		}
		if state != "free" {
			return false, nil
		}
		if _, err := tx.Exec("UPDATE jobs SET state = 'mine' WHERE id = $1", id); err != nil {
			_ = tx.Rollback()
			return false, err
		}
		return true, tx.Commit()
	}
	_, err := claim(8)
	return err
}

// txInGroup begins in each goroutine of a group, and commits after all; one fails.
func txInGroup(w *world) error {
	g := newGroup(context.Background())
	txs := make(chan *sql.Tx, 3)
	for shard := range 3 {
		g.run(func(ctx context.Context) error {
			tx, err := w.db.Begin() // LEAK
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, fmt.Sprintf("UPDATE orders SET note = 'x' WHERE id = 1/%d", shard)); err != nil {
				return err // of shard 0
			}
			txs <- tx
			return nil
		})
	}
	if err := g.wait(); err != nil {
		return nil
	}
	for range 3 {
		if err := (<-txs).Commit(); err != nil {
			return err
		}
	}
	return nil
}

// txSliceOfTx begins one transaction for each shard, and at an error ends all but the last.
func txSliceOfTx(w *world) error {
	var open []*sql.Tx
	rollback := func() {
		for i := range len(open) - 1 {
			_ = open[i].Rollback()
		}
	}
	for range 3 {
		tx, err := w.db.Begin() // LEAK
		if err != nil {
			rollback()
			return err
		}
		open = append(open, tx)
	}
	rollback()
	return nil
}

// txStruckByNotFound handles sql.ErrNoRows apart, as no error, and forgets the transaction there.
func txStruckByNotFound(w *world) error {
	tx, err := w.db.BeginTx(context.WithoutCancel(w.ctx), nil) // LEAK
	if err != nil {
		return err
	}
	var id int
	switch err := tx.QueryRow("SELECT id FROM customers WHERE email = $1", "nobody@example.com").Scan(&id); {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		tx.Rollback()
		return err
	}
	return tx.Commit()
}
