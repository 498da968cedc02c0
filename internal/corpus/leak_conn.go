package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// A sql.Conn that nobody closes, whatever its ctx.
var connLeaks = []program{
	connLockHelper, connNeverUsed, connErrorPath, connTxCommitted, connGlobalMapForgotten, connInSyncPool,
	connRaw, connRequestCtx, connCleanupIgnored, connReconnectLoop, connOwnPoolFull, connTempTable, connClosedRowsOnly,
	connWorkerPanics, connTimedOutCtx, connNamedReturn,
}

// connLockHelper takes an advisory lock and returns whether it was free; only who gets it unlocks.
func connLockHelper(w *world) error {
	holder, err := w.db.Conn(context.Background())
	if err != nil {
		return err
	}
	defer holder.Close()
	if _, err := holder.ExecContext(w.ctx, "SELECT pg_advisory_lock(15)"); err != nil {
		return err
	}
	tryLock := func(ctx context.Context, id int) (unlock func(), ok bool, err error) {
		c, err := w.db.Conn(ctx) // LEAK
		if err != nil {
			return nil, false, err
		}
		if err := c.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1)", id).Scan(&ok); err != nil || !ok {
			return nil, false, err
		}
		return func() { c.Close() }, true, nil
	}
	if unlock, ok, err := tryLock(context.Background(), 15); err != nil {
		return err
	} else if ok {
		unlock()
		return errors.New("locked twice")
	}
	_, err = holder.ExecContext(w.ctx, "SELECT pg_advisory_unlock(15)")
	return err
}

// connNeverUsed takes a connection in case that it should need one.
func connNeverUsed(w *world) error {
	c, err := w.db.Conn(w.ctx) // LEAK
	if err != nil {
		return err
	}
	if jobs := []string{}; len(jobs) > 0 {
		_, err = c.ExecContext(w.ctx, jobs[0])
	}
	return err
}

// connErrorPath sets the session up, and returns the error of that.
func connErrorPath(w *world) error {
	session := func(settings ...string) (*sql.Conn, error) {
		c, err := w.db.Conn(context.Background()) // LEAK
		if err != nil {
			return nil, err
		}
		for _, s := range settings {
			if _, err := c.ExecContext(context.Background(), "SET "+s); err != nil {
				return nil, fmt.Errorf("SET %s: %w", s, err)
			}
		}
		return c, nil
	}
	c, err := session("statement_timeout = '5s'", "work_mem = 'plenty'")
	if err == nil {
		c.Close()
		return errors.New("plenty")
	}
	return nil
}

// connTxCommitted ends the transaction, and takes that for the end of the connection.
func connTxCommitted(w *world) error {
	ctx := context.Background()
	c, err := w.db.Conn(ctx) // LEAK
	if err != nil {
		return err
	}
	tx, err := c.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "UPDATE orders SET status = 'paid' WHERE id = 4"); err != nil {
		return err
	}
	return tx.Commit()
}

// tenants are connections by tenant: of each one's search_path.
var tenants = struct {
	sync.Mutex
	conns map[string]*sql.Conn
}{conns: map[string]*sql.Conn{}}

// connGlobalMapForgotten keeps a connection for each tenant, of whom some never come back.
func connGlobalMapForgotten(w *world) error {
	c, err := w.db.Conn(w.ctx) // LEAK
	if err != nil {
		return err
	}
	tenants.Lock()
	defer tenants.Unlock()
	tenants.conns[fmt.Sprintf("acme-%d", time.Now().UnixNano())] = c
	_, err = c.ExecContext(w.ctx, "SET application_name = 'acme'")
	return err
}

// connInSyncPool puts connections into a sync.Pool, which drops them.
func connInSyncPool(w *world) error {
	pool := sync.Pool{New: func() any {
		c, err := w.db.Conn(context.Background()) // LEAK
		if err != nil {
			return err
		}
		return c
	}}
	c, ok := pool.Get().(*sql.Conn)
	if !ok {
		return errors.New("no connection")
	}
	defer pool.Put(c)
	return c.PingContext(w.ctx)
}

// connRaw goes to the driver's connection, and returns with what that says.
func connRaw(w *world) error {
	c, err := w.db.Conn(context.Background()) // LEAK
	if err != nil {
		return err
	}
	return c.Raw(func(dc any) error {
		if q, ok := dc.(driver.Pinger); ok {
			return q.Ping(context.Background())
		}
		return nil
	})
}

// connRequestCtx takes a sql.Conn on the request's ctx, whose end does not give it back.
func connRequestCtx(w *world) error {
	return get(w, func(rw http.ResponseWriter, r *http.Request) {
		c, err := w.db.Conn(r.Context()) // LEAK
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		var n int
		if err := c.QueryRowContext(r.Context(), "SELECT count(*) FROM orders").Scan(&n); err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(rw, n)
	})
}

