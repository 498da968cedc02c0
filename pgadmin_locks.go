package baldur

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/lib/pq"
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
	Shared  bool          // with others that share, and not with one that is alone
	NoWait  bool          // do not wait: not acquired if somebody has it
	Timeout time.Duration // how long to wait at most; 0: no limit of its own
}

// LockTimeoutError says that a lock was waited for in vain, for the server's
// lock_timeout or LockOptions.Timeout. It wraps the driver's error, SQLSTATE
// 55P03; where the wait was within this process, for another of its goroutines,
// one made to be like it.
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
}

// end closes the session, in which the lock is released, and lets the next in.
func (h *hold) end() error {
	defer h.p.gates.leave(h.key.id, h.key.shared)
	return h.s.Close()
}

// AcquireAdvisoryLock takes the lock id, any int64, on a connection that it pins
// until ReleaseAdvisoryLock (the manual's 13.3.5 and 9.28.10, pg_advisory_lock).
// The tracker shows that one as "advisory lock 42".
//
// With wait it waits until it has it, ctx ends or the server's lock_timeout is
// over (a [LockTimeoutError]); else it returns false if somebody has it.
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
// waits in the process, in the order of coming, without a connection. Who waits
// for another program has a connection and waits at the server, one for each id;
// in a pool of limited size it gives that back every half second and asks anew,
// so that holders that need a second connection always get on, here and in the
// programs that wait for each other. The price is its place in the server's
// queue. In an unlimited pool it keeps both.
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
// ends when f returns.
//
// With NoWait, and somebody having it, f is called with acquired false. Where
// waiting fails f is not called, and the error is as of AcquireAdvisoryLock.
//
// It returns f's error; if f has none and the connection had failed before the
// release, a [LockLostError]: the work was done, perhaps not alone.
func (p *PGAdmin) WithAdvisoryLock(ctx context.Context, id int64, opts LockOptions, f func(ctx context.Context, s *Session, acquired bool) error) (err error) {
	h, s, err := p.acquire(ctx, id, opts)
	if err != nil {
		return err
	}
	defer func() { // also if f panics
		var e error
		if h != nil {
			e = h.end()
		} else {
			e = s.Close()
		}
		if err == nil {
			err = e
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return f(ctx, s, h != nil)
}

// lockSlice is how long a connection of a limited pool waits at the server.
const lockSlice = 500 * time.Millisecond

// acquire takes a lock. Where it is not acquired, which is no error with NoWait,
// the hold is nil and the session has nothing.
func (p *PGAdmin) acquire(ctx context.Context, id int64, o LockOptions) (*hold, *Session, error) {
	if o.Timeout < 0 {
		return nil, nil, fmt.Errorf("baldur: LockOptions.Timeout is %v; it must not be negative", o.Timeout)
	}
	if err := p.check(); err != nil {
		return nil, nil, err
	}
	begin := time.Now()
	in, err := p.enter(ctx, id, o)
	if err != nil {
		return nil, nil, err
	}
	if !in {
		return nil, p.newSession(), nil
	}
	acquired := false
	defer func() {
		if !acquired {
			p.gates.leave(id, o.Shared)
		}
	}()
	s, acquired, err := p.acquireSession(ctx, begin, id, o)
	if err != nil || !acquired {
		return nil, s, err
	}
	return &hold{p, lockKey{id, o.Shared}, s}, s, nil
}

// enter waits for the holders in this process, no longer than the lock's timeout.
func (p *PGAdmin) enter(ctx context.Context, id int64, o LockOptions) (bool, error) {
	begin := time.Now()
	limit := shorter(o.Timeout, time.Duration(p.lockTimeout.Load()))
	if limit == 0 || o.NoWait {
		return p.gates.enter(ctx, id, o.Shared, !o.NoWait)
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	in, err := p.gates.enter(limited, id, o.Shared, true)
	if err == nil || ctx.Err() != nil || limited.Err() == nil {
		return in, err
	}
	return false, &LockTimeoutError{id, time.Since(begin), &pq.Error{
		Severity: "ERROR", Code: "55P03", Message: "canceling statement due to lock timeout",
		Detail: "The lock was held within this process.",
	}}
}

// shorter is the shorter one of two timeouts, of which 0 is none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// acquireSession takes a lock at the server.
func (p *PGAdmin) acquireSession(ctx context.Context, begin time.Time, id int64, o LockOptions) (*Session, bool, error) {
	key := lockKey{id, o.Shared}
	for {
		var ok bool
		var setting string
		s, err := p.start(ctx, p.mayKeep, "SELECT pg_backend_pid(), "+lockCall("pg_try_advisory_lock", key)+lockTimeoutColumn, &ok, &setting)
		if err != nil {
			return nil, false, err
		}
		timeout := parseTimeout(setting)
		p.lockTimeout.Store(int64(timeout))
		if ok {
			s.gained(key)
			return s, true, nil
		}
		if o.NoWait {
			return s, false, nil
		}
		limit := shorter(o.Timeout, timeout)
		waiting, done := p.untilClose(ctx)
		err = s.row(waiting, waitQuery("pg_advisory_lock", key, p.slice(begin, limit)), new(sql.NullString))
		err = done(err)
		if err == nil {
			s.gained(key)
			return s, true, nil
		}
		if !hasState(err, "55P03") {
			s.giveUp() // it may have got it just before the error
			return nil, false, err
		}
		_ = s.Close() // has nothing
		if limit > 0 && time.Since(begin) >= limit {
			return nil, false, &LockTimeoutError{id, time.Since(begin), err}
		}
	}
}

// slice is how long to wait at the server; 0: without a limit of ours.
func (p *PGAdmin) slice(begin time.Time, limit time.Duration) time.Duration {
	var slice time.Duration
	if p.db.Stats().MaxOpenConnections > 0 {
		slice = lockSlice
	}
	if limit > 0 {
		slice = shorter(slice, max(time.Millisecond, limit-time.Since(begin)))
	}
	return slice
}

// untilClose returns a ctx that also ends when p is closed; done ends it, and
// turns the error that comes of that into the right one.
func (p *PGAdmin) untilClose(ctx context.Context) (_ context.Context, done func(error) error) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(p.life, cancel)
	return ctx, func(err error) error {
		stop()
		cancel()
		if err != nil && p.life.Err() != nil {
			return ErrPGAdminClosed
		}
		return err
	}
}

const lockTimeoutColumn = ", current_setting('lock_timeout')"

// parseTimeout reads a timeout as PostgreSQL writes it: 0, 250ms, 5s, 2min, 1h, 1d.
func parseTimeout(s string) time.Duration {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, _ := strconv.Atoi(s[:i])
	return time.Duration(n) * map[string]time.Duration{
		"": time.Millisecond, "ms": time.Millisecond, "s": time.Second, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
	}[s[i:]]
}

// lockCall is the call of one of the functions named like pg_advisory_lock.
func lockCall(function string, key lockKey) string {
	if key.shared {
		function += "_shared"
	}
	return function + "(" + strconv.FormatInt(key.id, 10) + ")"
}

// waitQuery waits for a lock in one round trip, under a lock_timeout that is as
// it was before afterwards. CASE sets the order (the manual's 4.2.14).
func waitQuery(function string, key lockKey, timeout time.Duration) string {
	call := lockCall(function, key) + "::text"
	if timeout == 0 {
		return "SELECT pg_backend_pid(), " + call
	}
	ms, _ := milliseconds("", timeout)
	return "SELECT pg_backend_pid(), CASE WHEN set_config('lock_timeout', '" + ms + "', true) <> '' THEN" +
		" CASE WHEN " + call + " = '' THEN set_config('lock_timeout', old.v, true) END END" +
		" FROM (SELECT current_setting('lock_timeout') AS v OFFSET 0) old"
}

// isBadConn tells whether a connection was found dead: by the driver, or, as where
// the server's farewell is lost in a reset, by the network.
func isBadConn(err error) bool {
	var network *net.OpError
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.As(err, &network) && network.Op != "dial"
}
