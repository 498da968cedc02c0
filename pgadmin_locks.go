package baldur

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/wrap"
)

// LockID derives the id of an advisory lock from a name: the first 8 bytes of the
// SHA-256 of the name, as a big-endian signed number. That will not change. In SQL:
//
//	SELECT ('x' || left(encode(sha256('nightly report'), 'hex'), 16))::bit(64)::bigint
func LockID(name string) int64 {
	sum := sha256.Sum256([]byte(name))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// LockOptions say how a lock is taken. The zero value: alone, and wait for it for
// as long as ctx and the server's lock_timeout let us.
type LockOptions struct {
	Shared bool // with others that share, and not with one that is alone
	NoWait bool // do not wait: not acquired if somebody has it
	// Timeout is how long to wait at most, for a connection, too; 0: no limit of its own.
	// A call that is in flight when it ends takes up to WithCancelGrace longer, as when a ctx ends.
	Timeout time.Duration
}

// LockTimeoutError says that a lock was waited for in vain: for LockOptions.Timeout,
// the server's lock_timeout, or a Session's statement_timeout. It wraps an error
// like the server's of a statement that waits, a *pq.Error of SQLSTATE 55P03 (a
// Session's statement_timeout: 57014).
type LockTimeoutError struct {
	LockID int64
	Waited time.Duration
	Err    error
}

func (e *LockTimeoutError) Error() string {
	return fmt.Sprintf("baldur: advisory lock %d: waited %v in vain: %v", e.LockID, e.Waited.Round(time.Millisecond), e.Err)
}

func (e *LockTimeoutError) Unwrap() error { return e.Err }

// LockLostError says that a connection had failed before its advisory locks were
// released. The server has released them by itself, at some time: somebody else
// may have had one while it was thought to be held. It wraps the driver's error.
type LockLostError struct {
	LockIDs []int64
	Err     error
}

func (e *LockLostError) Error() string {
	return fmt.Sprintf("baldur: advisory lock %s: the connection failed before the release, so somebody else may have had it: %v", joinIDs(e.LockIDs), e.Err)
}

func (e *LockLostError) Unwrap() error { return e.Err }

// AdvisoryLockResult is an answer about a lock in one value, to be sent or logged.
type AdvisoryLockResult struct {
	Acquired bool
	LockID   int64
	Err      error
}

type lockKey struct {
	id     int64
	shared bool
}

func sortedKeys[V any](m map[lockKey]V) []lockKey {
	return slices.SortedFunc(maps.Keys(m), func(a, b lockKey) int {
		return cmp.Or(cmp.Compare(a.id, b.id), map[bool]int{true: 1}[a.shared]-map[bool]int{true: 1}[b.shared])
	})
}

func joinIDs(ids []int64) (s string) {
	for i, id := range ids {
		if i > 0 {
			s += ", "
		}
		s += strconv.FormatInt(id, 10)
	}
	return s
}

// hold is a lock with a session of its own.
type hold struct {
	p   *PGAdmin
	key lockKey
	s   *Session

	sock     *pqconn.Socket  // nil: the driver dials by itself
	life     context.Context // until the lock is released or lost
	stop     context.CancelCauseFunc
	watching sync.Once
}

func newHold(p *PGAdmin, key lockKey, s *Session) *hold {
	h := &hold{p: p, key: key, s: s}
	h.life, h.stop = context.WithCancelCause(context.Background())
	_ = s.conn.Raw(func(dc any) error {
		if c, ok := dc.(driver.Conn); ok {
			if r := wrap.RecordOf(c); r != nil {
				h.sock = r.Sock
			}
		}
		return nil
	})
	return h
}

// end closes the session, in which the lock is released, and lets the next in.
func (h *hold) end() error {
	defer h.p.gates.Leave(h.key.id, h.key.shared)
	h.stop(nil)
	return h.s.Close()
}

// AcquireAdvisoryLock takes the lock id, any int64, on a connection that it pins
// until ReleaseAdvisoryLock (the manual's 13.3.5 and 9.28.10, pg_advisory_lock).
// The tracker shows that one as "advisory lock 42".
//
// With wait it waits until it has it; else it returns false if somebody has it. A
// wait, that for a connection of the pool included, ends with
//   - an error that is ctx's (errors.Is), if ctx has ended;
//   - a [LockTimeoutError], if the lock_timeout that the server gives a new
//     session, or LockOptions.Timeout, is over;
//   - [ErrPGAdminClosed], after Close;
//   - the driver's error, if the server cannot be asked.
//
// What the program has set on a pooled connection, as a lock_timeout of another
// length, does not count, and a connection in a transaction left open is
// discarded. A try is one short statement, so a statement_timeout ends no wait.
//
// Each call that succeeds is a hold of its own: two goroutines exclude each other
// as two programs do, and one that asks twice waits for itself. A lock that is to
// be nested is taken on a [Session].
//
// # Waiting, and the size of the pool
//
// Each hold keeps one connection, so the pool must have room for all holds and
// what their work needs beside them (work on the Session of WithAdvisoryLock
// needs none). Waiting needs no room: who waits for a holder of this PGAdmin
// waits in the process, in the order of coming, without a connection. One for
// each id waits for other programs: it takes a connection, tries, and gives it
// back, every 2 ms at first and every 50 ms later. So no wait holds a connection
// or a snapshot: the holder can make an index CONCURRENTLY, vacuum cleans up, and
// holders that need a second connection get on. The price is that a hand-over
// between programs takes up to 50 ms, that programs have no queue, and that
// BlockingTree shows no waits for these locks.
//
// One round trip where nobody has the lock, and those of [PGAdmin.PoolerMode] the
// first time. Behind a pooler in transaction mode the error is a [PoolerError].
func (p *PGAdmin) AcquireAdvisoryLock(ctx context.Context, id int64, wait bool) (bool, error) {
	return p.keep(ctx, id, LockOptions{NoWait: !wait})
}

// AcquireAdvisoryLockShared is AcquireAdvisoryLock for a lock that is shared.
func (p *PGAdmin) AcquireAdvisoryLockShared(ctx context.Context, id int64, wait bool) (bool, error) {
	return p.keep(ctx, id, LockOptions{NoWait: !wait, Shared: true})
}

// TryAdvisoryLock is AcquireAdvisoryLock without wait.
func (p *PGAdmin) TryAdvisoryLock(ctx context.Context, id int64) (bool, error) {
	return p.keep(ctx, id, LockOptions{NoWait: true})
}

// AdvisoryLock is AcquireAdvisoryLock with an answer in one value.
func (p *PGAdmin) AdvisoryLock(ctx context.Context, id int64, wait bool) AdvisoryLockResult {
	ok, err := p.AcquireAdvisoryLock(ctx, id, wait)
	return AdvisoryLockResult{Acquired: ok, LockID: id, Err: err}
}

func (p *PGAdmin) keep(ctx context.Context, id int64, o LockOptions) (bool, error) {
	h, s, err := p.acquire(ctx, id, o)
	if h == nil {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
		return false, err
	}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.holds[h.key] = append(p.holds[h.key], h)
	}
	p.mu.Unlock()
	if closed {
		return false, errors.Join(ErrPGAdminClosed, h.end())
	}
	return true, nil
}

