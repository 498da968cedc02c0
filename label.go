package baldur

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"reflect"
	"time"

	"github.com/baldur-go/baldur/internal/checkout"
	"github.com/baldur-go/baldur/internal/text"
	"github.com/baldur-go/baldur/internal/wrap"
)

var errNotTracked = errors.New("baldur: Label: the connection is not tracked")

// Label names the holder of a connection that is expected to be held for long,
// as one that keeps an advisory lock or LISTENs: reports show it by the name, in
// LongHeld, and do not accuse it. It holds until conn is closed. An empty name
// takes it back.
//
// It returns an error if conn is not baldur's, or is closed (sql.ErrConnDone).
// While a call is in flight on conn it does not wait for it: it returns nil, and
// the name counts when the call has ended. Inside of conn.Raw use [LabelConn].
func Label(conn *sql.Conn, name string) error {
	done := make(chan error, 1)
	go func() {
		done <- conn.Raw(func(dc any) error {
			c, ok := dc.(driver.Conn)
			if !ok {
				return errNotTracked
			}
			return LabelConn(c, name)
		})
	}()
	timer := time.NewTimer(labelPatience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return nil
	}
}

// labelPatience is after which Label takes it that a call is in flight.
const labelPatience = 10 * time.Millisecond

// LabelConn is [Label] for use inside of [sql.Conn.Raw] and [Raw]: c is what
// their functions are given, or the driver's own connection below it.
//
//	conn.Raw(func(dc any) error {
//		return baldur.LabelConn(dc.(driver.Conn), "listener")
//	})
func LabelConn(c driver.Conn, name string) error {
	r := recordOf(c)
	if r == nil {
		return errNotTracked
	}
	r.SetLabel(text.Clean(name))
	return nil
}

// recordOf finds the record of a connection, which is ours, one around ours or
// the driver's own; nil if there is none.
func recordOf(c driver.Conn) *checkout.Record {
	innermost := c
	for innermost != nil {
		if r := wrap.RecordOf(innermost); r != nil {
			return r
		}
		w, ok := innermost.(interface{ Raw() driver.Conn })
		if !ok {
			break
		}
		innermost = w.Raw()
	}
	if innermost == nil || !reflect.TypeOf(innermost).Comparable() {
		return nil
	}
	for _, t := range Trackers() {
		for _, r := range t.ledger.Records() {
			if reflect.TypeOf(r.Inner) == reflect.TypeOf(innermost) && r.Inner == innermost {
				return r
			}
		}
	}
	return nil
}
