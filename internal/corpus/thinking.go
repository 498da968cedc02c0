package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/baldur-go/baldur"
)

// Programs that are alive, and do not use for long what they hold: they think.
var thinkers = []program{
	thinkComputesInTx, thinkCallsOut, thinkWaitsForChannel, thinkWaitsForMutex, thinkWaitsForPerson, thinkKeepsAdvisoryLock,
	thinkBigRows, thinkConnInStruct, thinkSleepsInTx, thinkWaitsForOtherPool, thinkWaitsForProcess, thinkWaitsForGroup,
	thinkCond, thinkSlowClient, thinkLabelledLock, thinkTxInIdleWorker, thinkSelectForever, thinkConnHandedOn,
}

// thinkComputesInTx computes for 3 s in a transaction.
func thinkComputesInTx(w *world) error {
	tx, err := w.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var seed string
	if err := tx.QueryRow("SELECT payload FROM jobs WHERE id = 1 FOR UPDATE").Scan(&seed); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(seed))
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end) && !w.ending(); {
		for range 100 {
			sum = sha256.Sum256(sum[:])
		}
		time.Sleep(time.Millisecond) // there are other programs in this process
	}
	if _, err := tx.Exec("UPDATE jobs SET state = $1 WHERE id = 1", string(sum[0]%26+'a')); err != nil {
		return err
	}
	return tx.Commit()
}

// thinkCallsOut has a payment made by another service, which takes 2 s, in a transaction.
func thinkCallsOut(w *world) error {
	url, stop, err := listen(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { w.sleep(2 * time.Second) }))
	if err != nil {
		return err
	}
	defer stop()
	tx, err := w.db.BeginTx(w.ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.Exec("UPDATE orders SET status = 'paying' WHERE id = 1"); err != nil {
		return err
	}
	if err := request(url); err != nil {
		return err
	}
	if _, err := tx.Exec("UPDATE orders SET status = 'paid' WHERE id = 1"); err != nil {
		return err
	}
	return tx.Commit()
}

// thinkWaitsForChannel waits 4 s for the result of another goroutine.
func thinkWaitsForChannel(w *world) error {
	priced := make(chan int)
	go func() {
		w.sleep(4 * time.Second)
		priced <- 42
	}()
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.ExecContext(w.ctx, "SET lock_timeout = '1s'"); err != nil {
		return err
	}
	_, err = c.ExecContext(w.ctx, "UPDATE orders SET amount = $1 WHERE id = 2", <-priced)
	return err
}

// thinkWaitsForMutex waits for a mutex, in the loop over a result.
func thinkWaitsForMutex(w *world) error {
	var cache struct {
		sync.Mutex
		names map[int]string
	}
	cache.names = map[int]string{}
	cache.Lock()
	go func() { // rebuilds the cache
		defer cache.Unlock()
		<-w.over
	}()
	rows, err := w.db.Query("SELECT id, name FROM customers")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int
		var name string
		if err := rows.Scan(&id, &name); err != nil {
			return err
		}
		cache.Lock()
		cache.names[id] = name
		cache.Unlock()
	}
	return rows.Err()
}

