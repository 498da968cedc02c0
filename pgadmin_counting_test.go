package baldur_test

import (
	"context"
	"database/sql/driver"
	"net"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

// countingDriver is pq's connector, and counts what is written to the server:
// pq writes a message, or several that make up one request, at once.
type countingDriver struct {
	dsn    string
	writes atomic.Int64
}

func (c *countingDriver) Connect(ctx context.Context) (driver.Conn, error) {
	connector, err := pq.NewConnector(c.dsn)
	if err != nil {
		return nil, err
	}
	connector.Dialer(c)
	return connector.Connect(ctx)
}

func (c *countingDriver) Driver() driver.Driver { return pq.Driver{} }

func (c *countingDriver) Dial(network, address string) (net.Conn, error) {
	return c.DialTimeout(network, address, time.Minute)
}

func (c *countingDriver) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	nc, err := net.DialTimeout(network, address, timeout)
	return countingConn{nc, &c.writes}, err
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}
