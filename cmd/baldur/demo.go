package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/cmd/baldur/internal/shop"
)

const demoUsage = `Usage: baldur demo [--json]

Runs a small order service with a few common bugs on a throw-away PostgreSQL
for some seconds, and prints who holds its connections.

PostgreSQL is, in this order: the server of the DSN in BALDUR_DSN, in a schema
that is dropped at the end; the programs in the directory BALDUR_PGBIN; those
that are installed; a download.

`

const (
	demoPoolSize  = 10
	demoThreshold = time.Second
	demoDeadline  = 20 * time.Second // for a very busy machine
)

func runDemo(ctx context.Context, args []string) (err error) {
	flags := newFlags("demo")
	asJSON := flags.Bool("json", false, "print the report as JSON, and nothing else")
	if helped, err := parseFlags(flags, args, demoUsage); helped || err != nil {
		return err
	}

	progress := newProgress(os.Stderr)
	defer progress.done()
	stopTelling := context.AfterFunc(ctx, func() { progress.say("cleaning up") })
	defer stopTelling()

	place, err := enterPlayground(ctx, progress.say)
	if err != nil {
		return err
	}
	defer func() {
		if e := place.leave(); e != nil {
			err = errors.Join(err, leftBehind{e})
		}
	}()
	progress.say(fmt.Sprintf("running an order service on a pool of %d connections", demoPoolSize))
	report, err := leakConnections(ctx, place)
	if err != nil {
		return err
	}
	progress.done()
	if *asJSON {
		return printJSON(report, "  ")
	}
	return printText(report)
}

// leakConnections runs the order service until everything that it does wrong
// shows, and reports.
func leakConnections(ctx context.Context, place *playground) (baldur.LeakReport, error) {
	var none baldur.LeakReport
	dsn, err := withParams(place.dsn, place.params, map[string]string{
		"baldur_pool_name":      "orders",
		"baldur_leak_threshold": demoThreshold.String(),
	})
	if err != nil {
		return none, err
	}
	db, err := sql.Open("baldur-pq", dsn)
	if err != nil {
		return none, err
	}
	defer db.Close()
	db.SetMaxOpenConns(demoPoolSize)
	db.SetMaxIdleConns(demoPoolSize)
	tracker := baldur.TrackerOf(db)
	if err := place.check(ctx, db); err != nil {
		return none, err
	}

	orders := shop.New(db)
	if err := orders.CreateTables(ctx); err != nil {
		return none, err
	}
	ctx, closeShop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- orders.Run(ctx) }()
	defer func() {
		closeShop()
		<-ended
	}()

	deadline := time.NewTimer(demoDeadline)
	defer deadline.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-ended:
			ended <- nil
			return none, fmt.Errorf("the order service: %w", err)
		case <-deadline.C:
			return none, fmt.Errorf("the order service has not leaked what it should within %v; the last report:\n\n%v", demoDeadline, tracker.Report())
		case <-look.C:
		}
		report := tracker.Report()
		if len(report.SuspectedLeaks) == shop.Leaked && len(report.LongHeld) == shop.LongHeld {
			return report, nil
		}
	}
}

func printText(report baldur.LeakReport) error {
	var b bytes.Buffer
	headline, rest, _ := strings.Cut(report.String(), "\n")
	if os.Getenv("NO_COLOR") == "" && isTerminal(os.Stdout) {
		headline = "\x1b[1m" + headline + "\x1b[0m"
	}
	fmt.Fprintf(&b, "%s\n%s", headline, rest)
	fmt.Fprintf(&b, `
That was an order service with a few common bugs (cmd/baldur/internal/shop).
%d of its %d connections will never come back, and the report has the line that
took each. %d more are out for as long, but in use, and so not accused.
To ask a program of yours, change one word:

-	db, err := sql.Open("postgres", dsn)
+	db, err := sql.Open("baldur-pq", dsn)

import "github.com/baldur-go/baldur", and whenever you want to know:
fmt.Println(baldur.TrackerOf(db).Report())
`, len(report.SuspectedLeaks), demoPoolSize, len(report.LongHeld))
	_, err := os.Stdout.Write(b.Bytes())
	return err
}
