package pgsession

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgsql"
	"github.com/baldur-go/baldur/internal/sqlpool"
)

// Config is what a Pool goes by.
type Config struct {
	DB     *sql.DB                       // nil: there is no PostgreSQL
	Mode   Pooler                        // what stands before the server; "": to be found out
	Beside func(*sql.DB) (*sql.DB, bool) // where connections are made as the DB makes its own, beside it; false: cannot be told
	Label  func(*sql.Conn, string)       // names the holder of a connection
	Errors Errors
}

// Errors are the errors of which callers know the type.
type Errors struct {
	Closed  error                                                 // the Pool is closed
	Pooler  func(Pooler) error                                    // a pooler hands the server's sessions to others
	Lost    func(ids []int64, err error) error                    // the connection had failed before these locks were released
	IsLost  func(error) bool                                      // an error is, or wraps, one of Lost
	Timeout func(id int64, waited time.Duration, err error) error // a lock was waited for in vain
}

// ErrNone is of a Config without a DB, and of the queries of a nil Session.
var ErrNone = errors.New("baldur: there is no PostgreSQL: the pool is nil, or this is a NoopPGAdmin's")

// A Pool asks the connections of a sql.DB, and pins them as Sessions.
type Pool struct {
	cfg    Config
	probed chan struct{} // of capacity 1: full while cfg.Mode is being read or found out; waited for with a ctx

	life context.Context // until Shut
	end  context.CancelFunc

	mu       sync.Mutex // guards the fields below
	closed   bool
	sessions map[*Session]bool // of Open
}

// NewPool returns a Pool. It connects to nothing.
func NewPool(cfg Config) *Pool {
	p := &Pool{cfg: cfg, probed: make(chan struct{}, 1), sessions: map[*Session]bool{}}
	p.life, p.end = context.WithCancel(context.Background())
	return p
}

// DB is the sql.DB, or nil.
func (p *Pool) DB() *sql.DB { return p.cfg.DB }

// Errors are those of its Config.
func (p *Pool) Errors() *Errors { return &p.cfg.Errors }

// Life ends with Shut.
func (p *Pool) Life() context.Context { return p.life }

// Shut has no connection be pinned any more.
func (p *Pool) Shut() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.end()
}

// Close is Shut, and closes the sessions of Open that are open.
func (p *Pool) Close() error {
	p.Shut()
	p.mu.Lock()
	sessions := p.sessions
	p.sessions = map[*Session]bool{}
	p.mu.Unlock()
	var errs []error
	for s := range sessions {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// Check returns an error if no connection may be pinned.
func (p *Pool) Check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.cfg.DB == nil:
		return ErrNone
	case p.closed:
		return p.cfg.Errors.Closed
	}
	return nil
}

// IsFull tells whether all connections of the sql.DB are in use.
func (p *Pool) IsFull() bool {
	s := p.cfg.DB.Stats()
	return s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections
}

// Row asks any connection for one row.
func (p *Pool) Row(ctx context.Context, query string, dest ...any) error {
	each, done := ScanOne(dest...)
	return done(p.Rows(ctx, query, each))
}

// Rows asks any connection for rows. One that has died in the pool is replaced.
func (p *Pool) Rows(ctx context.Context, query string, each func(*sql.Rows) error) error {
	if p.cfg.DB == nil {
		return ErrNone
	}
	for left := p.attempts(); ; left-- {
		conn, err := Take(ctx, p.cfg.DB)
		if err != nil {
			return err
		}
		seen := false
		err = Ask(ctx, conn, AsNew, query, func(rows *sql.Rows) error {
			seen = true
			return each(rows)
		})
		if IsBad(err) {
			sqlpool.Discard(conn)
		} else {
			_ = conn.Close()
		}
		if seen || !again(ctx, left, err) {
			return err
		}
	}
}

// attempts is how often a call is made anew that finds its connection dead or in a
// transaction: all that the pool has may be, as after a restart of the server.
func (p *Pool) attempts() int {
	if p.cfg.DB == nil {
		return 1
	}
	return Takes(p.cfg.DB)
}

