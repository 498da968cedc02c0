package pgsession

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/sqlpool"
)

// cleanupTimeout bounds a release and a clean-up, which heed no ctx.
const cleanupTimeout = 5 * time.Second

// A Session is one session of the server's, on a pinned connection, with what PostgreSQL
// keeps for a session: advisory locks and settings. Close gives all back, and the connection
// with it; where that cannot be confirmed (the connection is dead, or in a transaction begun
// by text) the connection is discarded, and its session ends.
//
// One goroutine at a time uses a Session, except for Close. A nil one does nothing, and its
// queries fail.
type Session struct {
	pool   *Pool
	name   string // its label, where it is expected to be held for long
	life   context.Context
	end    context.CancelFunc // of life: ends the calls that are in flight
	pid    atomic.Int64       // of the backend; 0: not known yet
	pooled bool               // its backend changes, and keeps nothing of it

	mu       sync.Mutex // guards the fields below
	conn     *sql.Conn  // nil: not needed yet
	closed   bool
	tx       *sql.Tx         // the last one begun
	txCtx    context.Context // its
	endCall  func()          // ends the ctx of the last Query or QueryRow
	held     map[pgsql.Lock]*held
	previous map[string]string // settings that were changed, as they were before
	unclean  bool              // SQL of the program's has run, or something went wrong: there may be locks
	doubt    bool              // what is left is not known: to be discarded
}

// held is a lock that a Session has.
type held struct {
	count int // as PostgreSQL counts it
	since time.Time
}

// pin takes the connection, where that has not been done.
func (s *Session) pin(ctx context.Context, may func(context.Context, *sql.Conn) error) error {
	s.mu.Lock()
	closed, conn := s.closed, s.conn
	s.mu.Unlock()
	switch {
	case closed:
		return sql.ErrConnDone
	case conn != nil:
		return nil
	}
	if err := s.pool.Check(); err != nil {
		return err
	}
	conn, err := Take(ctx, s.pool.cfg.DB)
	if err != nil {
		return err
	}
	if err := may(ctx, conn); err != nil {
		_ = conn.Close()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = conn.Close()
		return sql.ErrConnDone
	}
	s.conn = conn
	return nil
}

// row asks for one row whose first column is the backend's process id, which
// must not change. It ends with ctx and with the session.
func (s *Session) row(caller context.Context, how Tidy, query string, dest ...any) error {
	ctx, cancel := context.WithCancel(caller)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	return Ended(caller, s.rowUnended(ctx, how, query, dest...))
}

func (s *Session) rowUnended(ctx context.Context, how Tidy, query string, dest ...any) error {
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	var pid int64
	each, done := ScanOne(append([]any{&pid}, dest...)...)
	if err := done(Ask(ctx, conn, how, query, each)); err != nil {
		return err
	}
	if was := s.pid.Swap(pid); was != 0 && was != pid && !s.pooled {
		s.mark(func() { s.doubt = true })
		return fmt.Errorf("baldur: the backend has changed in mid-session: %w", s.pool.cfg.Errors.Pooler(TransactionPooler))
	}
	return nil
}

func (s *Session) mark(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// BackendPID is the process id of the server's backend; 0 for a session that has
// not asked it anything yet.
func (s *Session) BackendPID() int {
	if s == nil {
		return 0
	}
	return int(s.pid.Load())
}

// use prepares a call of the program's own SQL. Such a call ends with the
// Session, and what an earlier one has left open (rows, but not a transaction)
// ends with the next.
func (s *Session) use(ctx context.Context) (conn *sql.Conn, _ context.Context, end func(), err error) {
	if s == nil {
		return nil, nil, nil, ErrNone
	}
	if err := s.pin(ctx, s.pool.mayKeep); err != nil {
		return nil, nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.endCall != nil {
		s.endCall()
		s.endCall = nil
	}
	s.unclean = !s.pooled
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	return s.conn, ctx, func() { stop(); cancel() }, nil
}

// ExecContext is sql.Conn's.
func (s *Session) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	conn, ctx, end, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return conn.ExecContext(ctx, query, args...)
}

// QueryContext is sql.Conn's. The rows end with the next call at the latest.
func (s *Session) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	conn, ctx, end, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	s.mark(func() { s.endCall = end })
	return conn.QueryContext(ctx, query, args...)
}

// QueryRowContext is sql.Conn's. The row ends with the next call at the latest.
func (s *Session) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	conn, ctx, end, err := s.use(ctx)
	if err != nil {
		return failedRow(err)
	}
	s.mark(func() { s.endCall = end })
	return conn.QueryRowContext(ctx, query, args...)
}

