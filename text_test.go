package baldur_test

import (
	"testing"
	"time"

	"github.com/baldur-go/baldur"
)

// TestText: the report as a person reads it, to the letter.
func TestText(t *testing.T) {
	list := []baldur.Frame{
		{Function: "example.com/shop/orders.(*Store).List", File: "/src/shop/orders/orders.go", Line: 88},
		{Function: "example.com/shop.handler", File: "/src/shop/shop.go", Line: 12},
		{Function: "net/http.HandlerFunc.ServeHTTP", File: "/go/src/net/http/server.go", Line: 2294},
	}
	info := func(kind baldur.Kind, state baldur.State, held, idle time.Duration, query string) baldur.ConnectionInfo {
		return baldur.ConnectionInfo{Kind: kind, State: state, Held: held, Idle: idle, QueryInfo: query, GoroutineID: 41, LastGoroutineID: 41, StackTrace: list}
	}
	a := info(baldur.KindQuery, baldur.StateRowsOpen, 6*time.Minute, 6*time.Minute, "SELECT id\n  FROM orders")
	a.RowsOpen, a.BackendPID, a.Goroutine = true, 8123, baldur.GoroutineExited
	b := a
	b.Held, b.GoroutineID, b.Span = 7*time.Minute+12*time.Second, 42, baldur.SpanContext{TraceID: [16]byte{15: 1}, SpanID: [8]byte{1}}
	tx := info(baldur.KindTx, baldur.StateIdleInTx, 400*time.Second, 399*time.Second, "UPDATE stock")
	tx.InTransaction, tx.ConnectionID = true, 7
	tx.StackTrace = []baldur.Frame{{Function: "main.pay", File: "/src/shop/pay.go", Line: 7}}
	call := info(baldur.KindQuery, baldur.StateInCall, time.Hour, 0, "SELECT pg_sleep(3600)")
	call.InCall, call.StackTrace = 59*time.Minute, nil
	lock := info(baldur.KindConn, baldur.StateIdle, 2*time.Hour, time.Hour, "")
	lock.Label, lock.StackTrace, lock.ConnectionID = "advisory lock 42", tx.StackTrace, 8
	r := baldur.LeakReport{
		PoolName: "orders", ReportTime: time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC), LeakThreshold: 300 * time.Second, Health: baldur.HealthExhausted,
		Stats:          baldur.PoolStats{MaxConnections: 50, ActiveConnections: 50, WaitingRequests: 12},
		SuspectedLeaks: []baldur.ConnectionInfo{tx, b, a}, LongHeld: []baldur.ConnectionInfo{call, lock},
		Returned: []baldur.ConnectionInfo{a}, Tracked: 48, Connecting: 1, Unattributed: 1,
		Leases: []baldur.QuorumStats{
			{Lease: "primary", Region: "eu-west", IsPrimary: true, Epoch: 1<<32 + 1, Remaining: 8130 * time.Millisecond},
			{Lease: "jobs", Region: "eu-west"},
		},
		DirtyReturns: []baldur.DirtyReturn{
			{Connection: tx, ReturnedAt: time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC), OpenTransaction: true},
			{Connection: lock, ReturnedAt: time.Date(2026, 11, 24, 2, 59, 0, 0, time.UTC), AdvisoryLocks: []string{"42"}},
		},
		DirtyTotal: 1234,
	}
	const want = `pool orders: exhausted, 3 suspected leaks
50 of 50 in use: 3 suspected, 2 long held but used, 1 not seen (taken by DB.Conn, not used yet), 1 connecting, 43 other; 12 waiting
leak threshold 5m0s, 2026-11-24T03:00:00Z
lease "primary": primary here (eu-west), epoch 4294967297, 8.1s left
lease "jobs": unknown

LEAK? 2 connections taken at orders/orders.go:88 in orders.(*Store).List
    likely missing: Rows.Close, or Row.Scan
    last: SELECT id FROM orders
    unused for 6m0s, rows open, held for 7m12s; goroutine 42 has exited, last used by 41, pg pid 8123, trace 00000000000000000000000000000001
    unused for 6m0s, rows open; goroutine 41 has exited, pg pid 8123
    /src/shop/orders/orders.go:88
      by shop.handler  shop/shop.go:12

LEAK? 1 connection taken at shop/pay.go:7 in main.pay
    likely missing: Tx.Commit or Tx.Rollback
    last: UPDATE stock
    idle in transaction for 6m39s, held for 6m40s; goroutine 41
    /src/shop/pay.go:7

held for as long, but in use or expected, and not accused:
  1 connection taken at unknown in unknown
    last: SELECT pg_sleep(3600)
    held for 1h0m0s, in a call for 59m0s; goroutine 41
  1 connection taken at shop/pay.go:7 in main.pay
    advisory lock 42, held for 2h0m, last used 1h0m0s ago; goroutine 41

came back:
  taken at orders/orders.go:88, returned after 6m0s

came back dirty, 1234 in all; the latest:
  2026-11-24T02:00:00Z: connection 7 came back in an open transaction; taken by main.pay (shop/pay.go:7)
  2026-11-24T02:59:00Z: connection 8 came back with advisory lock 42; taken by main.pay (shop/pay.go:7)
`
	if got := r.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