// again tells whether to try another connection: the one of this attempt had died
// in the pool.
func again(ctx context.Context, left int, err error) bool {
	return IsBad(err) && ctx.Err() == nil && left > 1
}

// A Tx is a transaction with its connection.
type Tx struct {
	*sql.Tx
	conn    *sql.Conn
	isLibPQ bool
}

// BeginTx begins a transaction on a connection that was in none. One that has died in the
// pool is replaced, as by sql.DB.BeginTx.
func BeginTx(ctx context.Context, db *sql.DB, opts *sql.TxOptions) (*Tx, error) {
	for left := Takes(db); ; left-- {
		conn, err := Take(ctx, db)
		if err != nil {
			return nil, err
		}
		tx, err := conn.BeginTx(ctx, opts)
		if err == nil {
			return &Tx{Tx: tx, conn: conn}, nil
		}
		_ = conn.Close()
		if !again(ctx, left, err) {
			return nil, err
		}
	}
}

// Begin begins a transaction on a connection that was in none. mode is as of SET
// TRANSACTION; "": the session's defaults. The transaction ends with life; ctx is
// for getting it.
func (p *Pool) Begin(ctx, life context.Context, mode string) (*Tx, error) {
	if p.cfg.DB == nil {
		return nil, ErrNone
	}
	for left := p.attempts(); ; left-- {
		conn, err := Take(ctx, p.cfg.DB)
		if err != nil {
			return nil, err
		}
		_, isLibPQ, _ := Status(conn)
		tx, err := conn.BeginTx(life, nil)
		if err == nil && mode != "" {
			if _, err = tx.ExecContext(ctx, "SET TRANSACTION "+mode); err != nil {
				_ = tx.Rollback()
			}
		}
		if err == nil {
			return &Tx{tx, conn, isLibPQ}, nil
		}
		if IsBad(err) {
			sqlpool.Discard(conn)
			// As PgBouncer in statement mode answers BEGIN.
			if mode, e := p.Mode(ctx); e == nil && mode == StatementPooler {
				return nil, errors.Join(p.cfg.Errors.Pooler(mode), err)
			}
		} else {
			_ = conn.Close()
		}
		if !again(ctx, left, err) {
			return nil, err
		}
	}
}

// End rolls back what is not committed, and gives the connection back.
func (t *Tx) End() {
	_ = t.Rollback()
	_ = t.conn.Close()
}

// Ask makes a request for one row.
func (t *Tx) Ask(ctx context.Context, r Request, dest ...any) error {
	each, done := ScanOne(dest...)
	if t.isLibPQ {
		return done(askAtOnce(ctx, t.Tx, r, each))
	}
	return done(askInTurn(ctx, t.Tx, r, each))
}

// Mode finds out what stands between the pool and the server, and keeps the answer, unless it
// is UnknownPooler. The rules are in the comment of PGAdmin.PoolerMode.
func (p *Pool) Mode(ctx context.Context) (Pooler, error) {
	if p.cfg.DB == nil {
		return "", ErrNone
	}
	for left := p.attempts(); ; left-- {
		conn, err := Take(ctx, p.cfg.DB)
		if err != nil {
			return "", err
		}
		mode, err := p.modeBy(ctx, conn)
		_ = conn.Close()
		if !again(ctx, left, err) {
			return mode, err
		}
	}
}