// BeginTx is sql.Conn's. Close rolls back what is left open.
func (s *Session) BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error) {
	conn, ctx, _, err := s.use(ctx) // its ctx ends with the Session
	if err != nil {
		return nil, err
	}
	tx, err := conn.BeginTx(ctx, opts)
	if err == nil {
		s.mark(func() { s.tx, s.txCtx = tx, ctx })
	}
	return tx, err
}

// Close gives back what the session has, and then its connection. It is not
// hindered by a ctx, and takes some 5 s at most. It returns Errors.Lost if
// the session had advisory locks and the connection had failed: they may have
// gone before. The second Close does nothing.
func (s *Session) Close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	conn, tx, txCtx := s.conn, s.tx, s.txCtx
	s.mu.Unlock()

	if tx != nil {
		// One whose ctx has ended is being rolled back by database/sql, at some
		// moment: nobody can wait for that.
		if err := tx.Rollback(); err != nil && (!errors.Is(err, sql.ErrTxDone) || txCtx.Err() != nil) {
			s.mark(func() { s.doubt = true })
		}
	}
	s.end()
	s.pool.mu.Lock()
	delete(s.pool.sessions, s)
	s.pool.mu.Unlock()
	if conn == nil {
		return nil
	}
	err := s.cleanUp(conn)
	if err != nil {
		sqlpool.Discard(conn)
	} else {
		_ = conn.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || len(s.held) == 0 {
		return nil
	}
	var ids []int64
	for _, k := range sortedKeys(s.held) {
		ids = append(ids, k.ID)
	}
	return s.pool.cfg.Errors.Lost(ids, err)
}

// giveUp closes a session whose connection is not to be used again, if it has one.
func (s *Session) giveUp() {
	s.mark(func() {
		s.doubt = true
		clear(s.held)
	})
	_ = s.Close()
}

var errInDoubt = errors.New("baldur: an earlier call has failed")

// cleanUp takes locks and settings back, in one round trip where there can be
// any; an error says that something may be left.
func (s *Session) cleanUp(conn *sql.Conn) error {
	s.mu.Lock()
	doubt, unclean := s.doubt, s.unclean || len(s.held) > 0
	query := askPID
	columns := len(s.previous)
	if unclean {
		query += ", pg_catalog.pg_advisory_unlock_all()::pg_catalog.text"
		columns++
	}
	query += restore(s.previous)
	unclean = unclean || len(s.previous) > 0
	s.mu.Unlock()
	if !unclean && !doubt {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	if doubt {
		// Discarded in any case; the question tells whether the locks, if there
		// are any, were held up to now.
		if err := s.rowUnended(ctx, AsNewPQ, askPID); err != nil {
			return err
		}
		s.mark(func() { clear(s.held) })
		return errInDoubt
	}
	dest := make([]any, columns)
	for i := range dest {
		dest[i] = new(string)
	}
	if err := s.rowUnended(ctx, AsNewPQ, query, dest...); err != nil {
		return err
	}
	s.mark(func() { clear(s.held) })
	return checkIdle(ctx, conn) // the end of a transaction would bring the settings back
}

// restore is the columns that set settings to what they were.
func restore(previous map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(previous)) {
		fmt.Fprintf(&b, ", pg_catalog.set_config('%s'::pg_catalog.text, %s::pg_catalog.text, false)", name, pq.QuoteLiteral(previous[name]))
	}
	return b.String()
}

// relabel names the session in the tracker's reports.
func (s *Session) relabel() {
	s.mu.Lock()
	conn, name := s.conn, s.name
	if len(s.held) > 0 {
		name = "advisory lock "
		if len(s.held) > 1 {
			name = "advisory locks "
		}
		for i, k := range sortedKeys(s.held) {
			if i > 0 {
				name += ", "
			}
			name += strconv.FormatInt(k.ID, 10)
			if k.Shared {
				name += " (shared)"
			}
		}
	}
	s.mu.Unlock()
	if conn != nil {
		s.pool.cfg.Label(conn, name)
	}
}

// gained notes that the session has a lock, once more.
func (s *Session) gained(l pgsql.Lock) {
	s.mu.Lock()
	h := s.held[l]
	if h == nil {
		h = &held{since: time.Now()}
		s.held[l] = h
	}
	h.count++
	first := h.count == 1
	s.mu.Unlock()
	if first {
		s.relabel()
	}
}

// Holds tells whether the session has a lock, and since when.
func (s *Session) Holds(l pgsql.Lock) (since time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held[l]
	if h == nil {
		return time.Time{}, false
	}
	return h.since, true
}

