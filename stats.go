package baldur

import (
	"database/sql"
	"time"

	"github.com/baldur-go/baldur/internal/sqlpool"
)

// PoolHealthStatus is a pool's health in a word.
type PoolHealthStatus string

// The health of a pool, most urgent first; the first that holds is reported.
const (
	HealthUnknown       PoolHealthStatus = "unknown"        // the pool's figures cannot be had
	HealthExhausted     PoolHealthStatus = "exhausted"      // every connection is out
	HealthCritical      PoolHealthStatus = "critical"       // usage at or above the critical threshold, 90 % by default
	HealthLeakSuspected PoolHealthStatus = "leak_suspected" // a holder is suspected of a leak
	HealthWarning       PoolHealthStatus = "warning"        // usage at or above the warning threshold, 70 % by default
	HealthHealthy       PoolHealthStatus = "healthy"
	HealthClosed        PoolHealthStatus = "closed" // sql.DB.Close was called; reports go on while connections are out
)

// PoolStats are a pool's figures. A figure that is not known is −1, never a
// made-up 0.
type PoolStats struct {
	PoolName             string    `json:"pool_name"`
	MaxConnections       int       `json:"max_connections"`       // 0: unlimited
	ActiveConnections    int       `json:"active_connections"`    // checked out, or being dialled
	AvailableConnections int       `json:"available_connections"` // that can be had without waiting; of an unlimited pool, the idle ones
	WaitingRequests      int       `json:"waiting_requests"`      // goroutines that wait for a connection
	CheckedAt            time.Time `json:"checked_at"`
}

// UsagePercent is ActiveConnections in percent of MaxConnections: 0 of an
// unlimited or unknown pool; above 100 after SetMaxOpenConns has shrunk the
// pool below what is out.
func (s PoolStats) UsagePercent() float64 {
	if s.MaxConnections <= 0 || s.ActiveConnections < 0 {
		return 0
	}
	return 100 * float64(s.ActiveConnections) / float64(s.MaxConnections)
}

// IsExhausted tells that no connection is available and the next request
// waits. An unlimited or unknown pool is never exhausted.
func (s PoolStats) IsExhausted() bool {
	return s.MaxConnections > 0 && s.AvailableConnections == 0 && s.ActiveConnections >= s.MaxConnections
}

func (s PoolStats) known() bool { return s.MaxConnections >= 0 }

// health judges a pool by its figures and its number of suspected leaks.
func (s PoolStats) health(c *config, suspected int) PoolHealthStatus {
	switch usage := s.UsagePercent(); {
	case s.IsExhausted():
		return HealthExhausted
	case usage >= c.critical:
		return HealthCritical
	case suspected > 0:
		return HealthLeakSuspected
	case !s.known():
		return HealthUnknown
	case usage >= c.warning:
		return HealthWarning
	}
	return HealthHealthy
}

// PoolInfo is a pool's shape. database/sql has no overflow: MaxOverflow and
// Overflow are 0. The zero value says "no pool"; in another one, a figure that
// is not known is −1.
type PoolInfo struct {
	PoolType      string `json:"pool_type"` // "database/sql"
	PoolSize      int    `json:"pool_size"` // SetMaxOpenConns; 0: unlimited
	MaxOverflow   int    `json:"max_overflow"`
	CheckedIn     int    `json:"checkedin"`  // idle
	CheckedOut    int    `json:"checkedout"` // out, or being dialled
	Overflow      int    `json:"overflow"`
	TotalCapacity int    `json:"total_capacity"` // 0: unlimited
	Available     int    `json:"available"`      // as PoolStats.AvailableConnections
	PoolExhausted bool   `json:"pool_exhausted"`
}

// PoolInfoProvider is anything that tells a pool's shape, as *Tracker does.
type PoolInfoProvider interface{ PoolInfo() PoolInfo }

// PoolStatsProvider is anything that tells a pool's figures, as *Tracker does.
type PoolStatsProvider interface{ Stats() PoolStats }