// modeBy is Mode, asked on conn where it is not known.
func (p *Pool) modeBy(ctx context.Context, conn *sql.Conn) (Pooler, error) {
	select {
	case p.probed <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	defer func() { <-p.probed }()
	if p.cfg.Mode != "" {
		return p.cfg.Mode, nil
	}
	mode, err := probe(ctx, conn, p.second)
	if err != nil {
		return "", err
	}
	if mode != UnknownPooler {
		p.cfg.Mode = mode
	}
	return mode, nil
}

// mayKeep returns an error if conn is no session of the server's own.
func (p *Pool) mayKeep(ctx context.Context, conn *sql.Conn) error {
	mode, err := p.modeBy(ctx, conn)
	switch {
	case err != nil:
		return err
	case mode == NoPooler || mode == SessionPooler:
		return nil
	}
	return p.cfg.Errors.Pooler(mode)
}

var errNoSecond = errors.New("no second connection to be had")

// second returns where a connection beside a pinned one can be had: outside of the pool where
// Beside can, so that a full pool is no obstacle.
func (p *Pool) second() (db *sql.DB, done func(), err error) {
	if db, ok := p.cfg.Beside(p.cfg.DB); ok {
		return db, func() { _ = db.Close() }, nil
	}
	if p.IsFull() {
		return nil, nil, errNoSecond
	}
	return p.cfg.DB, func() {}, nil
}

// Open pins a connection, to be closed with p at the latest.
func (p *Pool) Open(ctx context.Context) (*Session, error) {
	return p.open(ctx, "", p.mayKeep)
}

// OpenForRows is Open for one that only asks for rows, which need no session of the server's
// for themselves. name is its label.
func (p *Pool) OpenForRows(ctx context.Context, name string) (*Session, error) {
	pooled := false
	s, err := p.open(ctx, name, func(ctx context.Context, conn *sql.Conn) error {
		mode, err := p.modeBy(ctx, conn)
		pooled = mode != NoPooler && mode != SessionPooler
		return err
	})
	if err != nil {
		return nil, err
	}
	s.pooled = pooled
	return s, nil
}

func (p *Pool) open(ctx context.Context, name string, may func(context.Context, *sql.Conn) error) (*Session, error) {
	s, err := p.start(ctx, may, AsNewPQ, askPID)
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
		return nil, errors.Join(p.cfg.Errors.Closed, s.Close())
	}
	s.name = name
	s.relabel()
	return s, nil
}

// Lazy returns a Session that pins a connection when it is used first.
func (p *Pool) Lazy() *Session {
	s := &Session{pool: p, held: map[pgsql.Lock]*held{}, previous: map[string]string{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// start pins a connection and asks it a first thing, for one row whose first
// column is the backend's process id. A connection that has died in the pool is
// replaced.
func (p *Pool) start(ctx context.Context, may func(context.Context, *sql.Conn) error, how Tidy, query string, dest ...any) (*Session, error) {
	for left := p.attempts(); ; left-- {
		s := p.Lazy()
		err := s.pin(ctx, may)
		if err == nil {
			err = s.row(ctx, how, query, dest...)
		}
		if err == nil {
			return s, nil
		}
		s.giveUp()
		if !again(ctx, left, err) {
			return nil, err
		}
	}
}

// LockTimeout is an error like that of a statement that has waited at the server.
func (p *Pool) LockTimeout(id int64, begin time.Time, state, detail string) error {
	what := map[string]string{"55P03": "lock", "57014": "statement"}[state]
	return p.cfg.Errors.Timeout(id, time.Since(begin), &pq.Error{
		Severity: "ERROR", Code: pq.ErrorCode(state), Message: "canceling statement due to " + what + " timeout", Detail: detail,
	})
}

// Over returns ctx's error. The network may notice a deadline before ctx's timer has
// fired, and its error says nothing of a ctx.
func Over(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return context.DeadlineExceeded
	}
	return nil
}

// Ended adds ctx's error where the driver's does not tell that it was ctx: pq
// gives the server's, of the query that it has cancelled.
func Ended(ctx context.Context, err error) error {
	if e := Over(ctx); e != nil && err != nil && !errors.Is(err, e) {
		return fmt.Errorf("baldur: %w: %w", e, err)
	}
	return err
}

// failedRow is a row that answers with err, as sql.Row has no constructor.
func failedRow(err error) *sql.Row {
	db := sql.OpenDB(brokenConnector{err})
	defer db.Close()
	return db.QueryRow("")
}

type brokenConnector struct{ err error }

func (b brokenConnector) Connect(context.Context) (driver.Conn, error) { return nil, b.err }
func (b brokenConnector) Driver() driver.Driver                        { return nil }
