package main

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

//go:embed schema.sql
var schema string

// A pass runs programs once, all side by side, at one leak threshold.
type pass struct {
	dsn       string // of a database on the server, whose role may create others
	threshold time.Duration
	load      bool // beside each program, queries on its pool; and garbage
	view      view
	say       func(format string, args ...any)
}

const (
	patience = 30 * time.Second       // with what takes as long as the machine takes
	margin   = 300 * time.Millisecond // after a threshold; the time of a use is known to 0.1 s
	stagger  = 10 * time.Millisecond  // between the starts of two programs, so that not all dial at once
	pace     = 50 * time.Millisecond  // between two reports, and between two runs of an honest program
)

// running is a program in a pass.
type running struct {
	*judge
	w        *world
	returned chan struct{} // closed when it has returned
	late     bool
}

func (p *pass) run(ctx context.Context, entries []entry) (_ []*judge, err error) {
	name := fmt.Sprintf("corpus_%d", time.Now().UnixNano())
	dsn, err := withDatabase(p.dsn, name)
	if err != nil {
		return nil, err
	}
	admin, err := sql.Open("postgres", p.dsn)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+pq.QuoteIdentifier(name)); err != nil {
		return nil, err
	}
	defer func() { // with force: the connections of what has leaked
		_, dropErr := admin.Exec("DROP DATABASE " + pq.QuoteIdentifier(name) + " WITH (FORCE)")
		err = errors.Join(err, dropErr)
	}()
	if err := createSchemas(ctx, dsn, entries); err != nil {
		return nil, err
	}

	p.say("threshold %v: %d schemas are made", p.threshold, len(entries))
	before := goroutinesOfPrograms()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan struct{})
	all := make([]*running, len(entries))
	for i, e := range entries {
		w, err := newWorld(ctx, over, dsn+"&search_path="+strings.ToLower(e.name), e.name, p.threshold)
		if err != nil {
			return nil, err
		}
		all[i] = &running{judge: newJudge(e, p.view), w: w, returned: make(chan struct{})}
	}
	began := time.Now()
	var loads, looks sync.WaitGroup
	calm := make(chan struct{}) // closed: no load any more
	for _, r := range all {
		go r.start()
		if p.load {
			r.startLoad(&loads, calm)
		}
		time.Sleep(stagger)
	}
	if p.load {
		loads.Go(func() { makeGarbage(calm) })
	}
	stopLooking := make(chan struct{})
	looks.Go(func() { // at what must never be accused
		for {
			for _, r := range all {
				if !r.kind.reported() {
					r.report(false)
				}
			}
			select {
			case <-time.After(pace):
			case <-stopLooking:
				return
			}
		}
	})

	for _, r := range all {
		r.awaitStanding(time.Until(began.Add(patience)))
	}
	p.say("%d programs stand after %v", len(all), time.Since(began).Round(time.Millisecond))
	for range 2 { // two reports of each leak
		runtime.GC()
		select {
		case <-time.After(p.threshold + margin):
		case <-ctx.Done():
		}
		for _, r := range all {
			if r.kind.reported() {
				r.report(true)
			}
		}
	}

	p.say("looked at; the programs are ended")
	close(calm)
	loads.Wait()
	close(stopLooking)
	looks.Wait()
	close(over)
	end := time.Now().Add(patience)
	for _, r := range all {
		if !r.kind.reported() {
			r.awaitReturn(time.Until(end))
			if n, ok := r.awaitBack(5 * time.Second); !ok && !r.late {
				r.fault("has ended, and has not given %d connections back", n)
			}
		}
	}
	for _, r := range all {
		for _, t := range r.w.trackers() {
			r.account(t)
		}
	}
	cancel()
	for _, r := range all {
		r.w.close()
	}
	for _, r := range all {
		r.awaitReturn(time.Until(end))
	}
	p.checkGoroutines(all, before)
	p.say("ended")
	judges := make([]*judge, len(all))
	for i, r := range all {
		judges[i] = r.judge
		for what, n := range r.suspect {
			p.say("%s (%s): in %d reports %s", r.name, r.kind, n, what)
		}
	}
	return judges, nil
}

// start runs the program: one that leaks once, others until the end.
func (r *running) start() {
	defer close(r.returned)
	defer r.w.stands()
	for {
		if err := r.once(); err != nil && !r.w.ending() {
			r.fault("%v", err)
			return
		}
		if r.kind.reported() || r.kind == heals {
			return
		}
		r.w.stands()
		if !r.w.sleep(pace) {
			return
		}
	}
}

func (r *running) once() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return r.run(r.w)
}

