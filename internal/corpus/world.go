package main

import (
	"context"
	"database/sql"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/baldur-go/baldur"
)

// A world is what a program of the corpus finds when it starts: a pool of its own, on a
// schema of its own with the tables of a small shop (schema.sql).
type world struct {
	ctx  context.Context // of the whole program, as signal.NotifyContext gives it to main
	db   *sql.DB         // 5 connections at most
	over <-chan struct{} // closed when the program is to end
	dsn  string          // of the same schema, for what needs a connection beside the pool

	threshold time.Duration

	mu       sync.Mutex // guards the fields below
	pools    []*sql.DB  // db, and those of open
	closers  []func()
	standing chan struct{} // closed by stands
	isStood  bool
}

func newWorld(ctx context.Context, over <-chan struct{}, dsn, name string, threshold time.Duration) (*world, error) {
	w := &world{ctx: ctx, over: over, dsn: dsn, threshold: threshold, standing: make(chan struct{})}
	db, err := w.open(name, 5)
	w.db = db
	return w, err
}

// open opens a pool, which is judged with the others of the program.
func (w *world) open(name string, size int) (*sql.DB, error) {
	db, err := baldur.Open(w.dsn, baldur.WithPoolName(name), baldur.WithLeakThreshold(w.threshold))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pools = append(w.pools, db)
	return db, nil
}

// stands says that the program has done what it is in the corpus for, and goes on. One
// that returns need not say it.
func (w *world) stands() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.isStood {
		w.isStood = true
		close(w.standing)
	}
}

// sleep waits for d, or for the end. It tells whether the program goes on.
func (w *world) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.over:
		return false
	}
}

// ending tells whether the program is to end.
func (w *world) ending() bool {
	select {
	case <-w.over:
		return true
	default:
		return false
	}
}

// serve serves HTTP until the end, and returns the URL.
func (w *world) serve(h http.Handler) (string, error) {
	url, stop, err := listen(h)
	if err == nil {
		w.atEnd(stop)
	}
	return url, err
}

func listen(h http.Handler) (url string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	return "http://" + l.Addr().String(), func() { _ = srv.Close() }, nil
}

// atEnd has f called after the end, before the pools are closed.
func (w *world) atEnd(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closers = append(w.closers, f)
}

// close closes what the program has opened through the world.
func (w *world) close() {
	w.mu.Lock()
	closers, pools := w.closers, w.pools
	w.mu.Unlock()
	for _, f := range closers {
		f()
	}
	for _, db := range pools {
		_ = db.Close()
	}
}

// trackers returns the trackers of the pools.
func (w *world) trackers() []*baldur.Tracker {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]*baldur.Tracker, len(w.pools))
	for i, db := range w.pools {
		all[i] = baldur.TrackerOf(db)
	}
	return all
}

// inUse is how many connections are out of the program's pools.
func (w *world) inUse() (n int) {
	w.mu.Lock()
	pools := w.pools
	w.mu.Unlock()
	for _, db := range pools {
		n += db.Stats().InUse
	}
	return n
}
