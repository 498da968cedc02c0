package baldur

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/sqlpool"
)

// cleanupTimeout bounds a release and a clean-up, which heed no ctx.
const cleanupTimeout = 5 * time.Second

// Session is one server session, on a pinned connection. It
// keeps what PostgreSQL keeps for a session: advisory locks and settings. Close
// gives all back, and the connection with it; where that cannot be confirmed
// (the connection is dead, or in a transaction begun by text) the connection is
// discarded, and its session ends. So no lock and no changed timeout ever travels
// back into the pool. What the program's own SQL sets, as a search_path, does.
//
// One goroutine at a time uses a Session, except for Close.
type Session struct {
	admin  *PGAdmin // nil: the one of NoopPGAdmin, which does nothing
	name   string   // its label, where it is expected to be held for long
	life   context.Context
	end    context.CancelFunc // of life: ends the calls that are in flight
	pid    atomic.Int64       // of the backend; 0: not known yet
	pooled bool               // its backend changes, and keeps nothing of it: a Cursor's

	mu       sync.Mutex // guards the fields below
	conn     *sql.Conn  // nil: not needed yet
	closed   bool
	tx       *sql.Tx         // the last one begun
	txCtx    context.Context // its
	endCall  func()          // ends the ctx of the last Query or QueryRow
	held     map[lockKey]*held
	previous map[string]string // settings that were changed, as they were before
	unclean  bool              // SQL of the program's has run, or something went wrong: there may be locks
	doubt    bool              // what is left is not known: to be discarded
}

// held is a lock that a Session has.
type held struct {
	count int // as PostgreSQL counts it
	since time.Time
}

// Session pins a connection. It needs a server session of its own: where
// a pooler in transaction or statement mode stands before it, the error is a
// [PoolerError]. One round trip, and those of [PGAdmin.PoolerMode] the first time.
//
// ctx is for getting it; the Session outlives it, until Close or the PGAdmin's.
func (p *PGAdmin) Session(ctx context.Context) (*Session, error) {
	return p.openSession(ctx, "", p.mayKeep)
}

// openSession pins a connection, and registers it to be closed with p.
func (p *PGAdmin) openSession(ctx context.Context, name string, may func(context.Context, *sql.Conn) error) (*Session, error) {
	s, err := p.start(ctx, may, pgsession.AsNewPQ, pgsession.AskPID)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.sessions[s] = true
	}
	p.mu.Unlock()
	if closed {
		return nil, errors.Join(ErrPGAdminClosed, s.Close())
	}
	s.name = name
	s.relabel()
	return s, nil
}

