package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"reflect"
	"slices"
	"time"

	"github.com/baldur-go/baldur/internal/checkout"
	"github.com/baldur-go/baldur/internal/hook"
	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/text"
	"github.com/baldur-go/baldur/internal/wrap"
)

// What baldur adds to a connection: the way through the wrapper, a name for its
// holder, and a look at what it brings back to the pool.

// Unwrap returns the driver's own connection, by the Raw methods of the wrappers around
// it. Use it inside of sql.Conn.Raw where a connection of a concrete type is needed:
//
//	conn.Raw(func(dc any) error {
//		pq.SetNoticeHandler(baldur.Unwrap(dc.(driver.Conn)), handler)
//		return nil
//	})
//
// Use of the result is not seen. So until the next call on the connection the holder
// counts as busy, and a report says "unwrapped since 2s: use not seen". [Raw] is seen.
func Unwrap(c driver.Conn) driver.Conn { return pgsession.Unwrap(c) }

// Raw is conn.Raw with the driver's own connection, and counts as a call while f runs.
// It is for what bypasses database/sql, such as pgx's CopyFrom, SendBatch and
// WaitForNotification.
//
//	baldur.Raw(conn, func(c driver.Conn) error {
//		_, err := c.(*stdlib.Conn).Conn().CopyFrom(ctx, table, columns, rows)
//		return err
//	})
//
// It limits nothing: f has its own ctx. It returns the error of f or of conn.Raw. If
// conn is not baldur's it still calls f.
func Raw(conn *sql.Conn, f func(driver.Conn) error) error {
	return conn.Raw(func(dc any) error {
		r := recordOf(dc.(driver.Conn))
		if r == nil {
			return f(Unwrap(dc.(driver.Conn)))
		}
		r.Begin(context.Background(), checkout.KindConn, "")
		defer r.End()
		return f(r.Inner)
	})
}

var errNotTracked = errors.New("baldur: Label: the connection is not tracked")

// Label names the holder of a connection that is expected to be held for long, such as
// one that keeps an advisory lock or LISTENs. Reports show the name, list the holder in
// LongHeld, and do not accuse it. It is cut after 200 bytes, lasts until conn is closed,
// and an empty one removes it.
//
// It returns an error if conn is not baldur's, or is closed (sql.ErrConnDone). It does
// not wait for a call in flight on conn: it returns nil, and the name counts once the
// call has ended. Inside of conn.Raw use [LabelConn].
func Label(conn *sql.Conn, name string) error {
	name = label(name) // a long one takes its time, which is no call in flight
	done := make(chan error, 1)
	go func() {
		done <- conn.Raw(func(dc any) error {
			c, ok := dc.(driver.Conn)
			if !ok {
				return errNotTracked
			}
			return setLabel(c, name)
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

// labelPatience is how long Label waits before it concludes that a call is in flight.
const labelPatience = 10 * time.Millisecond

// LabelConn is [Label] for use inside of [sql.Conn.Raw] and [Raw]. c is the argument
// of their functions, or the driver's own connection.
//
//	conn.Raw(func(dc any) error {
//		return baldur.LabelConn(dc.(driver.Conn), "listener")
//	})
func LabelConn(c driver.Conn, name string) error { return setLabel(c, label(name)) }

const maxLabelLen = 200 // bytes

func label(name string) string { return text.Clean(text.Cut(name, maxLabelLen)) }

func setLabel(c driver.Conn, label string) error {
	r := recordOf(c)
	if r == nil {
		return errNotTracked
	}
	r.SetLabel(label)
	return nil
}

// recordOf finds the record of a connection that is ours, wraps ours, or is the
// driver's own. It returns nil if there is none.
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

const (
	auditTimeout = time.Second
	auditKept    = 100

	auditQuery = "SELECT CASE WHEN objsubid OPERATOR(pg_catalog.=) 1::pg_catalog.int2" +
		" THEN ((classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32) OPERATOR(pg_catalog.|) objid::pg_catalog.int8)::pg_catalog.text" +
		" ELSE classid::pg_catalog.text OPERATOR(pg_catalog.||) ','::pg_catalog.text OPERATOR(pg_catalog.||) objid::pg_catalog.text END" +
		" FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND granted AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() ORDER BY 1"
)

// audit checks one in every returnAudit connections that are being returned.
func (t *Tracker) audit(rec *checkout.Record, query func(context.Context, string, []driver.NamedValue) (driver.Rows, error)) {
	if t.returns.Add(1)%int64(t.cfg.returnAudit) != 0 {
		return
	}
	d := DirtyReturn{}
	switch pqconn.TxStatus(rec.Inner) {
	case 0:
		return // not lib/pq's
	case 'E':
		d.OpenTransaction, d.Failed = true, true
	case 'T':
		d.OpenTransaction = true
	}
	s, _, ok := rec.Snapshot(t.clk.Now()) // before our own query becomes the last one
	if !ok {
		return
	}
	if !d.OpenTransaction {
		ctx, cancel := context.WithTimeout(hook.Own(context.Background()), auditTimeout)
		defer cancel()
		rows, err := query(ctx, auditQuery, nil)
		if err != nil {
			return // it is not known; lib/pq or the sweep has marked the connection
		}
		d.AdvisoryLocks = lockIDs(rows)
		_ = rows.Close()
		if len(d.AdvisoryLocks) == 0 {
			return
		}
	}
	now := t.clk.Now()
	d.Connection, d.ReturnedAt = t.info(s, now, nil, nil), t.clk.At(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dirtyTotal++
	if len(t.dirty) == auditKept {
		t.dirty = slices.Delete(t.dirty, 0, 1)
	}
	t.dirty = append(t.dirty, d)
}

func lockIDs(rows driver.Rows) (ids []string) {
	row := make([]driver.Value, 1)
	for rows.Next(row) == nil {
		switch id := row[0].(type) {
		case string:
			ids = append(ids, id)
		case []byte:
			ids = append(ids, string(id))
		}
	}
	return ids
}
