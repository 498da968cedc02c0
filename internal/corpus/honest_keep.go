package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
)

// Honest programs that keep connections and statements: pools, caches, locks, listeners, workers.
var honestKeep = []program{
	okConnDefer, okConnPool, okConnPerTenant, okConnTx, okConnRaw, okConnSessionSetup, okConnTempTable,
	okConnHandOver, okLockKept, okLockTried, okLockLabelled, okListen, okHeartbeat, okStmtCache, okStmtOfConn, okStmtOfTx,
	okStmtConcurrent, okWorkerPool, okQueueWorkers, okTwoPhaseCleanUp, okAfterFunc, okPipeline, okScheduler,
	okCursorFetch, okAdvisoryXact, okPoolChurn,
}

// okConnDefer takes a connection for several statements, and closes it by defer.
func okConnDefer(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, q := range []string{"SET search_path = public", "SELECT 1", "RESET search_path"} {
		if _, err := c.ExecContext(w.ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// A connPool has connections that are set up, in a struct.
type connPool struct {
	free chan *sql.Conn
	all  []*sql.Conn
}

func newConnPool(ctx context.Context, db *sql.DB, n int) (*connPool, error) {
	p := &connPool{free: make(chan *sql.Conn, n)}
	for range n {
		c, err := db.Conn(ctx)
		if err != nil {
			return p, err
		}
		p.all = append(p.all, c)
		p.free <- c
		if _, err := c.ExecContext(ctx, "SET work_mem = '8MB'"); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *connPool) with(ctx context.Context, f func(*sql.Conn) error) error {
	select {
	case c := <-p.free:
		defer func() { p.free <- c }()
		return f(c)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *connPool) close() (err error) {
	for _, c := range p.all {
		err = errors.Join(err, c.Close())
	}
	return err
}

// okConnPool keeps three connections in a pool of its own, all used several times a second.
func okConnPool(w *world) error {
	p, err := newConnPool(w.ctx, w.db, 3)
	defer func() { _ = p.close() }()
	if err != nil {
		return err
	}
	for w.sleep(40 * time.Millisecond) {
		err := p.with(w.ctx, func(c *sql.Conn) error {
			_, err := c.ExecContext(w.ctx, "UPDATE jobs SET state = 'p' WHERE id = 3")
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// okConnPerTenant keeps a connection for each tenant in a map, and closes those not used for 2 s.
func okConnPerTenant(w *world) error {
	type tenant struct {
		c    *sql.Conn
		used time.Time
	}
	open := map[string]*tenant{}
	defer func() {
		for _, t := range open {
			t.c.Close()
		}
	}()
	for i := 0; w.sleep(100 * time.Millisecond); i++ {
		name := fmt.Sprint("tenant ", i/25%2) // each for 2.5 s
		t := open[name]
		if t == nil {
			c, err := w.db.Conn(w.ctx)
			if err != nil {
				return err
			}
			t = &tenant{c: c}
			open[name] = t
		}
		t.used = time.Now()
		if _, err := t.c.ExecContext(w.ctx, "SELECT set_config('application_name', $1, false)", name); err != nil {
			return err
		}
		for name, t := range open {
			if time.Since(t.used) > 2*time.Second {
				t.c.Close()
				delete(open, name)
			}
		}
	}
	return nil
}

// okConnTx begins on a connection, and closes both.
func okConnTx(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	tx, err := c.BeginTx(w.ctx, nil)
	if err != nil {
		return err
	}
	if _, err := tx.Exec("UPDATE orders SET note = 'c' WHERE id = 14"); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// okConnRaw uses the driver's connection by Raw.
func okConnRaw(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	return errors.Join(c.Raw(func(any) error { return nil }), c.PingContext(w.ctx), c.Close())
}

// okConnSessionSetup closes the connection where the set-up of the session fails.
func okConnSessionSetup(w *world) error {
	open := func(settings ...string) (_ *sql.Conn, err error) {
		c, err := w.db.Conn(w.ctx)
		if err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, c.Close())
			}
		}()
		for _, s := range settings {
			if _, err := c.ExecContext(w.ctx, "SET "+s); err != nil {
				return nil, err
			}
		}
		return c, nil
	}
	if _, err := open("work_mem = 'plenty'"); err == nil {
		return errors.New("plenty")
	}
	c, err := open("work_mem = '16MB'", "application_name = 'ok'")
	if err != nil {
		return err
	}
	return c.Close()
}

// okConnTempTable fills a temporary table, and reads it with a rest of 300 ms in between.
func okConnTempTable(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.ExecContext(w.ctx, "CREATE TEMP TABLE mine AS SELECT id FROM orders"); err != nil {
		return err
	}
	for range 3 {
		var n int
		if err := c.QueryRowContext(w.ctx, "SELECT count(*) FROM mine").Scan(&n); err != nil {
			return err
		}
		w.sleep(300 * time.Millisecond)
	}
	_, err = c.ExecContext(w.ctx, "DROP TABLE mine")
	return err
}

// okConnHandOver passes a connection from stage to stage by channels; the last closes it.
func okConnHandOver(w *world) error {
	stages := make([]chan *sql.Conn, 3)
	for i := range stages {
		stages[i] = make(chan *sql.Conn)
	}
	g := newGroup(w.ctx)
	for i, in := range stages {
		g.run(func(ctx context.Context) error {
			c := <-in
			if c == nil {
				return nil
			}
			w.sleep(60 * time.Millisecond)
			_, err := c.ExecContext(ctx, "UPDATE jobs SET state = $1 WHERE id = 12", fmt.Sprint(i))
			if i+1 < len(stages) {
				stages[i+1] <- c
				return err
			}
			return errors.Join(err, c.Close())
		})
	}
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		for _, in := range stages {
			close(in)
		}
		return errors.Join(err, g.wait())
	}
	stages[0] <- c
	return g.wait()
}

// okLockKept keeps an advisory lock on a sql.Conn while it works for 1.5 s, and pings it every 500 ms.
func okLockKept(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.ExecContext(w.ctx, "SELECT pg_advisory_lock(hashtext('okLockKept'))"); err != nil {
		return err
	}
	for range 3 {
		w.sleep(500 * time.Millisecond)
		if err := c.PingContext(w.ctx); err != nil {
			return err
		}
	}
	_, err = c.ExecContext(context.Background(), "SELECT pg_advisory_unlock(hashtext('okLockKept'))")
	return err
}

// okLockTried tries for a lock that two want, and gives its connection back either way.
func okLockTried(w *world) error {
	g := newGroup(w.ctx)
	for range 2 {
		g.run(func(ctx context.Context) error {
			c, err := w.db.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			var ok bool
			if err := c.QueryRowContext(ctx, "SELECT pg_try_advisory_lock(hashtext('okLockTried'))").Scan(&ok); err != nil || !ok {
				return err
			}
			w.sleep(50 * time.Millisecond)
			_, err = c.ExecContext(ctx, "SELECT pg_advisory_unlock(hashtext('okLockTried'))")
			return err
		})
	}
	return g.wait()
}

// okLockLabelled keeps a lock for the whole run, and has labelled its connection.
func okLockLabelled(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := baldur.Label(c, "leader lock"); err != nil {
		return err
	}
	if _, err := c.ExecContext(w.ctx, "SELECT pg_advisory_lock(hashtext('okLockLabelled'))"); err != nil {
		return err
	}
	<-w.over
	return nil
}

// okListen LISTENs by lib/pq's Listener, beside the pool, and acts on what comes.
func okListen(w *world) error {
	l := pq.NewListener(w.dsn, 10*time.Millisecond, time.Second, nil)
	defer l.Close()
	if err := l.Listen("corpus_ok"); err != nil {
		return err
	}
	if _, err := w.db.Exec("NOTIFY corpus_ok, 'hello'"); err != nil {
		return err
	}
	for {
		select {
		case n := <-l.Notify:
			if n == nil {
				continue // reconnected
			}
			_, err := w.db.Exec("INSERT INTO events (kind, body) VALUES ('notified', $1)", n.Extra)
			return err
		case <-w.over:
			return nil
		}
	}
}

// okHeartbeat keeps one connection for heartbeats, 3 s apart.
func okHeartbeat(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		if _, err := c.ExecContext(w.ctx, "INSERT INTO events (kind) VALUES ('heartbeat')"); err != nil {
			return err
		}
		if !w.sleep(3 * time.Second) {
			return nil
		}
	}
}

// okStmtCache prepares each query once for the life of the program.
func okStmtCache(w *world) error {
	cache := &stmtCache{db: w.db, stmts: map[string]*sql.Stmt{}}
	defer func() { _ = cache.close() }()
	for i := 0; w.sleep(20 * time.Millisecond); i++ {
		stmt, err := cache.prepare(fmt.Sprintf("SELECT count(*) FROM orders WHERE amount > $1 AND id > %d", i%10))
		if err != nil {
			return err
		}
		var n int
		if err := stmt.QueryRow(i % 50).Scan(&n); err != nil {
			return err
		}
	}
	return nil
}

// okStmtOfConn prepares on a connection, and closes both in order.
func okStmtOfConn(w *world) error {
	c, err := w.db.Conn(w.ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	stmt, err := c.PrepareContext(w.ctx, "SELECT name FROM customers WHERE id = $1")
	if err != nil {
		return err
	}
	defer stmt.Close()
	for id := range 10 {
		var name string
		if err := stmt.QueryRowContext(w.ctx, id+1).Scan(&name); err != nil {
			return err
		}
	}
	return nil
}

// okStmtOfTx uses a statement of the pool in transactions.
func okStmtOfTx(w *world) error {
	credit, err := w.db.PrepareContext(w.ctx, "UPDATE customers SET balance = balance + $1 WHERE id = $2")
	if err != nil {
		return err
	}
	defer credit.Close()
	for id := range 3 {
		err := inTx(w.ctx, w.db, func(tx *sql.Tx) error {
			stmt := tx.Stmt(credit)
			defer stmt.Close()
			_, err := stmt.Exec(1, id+1)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// okStmtConcurrent shares a statement between ten goroutines that read all its Rows.
func okStmtConcurrent(w *world) error {
	stmt, err := w.db.Prepare("SELECT id FROM orders WHERE customer_id = $1")
	if err != nil {
		return err
	}
	defer stmt.Close()
	g := newGroup(w.ctx)
	for i := range 10 {
		g.run(func(ctx context.Context) error {
			rows, err := stmt.QueryContext(ctx, i+1)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
			}
			return rows.Err()
		})
	}
	return g.wait()
}

// okWorkerPool has four workers with a connection each, and jobs of 10 to 40 ms.
func okWorkerPool(w *world) error {
	jobs := make(chan int)
	g := newGroup(w.ctx)
	for range 4 {
		g.run(func(ctx context.Context) error {
			c, err := w.db.Conn(ctx)
			if err != nil {
				for range jobs { // let the sender go on
				}
				return err
			}
			defer c.Close()
			for j := range jobs {
				if _, err := c.ExecContext(ctx, "UPDATE jobs SET state = 'done' WHERE id = $1", j); err != nil {
					for range jobs {
					}
					return err
				}
				w.sleep(time.Duration(10+j) * time.Millisecond)
			}
			return nil
		})
	}
	for j := range 30 {
		jobs <- j + 1
	}
	close(jobs)
	return g.wait()
}

// okQueueWorkers takes jobs by SKIP LOCKED, and works on each in its transaction.
func okQueueWorkers(w *world) error {
	g := newGroup(w.ctx)
	for range 3 {
		g.run(func(ctx context.Context) error {
			for range 4 {
				err := inTx(ctx, w.db, func(tx *sql.Tx) error {
					var id int
					err := tx.QueryRow("SELECT id FROM jobs WHERE state <> 'busy' ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED").Scan(&id)
					if errors.Is(err, sql.ErrNoRows) {
						return nil
					} else if err != nil {
						return err
					}
					w.sleep(15 * time.Millisecond) // the job
					_, err = tx.Exec("UPDATE jobs SET state = 'did' WHERE id = $1", id)
					return err
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.wait()
}

// okTwoPhaseCleanUp stops its workers first, and then closes what they used.
func okTwoPhaseCleanUp(w *world) error {
	ctx, stop := context.WithCancel(w.ctx)
	defer stop()
	var conns []*sql.Conn
	var workers sync.WaitGroup
	defer func() {
		stop()
		workers.Wait()
		for _, c := range conns {
			c.Close()
		}
	}()
	for range 3 {
		c, err := w.db.Conn(ctx)
		if err != nil {
			return err
		}
		conns = append(conns, c)
		workers.Go(func() {
			for ctx.Err() == nil {
				_, _ = c.ExecContext(ctx, "SELECT pg_sleep(0.03)")
			}
		})
	}
	w.sleep(400 * time.Millisecond)
	return nil
}

// okAfterFunc ends its transaction by context.AfterFunc, of a ctx that it cancels.
func okAfterFunc(w *world) error {
	ctx, cancel := context.WithCancel(context.Background())
	tx, err := w.db.Begin()
	if err != nil {
		cancel()
		return err
	}
	ended := make(chan error, 1)
	context.AfterFunc(ctx, func() { ended <- tx.Rollback() })
	_, err = tx.Exec("UPDATE orders SET amount = 1 WHERE id = 5")
	w.sleep(30 * time.Millisecond)
	cancel()
	return errors.Join(err, <-ended)
}

// okPipeline reads on one connection, and writes on others, as the rows come.
func okPipeline(w *world) error {
	ids := make(chan int, 4)
	g := newGroup(w.ctx)
	g.run(func(ctx context.Context) error {
		defer close(ids)
		for id, err := range each[int](ctx, w.db, "SELECT id FROM orders ORDER BY id") {
			if err != nil {
				return err
			}
			select {
			case ids <- id:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range 2 {
		g.run(func(ctx context.Context) error {
			for id := range ids {
				if _, err := w.db.ExecContext(ctx, "UPDATE orders SET note = 'piped' WHERE id = $1", id); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// okScheduler keeps a transaction-level lock for each turn, one turn every 250 ms.
func okScheduler(w *world) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		err := inTx(w.ctx, w.db, func(tx *sql.Tx) error {
			var mine bool
			if err := tx.QueryRow("SELECT pg_try_advisory_xact_lock(hashtext('okScheduler'))").Scan(&mine); err != nil || !mine {
				return err
			}
			_, err := tx.Exec("UPDATE jobs SET state = 'due' WHERE id = 9")
			return err
		})
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-w.over:
			return nil
		}
	}
}

// okCursorFetch reads a server-side cursor in pages, 200 ms apart.
func okCursorFetch(w *world) error {
	return inTx(w.ctx, w.db, func(tx *sql.Tx) error {
		if _, err := tx.Exec("DECLARE all_orders CURSOR FOR SELECT id FROM orders"); err != nil {
			return err
		}
		for {
			n := 0
			for _, err := range each[int](w.ctx, tx, "FETCH 20 FROM all_orders") {
				if err != nil {
					return err
				}
				n++
			}
			if n == 0 || !w.sleep(200*time.Millisecond) {
				return nil
			}
		}
	})
}

// okAdvisoryXact serialises five goroutines by a lock in their transactions.
func okAdvisoryXact(w *world) error {
	g := newGroup(w.ctx)
	for range 5 {
		g.run(func(ctx context.Context) error {
			return inTx(ctx, w.db, func(tx *sql.Tx) error {
				if _, err := tx.Exec("SELECT pg_advisory_xact_lock(hashtext('okAdvisoryXact'))"); err != nil {
					return err
				}
				w.sleep(20 * time.Millisecond)
				return nil
			})
		})
	}
	return g.wait()
}

// okPoolChurn has connections that live for 100 ms, so that the pool dials all the time.
func okPoolChurn(w *world) error {
	w.db.SetConnMaxLifetime(100 * time.Millisecond)
	w.db.SetMaxOpenConns(2)
	g := newGroup(w.ctx)
	for range 6 {
		g.run(func(ctx context.Context) error {
			for range 5 {
				c, err := w.db.Conn(ctx)
				if err != nil {
					return err
				}
				_, err = c.ExecContext(ctx, "SELECT pg_sleep(0.01)")
				if err := errors.Join(err, c.Close()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.wait()
}
