package baldur

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

var errNoPostgres = errors.New("baldur: there is no PostgreSQL: the pool is nil, or this is a NoopPGAdmin's")

// failedRow is a row that answers with err, as sql.Row has no constructor.
func failedRow(err error) *sql.Row {
	db := sql.OpenDB(brokenConnector{err})
	defer db.Close()
	return db.QueryRow("")
}

// NoopPGAdmin is the PGAdminProvider where there is no PostgreSQL. It is not
// available, reads give zero values, locks are not acquired, and the rest does
// nothing. The functions given to its With… methods are called all the same, with
// acquired false, a Session that does nothing and whose queries fail, and a nil
// *sql.Tx. The zero value is ready.
type NoopPGAdmin struct{}

var _ PGAdminProvider = NoopPGAdmin{}

// IsAvailable returns false.
func (NoopPGAdmin) IsAvailable() bool { return false }

// Ping does nothing.
func (NoopPGAdmin) Ping(context.Context) error { return nil }

// ConnectionStats returns zeros.
func (NoopPGAdmin) ConnectionStats(context.Context) (ConnectionStats, error) {
	return ConnectionStats{}, nil
}

// ActiveConnectionCount returns 0.
func (NoopPGAdmin) ActiveConnectionCount(context.Context) (int, error) { return 0, nil }

// Sleep does nothing, at once.
func (NoopPGAdmin) Sleep(context.Context, time.Duration) error { return nil }

// ExecuteSlowQuery does nothing, at once.
func (NoopPGAdmin) ExecuteSlowQuery(context.Context, time.Duration) error { return nil }

// BackendPIDWithDelay returns 0, at once.
func (NoopPGAdmin) BackendPIDWithDelay(context.Context, time.Duration) (int, error) { return 0, nil }

// ExecuteAggregateQuery returns zeros.
func (NoopPGAdmin) ExecuteAggregateQuery(context.Context, string) (Aggregate, error) {
	return Aggregate{}, nil
}

// ExecuteNonexistentTableQuery does nothing.
func (NoopPGAdmin) ExecuteNonexistentTableQuery(context.Context) error { return nil }

// ExecuteTimeoutQuery does nothing, at once.
func (NoopPGAdmin) ExecuteTimeoutQuery(_ context.Context, _, _ time.Duration) error { return nil }

// AcquireAdvisoryLock returns false.
func (NoopPGAdmin) AcquireAdvisoryLock(context.Context, int64, bool) (bool, error) {
	return false, nil
}

// AcquireAdvisoryLockShared returns false.
func (NoopPGAdmin) AcquireAdvisoryLockShared(context.Context, int64, bool) (bool, error) {
	return false, nil
}

// TryAdvisoryLock returns false.
func (NoopPGAdmin) TryAdvisoryLock(context.Context, int64) (bool, error) { return false, nil }

// ReleaseAdvisoryLock returns false.
func (NoopPGAdmin) ReleaseAdvisoryLock(context.Context, int64) (bool, error) { return false, nil }

// ReleaseAdvisoryLockShared returns false.
func (NoopPGAdmin) ReleaseAdvisoryLockShared(context.Context, int64) (bool, error) {
	return false, nil
}

// WithAdvisoryLock calls f, with acquired false.
func (NoopPGAdmin) WithAdvisoryLock(ctx context.Context, _ int64, _ LockOptions, f func(context.Context, *Session, bool) error) error {
	return f(ctx, new(Session), false)
}

// WithTxAdvisoryLock calls f, with a nil tx and acquired false.
func (NoopPGAdmin) WithTxAdvisoryLock(ctx context.Context, _ int64, _ LockOptions, f func(context.Context, *sql.Tx, bool) error) error {
	return f(ctx, nil, false)
}

// WithTimeouts calls f.
func (NoopPGAdmin) WithTimeouts(ctx context.Context, _, _ time.Duration, f func(context.Context, *Session) error) error {
	return f(ctx, new(Session))
}

// Session returns one that does nothing.
func (NoopPGAdmin) Session(context.Context) (*Session, error) { return new(Session), nil }

// CreateCursor returns one whose queries fail.
func (NoopPGAdmin) CreateCursor(context.Context) (*Cursor, error) {
	return &Cursor{new(Session)}, nil
}

// LockHolders returns none.
func (NoopPGAdmin) LockHolders(context.Context, int64) ([]LockHolder, error) { return nil, nil }

// BlockingTree returns none.
func (NoopPGAdmin) BlockingTree(context.Context) ([]*BlockingNode, error) { return nil, nil }

// Terminate returns false.
func (NoopPGAdmin) Terminate(context.Context, int) (bool, error) { return false, nil }

// Cancel returns false.
func (NoopPGAdmin) Cancel(context.Context, int) (bool, error) { return false, nil }

// Close does nothing.
func (NoopPGAdmin) Close() error { return nil }