// Conn is the connection; nil if none was needed yet.
func (s *Session) Conn() *sql.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

// TryLock pins a connection and tries to take a lock on it. It also tells the lock_timeout
// that the server gives a new session. Where it has not got the lock, which is no error, the
// session has nothing.
func (p *Pool) TryLock(ctx context.Context, l pgsql.Lock) (s *Session, ok bool, lockTimeout string, err error) {
	const idleTimeout = "idle_session_timeout"
	var idle string
	s, err = p.start(ctx, p.mayKeep, AsNew, askPID+", "+l.Call("pg_try_advisory_lock")+", "+pgsql.CurrentSetting("lock_timeout")+
		", coalesce(pg_catalog.current_setting('"+idleTimeout+"'::pg_catalog.text, true), '0')", &ok, &lockTimeout, &idle)
	if err != nil || !ok {
		return s, false, lockTimeout, err
	}
	s.gained(l)
	if idle != "0" {
		// A session that has a lock is idle for as long as the work takes.
		s.mark(func() { s.previous[idleTimeout] = idle })
		err := s.row(ctx, AsNewPQ, askPID+", pg_catalog.set_config('"+idleTimeout+"'::pg_catalog.text, '0'::pg_catalog.text, false)", new(string))
		if err != nil {
			s.giveUp()
			return nil, false, lockTimeout, err
		}
	}
	return s, true, lockTimeout, nil
}

// Acquire takes a lock once more, where locks nest. With wait it tries again and again, one round
// trip each, until it has it, ctx ends, or the session's lock_timeout or statement_timeout is over.
func (s *Session) Acquire(ctx context.Context, l pgsql.Lock, wait bool) (ok bool, err error) {
	if s == nil {
		return false, nil
	}
	if err := s.pin(ctx, s.pool.mayKeep); err != nil {
		return false, err
	}
	begin := time.Now()
	for pause := Pause(0); ; pause = pause.Next() {
		var lock, statement string
		err = s.row(ctx, AsItIs, askPID+", "+l.Call("pg_try_advisory_lock")+", "+pgsql.CurrentSetting("lock_timeout")+", "+pgsql.CurrentSetting("statement_timeout"),
			&ok, &lock, &statement)
		if err != nil {
			break
		}
		if ok {
			s.gained(l)
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
			return false, s.pool.LockTimeout(l.ID, begin, state, "")
		}
		waiting, stop := context.WithCancel(ctx)
		unhook := context.AfterFunc(s.life, stop)
		pause.Sleep(waiting, begin, limit)
		unhook()
		stop()
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case s.pool.life.Err() != nil:
			return false, s.pool.cfg.Errors.Closed
		case s.life.Err() != nil:
			return false, sql.ErrConnDone
		}
	}
	// It may have got it just before the error. If the session lives on it is not
	// to keep it, where that can be told from a hold of before.
	s.mu.Lock()
	s.unclean = true
	had := s.held[l] != nil
	s.mu.Unlock()
	if !had && pqconn.HasState(err, "57014") {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		_ = s.row(ctx, AsNewPQ, askPID+", "+l.Call("pg_advisory_unlock"), new(bool))
	}
	return false, err
}

