// Package advisory takes advisory locks of PostgreSQL, each on a session of its own or in a
// transaction, holds them, notices when one is lost, and releases them.
//
// Waiting needs no room in the pool: who waits for a holder of this process waits in a
// queue of package lockqueue, without a connection. One for each id waits for other programs:
// it takes a connection, tries, and gives it back.
package advisory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baldur-go/baldur/internal/lockqueue"
	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
)

// Options say how a lock is taken.
type Options struct {
	Shared  bool
	NoWait  bool
	Timeout time.Duration // how long to wait at most, for a connection, too; 0: no limit
}

func (o Options) check() error {
	if o.Timeout < 0 {
		return fmt.Errorf("baldur: LockOptions.Timeout is %v; it must not be negative", o.Timeout)
	}
	return nil
}

// Locks are those that are taken on the connections of a pool.
type Locks struct {
	pool   *pgsession.Pool
	errors *pgsession.Errors
	socket func(*sql.Conn) *pqconn.Socket
	queue  lockqueue.Locks

	// The lock_timeout that the pool's connections were last seen with, in ns.
	lockTimeout atomic.Int64

	mu    sync.Mutex // guards the field below
	holds map[pgsql.Lock][]*hold
}

// New returns the locks of a pool. socket returns that of a connection; nil: the driver dials
// by itself.
func New(pool *pgsession.Pool, socket func(*sql.Conn) *pqconn.Socket) *Locks {
	return &Locks{pool: pool, errors: pool.Errors(), socket: socket, holds: map[pgsql.Lock][]*hold{}}
}

// Close releases the locks of Keep, and ends all waits. The pool must have been shut.
func (l *Locks) Close() error {
	l.queue.Close(l.errors.Closed)
	l.mu.Lock()
	holds := l.holds
	l.holds = map[pgsql.Lock][]*hold{}
	l.mu.Unlock()
	var errs []error
	for _, hs := range holds {
		for _, h := range hs {
			errs = append(errs, h.end())
		}
	}
	return errors.Join(errs...)
}

// Keep takes a lock on a session that it pins until Release.
func (l *Locks) Keep(ctx context.Context, id int64, o Options) (bool, error) {
	h, s, err := l.acquire(ctx, id, o)
	if h == nil {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
		return false, err
	}
	l.mu.Lock()
	closed := l.pool.Life().Err() != nil // Close comes after that
	if !closed {
		l.holds[h.lock] = append(l.holds[h.lock], h)
	}
	l.mu.Unlock()
	if closed {
		return false, errors.Join(l.errors.Closed, h.end())
	}
	return true, nil
}

// Release releases the latest of Keep's holds of a lock, and returns false if there is none.
func (l *Locks) Release(lock pgsql.Lock) (bool, error) {
	l.mu.Lock()
	hs := l.holds[lock]
	if len(hs) == 0 {
		l.mu.Unlock()
		return false, nil
	}
	h := hs[len(hs)-1]
	if l.holds[lock] = hs[:len(hs)-1]; len(hs) == 1 {
		delete(l.holds, lock)
	}
	l.mu.Unlock()
	if err := h.end(); err != nil {
		return false, err
	}
	return true, nil
}

// Context ends when a lock of Keep is lost or released, or when ctx ends; of several shared
// holds, the latest. If there is none it has ended.
func (l *Locks) Context(ctx context.Context, id int64) (context.Context, context.CancelFunc) {
	l.mu.Lock()
	var h *hold
	for _, shared := range []bool{true, false} {
		if hs := l.holds[pgsql.Lock{ID: id, Shared: shared}]; len(hs) > 0 {
			h = hs[len(hs)-1]
		}
	}
	l.mu.Unlock()
	if h == nil {
		ctx, cancel := context.WithCancelCause(ctx)
		cancel(l.errors.Lost([]int64{id}, errors.New("this PGAdmin does not hold it")))
		return ctx, func() {}
	}
	return h.context(ctx)
}

// Since tells since when the backend has a lock by a hold of Keep, if it does.
func (l *Locks) Since(lock pgsql.Lock, backend int) (since time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.holds[lock] {
		if t, holds := h.s.Holds(lock); holds && h.s.BackendPID() == backend {
			since, ok = t, true
		}
	}
	return since, ok
}

