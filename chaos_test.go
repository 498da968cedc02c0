package baldur_test

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// What the network can do to an open connection.
var networkFaults = []struct {
	name   string
	strike func(p *faultproxy.Proxy)
	silent bool // nobody is told
}{
	{"freeze", func(p *faultproxy.Proxy) { p.Freeze(faultproxy.Both) }, true},
	{"half-close", func(p *faultproxy.Proxy) { p.HalfClose(faultproxy.ToClient) }, false},
	{"reset", func(p *faultproxy.Proxy) { p.Cut() }, false},
	{"slow drip", func(p *faultproxy.Proxy) { p.Drip(faultproxy.Both, time.Millisecond) }, false},
}

// A chaos is one entry point, about to be called on a network that is about to fail.
type chaos struct {
	db  *sql.DB
	ctx context.Context // ends soon after the fault, or never
}

func (c *chaos) conn() *sql.Conn { return must(c.db.Conn(c.ctx)) }
func (c *chaos) tx() *sql.Tx     { return must(c.db.BeginTx(c.ctx, nil)) }

// rows has more to read than the network's buffers hold.
func (c *chaos) rows(q interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}) *sql.Rows {
	rows := must(q.QueryContext(c.ctx, "SELECT repeat('x', 1000) FROM generate_series(1, 30000)"))
	rows.Next()
	return rows
}

func (c *chaos) copyIn(tx *sql.Tx) *sql.Stmt {
	must(tx.Exec("CREATE TEMP TABLE chaos (n int)"))
	st := must(tx.PrepareContext(c.ctx, pq.CopyIn("chaos", "n")))
	must(st.Exec(1))
	return st
}

func drain(rows *sql.Rows, err error) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}

func second[T any](_ T, err error) error { return err }

// onConn has a call on a sql.Conn, which is closed after it.
func onConn(f func(c *chaos, conn *sql.Conn) error) func(*chaos) func() error {
	return func(c *chaos) func() error {
		conn := c.conn()
		return func() error {
			defer conn.Close()
			return f(c, conn)
		}
	}
}

// inTx has a call in a transaction, which is rolled back after it.
func inTx(f func(c *chaos, tx *sql.Tx) error) func(*chaos) func() error {
	return func(c *chaos) func() error {
		tx := c.tx()
		return func() error {
			defer tx.Rollback()
			return f(c, tx)
		}
	}
}

func onStmt(f func(c *chaos, st *sql.Stmt) error) func(*chaos) func() error {
	return func(c *chaos) func() error {
		st := must(c.db.PrepareContext(c.ctx, "SELECT 1"))
		return func() error {
			defer st.Close()
			return f(c, st)
		}
	}
}

