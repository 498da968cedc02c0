package baldur

import (
	"context"
	"database/sql"
	"time"

	"github.com/baldur-go/baldur/internal/pgsession"
	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/pqconn"
)

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