// ReleaseAdvisoryLock releases a lock of AcquireAdvisoryLock on the connection
// that holds it, and gives that back. It returns false if this PGAdmin does not
// hold the lock, and false and a [LockLostError] if it had been lost. It goes on
// although ctx has ended, and takes some 5 s at most.
func (p *PGAdmin) ReleaseAdvisoryLock(ctx context.Context, id int64) (bool, error) {
	return p.release(lockKey{id, false})
}

// ReleaseAdvisoryLockShared is ReleaseAdvisoryLock for a lock of
// AcquireAdvisoryLockShared. Of several holds it releases one.
func (p *PGAdmin) ReleaseAdvisoryLockShared(ctx context.Context, id int64) (bool, error) {
	return p.release(lockKey{id, true})
}

func (p *PGAdmin) release(key lockKey) (bool, error) {
	p.mu.Lock()
	hs := p.holds[key]
	if len(hs) == 0 {
		p.mu.Unlock()
		return false, nil
	}
	h := hs[len(hs)-1]
	if p.holds[key] = hs[:len(hs)-1]; len(hs) == 1 {
		delete(p.holds, key)
	}
	p.mu.Unlock()
	if err := h.end(); err != nil {
		return false, err
	}
	return true, nil
}

// WithAdvisoryLock calls f with a Session that has the lock, and releases it
// however f ends, a panic and runtime.Goexit included, and whether or not ctx has
// ended. f's own queries on the Session need no other connection. The ctx of f
// ends when f returns, and when the lock is lost, with a [LockLostError] as its
// cause, as that of [PGAdmin.LockContext].
//
// With NoWait, and somebody having it, f is called with acquired false. Where
// waiting fails f is not called, and the error is as of AcquireAdvisoryLock.
//
// It returns f's error, and a [LockLostError] if the connection had failed before
// the release and f has no error, or if f's ctx has ended by that: the work was
// done, perhaps not alone.
func (p *PGAdmin) WithAdvisoryLock(ctx context.Context, id int64, opts LockOptions, f func(ctx context.Context, s *Session, acquired bool) error) (err error) {
	h, s, err := p.acquire(ctx, id, opts)
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
		var lost *LockLostError
		wasLost := errors.As(context.Cause(h.life), &lost)
		cancel()
		e := h.end()
		switch {
		case err == nil && e != nil:
			err = e
		case wasLost && !errors.As(err, new(*LockLostError)):
			err = errors.Join(lost, err)
		}
	}()
	return f(ctx, s, true)
}

