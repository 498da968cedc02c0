// Command bench measures what baldur adds to database/sql, beside the libraries
// that do similar work, and prints a table. See docs/performance.md.
//
//	go run .              everything, in 5 to 10 minutes: on a quiet machine
//	go run . -quick       the same with fewer rounds, in a minute
//	go run . -java        also HikariCP, by java/run
//	go run . -write       also writes docs/performance.svg and the figures in docs/performance.md
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgserver"
)

func main() {
	var (
		quick    = flag.Bool("quick", false, "fewer rounds")
		postgres = flag.Bool("postgres", true, "measure on a PostgreSQL, too")
		java     = flag.Bool("java", false, "measure HikariCP, too (java/run)")
		write    = flag.Bool("write", false, "write the figures to docs")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *quick, *postgres, *java, *write); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// figures is all that was measured.
type figures struct {
	machine  string
	null     []table
	postgres []table
	capture  []probeResult
	depth    int // of the stack that capture was measured on
	clock    []probeResult
	report   []probeResult
	hikari   float64 // ns that leak detection adds; 0: not measured
}

// A table is one setting.
type table struct {
	setting
	results []result
}

var nullSettings = []setting{
	{opExec, 20, 1, 0},
	{opQuery, 20, 1, 0},
	{opQueryRow, 20, 1, 0},
	{opTx, 20, 1, 0},
	{opPrepared, 20, 1, 0},
	{opExec, 5, 1, 0},
	{opExec, 50, 1, 0},
	{opExec, 20, 2, 0},
	{opExec, 20, 64, 0},
	{opExec, 20, 1, 1},
	{opExec, 20, 1, 16},
	{opExec, 20, 1, 256},
	{opExec, 20, 1, 4096},
}

var pgSettings = []setting{
	{opExec, 20, 1, 0},
	{opQueryRow, 20, 1, 0},
	{opQueryRow, 20, 64, 0},
}

const (
	nullPool = 64
	pgPool   = 8
)

func run(ctx context.Context, quick, postgres, java, write bool) error {
	null, onPG, probes := effort{1000, 300 * time.Microsecond}, effort{2000, time.Millisecond}, effort{1000, 200 * time.Microsecond}
	if quick {
		null.rounds, onPG.rounds, probes.rounds = 200, 300, 200
	}
	f := &figures{machine: machine()}
	var err error
	if f.capture, f.depth, err = captureProbes(probes); err != nil {
		return err
	}
	f.clock = clockProbes(probes)
	fewer := probes
	fewer.rounds /= 4
	if f.report, err = reportProbes(fewer); err != nil {
		return err
	}
	f.printProbes()
	for _, s := range nullSettings {
		results, err := compare(ctx, variants(), target{Connector: nullConnector{}}, s, nullPool, null, measureWall)
		if err != nil {
			return err
		}
		f.null = append(f.null, table{s, results})
		f.null[len(f.null)-1].print(os.Stdout, "time")
	}
	if postgres {
		if err := f.measurePostgres(ctx, onPG); err != nil {
			return err
		}
	}
	if java {
		fmt.Println("\nHikariCP:")
		cmd := exec.CommandContext(ctx, "java/run")
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("java/run: %w", err)
		}
		fmt.Print(string(out))
		if f.hikari, err = hikariDifference(string(out)); err != nil {
			return err
		}
	}
	f.machine += fmt.Sprintf(", %s after %v", load(), time.Since(started).Round(time.Second))
	fmt.Print("\n", f.goals(), "\n", f.machine, "\n")
	if write {
		return f.write("../docs")
	}
	return nil
}

func (f *figures) measurePostgres(ctx context.Context, e effort) error {
	// An end of ctx is seen between two rounds; the server must not stop within one.
	server, err := pgserver.Start(context.WithoutCancel(ctx), pgserver.Config{
		Progress: func(s string) { fmt.Fprintln(os.Stderr, s) },
		Settings: map[string]string{"max_connections": "200"},
	})
	if err != nil {
		return err
	}
	defer func() { _ = server.Stop() }()
	dsn := server.SocketDSN("postgres")
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		return err
	}
	defer pin(server.PostmasterPID())()
	// Another P would have nothing to do but to look for work.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, s := range pgSettings {
		less := e
		if s.goroutines > 1 {
			less.rounds /= 4
		}
		results, err := compare(ctx, variants(), target{connector, dsn}, s, pgPool, less, measureCPU)
		if err != nil {
			return err
		}
		f.postgres = append(f.postgres, table{s, results})
		f.postgres[len(f.postgres)-1].print(os.Stdout, "client CPU time")
	}
	return nil
}
