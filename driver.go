package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/sqlpool"
	"github.com/baldur-go/baldur/internal/wrap"
)

// DriverName is the name under which this package registers with database/sql.
const DriverName = "baldur-pq"

func init() { sql.Register(DriverName, pqDriver{}) }

// pqDriver is the driver registered as "baldur-pq".
type pqDriver struct{}

var _ driver.DriverContext = pqDriver{}

// OpenConnector is what sql.Open calls. It has no side effects, since database/sql
// and libraries on top of it also call it just to check a DSN.
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
	return newConnector(cfg, inner, connect, pqDriver{}), nil
}

// Open opens a tracked pool on lib/pq, as sql.Open("baldur-pq", dsn) does, with
// options. dsn is a URL or a key=value string as lib/pq takes it. Its baldur_*
// parameters are baldur's and do not reach the server; the comment of each option
// names its parameter. Like sql.Open it makes no connection.
//
// An error says what is wrong, and quotes no value of the DSN: any may be the
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
	c := Wrap(inner, opts...)
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
// sql.OpenDB; make one connector for each pool.
//
// Since sql.OpenDB returns no error, a nil inner or a bad option shows at the first
// connect: every Connect returns an error that says so.
func Wrap(inner driver.Connector, opts ...Option) driver.Connector {
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
	return newConnector(cfg, inner, func(ctx context.Context) (driver.Conn, *pqconn.Socket, error) {
		ci, err := hooked.Connect(ctx)
		return ci, nil, err
	}, nil)
}

// TrackerOf returns the tracker of a pool, also of one from plain
// sql.Open("baldur-pq", dsn). It returns nil for a nil pool and for one that is not
// baldur's.
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

// connector makes tracked connections.
type connector struct {
	inner   func() driver.Connector                                    // a func, since fmt does not look into one: when it prints a *sql.DB, not all verbs reach Format
	connect func(context.Context) (driver.Conn, *pqconn.Socket, error) // the socket only where it is ours
	driver  driver.Driver                                              // nil: inner's
	t       *Tracker
	wrap    wrap.Config // of the connections
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
	if db := sqlpool.Opening(c); db != nil {
		c.t.attach(db)
	}
	r := c.t.add(Unwrap(ci), sock, closed)
	c.t.connected(ctx, c.t.clk.Now()-began)
	if wrap.CalledByPool() {
		r.Take(ctx)
	}
	return wrap.New(&c.wrap, r, ci), nil
}

func newConnector(cfg *config, inner driver.Connector, connect func(context.Context) (driver.Conn, *pqconn.Socket, error), drv driver.Driver) *connector {
	c := &connector{inner: func() driver.Connector { return inner }, connect: connect, driver: drv, t: newTracker(cfg)}
	c.wrap.Poisoned = pqconn.Poisoned
	if cfg.returnAudit > 0 {
		c.wrap.Audit = c.t.audit
	}
	return c
}

// Format keeps the driver's connector, and the password in it, out of what fmt prints.
func (c *connector) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "baldur: pool %s", c.t.PoolName())
}

// Driver returns a value that belongs to this connector, by which TrackerOf finds the
// pool's tracker.
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

// poolDriver is what sql.DB.Driver returns for a tracked pool: the driver, and the way
// to the pool's tracker.
type poolDriver struct {
	driver.Driver
	t *Tracker
	c *connector
}

func (d poolDriver) tracker() *Tracker { return d.t }

// Format: see connector.
func (d poolDriver) Format(f fmt.State, verb rune) { d.c.Format(f, verb) }

// dial connects as the pool does, beside it: see leasepg.Witness.
func (d poolDriver) dial(ctx context.Context) (driver.Conn, *pqconn.Socket, error) {
	return d.c.beside(ctx)
}

// beside connects as the pool does, beside it, on a goroutine of its own: a connector
// that panics must not end the program, and one that ignores ctx must not block a
// lease's loop for ever. A connection that comes too late is closed.
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

// untracked connects as the pool does, beside it: see connector.beside.
func (d poolDriver) untracked() driver.Connector { return untracked{d.c} }

type untracked struct{ c *connector }

func (u untracked) Connect(ctx context.Context) (driver.Conn, error) {
	ci, sock, err := u.c.beside(ctx)
	if deadline, ok := ctx.Deadline(); ok && sock != nil {
		sock.EndBy(deadline) // of its calls too, since no sweep cuts them
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

// brokenConnector returns the error with which it could not be made.
type brokenConnector struct{ err error }

func (b brokenConnector) Connect(context.Context) (driver.Conn, error) { return nil, b.err }
func (b brokenConnector) Driver() driver.Driver                        { return b }
func (b brokenConnector) Open(string) (driver.Conn, error)             { return nil, b.err }
