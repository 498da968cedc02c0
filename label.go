package baldur

import (
	"database/sql"
	"errors"
)

var errNotTracked = errors.New("baldur: Label: the connection is not tracked")

// Label names the holder of a connection that is expected to be held for long,
// as one that keeps an advisory lock or LISTENs: reports show it by the name, in
// LongHeld, and do not accuse it. It holds until conn is closed. An empty name
// takes it back.
//
// It returns an error if conn is not baldur's, or is closed (sql.ErrConnDone).
func Label(conn *sql.Conn, name string) error {
	return conn.Raw(func(dc any) error {
		c, ok := dc.(interface{ record() *record })
		if !ok {
			return errNotTracked
		}
		c.record().setLabel(name)
		return nil
	})
}