// NoOpPoolStatsProvider is a PoolStatsProvider for a program without a pool.
type NoOpPoolStatsProvider struct {
	PoolName string // default "noop"
}

// Stats returns figures that are all 0: there is no pool.
func (p NoOpPoolStatsProvider) Stats() PoolStats {
	name := p.PoolName
	if name == "" {
		name = "noop"
	}
	return PoolStats{PoolName: name, CheckedAt: time.Now()}
}

// ConnectionPoolMonitor watches a pool, as *Tracker does.
type ConnectionPoolMonitor interface {
	// CheckHealth judges the pool.
	CheckHealth() PoolHealthStatus
	// DetectLeaks lists the holders that are suspected of a leak.
	DetectLeaks() LeakReport
	// OnConnectionReleased has f called with each connection that comes back
	// after it was reported as a suspected leak.
	OnConnectionReleased(f func(ConnectionInfo))
}

var (
	_ ConnectionPoolMonitor = (*Tracker)(nil)
	_ PoolInfoProvider      = (*Tracker)(nil)
	_ PoolStatsProvider     = (*Tracker)(nil)
	_ PoolStatsProvider     = NoOpPoolStatsProvider{}
)

// Stats returns the pool's figures now. They are −1 where the pool is not known
// (it was opened by plain sql.Open, and TrackerOf has not been called on it;
// or several pools share one connector) or does not answer within 100 ms.
func (t *Tracker) Stats() PoolStats {
	s, ok := t.pool()
	return t.stats(s, ok)
}

func (t *Tracker) stats(s sqlpool.State, ok bool) PoolStats {
	st := PoolStats{PoolName: t.PoolName(), MaxConnections: -1, ActiveConnections: -1, AvailableConnections: -1, WaitingRequests: -1, CheckedAt: time.Now()}
	if !ok {
		return st
	}
	st.MaxConnections, st.ActiveConnections, st.WaitingRequests = s.MaxOpen, s.InUse(), s.Waiting
	st.AvailableConnections = s.Idle
	if s.MaxOpen > 0 {
		st.AvailableConnections = max(0, s.MaxOpen-s.InUse())
	}
	return st
}

// DBStats returns database/sql's own statistics of the pool, as sql.DB.Stats
// does. ok is false where Stats' figures are −1; unlike sql.DB.Stats it does not
// hang with a pool whose driver hangs, but gives up after 100 ms.
func (t *Tracker) DBStats() (stats sql.DBStats, ok bool) {
	t.mu.Lock()
	db, shared := t.db, t.shared
	t.mu.Unlock()
	if db == nil || shared {
		return stats, false
	}
	return sqlpool.Stats(db)
}

// LeaksTotal is the number of checkouts that a report, of whatever kind, has
// listed as suspected since the tracker was made: each once, also those that
// have come back. It never falls. Nobody looks at a pool between two reports, so
// a leak that came and went there is not counted.
func (t *Tracker) LeaksTotal() int { return int(t.leaked.Load()) }

// PoolInfo returns the pool's shape now. Figures are −1 where Stats' are.
func (t *Tracker) PoolInfo() PoolInfo {
	s, ok := t.pool()
	st := t.stats(s, ok)
	info := PoolInfo{PoolType: "database/sql", PoolSize: st.MaxConnections, CheckedIn: -1, CheckedOut: st.ActiveConnections,
		TotalCapacity: st.MaxConnections, Available: st.AvailableConnections, PoolExhausted: st.IsExhausted()}
	if ok {
		info.CheckedIn = s.Idle
	}
	return info
}

// CheckHealth judges the pool. See [PoolHealthStatus].
func (t *Tracker) CheckHealth() PoolHealthStatus { return t.Report().Health }

// DetectLeaks is Report under its name in [ConnectionPoolMonitor].
func (t *Tracker) DetectLeaks() LeakReport { return t.Report() }