func (r *running) report(counts bool) {
	for _, t := range r.w.trackers() {
		report := t.Report()
		r.look(report, counts)
		if counts {
			r.missed(t.Holders(), report)
		}
	}
}

// awaitStanding waits until the program has leaked, or what it has taken is back.
func (r *running) awaitStanding(limit time.Duration) {
	switch r.kind {
	case honest, thinking, told:
		return
	}
	select {
	case <-r.w.standing:
	case <-time.After(limit):
		r.fault("has not come to its leak in %v", patience)
		return
	}
	if r.kind.reported() {
		if r.kind != piles && r.w.inUse() == 0 {
			r.fault("holds no connection")
		}
	} else if n, ok := r.awaitBack(5 * time.Second); !ok {
		r.fault("its ctx has ended, and %d connections are not back", n)
	}
}

// awaitReturn waits until the program has returned. It does so once.
func (r *running) awaitReturn(limit time.Duration) {
	if r.late {
		return
	}
	select {
	case <-r.returned:
	case <-time.After(limit):
		r.late = true
		r.fault("has not returned %v after the end", patience)
	}
}

// awaitBack waits until no connection of the program is out, and returns how many are.
func (r *running) awaitBack(limit time.Duration) (n int, ok bool) {
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if n = r.w.inUse(); n == 0 {
			return 0, true
		}
		if time.Now().After(end) {
			return n, false
		}
	}
}

// startLoad starts queries on the program's pool, one after another. They wait for a
// connection for a while, but no query is cancelled: that would cost a connection, and
// the load would be one of dialling.
func (r *running) startLoad(loads *sync.WaitGroup, calm <-chan struct{}) {
	query := func() error {
		ctx, cancel := context.WithTimeout(r.w.ctx, 2*time.Second)
		defer cancel()
		c, err := r.w.db.Conn(ctx)
		if err != nil {
			return err
		}
		var n int
		return errors.Join(c.QueryRowContext(r.w.ctx, "SELECT count(*) FROM customers").Scan(&n), c.Close())
	}
	loads.Go(func() {
		for {
			select {
			case <-calm:
				return
			case <-time.After(pace / 2):
				_ = query()
			}
		}
	})
}

// makeGarbage keeps the garbage collector busy.
func makeGarbage(calm <-chan struct{}) {
	var keep [8][]byte
	for i := 0; ; i++ {
		select {
		case <-calm:
			runtime.KeepAlive(keep)
			return
		case <-time.After(time.Millisecond):
		}
		keep[i%len(keep)] = make([]byte, 1<<20)
	}
}

// createSchemas makes a schema for each program.
func createSchemas(ctx context.Context, dsn string, entries []entry) error {
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	g := newGroup(ctx)
	for part := range slices.Chunk(entries, (len(entries)+3)/4) {
		g.run(func(ctx context.Context) error {
			var all strings.Builder // in one transaction
			for _, e := range part {
				name := pq.QuoteIdentifier(strings.ToLower(e.name))
				fmt.Fprintf(&all, "CREATE SCHEMA %s; SET search_path = %[1]s; %s", name, schema)
			}
			_, err := db.ExecContext(ctx, all.String())
			return err
		})
	}
	if err := g.wait(); err != nil {
		return fmt.Errorf("schemas: %w", err)
	}
	return nil
}

// withDatabase returns a URL with another database.
func withDatabase(dsn, name string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil || u.RawQuery == "" {
		return "", errors.New("the DSN must be a URL with parameters") // err may have the password
	}
	u.Path = "/" + name
	return u.String(), nil
}

// checkGoroutines finds goroutines of programs that have not ended.
func (p *pass) checkGoroutines(all []*running, before map[string]string) {
	var left map[string]string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left = goroutinesOfPrograms()
		for id := range before {
			delete(left, id)
		}
		if len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, stack := range left {
		blame := all[0]
		for _, r := range all {
			if strings.Contains(stack, "main."+r.name+"(") || strings.Contains(stack, "main."+r.name+".") {
				blame = r
			}
		}
		blame.fault("a goroutine is left: %s", stack)
	}
}

// goroutinesOfPrograms are the stacks of the goroutines that run code of programs, by
// their ids.
func goroutinesOfPrograms() map[string]string {
	buf := make([]byte, 16<<20)
	buf = buf[:runtime.Stack(buf, true)]
	all := map[string]string{}
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		id, _, _ := strings.Cut(g, " [")
		for l := range strings.SplitSeq(g, "\n") {
			_, file, ok := strings.Cut(l, "/internal/corpus/")
			if !ok {
				continue
			}
			switch file, _, _ = strings.Cut(file, ":"); file {
			case "main.go", "run.go", "world.go", "source.go", "judge.go":
			default:
				all[id] = g
			}
		}
	}
	return all
}
