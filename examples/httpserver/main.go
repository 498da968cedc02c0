// Command httpserver is a small shop whose connections are watched: all of what
// baldur has to show, on one net/http server, to be copied.
//
//	go run ./examples/httpserver --leak
//
// and then, in another terminal, a few times
//
//	curl localhost:8080/orders
//
// The leaks show after two seconds at http://localhost:8080/debug/baldur/, in
// /metrics, in the log (stderr) and in OpenTelemetry's signals (stdout).
package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurhttp"
	"github.com/baldur-go/baldur/baldurotel"
	"github.com/baldur-go/baldur/baldurprom"
)

var (
	addr      = flag.String("addr", "localhost:8080", "where to listen; port 0 takes a free one")
	dsn       = flag.String("dsn", "", "the PostgreSQL; by default that in DATABASE_URL, else a throw-away server is started")
	leak      = flag.Bool("leak", false, "leak a connection at each GET /orders")
	quorum    = flag.Bool("quorum", false, "run a job that only one of several such servers does at a time")
	threshold = flag.Duration("threshold", 2*time.Second, "how long a connection is unused before it is suspected; in production leave it at 5 min")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		slog.Error("httpserver", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	flush, err := startTelemetry()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, flush()) }()

	url := cmp.Or(*dsn, os.Getenv("DATABASE_URL"))
	if url == "" { // a program of yours has a DSN: leave this out
		var stop func() error
		if url, stop, err = throwAwayServer(ctx); err != nil {
			return fmt.Errorf("%w; or give the DSN of a running one, by --dsn or DATABASE_URL", err)
		}
		defer func() { err = errors.Join(err, stop()) }()
	}

	// All that a program changes. sql.Open("baldur-pq", url) does for one that
	// sets these in the DSN: …&baldur_pool_name=shop&baldur_otel=on.
	db, err := baldur.Open(url,
		baldur.WithPoolName("shop"),
		baldur.WithLeakThreshold(*threshold),
		baldurotel.With(baldurotel.WithLeakInterval(*threshold/2))) // 10 s by default
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(10)
	db.SetMaxIdleConns(10)
	if err := createTables(ctx, db); err != nil {
		return err
	}
	go baldur.TrackerOf(db).Log(ctx, *threshold/2, slog.Default()) // 30 s is often enough
	if *quorum {
		wait, err := startJob(ctx, db)
		if err != nil {
			return err
		}
		defer wait()
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(baldurprom.NewCollector())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) { listOrders(w, r, db) })
	// On a port of their own, or behind a login: they show queries and stacks.
	mux.Handle("/debug/baldur/", baldurhttp.Handler())
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return serve(ctx, mux)
}

// serve serves until ctx ends, and then lets the requests that run end.
func serve(ctx context.Context, h http.Handler) error {
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	slog.Info("serving", "orders", "http://"+l.Addr().String()+"/orders", "page", "http://"+l.Addr().String()+"/debug/baldur/")
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}

// listOrders lists ten orders. With --leak it has the bug that is to be found.
func listOrders(w http.ResponseWriter, r *http.Request, db *sql.DB) {
	ctx, span := otel.Tracer("httpserver").Start(r.Context(), "GET /orders")
	defer span.End()
	if *leak {
		// "So that it does not fail when the client has gone." Now nothing ends
		// the query but Rows.Close; r.Context() would have, with the request.
		ctx = context.WithoutCancel(ctx)
	}
	rows, err := db.QueryContext(ctx, "SELECT id, customer FROM httpserver_orders ORDER BY id")
	if err != nil {
		http.Error(w, "the orders cannot be read", http.StatusInternalServerError)
		slog.ErrorContext(ctx, "orders", "err", err)
		return
	}
	if !*leak {
		defer rows.Close() // Next closes them too, after the last row, which is not reached here
	}
	for n := 0; n < 10 && rows.Next(); n++ {
		var id int
		var customer string
		if err := rows.Scan(&id, &customer); err != nil {
			slog.ErrorContext(ctx, "orders", "err", err)
			return
		}
		fmt.Fprintf(w, "order %d of %s\n", id, customer)
	}
}