// A lockPause is how long to wait between two tries. To wait at the server would
// be faster, but such a wait is a statement with a snapshot, on a connection: it
// keeps vacuum from cleaning up, a CREATE INDEX CONCURRENTLY of the lock's holder
// waits for it (a deadlock), and a pool full of waiters has none left for the
// holder's work.
type lockPause time.Duration

const (
	firstPause = lockPause(2 * time.Millisecond)
	lastPause  = lockPause(50 * time.Millisecond) // so about how long a hand-over between programs takes at most
)

func (d lockPause) next() lockPause { return max(firstPause, min(lastPause, d*2)) }

// sleep returns after the pause, shortened at random so that those who wait do
// not keep step, or sooner when ctx ends, or limit, unless it is 0, is over.
func (d lockPause) sleep(ctx context.Context, begin time.Time, limit time.Duration) {
	pause := time.Duration(d.next())
	pause -= rand.N(pause / 4)
	if limit > 0 {
		pause = min(pause, limit-time.Since(begin))
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// lockWait is what ends a wait for a lock.
type lockWait struct {
	p       *PGAdmin
	id      int64
	begin   time.Time
	caller  context.Context
	limited context.Context // ends with the caller's, LockOptions.Timeout, and the PGAdmin
	cancel  context.CancelFunc
}

// newWait begins a wait; cancel must be called at its end.
func (p *PGAdmin) newWait(ctx context.Context, id int64, o LockOptions) *lockWait {
	w := &lockWait{p: p, id: id, begin: time.Now(), caller: ctx}
	limited, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(p.life, cancel)
	timeout := func() {}
	if o.Timeout > 0 {
		limited, timeout = context.WithDeadline(limited, w.begin.Add(o.Timeout))
	}
	w.limited, w.cancel = limited, func() { stop(); timeout(); cancel() }
	return w
}

// result is the one error for each way in which a wait ends: the ctx's,
// ErrPGAdminClosed, a LockTimeoutError, or else err.
func (w *lockWait) result(err error) error {
	switch {
	case err == nil:
		return nil
	case over(w.caller) != nil:
		return ended(w.caller, err)
	case w.p.life.Err() != nil:
		return ErrPGAdminClosed
	case over(w.limited) != nil:
		return newLockTimeout(w.id, w.begin, "55P03", "")
	}
	return err
}

// tries tries until it succeeds, fails, or the wait ends. try also tells the
// server's lock_timeout.
func (w *lockWait) tries(noWait bool, try func(ctx context.Context) (ok bool, setting string, err error)) (bool, error) {
	for pause := lockPause(0); ; pause = pause.next() {
		ok, setting, err := try(w.limited)
		if err != nil {
			return false, w.result(err)
		}
		limit := pgsql.ParseTimeout(setting)
		if setting != "" {
			w.p.lockTimeout.Store(int64(limit))
		}
		if ok || noWait {
			return ok, nil
		}
		if limit > 0 && time.Since(w.begin) >= limit {
			return false, newLockTimeout(w.id, w.begin, "55P03", "")
		}
		pause.sleep(w.limited, w.begin, limit)
		if err := w.limited.Err(); err != nil {
			return false, w.result(err)
		}
	}
}

// newLockTimeout makes an error like that of a statement that has waited at the
// server.
func newLockTimeout(id int64, begin time.Time, state, detail string) error {
	what := map[string]string{"55P03": "lock", "57014": "statement"}[state]
	return &LockTimeoutError{id, time.Since(begin), &pq.Error{
		Severity: "ERROR", Code: pq.ErrorCode(state), Message: "canceling statement due to " + what + " timeout", Detail: detail,
	}}
}

// acquire takes a lock. Where it is not acquired, which is no error with NoWait,
// the hold is nil and the session has nothing.
func (p *PGAdmin) acquire(ctx context.Context, id int64, o LockOptions) (*hold, *Session, error) {
	if o.Timeout < 0 {
		return nil, nil, fmt.Errorf("baldur: LockOptions.Timeout is %v; it must not be negative", o.Timeout)
	}
	if err := p.check(); err != nil {
		return nil, nil, err
	}
	w := p.newWait(ctx, id, o)
	defer w.cancel()
	in, err := w.enter(o)
	if err != nil {
		return nil, nil, err
	}
	if !in {
		return nil, p.newSession(), nil
	}
	acquired := false
	defer func() {
		if !acquired {
			p.gates.Leave(id, o.Shared)
		}
	}()
	s, acquired, err := p.acquireSession(w, lockKey{id, o.Shared}, o)
	if err != nil || !acquired {
		return nil, s, err
	}
	return newHold(p, lockKey{id, o.Shared}, s), s, nil
}

// enter waits for the holders in this process, no longer than the server's
// lock_timeout.
func (w *lockWait) enter(o LockOptions) (bool, error) {
	ctx := w.limited
	if limit := time.Duration(w.p.lockTimeout.Load()); limit > 0 && !o.NoWait {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, w.begin.Add(limit))
		defer cancel()
	}
	in, err := w.p.gates.Enter(ctx, w.id, o.Shared, !o.NoWait)
	if err == nil || w.caller.Err() != nil || w.p.life.Err() != nil || ctx.Err() == nil {
		return in, w.result(err)
	}
	return false, newLockTimeout(w.id, w.begin, "55P03", "The lock was held within this process.")
}

// acquireSession takes a lock at the server.
func (p *PGAdmin) acquireSession(w *lockWait, key lockKey, o LockOptions) (s *Session, acquired bool, err error) {
	const idleTimeout = "idle_session_timeout"
	query := pgsession.AskPID + ", " + lockCall("pg_try_advisory_lock", key) + ", " + pgsql.CurrentSetting("lock_timeout") +
		", coalesce(pg_catalog.current_setting('" + idleTimeout + "'::pg_catalog.text, true), '0')"
	var idle string
	acquired, err = w.tries(o.NoWait, func(ctx context.Context) (ok bool, setting string, err error) {
		s, err = p.start(ctx, p.mayKeep, pgsession.AsNew, query, &ok, &setting, &idle)
		if err == nil && !ok && !o.NoWait {
			_ = s.Close() // has nothing
		}
		return ok, setting, err
	})
	if err != nil {
		return nil, false, err
	}
	if !acquired {
		return s, false, nil
	}
	s.gained(key)
	if idle != "0" {
		// A session that has a lock is idle for as long as the work takes.
		s.mark(func() { s.previous[idleTimeout] = idle })
		err := s.row(w.limited, pgsession.AsNewPQ, pgsession.AskPID+", pg_catalog.set_config('"+idleTimeout+"'::pg_catalog.text, '0'::pg_catalog.text, false)", new(string))
		if err != nil {
			s.giveUp()
			return nil, false, w.result(err)
		}
	}
	return s, true, nil
}

// lockCall is the call of one of the functions named like pg_advisory_lock.
func lockCall(function string, key lockKey) string {
	if key.shared {
		function += "_shared"
	}
	return "pg_catalog." + function + "('" + strconv.FormatInt(key.id, 10) + "'::pg_catalog.int8)"
}

// WithTxAdvisoryLock calls f in a transaction that has the lock until it ends
// (the manual's 9.28.10, pg_advisory_xact_lock), and commits if f returns nil,
// else rolls back, also if f panics. It needs no session of the server's and so
// works through a pooler in transaction mode. f must not end tx. If the connection
// is lost, and the lock with it, f's ctx does not end: nothing is committed.
//
// With NoWait, and somebody having the lock, f is called with acquired false.
// Waiting is as in AcquireAdvisoryLock, with a transaction of its own for each try,
// so that none is open in between. Three round trips.
//
// The transaction's isolation level is what the server gives a new session of the
// role and database, and not what was set on a pooled connection. In REPEATABLE
// READ and SERIALIZABLE its snapshot may be older than the lock: f may not see what
// the last holder has committed.
func (p *PGAdmin) WithTxAdvisoryLock(ctx context.Context, id int64, opts LockOptions, f func(ctx context.Context, tx *sql.Tx, acquired bool) error) error {
	if opts.Timeout < 0 {
		return fmt.Errorf("baldur: LockOptions.Timeout is %v; it must not be negative", opts.Timeout)
	}
	if err := p.check(); err != nil {
		return err
	}
	w := p.newWait(ctx, id, opts)
	defer w.cancel()
	in, err := w.enter(opts)
	if err != nil {
		return err
	}
	if in {
		defer p.gates.Leave(id, opts.Shared)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tx, acquired, err := w.beginLocked(ctx, cancel, lockKey{id, opts.Shared}, opts, in)
	if err != nil {
		return err
	}
	defer tx.end() // also if f panics; after Commit it gives the connection back
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

// beginLocked begins a transaction and takes the lock in it, unless the gate has
// not been entered. The transaction ends with ctx, which cancel ends.
func (w *lockWait) beginLocked(ctx context.Context, cancel func(), key lockKey, o LockOptions, in bool) (tx *adminTx, acquired bool, err error) {
	stop := context.AfterFunc(w.limited, cancel)
	query := "SELECT " + lockCall("pg_try_advisory_xact_lock", key)
	for _, name := range []string{"lock_timeout", "transaction_isolation", "default_transaction_isolation", "transaction_read_only", "default_transaction_read_only"} {
		query += ", " + pgsql.CurrentSetting(name)
	}
	mode := ""
	try := func(limited context.Context) (ok bool, lockTimeout string, err error) {
		for {
			tx, err = w.p.begin(limited, ctx, mode)
			if err != nil || !in {
				return false, "", err
			}
			var isolation, isolationOfNew, readOnly, readOnlyOfNew string
			err = tx.ask(limited, inTx(query), &ok, &lockTimeout, &isolation, &isolationOfNew, &readOnly, &readOnlyOfNew)
			if err != nil {
				tx.end()
				return false, "", err
			}
			asOfNew := isolation == isolationOfNew && (readOnly == "off" || readOnlyOfNew == "on")
			if mode == "" && !asOfNew { // what somebody has set on this connection
				tx.end()
				mode = txMode(isolationOfNew, readOnlyOfNew)
				continue
			}
			if !ok && !o.NoWait {
				tx.end() // nothing is open while it waits
			}
			return ok, lockTimeout, nil
		}
	}
	acquired, err = w.tries(o.NoWait, try)
	if err == nil && !stop() {
		tx.end()
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

// How a holder learns that its lock is lost while it works.
//
// The server ends a session for many reasons, and gives its locks to others at
// once. It says so on the connection, where nobody reads while the holder works:
// so the socket is looked into, which costs a system call and disturbs nobody.
// Where it is silent, or the driver's own, the server is asked now and then whether
// the session still has the lock, on another connection: the holder's may be
// in the middle of anything.
const (
	socketLook = 25 * time.Millisecond
	serverLook = 2 * time.Second
	lookBound  = time.Second
)

var (
	errServerHungUp = errors.New("the server has ended the session")
	errNotHeld      = errors.New("the server says that the session does not have it")
)

// LockContext returns a ctx that ends when a lock of AcquireAdvisoryLock or its
// like is lost, with a [LockLostError] as its cause (context.Cause), when it is
// released, or when ctx ends; of several shared holds, the latest. It is the ctx
// that WithAdvisoryLock gives to f: work that must stop with the lock takes it as
// it takes any. If this PGAdmin does not hold the lock it has ended already, with
// such a cause.
//
// A session that the server has ended is noticed within 25 ms, if the pool is
// baldur's on lib/pq and the server, or its machine, could say so; else within 3 s,
// by asking on another connection, if the pool has one free.
func (p *PGAdmin) LockContext(ctx context.Context, id int64) (context.Context, context.CancelFunc) {
	p.mu.Lock()
	var h *hold
	for _, shared := range []bool{true, false} {
		if hs := p.holds[lockKey{id, shared}]; len(hs) > 0 {
			h = hs[len(hs)-1]
		}
	}
	p.mu.Unlock()
	if h == nil {
		ctx, cancel := context.WithCancelCause(ctx)
		cancel(&LockLostError{[]int64{id}, errors.New("this PGAdmin does not hold it")})
		return ctx, func() {}
	}
	return h.context(ctx)
}

// context is LockContext's.
func (h *hold) context(ctx context.Context) (context.Context, context.CancelFunc) {
	h.watching.Do(func() { go h.watch() })
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(h.life, func() { cancel(context.Cause(h.life)) })
	return ctx, func() { stop(); cancel(nil) }
}

// watch looks after the lock until it is released or lost.
func (h *hold) watch() {
	every := lookBound // sooner than serverLook, for when the pool was full
	if h.sock != nil && pqconn.CanPeek {
		every = socketLook
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for asked := time.Now(); ; {
		select {
		case <-h.life.Done():
			return
		case <-ticker.C:
		}
		err := h.lookAtSocket()
		if err == nil && time.Since(asked) >= serverLook && !h.poolFull() {
			err = h.lookAtServer()
			asked = time.Now()
		}
		if err != nil {
			h.stop(&LockLostError{[]int64{h.key.id}, err})
			return
		}
	}
}

func (h *hold) lookAtSocket() error {
	if h.sock == nil || !pqconn.CanPeek {
		return nil
	}
	sc, ok := h.sock.Conn.(syscall.Conn)
	if !ok {
		return nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	var pending [4096]byte
	n, hungUp, err := pqconn.Peek(rc, pending[:])
	switch {
	case errors.Is(err, net.ErrClosed): // the driver's doing
		return fmt.Errorf("the connection was closed: %w", err)
	case err != nil:
		return err
	case hungUp || farewell(pending[:n]):
		return errServerHungUp
	}
	return nil
}

// farewell tells whether the messages that nobody has read yet have one after
// which the server hangs up (the manual's 55.7, ErrorResponse). What is encrypted
// looks like none.
func farewell(b []byte) bool {
	for len(b) >= 5 {
		kind, size := b[0], int(binary.BigEndian.Uint32(b[1:]))
		body := b[5:min(len(b), max(5, size+1))]
		if kind == 'E' && (bytes.Contains(body, []byte("VFATAL\x00")) || bytes.Contains(body, []byte("VPANIC\x00"))) {
			return true
		}
		if size < 4 || size+1 > len(b) {
			return false
		}
		b = b[size+1:]
	}
	return false
}

func (h *hold) poolFull() bool {
	s := h.p.db.Stats()
	return s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections
}

// lookAtServer asks on another connection. No answer is no news.
func (h *hold) lookAtServer() error {
	ctx, cancel := context.WithTimeout(h.life, lookBound)
	defer cancel()
	var has bool
	err := h.p.row(ctx, fmt.Sprintf(`SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND granted`+
		` AND pid OPERATOR(pg_catalog.=) %d AND objsubid OPERATOR(pg_catalog.=) 1::pg_catalog.int2`+
		` AND classid OPERATOR(pg_catalog.=) '%d'::pg_catalog.oid AND objid OPERATOR(pg_catalog.=) '%d'::pg_catalog.oid)`,
		h.s.BackendPID(), uint64(h.key.id)>>32, uint64(h.key.id)&0xffffffff), &has)
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if err != nil || has || h.s.held[h.key] == nil { // it was released on the session
		return nil
	}
	return errNotHeld
}