// thinkWaitsForPerson asks "Delete 3 customers? [y/N]" in a transaction.
func thinkWaitsForPerson(w *world) error {
	keyboard, person := io.Pipe()
	go func() {
		<-w.over
		_, _ = io.WriteString(person, "n\n")
	}()
	tx, err := w.db.Begin()
	if err != nil {
		return err
	}
	if _, err := tx.Exec("DELETE FROM customers WHERE id > 17"); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	answer, err := bufio.NewReader(keyboard).ReadString('\n')
	if err != nil || !strings.HasPrefix(answer, "y") {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// thinkKeepsAdvisoryLock keeps a lock on a sql.Conn while it is the only scheduler.
func thinkKeepsAdvisoryLock(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.ExecContext(w.ctx, "SELECT pg_advisory_lock(hashtext('scheduler/think'))"); err != nil {
		return err
	}
	for w.sleep(100 * time.Millisecond) {
		if _, err := w.db.Exec("UPDATE jobs SET state = 'due' WHERE id = 2"); err != nil { // on other connections
			return err
		}
	}
	return nil
}

// thinkBigRows has one enormous row at a time, and works on it for long.
func thinkBigRows(w *world) error {
	rows, err := w.db.QueryContext(w.ctx, "SELECT repeat('x', 1000000) FROM generate_series(1, 20)")
	if err != nil {
		return err
	}
	defer rows.Close()
	var page sql.RawBytes
	for rows.Next() {
		if err := rows.Scan(&page); err != nil {
			return err
		}
		for n := 0; n < len(page); n += 1000 {
			if !w.sleep(10 * time.Millisecond) {
				return nil
			}
		}
	}
	return rows.Err()
}

// A mutexService is a lock server's client side: the connection is the lock.
type mutexService struct {
	conn *sql.Conn
	held map[string]bool
}

func newMutexService(ctx context.Context, db *sql.DB) (*mutexService, error) {
	c, err := db.Conn(ctx)
	return &mutexService{conn: c, held: map[string]bool{}}, err
}

func (m *mutexService) lock(ctx context.Context, name string) error {
	_, err := m.conn.ExecContext(ctx, "SELECT pg_advisory_lock(hashtext($1))", name)
	m.held[name] = err == nil
	return err
}

// thinkConnInStruct keeps its connection in a struct; who took it has returned long ago.
func thinkConnInStruct(w *world) error {
	m, err := newMutexService(w.ctx, w.db)
	if err != nil {
		return err
	}
	defer func() { m.conn.Close() }()
	if err := m.lock(w.ctx, "nightly/struct"); err != nil {
		return err
	}
	<-w.over
	return nil
}

// thinkSleepsInTx sleeps between two attempts, inside of the transaction.
func thinkSleepsInTx(w *world) error {
	tx, err := w.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for {
		res, err := tx.Exec("UPDATE jobs SET state = 'run' WHERE id = 4 AND state = 'ready'")
		if err != nil {
			return err
		}
		if n, _ := res.RowsAffected(); n > 0 || !w.sleep(time.Minute) {
			return tx.Commit()
		}
	}
}

// thinkWaitsForOtherPool waits for a connection of another pool, which is full for long.
func thinkWaitsForOtherPool(w *world) error {
	archive, err := w.open("thinkWaitsForOtherPool/archive", 1)
	if err != nil {
		return err
	}
	g := newGroup(w.ctx)
	busy := make(chan struct{})
	g.run(func(ctx context.Context) error {
		c, err := archive.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		close(busy)
		for w.sleep(50 * time.Millisecond) {
			if _, err := c.ExecContext(ctx, "SELECT pg_sleep(0.02)"); err != nil {
				return err
			}
		}
		return nil
	})
	g.run(func(ctx context.Context) error {
		<-busy
		tx, err := w.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := archive.ExecContext(ctx, "INSERT INTO events (kind) VALUES ('archived')"); err != nil {
			return err
		}
		return tx.Commit()
	})
	if err := g.wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// thinkWaitsForProcess waits for another process, in a transaction.
func thinkWaitsForProcess(w *world) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(w.ctx, cancel)()
	go func() {
		<-w.over
		cancel()
	}()
	tx, err := w.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.Exec("LOCK TABLE events IN SHARE MODE"); err != nil {
		return err
	}
	_ = exec.CommandContext(ctx, "sleep", "3600").Run() // a converter
	return tx.Commit()
}

// thinkWaitsForGroup waits 3 s for its own goroutines, which do not use the transaction.
func thinkWaitsForGroup(w *world) error {
	tx, err := w.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var parts sync.WaitGroup
	for range 3 {
		parts.Go(func() { w.sleep(3 * time.Second) })
	}
	parts.Wait()
	if _, err := tx.Exec("INSERT INTO events (kind) VALUES ('parts')"); err != nil {
		return err
	}
	return tx.Commit()
}

// thinkCond waits on a sync.Cond with its Rows open.
func thinkCond(w *world) error {
	var mu sync.Mutex
	room := sync.NewCond(&mu)
	full := true
	go func() {
		<-w.over
		mu.Lock()
		full = false
		mu.Unlock()
		room.Broadcast()
	}()
	rows, err := w.db.Query("SELECT payload FROM jobs ORDER BY id")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		mu.Lock()
		for full {
			room.Wait()
		}
		mu.Unlock()
	}
	return rows.Err()
}

// thinkSlowClient streams a result to a client that does not read.
func thinkSlowClient(w *world) error {
	var handlers sync.WaitGroup
	handlers.Add(1)
	url, err := w.serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		defer handlers.Done()
		rows, err := w.db.QueryContext(r.Context(), "SELECT repeat('y', 100000) FROM generate_series(1, 1000)")
		if err != nil {
			return
		}
		defer rows.Close()
		for rows.Next() {
			var s string
			if rows.Scan(&s) != nil {
				return
			}
			if _, err := io.WriteString(rw, s); err != nil {
				return
			}
		}
	}))
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	<-w.over // the coffee is ready
	resp.Body.Close()
	handlers.Wait()
	return nil
}

// thinkLabelledLock keeps a lock, and has said so by baldur.Label.
func thinkLabelledLock(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := baldur.Label(c, "migration lock"); err != nil {
		return err
	}
	if _, err := c.ExecContext(w.ctx, "SELECT pg_advisory_lock(hashtext('labelled'))"); err != nil {
		return err
	}
	<-w.over
	return nil
}

// thinkTxInIdleWorker is a worker that keeps its transaction from one job to the next.
func thinkTxInIdleWorker(w *world) error {
	jobs := make(chan func(*sql.Tx) error)
	failed := make(chan error, 1)
	go func() {
		tx, err := w.db.BeginTx(context.Background(), nil)
		for err == nil {
			job, ok := <-jobs
			if !ok {
				err = tx.Commit()
				break
			}
			err = job(tx)
		}
		failed <- err
	}()
	for _, state := range []string{"a", "b"} {
		jobs <- func(tx *sql.Tx) error {
			_, err := tx.Exec("UPDATE jobs SET state = $1 WHERE id = 7", state)
			return err
		}
	}
	<-w.over
	close(jobs)
	return <-failed
}

// thinkSelectForever holds a snapshot open for others (pg_export_snapshot), and waits for a signal.
func thinkSelectForever(w *world) error {
	tx, err := w.db.BeginTx(w.ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var snapshot string
	if err := tx.QueryRow("SELECT pg_export_snapshot()").Scan(&snapshot); err != nil {
		return err
	}
	hourly := time.NewTicker(time.Hour)
	defer hourly.Stop()
	for {
		select {
		case <-hourly.C:
		case <-w.ctx.Done():
			return nil
		case <-w.over:
			return nil
		}
	}
}

// thinkConnHandedOn gives a connection to another goroutine, which has it in a variable and waits;
// who took it has exited.
func thinkConnHandedOn(w *world) error {
	handed := make(chan *sql.Conn)
	go func() {
		c, err := w.db.Conn(context.Background())
		if err != nil {
			c = nil
		}
		handed <- c
	}()
	c := <-handed
	if c == nil {
		return errors.New("no connection")
	}
	defer c.Close()
	if err := c.PingContext(w.ctx); err != nil {
		return err
	}
	<-w.over
	return c.PingContext(context.Background())
}