// entryPoints are database/sql's. What makes is done on a good network, and what
// it returns is called on a bad one.
var entryPoints = []struct {
	name    string
	closing bool // bounded without a ctx, too
	make    func(c *chaos) func() error
}{
	{"DB.Ping", false, func(c *chaos) func() error { return func() error { return c.db.PingContext(c.ctx) } }},
	{"DB.Exec", false, func(c *chaos) func() error {
		return func() error { return second(c.db.ExecContext(c.ctx, "SELECT 1")) }
	}},
	{"DB.Exec, arguments", false, func(c *chaos) func() error {
		return func() error { return second(c.db.ExecContext(c.ctx, "SELECT $1::int", 1)) }
	}},
	{"DB.Query", false, func(c *chaos) func() error {
		return func() error { return drain(c.db.QueryContext(c.ctx, "SELECT 1")) }
	}},
	{"DB.QueryRow", false, func(c *chaos) func() error {
		return func() error { return c.db.QueryRowContext(c.ctx, "SELECT $1::int", 1).Scan(new(int)) }
	}},
	{"DB.Prepare", false, func(c *chaos) func() error {
		return func() error { return second(c.db.PrepareContext(c.ctx, "SELECT 1")) }
	}},
	{"DB.Begin", false, func(c *chaos) func() error {
		return func() error {
			tx, err := c.db.BeginTx(c.ctx, nil)
			if err == nil {
				err = tx.Rollback()
			}
			return err
		}
	}},
	{"DB.Close", true, func(c *chaos) func() error {
		must(c.db.PrepareContext(c.ctx, "SELECT 1"))
		return c.db.Close
	}},
	{"Conn.Ping", false, onConn(func(c *chaos, conn *sql.Conn) error { return conn.PingContext(c.ctx) })},
	{"Conn.Exec", false, onConn(func(c *chaos, conn *sql.Conn) error { return second(conn.ExecContext(c.ctx, "SELECT 1")) })},
	{"Conn.Query", false, onConn(func(c *chaos, conn *sql.Conn) error { return drain(conn.QueryContext(c.ctx, "SELECT 1")) })},
	{"Conn.QueryRow", false, onConn(func(c *chaos, conn *sql.Conn) error {
		return conn.QueryRowContext(c.ctx, "SELECT 1").Scan(new(int))
	})},
	{"Conn.Prepare", false, onConn(func(c *chaos, conn *sql.Conn) error { return second(conn.PrepareContext(c.ctx, "SELECT 1")) })},
	{"Conn.Begin", false, onConn(func(c *chaos, conn *sql.Conn) error {
		tx, err := conn.BeginTx(c.ctx, nil)
		if err == nil {
			err = tx.Rollback()
		}
		return err
	})},
	{"Conn.Close", true, func(c *chaos) func() error { return c.conn().Close }},
	{"Conn.Close, statement closed meanwhile", true, func(c *chaos) func() error {
		st := must(c.db.PrepareContext(c.ctx, "SELECT 1"))
		conn := c.conn()
		return func() error { st.Close(); return conn.Close() }
	}},
	{"Conn.Raw", true, onConn(func(c *chaos, conn *sql.Conn) error { return conn.Raw(func(any) error { return nil }) })},
	{"Stmt.Exec", false, onStmt(func(c *chaos, st *sql.Stmt) error { return second(st.ExecContext(c.ctx)) })},
	{"Stmt.Query", false, onStmt(func(c *chaos, st *sql.Stmt) error { return drain(st.QueryContext(c.ctx)) })},
	{"Stmt.QueryRow", false, onStmt(func(c *chaos, st *sql.Stmt) error { return st.QueryRowContext(c.ctx).Scan(new(int)) })},
	{"Stmt.Close, idle", true, onStmt(func(c *chaos, st *sql.Stmt) error { return st.Close() })},
	{"Stmt.Close, on a Conn", true, func(c *chaos) func() error {
		conn := c.conn()
		st := must(conn.PrepareContext(c.ctx, "SELECT 1"))
		return func() error { defer conn.Close(); return st.Close() }
	}},
	{"Stmt.Close, in a Tx", true, func(c *chaos) func() error {
		tx := c.tx()
		st := must(tx.PrepareContext(c.ctx, "SELECT 1"))
		return func() error { defer tx.Rollback(); return st.Close() }
	}},
	{"Exec after Stmt.Close", false, func(c *chaos) func() error {
		st := must(c.db.PrepareContext(c.ctx, "SELECT 1"))
		return func() error { st.Close(); return second(c.db.ExecContext(c.ctx, "SELECT 1")) }
	}},
	{"Exec, connection expired", false, func(c *chaos) func() error {
		must(c.db.PrepareContext(c.ctx, "SELECT 1"))
		return func() error {
			c.db.SetConnMaxLifetime(1)
			return second(c.db.ExecContext(c.ctx, "SELECT 1"))
		}
	}},
	{"SetMaxIdleConns", true, func(c *chaos) func() error {
		must(c.db.PrepareContext(c.ctx, "SELECT 1"))
		return func() error { c.db.SetMaxIdleConns(-1); return nil }
	}},
	{"Tx.Exec", false, inTx(func(c *chaos, tx *sql.Tx) error { return second(tx.ExecContext(c.ctx, "SELECT 1")) })},
	{"Tx.Query", false, inTx(func(c *chaos, tx *sql.Tx) error { return drain(tx.QueryContext(c.ctx, "SELECT 1")) })},
	{"Tx.QueryRow", false, inTx(func(c *chaos, tx *sql.Tx) error { return tx.QueryRowContext(c.ctx, "SELECT 1").Scan(new(int)) })},
	{"Tx.Prepare", false, inTx(func(c *chaos, tx *sql.Tx) error { return second(tx.PrepareContext(c.ctx, "SELECT 1")) })},
	{"Tx.Stmt", false, func(c *chaos) func() error {
		st, tx := must(c.db.PrepareContext(c.ctx, "SELECT 1")), c.tx()
		return func() error {
			defer tx.Rollback()
			return second(tx.StmtContext(c.ctx, st).ExecContext(c.ctx))
		}
	}},
	{"Tx.Commit", false, inTx(func(c *chaos, tx *sql.Tx) error { return tx.Commit() })},
	{"Tx.Rollback", true, inTx(func(c *chaos, tx *sql.Tx) error { return tx.Rollback() })},
	{"Tx.Rollback, statements", true, func(c *chaos) func() error {
		tx := c.tx()
		for range 3 {
			must(tx.PrepareContext(c.ctx, "SELECT 1"))
		}
		return tx.Rollback
	}},
	{"Rows.Next", false, func(c *chaos) func() error {
		rows := c.rows(c.db)
		return func() error { return drain(rows, nil) }
	}},
	{"Rows.NextResultSet", false, func(c *chaos) func() error {
		rows := c.rows(c.db)
		return func() error { defer rows.Close(); rows.NextResultSet(); return rows.Err() }
	}},
	{"Rows.Close", true, func(c *chaos) func() error { return c.rows(c.db).Close }},
	{"Rows.Close, of a Stmt", true, func(c *chaos) func() error {
		st := must(c.db.PrepareContext(c.ctx, "SELECT repeat('x', 1000) FROM generate_series(1, 30000)"))
		rows := must(st.QueryContext(c.ctx))
		rows.Next()
		return func() error { defer st.Close(); return rows.Close() }
	}},
	{"Rows.Close, in a Tx", true, func(c *chaos) func() error {
		tx := c.tx()
		rows := c.rows(tx)
		return func() error { defer tx.Rollback(); return rows.Close() }
	}},
	{"COPY, a row", false, func(c *chaos) func() error {
		tx := c.tx()
		st := c.copyIn(tx)
		return func() error { defer tx.Rollback(); return second(st.ExecContext(c.ctx)) }
	}},
	{"COPY, Stmt.Close", true, func(c *chaos) func() error {
		tx := c.tx()
		st := c.copyIn(tx)
		return func() error { defer tx.Rollback(); return st.Close() }
	}},
	{"COPY, Tx.Rollback", true, func(c *chaos) func() error {
		tx := c.tx()
		c.copyIn(tx)
		return tx.Rollback
	}},
	{"connecting", false, func(c *chaos) func() error {
		c.db.SetMaxIdleConns(-1)
		return func() error { return c.db.PingContext(c.ctx) }
	}},
}

