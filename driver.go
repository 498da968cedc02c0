package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/baldur-go/baldur/internal/pqconn"
)

// DriverName is the name under which this package registers with database/sql.
const DriverName = "baldur-pq"

func init() { sql.Register(DriverName, pqDriver{}) }

// pqDriver is the driver registered as "baldur-pq".
type pqDriver struct{}

var _ driver.DriverContext = pqDriver{}

// OpenConnector is what sql.Open calls. It has no side effects: database/sql
// and the libraries on top of it call it to look at a DSN.
func (pqDriver) OpenConnector(dsn string) (driver.Connector, error) { return openConnector(dsn, nil) }

// Open is driver.Driver's; database/sql calls OpenConnector.
func (d pqDriver) Open(dsn string) (driver.Conn, error) {
	c, err := d.OpenConnector(dsn)
	if err != nil {
		return nil, err
	}
	return c.Connect(context.Background())
}

func openConnector(dsn string, opts []Option) (*connector, error) {
	pqcfg, params, err := pqconn.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	cfg, err := newConfig(params, opts)
	if err != nil {
		return nil, err
	}
	var target Target
	if pqconn.Nameable(dsn, pqcfg) {
		t := pqconn.TargetOf(pqcfg)
		target = Target{Address: t.Address, Port: t.Port, Database: t.Database, Schema: t.Schema}
		if cfg.poolName == "" {
			cfg.poolName = pqconn.PoolName(pqcfg)
		}
	}
	if cfg.poolName == "" {
		cfg.poolName = "pool"
	}
	inner, err := pqconn.NewConnector(pqcfg, cfg.cancelTimeout)
	if err != nil {
		return nil, fmt.Errorf("baldur: DSN: %s", pqconn.DSNError(dsn, err))
	}
	hooked := cfg.hook(inner, target)
	connect := func(ctx context.Context) (driver.Conn, *pqconn.Socket, error) { return pqconn.Connect(ctx, hooked) }
	return &connector{inner: hide(inner), connect: connect, driver: pqDriver{}, t: newTracker(cfg)}, nil
}

// Open opens a tracked pool on lib/pq, as sql.Open("baldur-pq", dsn) does, with
// options. dsn is a URL or a key=value string of lib/pq's; its baldur_*
// parameters are baldur's (each option's comment names its own) and do not
// reach the server. Like sql.Open it makes no connection.
//
// An error names what is wrong, and quotes no value of the DSN: any may be the
// password, or a part of it.
func Open(dsn string, opts ...Option) (*sql.DB, error) {
	c, err := openConnector(dsn, opts)
	if err != nil {
		return nil, err
	}
	return openDB(c), nil
}

// OpenDB opens a tracked pool on any connector: sql.OpenDB(Wrap(inner, opts...)).
func OpenDB(inner driver.Connector, opts ...Option) *sql.DB {
	c := wrap(inner, opts)
	if c, ok := c.(*connector); ok {
		return openDB(c)
	}
	return sql.OpenDB(c)
}

func openDB(c *connector) *sql.DB {
	db := sql.OpenDB(c)
	c.t.attach(db)
	return db
}

// Wrap returns a connector whose connections are inner's, tracked. Give it to
// sql.OpenDB, one pool for each connector.
//
// As sql.OpenDB has no error to return, a nil inner or a bad option shows at the
// first connect: every Connect returns an error that names it.
func Wrap(inner driver.Connector, opts ...Option) driver.Connector { return wrap(inner, opts) }

func wrap(inner driver.Connector, opts []Option) driver.Connector {
	if inner == nil {
		return brokenConnector{errors.New("baldur: Wrap and OpenDB need a connector, got nil")}
	}
	cfg, err := newConfig(nil, opts)
	if err != nil {
		return brokenConnector{err}
	}
	if cfg.poolName == "" {
		cfg.poolName = "pool"
	}
	hooked := cfg.hook(inner, Target{})
	return &connector{
		inner: hide(inner),
		connect: func(ctx context.Context) (driver.Conn, *pqconn.Socket, error) {
			ci, err := hooked.Connect(ctx)
			return ci, nil, err
		},
		t: newTracker(cfg),
	}
}

// TrackerOf returns the tracker of a pool, also of one from plain
// sql.Open("baldur-pq", dsn); nil for a pool that is not baldur's, a nil one
// included.
func TrackerOf(db *sql.DB) *Tracker {
	if db == nil {
		return nil
	}
	d, ok := db.Driver().(interface{ tracker() *Tracker })
	if !ok {
		return nil
	}
	t := d.tracker()
	t.attach(db)
	return t
}

// Unwrap returns the driver's own connection below any wrappers, which it goes
// through by their Raw methods. Use it inside of sql.Conn.Raw where a connection
// of a concrete type is needed:
//
//	conn.Raw(func(dc any) error {
//		pq.SetNoticeHandler(baldur.Unwrap(dc.(driver.Conn)), handler)
//		return nil
//	})
//
// What is done with it is not seen. So until the next call on the connection the
// holder counts as busy, and a report says "unwrapped since 2s: use not seen".
// [Raw] is seen.
func Unwrap(c driver.Conn) driver.Conn {
	for {
		w, ok := c.(interface{ Raw() driver.Conn })
		if !ok {
			return c
		}
		inner := w.Raw()
		if inner == nil {
			return c
		}
		c = inner
	}
}

