package baldur

import "database/sql/driver"

// RecordOf returns the ConnectionID of a tracked connection, and what it wraps.
func RecordOf(dc any) (int64, driver.Conn) {
	switch c := dc.(type) {
	case fullConn:
		return c.rec.id, c.inner
	case execConn:
		return c.rec.id, c.inner
	case queryConn:
		return c.rec.id, c.inner
	}
	c := dc.(*conn)
	return c.rec.id, c.inner
}