const (
	chaosGrace  = 200 * time.Millisecond
	chaosEnd    = 200 * time.Millisecond // of the ctx, after the fault
	chaosTick   = 100 * time.Millisecond
	chaosRoom   = 4 * time.Second // for a busy machine
	chaosCancel = 500 * time.Millisecond
	chaosTrip   = 2 * time.Second  // of a closing on a slow network
	chaosSlow   = 30 * time.Second // of a call on a slow network, log-in included: 1 to 2 s where nothing else runs
)

// TestChaos: each entry point, on a network that fails in each way, with and
// without a ctx that ends, returns in its bound; then the pool has its slots back,
// nobody was accused meanwhile, and in the end no goroutine is left.
func TestChaos(t *testing.T) {
	dsn := pgtest.DSN(t)
	t.Run("all", func(t *testing.T) {
		for _, entry := range entryPoints {
			if entry.name == "COPY, Tx.Rollback" && underRace() {
				continue // lib/pq reads in two goroutines
			}
			t.Run(entry.name, func(t *testing.T) {
				t.Parallel()
				var all sync.WaitGroup
				defer all.Wait()
				for _, fault := range networkFaults {
					for _, ends := range []bool{true, false} {
						// Who reads 30 MB drop by drop reads on.
						unbounded := !ends && (fault.silent && !entry.closing || fault.name == "slow drip" && strings.HasPrefix(entry.name, "Rows."))
						bound := chaosEnd + chaosGrace + chaosTick
						switch {
						case ends || fault.name != "slow drip":
						case entry.closing, unbounded:
							bound = chaosTrip
						default:
							bound = chaosSlow
						}
						s := strike{make: entry.make, happens: fault.strike, silent: fault.silent, ends: ends, unbounded: unbounded, bound: bound}
						all.Go(func() {
							proxied, proxy := proxyOf(t, dsn)
							s.proxy = proxy
							s.db = must(baldur.Open(proxied, baldur.WithCancelGrace(chaosGrace), baldur.WithCancelTimeout(chaosCancel),
								baldur.WithLeakThreshold(chaosGrace+chaosEnd+chaosTick)))
							s.run(t, fmt.Sprintf("%s, ctx ends %v", fault.name, ends))
						})
					}
				}
			})
		}
	})
	nothingRuns(t, "github.com/lib/pq.", "clock.(*Clock)", "pqconn.UntilCut", "baldur.Label")
}

