package baldur

import (
	"context"
	"database/sql"
	"time"

	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
)

// gained notes that the session has a lock, once more.
func (s *Session) gained(key lockKey) {
	s.mu.Lock()
	h := s.held[key]
	if h == nil {
		h = &held{since: time.Now()}
		s.held[key] = h
	}
	h.count++
	first := h.count == 1
	s.mu.Unlock()
	if first {
		s.relabel()
	}
}

// AcquireAdvisoryLock takes the lock id on this session, where locks nest: it must
// be released as often as it was taken, and a session does not exclude itself.
// With wait it tries again and again, one round trip each, until it has it, ctx
// ends, or the session's lock_timeout or statement_timeout is over (a
// [LockTimeoutError]).
func (s *Session) AcquireAdvisoryLock(ctx context.Context, id int64, wait bool) (bool, error) {
	return s.acquire(ctx, lockKey{id, false}, wait)
}

// AcquireAdvisoryLockShared is AcquireAdvisoryLock for a lock that is shared.
func (s *Session) AcquireAdvisoryLockShared(ctx context.Context, id int64, wait bool) (bool, error) {
	return s.acquire(ctx, lockKey{id, true}, wait)
}

// TryAdvisoryLock is AcquireAdvisoryLock without wait.
func (s *Session) TryAdvisoryLock(ctx context.Context, id int64) (bool, error) {
	return s.acquire(ctx, lockKey{id, false}, false)
}

func (s *Session) acquire(ctx context.Context, key lockKey, wait bool) (ok bool, err error) {
	if s.admin == nil {
		return false, nil
	}
	if err := s.pin(ctx, s.admin.mayKeep); err != nil {
		return false, err
	}
	begin := time.Now()
	for pause := lockPause(0); ; pause = pause.next() {
		var lock, statement string
		err = s.row(ctx, pgsession.AsItIs, pgsession.AskPID+", "+lockCall("pg_try_advisory_lock", key)+", "+pgsql.CurrentSetting("lock_timeout")+", "+pgsql.CurrentSetting("statement_timeout"),
			&ok, &lock, &statement)
		if err != nil {
			break
		}
		if ok {
			s.gained(key)
			return true, nil
		}
		if !wait {
			return false, nil
		}
		limit, state := pgsql.ParseTimeout(lock), "55P03"
		if d := pgsql.ParseTimeout(statement); d > 0 && (limit == 0 || d < limit) {
			limit, state = d, "57014"
		}
		if limit > 0 && time.Since(begin) >= limit {
			return false, newLockTimeout(key.id, begin, state, "")
		}
		waiting, stop := context.WithCancel(ctx)
		unhook := context.AfterFunc(s.life, stop)
		pause.sleep(waiting, begin, limit)
		unhook()
		stop()
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case s.admin.life.Err() != nil:
			return false, ErrPGAdminClosed
		case s.life.Err() != nil:
			return false, sql.ErrConnDone
		}
	}
	// It may have got it just before the error. If the session lives on it is not
	// to keep it, where that can be told from a hold of before.
	s.mu.Lock()
	s.unclean = true
	had := s.held[key] != nil
	s.mu.Unlock()
	if !had && pqconn.HasState(err, "57014") {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		_ = s.row(ctx, pgsession.AsNewPQ, pgsession.AskPID+", "+lockCall("pg_advisory_unlock", key), new(bool))
	}
	return false, err
}

// ReleaseAdvisoryLock releases the lock once, and returns false if the session
// does not hold it. It goes on although ctx has ended, and takes 5 s at most. If
// the connection has failed the error is a [LockLostError]. One round trip.
func (s *Session) ReleaseAdvisoryLock(ctx context.Context, id int64) (bool, error) {
	return s.release(ctx, lockKey{id, false})
}

// ReleaseAdvisoryLockShared is ReleaseAdvisoryLock for a lock that is shared.
func (s *Session) ReleaseAdvisoryLockShared(ctx context.Context, id int64) (bool, error) {
	return s.release(ctx, lockKey{id, true})
}

func (s *Session) release(ctx context.Context, key lockKey) (ok bool, err error) {
	if s.admin == nil {
		return false, nil
	}
	s.mu.Lock()
	closed, conn := s.closed, s.conn
	s.mu.Unlock()
	switch {
	case closed:
		return false, sql.ErrConnDone
	case conn == nil:
		return false, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	err = s.row(ctx, pgsession.AsNewPQ, pgsession.AskPID+", "+lockCall("pg_advisory_unlock", key), &ok)
	s.mu.Lock()
	h := s.held[key]
	had := h != nil
	if h != nil && err == nil {
		if h.count--; h.count == 0 || !ok {
			delete(s.held, key)
		}
	}
	if err != nil {
		s.doubt = true
	}
	left := s.held[key] != nil
	s.mu.Unlock()
	switch {
	case err != nil && had:
		return false, &LockLostError{[]int64{key.id}, err}
	case err != nil:
		return false, err
	}
	if had && !left {
		s.relabel()
	}
	return ok, nil
}