// With calls f with a Session that has a lock, and releases it however f ends. The ctx of f
// ends when f returns, and when the lock is lost. With NoWait, and somebody having the lock, f
// is called with acquired false.
func (l *Locks) With(ctx context.Context, id int64, o Options, f func(ctx context.Context, s *pgsession.Session, acquired bool) error) (err error) {
	h, s, err := l.acquire(ctx, id, o)
	if err != nil {
		return err
	}
	if h == nil {
		defer func() { // also if f panics
			if e := s.Close(); err == nil {
				err = e
			}
		}()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		return f(ctx, s, false)
	}
	ctx, cancel := h.context(ctx)
	defer func() {
		lost := context.Cause(h.life)
		cancel()
		e := h.end()
		switch {
		case err == nil && e != nil:
			err = e
		case l.errors.IsLost(lost) && !l.errors.IsLost(err):
			err = errors.Join(lost, err)
		}
	}()
	return f(ctx, s, true)
}

// A wait is what ends a wait for a lock.
type wait struct {
	l       *Locks
	lock    pgsql.Lock
	begin   time.Time
	caller  context.Context
	limited context.Context // ends with the caller's, Options.Timeout, and the pool's life
	cancel  context.CancelFunc
}

// newWait begins a wait; cancel must be called at its end.
func (l *Locks) newWait(ctx context.Context, id int64, o Options) *wait {
	w := &wait{l: l, lock: pgsql.Lock{ID: id, Shared: o.Shared}, begin: time.Now(), caller: ctx}
	limited, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(l.pool.Life(), cancel)
	timeout := func() {}
	if o.Timeout > 0 {
		limited, timeout = context.WithDeadline(limited, w.begin.Add(o.Timeout))
	}
	w.limited, w.cancel = limited, func() { stop(); timeout(); cancel() }
	return w
}

// result is the one error for each way in which a wait ends: the ctx's,
// Errors.Closed, one of Errors.Timeout, or else err.
func (w *wait) result(err error) error {
	switch {
	case err == nil:
		return nil
	case pgsession.Over(w.caller) != nil:
		return pgsession.Ended(w.caller, err)
	case w.l.pool.Life().Err() != nil:
		return w.l.errors.Closed
	case pgsession.Over(w.limited) != nil:
		return w.l.pool.LockTimeout(w.lock.ID, w.begin, "55P03", "")
	}
	return err
}

// tries tries until it succeeds, fails, or the wait ends. try also tells the
// server's lock_timeout.
func (w *wait) tries(noWait bool, try func(ctx context.Context) (ok bool, setting string, err error)) (bool, error) {
	for pause := pgsession.Pause(0); ; pause = pause.Next() {
		ok, setting, err := try(w.limited)
		if err != nil {
			return false, w.result(err)
		}
		limit := pgsql.ParseTimeout(setting)
		if setting != "" {
			w.l.lockTimeout.Store(int64(limit))
		}
		if ok || noWait {
			return ok, nil
		}
		if limit > 0 && time.Since(w.begin) >= limit {
			return false, w.l.pool.LockTimeout(w.lock.ID, w.begin, "55P03", "")
		}
		pause.Sleep(w.limited, w.begin, limit)
		if err := w.limited.Err(); err != nil {
			return false, w.result(err)
		}
	}
}

// acquire takes a lock. Where it is not acquired, which is no error with NoWait,
// the hold is nil and the session has nothing.
func (l *Locks) acquire(ctx context.Context, id int64, o Options) (*hold, *pgsession.Session, error) {
	if err := o.check(); err != nil {
		return nil, nil, err
	}
	if err := l.pool.Check(); err != nil {
		return nil, nil, err
	}
	w := l.newWait(ctx, id, o)
	defer w.cancel()
	in, err := w.enter(o)
	if err != nil {
		return nil, nil, err
	}
	if !in {
		return nil, l.pool.Lazy(), nil
	}
	acquired := false
	defer func() {
		if !acquired {
			l.queue.Leave(id, o.Shared)
		}
	}()
	s, acquired, err := w.acquireSession(o)
	if err != nil || !acquired {
		return nil, s, err
	}
	return l.newHold(w.lock, s), s, nil
}

// enter waits for the holders in this process, no longer than the server's
// lock_timeout.
func (w *wait) enter(o Options) (bool, error) {
	ctx := w.limited
	if limit := time.Duration(w.l.lockTimeout.Load()); limit > 0 && !o.NoWait {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, w.begin.Add(limit))
		defer cancel()
	}
	in, err := w.l.queue.Enter(ctx, w.lock.ID, w.lock.Shared, !o.NoWait)
	if err == nil || w.caller.Err() != nil || w.l.pool.Life().Err() != nil || ctx.Err() == nil {
		return in, w.result(err)
	}
	return false, w.l.pool.LockTimeout(w.lock.ID, w.begin, "55P03", "The lock was held within this process.")
}