// Release releases a lock once, and returns false if the session does not hold it. It goes on
// although ctx has ended, and takes 5 s at most.
func (s *Session) Release(ctx context.Context, l pgsql.Lock) (ok bool, err error) {
	if s == nil {
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
	err = s.row(ctx, AsNewPQ, askPID+", "+l.Call("pg_advisory_unlock"), &ok)
	s.mu.Lock()
	h := s.held[l]
	had := h != nil
	if h != nil && err == nil {
		if h.count--; h.count == 0 || !ok {
			delete(s.held, l)
		}
	}
	if err != nil {
		s.doubt = true
	}
	left := s.held[l] != nil
	s.mu.Unlock()
	switch {
	case err != nil && had:
		return false, s.pool.cfg.Errors.Lost([]int64{l.ID}, err)
	case err != nil:
		return false, err
	}
	if had && !left {
		s.relabel()
	}
	return ok, nil
}

// ResetTimeouts sets both to what they were before the Session changed them.
func (s *Session) ResetTimeouts(ctx context.Context) error {
	if s == nil {
		return nil
	}
	timeouts := map[string]string{}
	var dest []any
	s.mu.Lock()
	for _, name := range []string{"lock_timeout", "statement_timeout"} {
		if v, ok := s.previous[name]; ok {
			timeouts[name] = v
			dest = append(dest, new(string))
		}
	}
	s.mu.Unlock()
	if len(timeouts) == 0 {
		return nil
	}
	if err := s.pin(ctx, s.pool.mayKeep); err != nil {
		return err
	}
	if err := s.row(ctx, AsItIs, askPID+restore(timeouts), dest...); err != nil {
		return err
	}
	s.mark(func() {
		for name := range timeouts {
			delete(s.previous, name)
		}
	})
	return nil
}

// timeout is the setting of one.
type timeout struct {
	name string
	d    time.Duration
}

// SetTimeout sets lock_timeout or statement_timeout, until ResetTimeouts or Close.
func (s *Session) SetTimeout(ctx context.Context, name string, d time.Duration) error {
	return s.set(ctx, timeout{name, d})
}

// set sets timeouts in one round trip that also tells what they were. PostgreSQL
// takes a setting back if the statement fails.
func (s *Session) set(ctx context.Context, settings ...timeout) error {
	query := "WITH old AS MATERIALIZED (SELECT " + pgsql.CurrentSetting("lock_timeout") + " AS l, " + pgsql.CurrentSetting("statement_timeout") + " AS s)" +
		" SELECT pg_catalog.pg_backend_pid(), l, s"
	dest := []any{new(string), new(string)}
	for _, v := range settings {
		ms, err := pgsql.Milliseconds(v.name, v.d)
		if err != nil {
			return err
		}
		query += ", pg_catalog.set_config('" + v.name + "'::pg_catalog.text, '" + ms + "'::pg_catalog.text, false)"
		dest = append(dest, new(string))
	}
	if s == nil {
		return nil
	}
	if err := s.pin(ctx, s.pool.mayKeep); err != nil {
		return err
	}
	if err := s.row(ctx, AsItIs, query+" FROM old", dest...); err != nil {
		if !pqconn.HasState(err, "57014") { // statement_timeout: the one before was too short
			s.mark(func() { s.doubt = true })
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := map[string]string{"lock_timeout": *dest[0].(*string), "statement_timeout": *dest[1].(*string)}
	for _, v := range settings {
		if _, ok := s.previous[v.name]; !ok {
			s.previous[v.name] = old[v.name]
		}
	}
	return nil
}

// WithTimeouts calls f with a Session that has these timeouts, of which 0 leaves one as it is. A
// deadline of ctx that is sooner than a timeout shortens it.
func (p *Pool) WithTimeouts(ctx context.Context, lock, statement time.Duration, f func(ctx context.Context, s *Session) error) (err error) {
	var settings []timeout
	for _, v := range []timeout{{"lock_timeout", lock}, {"statement_timeout", statement}} {
		if _, err := pgsql.Milliseconds(v.name, v.d); err != nil {
			return err
		}
		if v.d == 0 {
			continue
		}
		if deadline, ok := ctx.Deadline(); ok {
			v.d = max(time.Millisecond, min(v.d, time.Until(deadline)))
		}
		settings = append(settings, v)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.Check(); err != nil {
		return err
	}
	s := p.Lazy()
	defer func() { // also if f panics
		if e := s.Close(); err == nil {
			err = e
		}
	}()
	for left := p.attempts(); len(settings) > 0; left-- {
		err := s.set(ctx, settings...)
		if err == nil {
			break
		}
		if !again(ctx, left, err) {
			return err
		}
		s.giveUp() // it had died in the pool
		s = p.Lazy()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return f(ctx, s)
}

// A Pause is how long to wait between two tries. To wait at the server would
// be faster, but such a wait is a statement with a snapshot, on a connection: it
// keeps vacuum from cleaning up, a CREATE INDEX CONCURRENTLY of the lock's holder
// waits for it (a deadlock), and a pool full of waiters has none left for the
// holder's work.
type Pause time.Duration

const (
	firstPause = Pause(2 * time.Millisecond)
	lastPause  = Pause(50 * time.Millisecond) // so about how long a hand-over between programs takes at most
)

// Next is the pause after this one; after 0, the first.
func (d Pause) Next() Pause { return max(firstPause, min(lastPause, d*2)) }

// Sleep returns after the pause, shortened at random so that those who wait do
// not keep step, or sooner when ctx ends, or limit, unless it is 0, is over.
func (d Pause) Sleep(ctx context.Context, begin time.Time, limit time.Duration) {
	pause := time.Duration(d.Next())
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

func sortedKeys[V any](m map[pgsql.Lock]V) []pgsql.Lock {
	return slices.SortedFunc(maps.Keys(m), func(a, b pgsql.Lock) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), map[bool]int{true: 1}[a.Shared]-map[bool]int{true: 1}[b.Shared])
	})
}