// Raw is conn.Raw with the driver's own connection, seen as a call for as long as
// f runs: for what goes round database/sql, as pgx's CopyFrom, SendBatch and
// WaitForNotification.
//
//	baldur.Raw(conn, func(c driver.Conn) error {
//		_, err := c.(*stdlib.Conn).Conn().CopyFrom(ctx, table, columns, rows)
//		return err
//	})
//
// It bounds nothing: f has its own ctx. It returns f's error, or that of conn.Raw;
// if conn is not baldur's it still calls f.
func Raw(conn *sql.Conn, f func(driver.Conn) error) error {
	return conn.Raw(func(dc any) error {
		r := recordOf(dc.(driver.Conn))
		if r == nil {
			return f(Unwrap(dc.(driver.Conn)))
		}
		r.begin(context.Background(), kindConn, "")
		defer r.end()
		return f(r.inner)
	})
}

// connector makes tracked connections.
type connector struct {
	inner   func() driver.Connector                                    // a func, as fmt does not look into one: not all verbs come to Format when it prints a *sql.DB
	connect func(context.Context) (driver.Conn, *pqconn.Socket, error) // the socket only where it is ours
	driver  driver.Driver                                              // nil: inner's
	t       *Tracker
}

var _ io.Closer = (*connector)(nil)

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	c.t.dialing.Add(1)
	defer c.t.dialing.Add(-1)
	began, closed := c.t.clk.Now(), c.t.isClosed()
	ci, sock, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	if ci == nil {
		return nil, errNoConn
	}
	r := c.t.add(Unwrap(ci), sock, closed)
	c.t.connected(ctx, c.t.clk.Now()-began)
	if calledByPool() {
		r.take(ctx)
	}
	return newConn(r, ci, pqconn.Poisoned), nil
}

// calledByPool tells whether Connect was called for the goroutine that it runs
// on. Where the pool was full, database/sql's connectionOpener calls it, for
// whoever waits longest: the holder is not known before the first use.
func calledByPool() bool {
	return calledBy("database/sql.(*DB).conn")
}

func hide(c driver.Connector) func() driver.Connector {
	return func() driver.Connector { return c }
}

// Format keeps what the driver's connector holds, its password included, out of
// what fmt prints.
func (c *connector) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "baldur: pool %s", c.t.PoolName())
}

// Driver returns a value of this connector's own, by which TrackerOf finds the
// tracker of any pool.
func (c *connector) Driver() driver.Driver {
	drv := c.driver
	if drv == nil {
		drv = c.inner().Driver()
	}
	d := poolDriver{drv, c.t, c}
	if dc, ok := drv.(driver.DriverContext); ok {
		return poolDriverContext{d, dc}
	}
	return d
}

// Close is called by sql.DB.Close.
func (c *connector) Close() error {
	c.t.close()
	if cl, ok := c.inner().(io.Closer); ok {
		return cl.Close()
	}
	return nil
}

// poolDriver is what sql.DB.Driver returns for a tracked pool: the driver, with
// the way to the pool's tracker.
type poolDriver struct {
	driver.Driver
	t *Tracker
	c *connector
}

func (d poolDriver) tracker() *Tracker { return d.t }

// Format: see connector.
func (d poolDriver) Format(f fmt.State, verb rune) { d.c.Format(f, verb) }

// dial connects as the pool does, beside it: see link.
func (d poolDriver) dial(ctx context.Context) (driver.Conn, *pqconn.Socket, error) {
	return d.c.beside(ctx)
}

// beside connects beside the pool, on a goroutine of ours: a connector that panics there
// would end the program, and one that does not heed ctx keep a lease's loop for ever. A
// connection that comes too late is closed.
func (c *connector) beside(ctx context.Context) (driver.Conn, *pqconn.Socket, error) {
	type result struct {
		ci   driver.Conn
		sock *pqconn.Socket
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r = result{err: fmt.Errorf("baldur: the connector has panicked: %v", p)}
			} else if r.ci == nil && r.err == nil {
				r.err = errNoConn
			}
			done <- r
		}()
		r.ci, r.sock, r.err = c.connect(ctx)
	}()
	select {
	case r := <-done:
		return r.ci, r.sock, r.err
	case <-ctx.Done():
		go func() {
			defer func() { _ = recover() }()
			if r := <-done; r.err == nil {
				_ = r.ci.Close()
			}
		}()
		return nil, nil, ctx.Err()
	}
}

var errNoConn = errors.New("baldur: the connector returned neither a connection nor an error")

// untracked connects as the pool does, beside it: see [beside].
func (d poolDriver) untracked() driver.Connector { return untracked{d.c} }

type untracked struct{ c *connector }

func (u untracked) Connect(ctx context.Context) (driver.Conn, error) {
	ci, sock, err := u.c.beside(ctx)
	if deadline, ok := ctx.Deadline(); ok && sock != nil {
		sock.EndBy(deadline) // of its calls too, as no sweep sees to them
	}
	return ci, err
}

func (u untracked) Format(f fmt.State, verb rune) { u.c.Format(f, verb) }

func (u untracked) Driver() driver.Driver { return u.c.inner().Driver() }

// poolDriverContext is a poolDriver whose driver has a DriverContext.
type poolDriverContext struct {
	poolDriver
	driver.DriverContext
}

// brokenConnector answers with the error of its making.
type brokenConnector struct{ err error }

func (b brokenConnector) Connect(context.Context) (driver.Conn, error) { return nil, b.err }
func (b brokenConnector) Driver() driver.Driver                        { return b }
func (b brokenConnector) Open(string) (driver.Conn, error)             { return nil, b.err }