// connCleanupIgnored gets a clean-up function as its second result, and writes _ for it.
func connCleanupIgnored(w *world) error {
	checkout := func() (*sql.Conn, func() error) {
		c, err := w.db.Conn(context.Background()) // LEAK
		if err != nil {
			return nil, func() error { return err }
		}
		return c, c.Close
	}
	c, _ := checkout()
	if c == nil {
		return errors.New("no connection")
	}
	_, err := c.ExecContext(context.Background(), "SET TIME ZONE 'UTC'")
	return err
}

// connReconnectLoop takes another connection after each error, and leaves the old one.
func connReconnectLoop(w *world) error {
	var c *sql.Conn
	var err error
	for try := range 3 {
		if c, err = w.db.Conn(w.ctx); err != nil { // LEAK
			return err
		}
		query := "SELECT 1 FROM heartbeat"
		if try == 2 {
			query = "SELECT 1"
		}
		if _, err = c.ExecContext(w.ctx, query); err == nil {
			break
		}
	}
	return errors.Join(err, c.Close())
}

// An ownPool is a pool on top of the pool.
type ownPool struct{ free chan *sql.Conn }

func (p *ownPool) get(ctx context.Context, db *sql.DB) (*sql.Conn, error) {
	select {
	case c := <-p.free:
		return c, nil
	default:
		return db.Conn(ctx) // LEAK connOwnPoolFull
	}
}

func (p *ownPool) put(c *sql.Conn) {
	select {
	case p.free <- c:
	default: // enough
	}
}

// connOwnPoolFull has a pool of its own, which drops what it has no room for.
func connOwnPoolFull(w *world) error {
	pool := &ownPool{make(chan *sql.Conn, 1)}
	var out []*sql.Conn
	for range 3 {
		c, err := pool.get(w.ctx, w.db)
		if err != nil {
			return err
		}
		if err := c.PingContext(w.ctx); err != nil {
			return err
		}
		out = append(out, c)
	}
	for _, c := range out {
		pool.put(c)
	}
	return (<-pool.free).Close()
}

// connTempTable needs one session for a temporary table, and drops the table only.
func connTempTable(w *world) error {
	ctx := context.Background()
	c, err := w.db.Conn(ctx) // LEAK
	if err != nil {
		return err
	}
	for _, q := range []string{
		"CREATE TEMP TABLE best AS SELECT customer_id, sum(amount) AS s FROM orders GROUP BY 1",
		"UPDATE customers SET balance = balance + 1 FROM best WHERE best.customer_id = customers.id AND best.s > 150",
		"DROP TABLE best",
	} {
		if _, err := c.ExecContext(ctx, q); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	return nil
}

// connClosedRowsOnly closes the Rows of a connection that it took for them.
func connClosedRowsOnly(w *world) error {
	sorted := func(ctx context.Context) (*sql.Rows, error) {
		c, err := w.db.Conn(ctx) // LEAK
		if err != nil {
			return nil, err
		}
		if _, err := c.ExecContext(ctx, "SET enable_seqscan = off"); err != nil {
			c.Close()
			return nil, err
		}
		return c.QueryContext(ctx, "SELECT id FROM orders ORDER BY id")
	}
	rows, err := sorted(context.Background())
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}

// connWorkerPanics is a worker that panics with its connection; the supervisor starts another.
func connWorkerPanics(w *world) error {
	jobs := make(chan int, 4)
	for _, j := range []int{1, 0, 2, 3} {
		jobs <- j
	}
	close(jobs)
	work := func(c *sql.Conn) (crashed bool) {
		defer func() { crashed = recover() != nil }()
		for j := range jobs {
			if _, err := c.ExecContext(w.ctx, "UPDATE jobs SET state = $1 WHERE id = $2", fmt.Sprint(6/j), j); err != nil {
				return false
			}
		}
		return false
	}
	for {
		c, err := w.db.Conn(w.ctx) // LEAK
		if err != nil {
			return err
		}
		if !work(c) {
			return c.Close()
		}
	}
}

// connTimedOutCtx relies on the ctx with a timeout that it took the connection with.
func connTimedOutCtx(w *world) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	c, err := w.db.Conn(context.WithoutCancel(ctx)) // LEAK
	if err != nil {
		return err
	}
	_, _ = c.ExecContext(ctx, "SELECT pg_sleep(1)") // cancelled
	<-ctx.Done()
	return nil
}

// connNamedReturn closes in a deferred function if err is set, which an inner err hides.
func connNamedReturn(w *world) (err error) {
	var c *sql.Conn
	open := func() (err error) {
		if c, err = w.db.Conn(w.ctx); err != nil { // LEAK
			return err
		}
		defer func() {
			if err != nil {
				c.Close()
			}
		}()
		if _, err := c.ExecContext(w.ctx, "SET ROLE nobody_at_all"); err != nil {
			return nil // "the role is optional"
		}
		return nil
	}
	return open()
}