// acquireSession takes a lock at the server.
func (w *wait) acquireSession(o Options) (s *pgsession.Session, acquired bool, err error) {
	acquired, err = w.tries(o.NoWait, func(ctx context.Context) (ok bool, setting string, err error) {
		s, ok, setting, err = w.l.pool.TryLock(ctx, w.lock)
		if err == nil && !ok && !o.NoWait {
			_ = s.Close() // has nothing
		}
		return ok, setting, err
	})
	if err != nil {
		return nil, false, err
	}
	return s, acquired, nil
}

// InTx calls f in a transaction that has a lock until it ends, and commits if f returns nil. With
// NoWait, and somebody having the lock, f is called with acquired false.
func (l *Locks) InTx(ctx context.Context, id int64, o Options, f func(ctx context.Context, tx *sql.Tx, acquired bool) error) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := l.pool.Check(); err != nil {
		return err
	}
	w := l.newWait(ctx, id, o)
	defer w.cancel()
	in, err := w.enter(o)
	if err != nil {
		return err
	}
	if in {
		defer l.queue.Leave(id, o.Shared)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tx, acquired, err := w.beginLocked(ctx, cancel, o, in)
	if err != nil {
		return err
	}
	defer tx.End() // also if f panics; after Commit it gives the connection back
	if err := f(ctx, tx.Tx, acquired); err != nil {
		return err
	}
	return tx.Commit()
}

// The settings of a transaction that a lock's must not meet, and that the program's
// statements in it are to meet again.
var txSettings = []string{"statement_timeout", "lock_timeout", "default_transaction_isolation", "default_transaction_read_only"}

// inTx is a request that meets them as they are in a new session.
func inTx(query string) pgsession.Request {
	var keep, reset, restore []string
	for _, name := range txSettings {
		keep = append(keep, pgsql.SetConfig("baldur."+name, pgsql.CurrentSetting(name)))
		reset = append(reset, pgsql.SetConfig(name, "NULL"))
		restore = append(restore, pgsql.SetConfig(name, pgsql.CurrentSetting("baldur."+name)))
	}
	return pgsession.Request{
		Before: []string{"SELECT " + strings.Join(keep, ", "), "SELECT " + strings.Join(reset, ", ")},
		Query:  query,
		After:  []string{"SELECT " + strings.Join(restore, ", ")},
	}
}

// beginLocked begins a transaction and takes the lock in it, unless the queue has
// not been entered. The transaction ends with ctx, which cancel ends.
func (w *wait) beginLocked(ctx context.Context, cancel func(), o Options, in bool) (tx *pgsession.Tx, acquired bool, err error) {
	stop := context.AfterFunc(w.limited, cancel)
	query := "SELECT " + w.lock.Call("pg_try_advisory_xact_lock")
	for _, name := range []string{"lock_timeout", "transaction_isolation", "default_transaction_isolation", "transaction_read_only", "default_transaction_read_only"} {
		query += ", " + pgsql.CurrentSetting(name)
	}
	mode := ""
	try := func(limited context.Context) (ok bool, lockTimeout string, err error) {
		for {
			tx, err = w.l.pool.Begin(limited, ctx, mode)
			if err != nil || !in {
				return false, "", err
			}
			var isolation, isolationOfNew, readOnly, readOnlyOfNew string
			err = tx.Ask(limited, inTx(query), &ok, &lockTimeout, &isolation, &isolationOfNew, &readOnly, &readOnlyOfNew)
			if err != nil {
				tx.End()
				return false, "", err
			}
			asOfNew := isolation == isolationOfNew && (readOnly == "off" || readOnlyOfNew == "on")
			if mode == "" && !asOfNew { // what somebody has set on this connection
				tx.End()
				mode = txMode(isolationOfNew, readOnlyOfNew)
				continue
			}
			if !ok && !o.NoWait {
				tx.End() // nothing is open while it waits
			}
			return ok, lockTimeout, nil
		}
	}
	acquired, err = w.tries(o.NoWait, try)
	if err == nil && !stop() {
		tx.End()
		err = w.result(context.Canceled) // just before it was over
	}
	if err != nil {
		stop()
		return nil, false, err
	}
	return tx, acquired, nil
}

// txMode is the mode of SET TRANSACTION for these settings.
func txMode(isolation, readOnly string) string {
	mode := "ISOLATION LEVEL " + map[string]string{
		"read uncommitted": "READ UNCOMMITTED", "repeatable read": "REPEATABLE READ", "serializable": "SERIALIZABLE",
	}[isolation]
	if mode == "ISOLATION LEVEL " {
		mode += "READ COMMITTED"
	}
	if readOnly == "off" {
		mode += ", READ WRITE"
	}
	return mode
}
