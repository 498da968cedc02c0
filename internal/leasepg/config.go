package leasepg

import (
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/baldur-go/baldur/internal/lease"
	"github.com/baldur-go/baldur/internal/pgsql"
)

// Config is what the witness of a lease goes by, beside what the lease's Elector does.
type Config struct {
	lease.Config
	Region    string
	Table     *[2]string    // schema and name; nil: the usual one
	Owners    []string      // roles that may own it, besides those that may in any case
	FenceKill time.Duration // see WithFenceKill; 0: never
	FenceIdle time.Duration // see WithFenceIdleTimeout; 0: no limit
	Notify    bool
	Log       *slog.Logger
}

const maxNameLen = 200 // bytes, of a lease or a region

// Check returns an error that names the option, and the inequality that does not hold.
func (c *Config) Check() error {
	for _, role := range c.Owners {
		if err := checkName("role (WithLeaseOwner)", role); err != nil {
			return err
		}
		if len(role) > pgsql.MaxIdentifier {
			return fmt.Errorf("role (WithLeaseOwner) has %d bytes; PostgreSQL's names have at most %d", len(role), pgsql.MaxIdentifier)
		}
	}
	if err := checkName("region", c.Region); err != nil {
		return err
	}
	if err := checkName("lease name (WithLeaseName)", c.Name); err != nil {
		return err
	}
	if err := c.Config.Check(); err != nil {
		return err
	}
	switch {
	case c.FenceKill < 0:
		return fmt.Errorf("fence kill (WithFenceKill) is after %v; it must be 0 (off) or above", c.FenceKill)
	case c.FenceKill >= c.Attempt:
		return fmt.Errorf("fence kill (WithFenceKill) is after %v; it must be less than the attempt timeout of %v", c.FenceKill, c.Attempt)
	case c.FenceIdle < 0 || c.FenceIdle.Milliseconds() > math.MaxInt32:
		return fmt.Errorf("fence idle timeout (WithFenceIdleTimeout) is %v; it must be from 0 (off) to %v, the server's largest", c.FenceIdle, math.MaxInt32*time.Millisecond)
	}
	return nil
}

func checkName(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is empty", what)
	case len(s) > maxNameLen:
		return fmt.Errorf("%s has %d bytes; it must have at most %d", what, len(s), maxNameLen)
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return fmt.Errorf("%s %q is not text that PostgreSQL can store", what, s)
	}
	return nil
}
