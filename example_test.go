package baldur_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
)

const exampleDSN = "postgres://app@127.0.0.1/shop?sslmode=disable"

// One string is all that changes.
func Example() {
	db, err := sql.Open("baldur-pq", exampleDSN+"&baldur_leak_threshold=90s")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()

	report := baldur.TrackerOf(db).Report()
	fmt.Println(report.LeakCount(), "suspected leaks; threshold", report.LeakThreshold)
	// Output: 0 suspected leaks; threshold 1m30s
}

func ExampleOpen() {
	db, err := baldur.Open(exampleDSN, baldur.WithPoolName("shop"), baldur.WithLeakThreshold(time.Minute))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	fmt.Println(baldur.TrackerOf(db).PoolName())

	_, err = baldur.Open(exampleDSN + "&baldur_leak_treshold=60s")
	fmt.Println(err)
	// Output:
	// shop
	// baldur: DSN: unknown parameter "baldur_leak_treshold" (there are baldur_pool_name, baldur_leak_threshold, baldur_warning_threshold, baldur_critical_threshold, baldur_cancel_grace, baldur_cancel_timeout, baldur_skip_packages, baldur_skip_functions, baldur_capture, baldur_private_layouts, baldur_return_audit, baldur_otel, baldur_query_text)
}

// Any connector will do: pgx, Cloud SQL, one with IAM tokens.
func ExampleOpenDB() {
	connector, err := pq.NewConnector(exampleDSN)
	if err != nil {
		fmt.Println(err)
		return
	}
	db := baldur.OpenDB(connector, baldur.WithPoolName("orders"))
	defer db.Close()
	fmt.Println(baldur.TrackerOf(db).PoolName())
	// Output: orders
}

func ExampleWrap() {
	db := sql.OpenDB(baldur.Wrap(&fakeDB{}))
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(baldur.TrackerOf(db).Holders()), "out")
	_ = tx.Rollback()
	fmt.Println(len(baldur.TrackerOf(db).Holders()), "out")
	// Output:
	// 1 out
	// 0 out
}

// What needs the driver's own connection gets it.
func ExampleUnwrap() {
	db := baldur.OpenDB(&fakeDB{})
	defer db.Close()
	conn, err := db.Conn(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	_ = conn.Raw(func(dc any) error {
		_, ours := dc.(*fakeConn)
		_, own := baldur.Unwrap(dc.(driver.Conn)).(*fakeConn)
		fmt.Println(ours, own)
		return nil
	})
	// Output: false true
}

func ExampleTracker_Holders() {
	db := baldur.OpenDB(&fakeDB{})
	defer db.Close()
	rows, err := db.Query("SELECT id FROM orders")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rows.Close()
	for _, c := range baldur.TrackerOf(db).Holders() {
		fmt.Println(c.Kind, c.State, c.QueryInfo, c.CallSite().Function)
	}
	// Output: query rows_open SELECT id FROM orders github.com/baldur-go/baldur_test.ExampleTracker_Holders
}

// A report from the program's own ticker, to the program's own log.
func ExampleTracker_Report() {
	db := baldur.OpenDB(&fakeDB{}, baldur.WithPoolName("shop"))
	defer db.Close()
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: withoutTime}))

	if report := baldur.TrackerOf(db).Report(); report.Health != baldur.HealthExhausted {
		log.Info("pool", "report", report)
	}
	// Output: level=INFO msg=pool report.pool=shop report.health=healthy report.accused=0 report.suspected_leaks=0 report.long_held=0 report.active_connections=0 report.max_connections=0 report.waiting_requests=0 report.unattributed=0 report.leak_threshold=5m0s
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// Each leak is told once, and again when it comes back.
func ExampleTracker_Watch() {
	db := baldur.OpenDB(&fakeDB{}, baldur.WithLeakThreshold(10*time.Millisecond))
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	_ = baldur.TrackerOf(db).Watch(ctx, time.Millisecond, func(r baldur.LeakReport) {
		for _, c := range r.SuspectedLeaks {
			fmt.Println("leaked?", c.Kind, c.CallSite().Function)
			_ = tx.Rollback()
		}
		for _, c := range r.Returned {
			fmt.Println("came back:", c.Kind)
			cancel()
		}
	})
	// Output:
	// leaked? tx github.com/baldur-go/baldur_test.ExampleTracker_Watch
	// came back: tx
}

// In main: leaks go to the program's log, in its format.
func ExampleTracker_Log() {
	db, err := sql.Open("baldur-pq", exampleDSN)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close() // ends Log
	go baldur.TrackerOf(db).Log(context.Background(), 30*time.Second, slog.Default())
}

func ExampleTracker_Stats() {
	db := baldur.OpenDB(&fakeDB{}, baldur.WithPoolName("shop"))
	defer db.Close()
	db.SetMaxOpenConns(4)
	tx, err := db.Begin()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer tx.Rollback()
	s := baldur.TrackerOf(db).Stats()
	fmt.Println(s.PoolName, s.ActiveConnections, s.AvailableConnections, s.WaitingRequests, s.UsagePercent())
	// Output: shop 1 3 0 25
}
