package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
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
	pqcfg, params, err := parseDSN(dsn)
	if err != nil {
		return nil, err
	}
	cfg, err := newConfig(params, opts)
	if err != nil {
		return nil, err
	}
	if cfg.poolName == "" {
		cfg.poolName = pqPoolName(pqcfg)
	}
	inner, err := newPQConnector(pqcfg, cfg.cancelGrace)
	if err != nil {
		return nil, fmt.Errorf("baldur: DSN: %s", pqDSNError(err))
	}
	hooked := socketConnector{cfg.hook(inner.Connector, pqTarget(pqcfg))}
	return &connector{inner: inner, connect: hooked.connect, driver: pqDriver{}, t: newTracker(cfg)}, nil
}

// Open opens a tracked pool on lib/pq, as sql.Open("baldur-pq", dsn) does, with
// options. dsn is a URL or a key=value string of lib/pq's; its baldur_*
// parameters are baldur's (each option's comment names its own) and do not
// reach the server. Like sql.Open it makes no connection.
//
// An error names what is wrong, and quotes nothing of a DSN that does not parse:
// any part of it may be the password.
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
		inner: inner,
		connect: func(ctx context.Context) (driver.Conn, *socket, error) {
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
// through by their Raw methods. Use it in sql.Conn.Raw where a connection of a
// concrete type is needed:
//
//	conn.Raw(func(dc any) error {
//		pq.SetNoticeHandler(baldur.Unwrap(dc.(driver.Conn)), handler)
//		return nil
//	})
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

// connector makes tracked connections.
type connector struct {
	inner   driver.Connector
	connect func(context.Context) (driver.Conn, *socket, error) // the socket only where it is ours
	driver  driver.Driver                                       // nil: inner's
	t       *Tracker
}

var _ io.Closer = (*connector)(nil)

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	c.t.dialing.Add(1)
	defer c.t.dialing.Add(-1)
	began, closed := c.t.clk.now(), c.t.isClosed()
	ci, sock, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	r := c.t.add(pqPID(Unwrap(ci)), sock, closed)
	c.t.connected(ctx, c.t.clk.now()-began)
	if calledByPool() {
		r.take(ctx)
	}
	return newConn(r, ci, pqPoisoned), nil
}

// calledByPool tells whether Connect was called for the goroutine that it runs
// on. Where the pool was full, database/sql's connectionOpener calls it, for
// whoever waits longest: the holder is not known before the first use.
func calledByPool() bool {
	return calledBy("database/sql.(*DB).conn")
}

// Driver returns a value of this connector's own, by which TrackerOf finds the
// tracker of any pool.
func (c *connector) Driver() driver.Driver {
	drv := c.driver
	if drv == nil {
		drv = c.inner.Driver()
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
	if cl, ok := c.inner.(io.Closer); ok {
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

// dial connects as the pool does, beside it: see link.
func (d poolDriver) dial(ctx context.Context) (driver.Conn, *socket, error) { return d.c.connect(ctx) }

// untracked connects as the pool does, beside it: see PGAdmin.secondDB.
func (d poolDriver) untracked() driver.Connector { return untracked{d.c} }

type untracked struct{ c *connector }

func (u untracked) Connect(ctx context.Context) (driver.Conn, error) {
	ci, sock, err := u.c.connect(ctx)
	if deadline, ok := ctx.Deadline(); ok && sock != nil {
		sock.endBy(deadline) // of its calls too, as no sweep sees to them
	}
	return ci, err
}

func (u untracked) Driver() driver.Driver { return u.c.inner.Driver() }

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
