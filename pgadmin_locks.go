package baldur

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"github.com/baldur-go/baldur/internal/advisory"
	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
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

func joinIDs(ids []int64) (s string) {
	for i, id := range ids {
		if i > 0 {
			s += ", "
		}
		s += strconv.FormatInt(id, 10)
	}
	return s
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
	return p.locks.Keep(ctx, id, advisory.Options{NoWait: !wait})
}

// AcquireAdvisoryLockShared is AcquireAdvisoryLock for a lock that is shared.
func (p *PGAdmin) AcquireAdvisoryLockShared(ctx context.Context, id int64, wait bool) (bool, error) {
	return p.locks.Keep(ctx, id, advisory.Options{NoWait: !wait, Shared: true})
}

// TryAdvisoryLock is AcquireAdvisoryLock without wait.
func (p *PGAdmin) TryAdvisoryLock(ctx context.Context, id int64) (bool, error) {
	return p.locks.Keep(ctx, id, advisory.Options{NoWait: true})
}

// AdvisoryLock is AcquireAdvisoryLock with an answer in one value.
func (p *PGAdmin) AdvisoryLock(ctx context.Context, id int64, wait bool) AdvisoryLockResult {
	ok, err := p.AcquireAdvisoryLock(ctx, id, wait)
	return AdvisoryLockResult{Acquired: ok, LockID: id, Err: err}
}

// ReleaseAdvisoryLock releases a lock of AcquireAdvisoryLock on the connection
// that holds it, and gives that back. It returns false if this PGAdmin does not
// hold the lock, and false and a [LockLostError] if it had been lost. It goes on
// although ctx has ended, and takes some 5 s at most.
func (p *PGAdmin) ReleaseAdvisoryLock(ctx context.Context, id int64) (bool, error) {
	return p.locks.Release(pgsql.Lock{ID: id})
}

// ReleaseAdvisoryLockShared is ReleaseAdvisoryLock for a lock of
// AcquireAdvisoryLockShared. Of several holds it releases one.
func (p *PGAdmin) ReleaseAdvisoryLockShared(ctx context.Context, id int64) (bool, error) {
	return p.locks.Release(pgsql.Lock{ID: id, Shared: true})
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
func (p *PGAdmin) WithAdvisoryLock(ctx context.Context, id int64, opts LockOptions, f func(ctx context.Context, s *Session, acquired bool) error) error {
	return p.locks.With(ctx, id, advisory.Options(opts), func(ctx context.Context, s *pgsession.Session, acquired bool) error {
		return f(ctx, &Session{s}, acquired)
	})
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
	return p.locks.InTx(ctx, id, advisory.Options(opts), f)
}

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
	return p.locks.Context(ctx, id)
}