func (p *PGAdmin) newSession() *Session {
	s := &Session{admin: p, held: map[lockKey]*held{}, previous: map[string]string{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// start pins a connection and asks it a first thing, for one row whose first
// column is the backend's process id. A connection that has died in the pool is
// replaced.
func (p *PGAdmin) start(ctx context.Context, may func(context.Context, *sql.Conn) error, how pgsession.Tidy, query string, dest ...any) (*Session, error) {
	for left := p.attempts(); ; left-- {
		s := p.newSession()
		err := s.pin(ctx, may)
		if err == nil {
			err = s.row(ctx, how, query, dest...)
		}
		if err == nil {
			return s, nil
		}
		s.giveUp()
		if !p.again(ctx, left, err) {
			return nil, err
		}
	}
}

// pin takes the connection, where that has not been done.
func (s *Session) pin(ctx context.Context, may func(context.Context, *sql.Conn) error) error {
	s.mu.Lock()
	closed, conn := s.closed, s.conn
	s.mu.Unlock()
	switch {
	case s.admin == nil:
		return errNoPostgres
	case closed:
		return sql.ErrConnDone
	case conn != nil:
		return nil
	}
	if err := s.admin.check(); err != nil {
		return err
	}
	conn, err := pgsession.Take(ctx, s.admin.db)
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
func (s *Session) row(caller context.Context, how pgsession.Tidy, query string, dest ...any) error {
	ctx, cancel := context.WithCancel(caller)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	return ended(caller, s.rowUnended(ctx, how, query, dest...))
}

// over returns ctx's error. The network may notice a deadline before ctx's timer has
// fired, and its error says nothing of a ctx.
func over(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return context.DeadlineExceeded
	}
	return nil
}

// ended adds ctx's error where the driver's does not tell that it was ctx: pq
// gives the server's, of the query that it has cancelled.
func ended(ctx context.Context, err error) error {
	if e := over(ctx); e != nil && err != nil && !errors.Is(err, e) {
		return fmt.Errorf("baldur: %w: %w", e, err)
	}
	return err
}

func (s *Session) rowUnended(ctx context.Context, how pgsession.Tidy, query string, dest ...any) error {
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	var pid int64
	each, done := pgsession.ScanOne(append([]any{&pid}, dest...)...)
	if err := done(pgsession.Ask(ctx, conn, how, query, each)); err != nil {
		return err
	}
	if was := s.pid.Swap(pid); was != 0 && was != pid && !s.pooled {
		s.mark(func() { s.doubt = true })
		return fmt.Errorf("baldur: %w", errMoved)
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
func (s *Session) BackendPID() int { return int(s.pid.Load()) }

// use prepares a call of the program's own SQL. Such a call ends with the
// Session, and what an earlier one has left open (rows, but not a transaction)
// ends with the next.
func (s *Session) use(ctx context.Context) (conn *sql.Conn, _ context.Context, end func(), err error) {
	if s.admin == nil {
		return nil, nil, nil, errNoPostgres
	}
	if err := s.pin(ctx, s.admin.mayKeep); err != nil {
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
// hindered by a ctx, and takes some 5 s at most. It returns a [LockLostError] if
// the session had advisory locks and the connection had failed: they may have
// gone before. The second Close does nothing.
func (s *Session) Close() error {
	if s.admin == nil {
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
	s.admin.mu.Lock()
	delete(s.admin.sessions, s)
	s.admin.mu.Unlock()
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
	lost := &LockLostError{Err: err}
	for _, k := range sortedKeys(s.held) {
		lost.LockIDs = append(lost.LockIDs, k.id)
	}
	return lost
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
	query := pgsession.AskPID
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
		if err := s.rowUnended(ctx, pgsession.AsNewPQ, pgsession.AskPID); err != nil {
			return err
		}
		s.mark(func() { clear(s.held) })
		return errInDoubt
	}
	dest := make([]any, columns)
	for i := range dest {
		dest[i] = new(string)
	}
	if err := s.rowUnended(ctx, pgsession.AsNewPQ, query, dest...); err != nil {
		return err
	}
	s.mark(func() { clear(s.held) })
	return pgsession.CheckIdle(ctx, conn) // the end of a transaction would bring the settings back
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
			name += strconv.FormatInt(k.id, 10)
			if k.shared {
				name += " (shared)"
			}
		}
	}
	s.mu.Unlock()
	if conn != nil {
		_ = Label(conn, name) // a pool that is not baldur's has no reports
	}
}

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

// SetLockTimeout sets how long a statement of this session waits for a lock,
// from 0 (for ever) to 24.8 days, rounded up to ms (the manual's 20.11.1,
// lock_timeout). It is in force until ResetTimeouts or Close.
func (s *Session) SetLockTimeout(ctx context.Context, d time.Duration) error {
	return s.set(ctx, setting1{"lock_timeout", d})
}

// SetStatementTimeout sets how long a statement of this session may run, from 0
// (for ever) to 24.8 days, rounded up to ms (the manual's 20.11.1,
// statement_timeout). It is in force until ResetTimeouts or Close.
func (s *Session) SetStatementTimeout(ctx context.Context, d time.Duration) error {
	return s.set(ctx, setting1{"statement_timeout", d})
}

// ResetTimeouts sets both to what they were before the Session changed them.
func (s *Session) ResetTimeouts(ctx context.Context) error {
	if s.admin == nil {
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
	if err := s.pin(ctx, s.admin.mayKeep); err != nil {
		return err
	}
	if err := s.row(ctx, pgsession.AsItIs, pgsession.AskPID+restore(timeouts), dest...); err != nil {
		return err
	}
	s.mark(func() {
		for name := range timeouts {
			delete(s.previous, name)
		}
	})
	return nil
}

// setting1 is one timeout.
type setting1 struct {
	name string
	d    time.Duration
}

// set sets timeouts in one round trip that also tells what they were. PostgreSQL
// takes a setting back if the statement fails.
func (s *Session) set(ctx context.Context, settings ...setting1) error {
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
	if s.admin == nil {
		return nil
	}
	if err := s.pin(ctx, s.admin.mayKeep); err != nil {
		return err
	}
	if err := s.row(ctx, pgsession.AsItIs, query+" FROM old", dest...); err != nil {
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

// WithTimeouts calls f with a Session that has these timeouts, of which 0 leaves
// one as it is; afterwards, however f ends, they are what they were before. A
// deadline of ctx that is sooner than a timeout shortens it. The ctx of f ends
// when f returns.
//
// It returns f's error, as from a statement that took too long (SQLSTATE 57014)
// or waited too long for a lock (55P03). Two round trips.
func (p *PGAdmin) WithTimeouts(ctx context.Context, lock, statement time.Duration, f func(ctx context.Context, s *Session) error) (err error) {
	var settings []setting1
	for _, v := range []setting1{{"lock_timeout", lock}, {"statement_timeout", statement}} {
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
	if err := p.check(); err != nil {
		return err
	}
	s := p.newSession()
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
		if !p.again(ctx, left, err) {
			return err
		}
		s.giveUp() // it had died in the pool
		s = p.newSession()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return f(ctx, s)
}

// Cursor is a pinned connection that its owner asks for rows. It is shown by the
// tracker as "cursor", and not accused.
type Cursor struct{ s *Session }

// CreateCursor pins a connection, for which ctx is; the Cursor outlives it, until
// Close or the PGAdmin's. One round trip.
func (p *PGAdmin) CreateCursor(ctx context.Context) (*Cursor, error) {
	// Rows need no session of the server's for themselves.
	pooled := false
	s, err := p.openSession(ctx, "cursor", func(ctx context.Context, conn *sql.Conn) error {
		mode, err := p.poolerMode(ctx, conn)
		pooled = mode != PoolerNone && mode != PoolerSession
		return err
	})
	if err != nil {
		return nil, err
	}
	s.pooled = pooled
	return &Cursor{s}, nil
}

// QueryRow asks for a row. It ends with the next call at the latest.
func (c *Cursor) QueryRow(ctx context.Context, query string, args ...any) *sql.Row {
	return c.s.QueryRowContext(ctx, query, args...)
}

// Query asks for rows. They end with the next call at the latest.
func (c *Cursor) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return c.s.QueryContext(ctx, query, args...)
}

// Close gives the connection back. The second Close does nothing.
func (c *Cursor) Close() error { return c.s.Close() }

// PoolerMode is what stands between a pool and PostgreSQL.
type PoolerMode string

// What can stand between. The modes are PgBouncer's pool_mode, and of others
// like it.
const (
	PoolerNone        PoolerMode = "none"        // nothing, as far as can be seen
	PoolerSession     PoolerMode = "session"     // a session of ours is one of the server's
	PoolerTransaction PoolerMode = "transaction" // each transaction may be on another session of the server
	PoolerStatement   PoolerMode = "statement"   // each statement may; there are no transactions
	PoolerUnknown     PoolerMode = "unknown"     // there is a pooler, and its mode could not be found out
)

// poolerModes are the modes that a probe finds.
var poolerModes = [pgsession.PoolerCount]PoolerMode{
	pgsession.NoPooler: PoolerNone, pgsession.SessionPooler: PoolerSession, pgsession.TransactionPooler: PoolerTransaction,
	pgsession.StatementPooler: PoolerStatement, pgsession.UnknownPooler: PoolerUnknown,
}

// PoolerError refuses a call that needs a server session of its own
// where a pooler hands these to others.
type PoolerError struct{ Mode PoolerMode }

func (e *PoolerError) Error() string {
	if e.Mode == PoolerUnknown {
		return "baldur: there is a connection pooler (PgBouncer?) before PostgreSQL and its mode could not be found out, for want of a second connection. " +
			"Session locks and settings need pool_mode = session: if it is that, say so by WithPooler(PoolerSession); else use WithTxAdvisoryLock, or connect to PostgreSQL directly"
	}
	return fmt.Sprintf("baldur: a connection pooler (PgBouncer?) in %s mode stands before PostgreSQL: a session lock or setting would stay behind on a connection that it hands to others. "+
		"Connect to PostgreSQL directly or through a pool_mode = session database%s", e.Mode,
		map[bool]string{true: "; or use WithTxAdvisoryLock, which works here"}[e.Mode == PoolerTransaction])
}

// errMoved: a pinned connection was answered by another backend than before.
var errMoved = fmt.Errorf("the backend has changed in mid-session: %w", &PoolerError{PoolerTransaction})

// pooler is what is known of it.
type pooler struct {
	sem  chan struct{} // guards mode, and is waited for with a ctx
	mode PoolerMode    // "": not known yet
}

// PoolerMode finds out whether there is a pooler between the pool and
// PostgreSQL, and its mode. The answer is kept for the life of the PGAdmin,
// unless it is PoolerUnknown.
//
// A pooler shows in that the process id which lib/pq was told at log-in is not
// that of the backend that answers; without one that is all, and costs one round
// trip. Its mode shows when two connections are asked in turn which backend
// answers: in transaction and in statement mode both meet the same one, or one
// of them meets several. In session mode that cannot be. The second connection
// is dialled outside of the pool if that is baldur's, else taken from it.
//
// With a driver other than lib/pq a pooler in session mode is PoolerNone.
func (p *PGAdmin) PoolerMode(ctx context.Context) (PoolerMode, error) {
	if p.db == nil {
		return "", errNoPostgres
	}
	for left := p.attempts(); ; left-- {
		conn, err := pgsession.Take(ctx, p.db)
		if err != nil {
			return "", err
		}
		mode, err := p.poolerMode(ctx, conn)
		_ = conn.Close()
		if !p.again(ctx, left, err) {
			return mode, err
		}
	}
}

// poolerMode is PoolerMode, asked on conn where it is not known.
func (p *PGAdmin) poolerMode(ctx context.Context, conn *sql.Conn) (PoolerMode, error) {
	select {
	case p.pooler.sem <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	defer func() { <-p.pooler.sem }()
	if p.pooler.mode != "" {
		return p.pooler.mode, nil
	}
	found, err := pgsession.Probe(ctx, conn, p.secondDB)
	if err != nil {
		return "", err
	}
	mode := poolerModes[found]
	if mode != PoolerUnknown {
		p.pooler.mode = mode
	}
	return mode, nil
}

// mayKeep returns an error if conn is no session of the server's own.
func (p *PGAdmin) mayKeep(ctx context.Context, conn *sql.Conn) error {
	mode, err := p.poolerMode(ctx, conn)
	switch {
	case err != nil:
		return err
	case mode == PoolerNone || mode == PoolerSession:
		return nil
	}
	return &PoolerError{mode}
}

var errNoSecond = errors.New("no second connection to be had")

// secondDB returns where a connection beside a pinned one can be had: outside of
// the pool if it is baldur's, so that a full pool is no obstacle.
func (p *PGAdmin) secondDB() (db *sql.DB, done func(), err error) {
	if db, ok := beside(p.db); ok {
		return db, func() { _ = db.Close() }, nil
	}
	if s := p.db.Stats(); s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections {
		return nil, nil, errNoSecond
	}
	return p.db, func() {}, nil
}

// beside returns where connections are made as the pool makes its own, beside it; false if it
// is not baldur's. The deadline of the ctx that a connection is made with ends that too.
func beside(db *sql.DB) (*sql.DB, bool) {
	d, ok := db.Driver().(interface{ untracked() driver.Connector })
	if !ok {
		return nil, false
	}
	return sql.OpenDB(d.untracked()), true
}
