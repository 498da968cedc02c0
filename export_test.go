package baldur

import (
	"database/sql/driver"
	"slices"
	"time"

	"github.com/baldur-go/baldur/internal/stack"
	"github.com/baldur-go/baldur/internal/wrap"
)

// HoldsOf returns the number and the sum of the hold times of all call sites in a
// function.
func HoldsOf(function string) (n uint64, sum time.Duration) {
	flushHolds()
	for s := range stack.All() {
		if slices.ContainsFunc(s.Frames(), func(f stack.Frame) bool { return f.Function == function }) {
			n += s.Holds.Count()
			sum += s.Holds.Sum()
		}
	}
	return n, sum
}

// RecordOf returns the ConnectionID of a tracked connection, and what it wraps.
func RecordOf(dc any) (int64, driver.Conn) {
	c := dc.(driver.Conn)
	return wrap.RecordOf(c).ID, wrap.Inner(c)
}

// WithSuspendGap has the machine suspended for gap() so far.
func WithSuspendGap(gap func() time.Duration) QuorumOption {
	return func(c *quorumConfig) { c.Suspended = gap }
}

// WrongCounter has t's exact time, as the CPU's counter gives it, wrong by d, and
// stand still, until the next tick.
func (t *Tracker) WrongCounter(d time.Duration) {
	t.clk.Mislead(d)
}

// KeptText is the query's text that the pool's first connection keeps.
func (t *Tracker) KeptText() string { return t.ledger.Records()[0].Query }
