package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/stack"
	"github.com/baldur-go/baldur/internal/tsc"
)

// A probe is a part of what baldur does, or an alternative to it, alone.
type probe struct {
	name string
	f    func()
	per  int // divides the result; 0 means 1
}

type probeResult struct {
	name  string
	ns    interval
	ratio interval // to the first of its group
}

// measureProbes runs the probes as compare does, on the caller's stack.
func measureProbes(probes []probe, e effort) []probeResult {
	ns := make([][]float64, len(probes))
	n := make([]int, len(probes))
	run := func(i int) time.Duration {
		begin := time.Now()
		for range n[i] {
			probes[i].f()
		}
		return time.Since(begin)
	}
	for i := range probes {
		n[i] = 1
		for took := run(i); took < e.block; took = run(i) {
			n[i] *= 2
		}
	}
	for range e.rounds {
		for _, i := range rand.Perm(len(probes)) {
			ns[i] = append(ns[i], float64(run(i))/float64(n[i])/float64(max(1, probes[i].per)))
		}
	}
	results := make([]probeResult, len(probes))
	for i, p := range probes {
		ratio := make([]float64, e.rounds)
		for round := range ratio {
			ratio[round] = ns[i][round] / ns[0][round]
		}
		results[i] = probeResult{p.name, median(ns[i]), median(ratio)}
	}
	return results
}

// Results go to a package variable so that no call is optimised away.
var sink struct {
	site  *stack.Site
	g     stack.G
	n     int
	time  time.Time
	dur   time.Duration
	ticks uint64
}

// captureProbes measures the capture where it happens: in ResetSession, below
// database/sql, three functions of an application and a handler of net/http.
func captureProbes(e effort) (results []probeResult, depth int, err error) {
	var pcs [64]uintptr
	err = inService(func() {
		depth = runtime.Callers(1, pcs[:])
		results = measureProbes([]probe{
			{name: "`runtime.Callers` into [32]", f: func() { sink.n = runtime.Callers(1, pcs[:32]) }},
			{name: "`stack.Capture`: walk, hash, look-up of the site", f: func() { sink.site = stack.Capture(0) }},
		}, e)
	})
	return results, depth, err
}

// clockProbes measures what could tell the time.
func clockProbes(e effort) []probeResult {
	base := time.Now()
	probes := []probe{
		{name: "`time.Since(base)`", f: func() { sink.dur = time.Since(base) }},
		{name: "`time.Now`", f: func() { sink.time = time.Now() }},
		{name: "goroutine id (`stack.CurrentG`)", f: func() { sink.g = stack.CurrentG() }},
		{name: "a call of an empty function", f: func() {}},
	}
	if tsc.Trusted(time.Now()) {
		probes = append(probes, probe{name: "RDTSC (`tsc.Read`)", f: func() { sink.ticks = tsc.Read() }})
	}
	return measureProbes(probes, e)
}

// reportProbes measures a report of 10,000 holders, and the question whether
// one of 10,000 goroutines is alive.
func reportProbes(e effort) ([]probeResult, error) {
	const n = 10_000
	db := baldur.OpenDB(nullConnector{})
	defer db.Close()
	for range n {
		c, err := db.Conn(context.Background())
		if err != nil {
			return nil, err
		}
		defer c.Close()
	}
	tracker := baldur.TrackerOf(db)

	gs := make([]stack.G, n)
	ready, stop := make(chan struct{}), make(chan struct{})
	defer close(stop)
	for i := range gs {
		go func() {
			gs[i] = stack.CurrentG()
			ready <- struct{}{}
			<-stop
		}()
	}
	for range gs {
		<-ready
	}
	var wrong int
	i := 0
	results := measureProbes([]probe{
		{name: "`Report` on 10,000 holders, for each", per: n, f: func() { sink.n = tracker.Report().Tracked }},
		{name: "is the holder alive? (one of 10,000, by a stride)", f: func() {
			if gs[i].State() != stack.Alive {
				wrong++
			}
			if i += 7919; i >= n {
				i -= n
			}
		}},
	}, e)
	if sink.n != n || wrong != 0 && stack.Self().Liveness {
		return nil, fmt.Errorf("report saw %d holders of %d, State was wrong %d times", sink.n, n, wrong)
	}
	return results, nil
}

// hookConnector's connections call a function in the middle of a checkout.
type hookConnector struct {
	nullConnector
	hook func()
}

type hookConn struct {
	nullConn
	hook func()
}

func (c hookConnector) Connect(context.Context) (driver.Conn, error) {
	return &hookConn{hook: c.hook}, nil
}
func (c *hookConn) ResetSession(context.Context) error { c.hook(); return nil }

// inService calls f on the stack of a service.
func inService(f func()) error {
	db := sql.OpenDB(hookConnector{hook: f})
	defer db.Close()
	db.SetMaxIdleConns(1)
	if err := db.Ping(); err != nil { // the first checkout does not reset the session
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/orders", logged(service{repository{db}}.serve))
	server := httptest.NewServer(mux)
	defer server.Close()
	resp, err := http.Get(server.URL + "/orders")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("service: %s", resp.Status)
	}
	return nil
}

func logged(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) })
}

type service struct{ orders repository }

func (s service) serve(w http.ResponseWriter, r *http.Request) {
	if err := s.placeOrder(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

//go:noinline
func (s service) placeOrder(ctx context.Context) error { return s.orders.insert(ctx) }

type repository struct{ db *sql.DB }

//go:noinline
func (r repository) insert(ctx context.Context) error {
	_, err := r.db.ExecContext(ctx, "INSERT INTO orders(n) VALUES (1)")
	return err
}
