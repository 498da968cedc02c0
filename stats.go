package baldur

import (
	"time"
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

// PoolStats are a pool's figures. An unknown figure is −1, never a made-up 0.
type PoolStats struct {
	PoolName             string    `json:"pool_name"`
	MaxConnections       int       `json:"max_connections"`       // 0: unlimited
	ActiveConnections    int       `json:"active_connections"`    // checked out, or being dialled
	AvailableConnections int       `json:"available_connections"` // that can be taken without waiting; in an unlimited pool, the idle ones
	WaitingRequests      int       `json:"waiting_requests"`      // goroutines that wait for a connection
	CheckedAt            time.Time `json:"checked_at"`
}

// UsagePercent is ActiveConnections in percent of MaxConnections. It is 0 for an
// unlimited or unknown pool, and above 100 after SetMaxOpenConns has shrunk the pool
// below what is out.
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

// health judges a pool by its figures, the thresholds and its number of suspected leaks.
func (s PoolStats) health(warning, critical float64, suspected int) PoolHealthStatus {
	switch usage := s.UsagePercent(); {
	case s.IsExhausted():
		return HealthExhausted
	case usage >= critical:
		return HealthCritical
	case suspected > 0:
		return HealthLeakSuspected
	case !s.known():
		return HealthUnknown
	case usage >= warning:
		return HealthWarning
	}
	return HealthHealthy
}

// PoolInfo is a pool's shape. database/sql has no overflow, so MaxOverflow and Overflow
// are 0. The zero value says "no pool"; otherwise an unknown figure is −1.
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

// PoolInfoProvider knows a pool's shape, as *Tracker does.
type PoolInfoProvider interface{ PoolInfo() PoolInfo }

// PoolStatsProvider knows a pool's figures, as *Tracker does.
type PoolStatsProvider interface{ Stats() PoolStats }

// NoOpPoolStatsProvider is a PoolStatsProvider for a program without a pool.
type NoOpPoolStatsProvider struct {
	PoolName string // default "noop"
}

// Stats returns figures of 0, since there is no pool.
func (p NoOpPoolStatsProvider) Stats() PoolStats {
	name := p.PoolName
	if name == "" {
		name = "noop"
	}
	return PoolStats{PoolName: name, CheckedAt: time.Now()}
}

var _ PoolStatsProvider = NoOpPoolStatsProvider{}