// proxyOf is dsn through a proxy of the test's own.
func proxyOf(t *testing.T, dsn string) (string, *faultproxy.Proxy) {
	cfg := must(pq.NewConfig(dsn))
	address := net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))
	proxy := must(faultproxy.New(address))
	t.Cleanup(func() { proxy.Close() })
	return strings.Replace(dsn, address, proxy.Addr(), 1), proxy
}

// A strike is a call before which the network fails.
type strike struct {
	db        *sql.DB
	proxy     *faultproxy.Proxy
	make      func(*chaos) func() error
	happens   func(*faultproxy.Proxy)
	silent    bool
	ends      bool // the ctx, soon after
	unbounded bool // the call does not return
	bound     time.Duration
}

func (s strike) run(t *testing.T, name string) {
	defer s.db.Close()
	defer s.proxy.Cut() // ends a call that has not returned
	s.db.SetMaxOpenConns(2)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &chaos{db: s.db, ctx: context.Background()}
	if s.ends {
		c.ctx = ctx
	}
	must(s.db.Exec("SELECT 1"))
	call := s.make(c)
	tracker := baldur.TrackerOf(s.db)

	s.happens(s.proxy)
	struck := time.Now()
	if s.ends {
		defer time.AfterFunc(chaosEnd, cancel).Stop()
	}
	returned := make(chan error, 1)
	go func() { returned <- call() }()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	accused := 0 // in so many looks; once, it may be a goroutine that has not been let run since
	for done := false; !done; {
		select {
		case err := <-returned:
			t.Logf("%s: %v after %v", name, err, time.Since(struck).Round(time.Millisecond))
			done = true
		case <-look.C:
			r := tracker.Report()
			if r.LeakCount() == 0 && !strings.Contains(r.String(), "DB.Conn") {
				accused = 0
			} else if accused++; accused > 2 {
				t.Errorf("%s: somebody is accused:\n%s", name, r)
				return
			}
			switch waited := time.Since(struck); {
			case s.unbounded && waited > s.bound+chaosTick:
				if h := tracker.Holders(); s.silent && r.Connecting == 0 && (len(h) != 1 || h[0].State != baldur.StateInCall) {
					if waited < s.bound+chaosRoom {
						continue // it reads what had arrived before
					}
					t.Errorf("%s: the call is not seen:\n%s", name, r)
				}
				s.proxy.Cut()
				s.unbounded = false
				struck = time.Now()
			case !s.unbounded && waited > s.bound+chaosRoom:
				t.Errorf("%s: still running after %v:\n%s\n%s", name, waited, r, stacks("database/sql"))
				return
			}
		}
	}
	cancel()
	for end := time.Now().Add(s.bound + chaosRoom); s.db.Stats().InUse > 0; {
		<-look.C
		if time.Now().After(end) {
			t.Errorf("%s: %d are in use:\n%s\n%s", name, s.db.Stats().InUse, tracker.Report(), stacks("database/sql"))
			return
		}
	}
}

// stacks returns the goroutines in whose stacks a text is.
func stacks(of ...string) string {
	buf := make([]byte, 8<<20)
	var all []string
	for s := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		for _, o := range of {
			if strings.Contains(s, o) {
				all = append(all, s)
				break
			}
		}
	}
	return strings.Join(all, "\n\n")
}

// nothingRuns waits until no goroutine has one of the texts in its stack.
func nothingRuns(t *testing.T, of ...string) {
	t.Helper()
	var left string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); runtime.Gosched() {
		if left = stacks(of...); left == "" {
			return
		}
	}
	t.Errorf("left:\n%s", left)
}
