package pgsql

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// SetConfig is a column of a SELECT that sets a setting for the transaction; value
// is an expression. NULL resets it to what the role, the database or the DSN give
// a new session.
func SetConfig(name, value string) string {
	return "pg_catalog.set_config('" + name + "'::pg_catalog.text, " + value + "::pg_catalog.text, true)"
}

// SetConfigIfKnown is SetConfig for a setting that not every version has.
func SetConfigIfKnown(name, value string) string {
	return "CASE WHEN pg_catalog.current_setting('" + name + "'::pg_catalog.text, true) IS NOT NULL THEN " + SetConfig(name, value) + " END"
}

// CurrentSetting is a column of a SELECT with a setting.
func CurrentSetting(name string) string {
	return "pg_catalog.current_setting('" + name + "'::pg_catalog.text)"
}

// Milliseconds checks a timeout and writes it as PostgreSQL takes it: an int of ms.
// It rounds up, since 0 means none.
func Milliseconds(what string, d time.Duration) (string, error) {
	const most = math.MaxInt32 * time.Millisecond
	if d < 0 || d > most {
		return "", fmt.Errorf("baldur: %s is %v; it must be from 0 to %v", what, d, most)
	}
	return strconv.FormatInt(int64((d+time.Millisecond-1)/time.Millisecond), 10), nil
}

// ParseTimeout reads a timeout as PostgreSQL writes it: 0, 250ms, 5s, 2min, 1h, 1d.
func ParseTimeout(s string) time.Duration {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, _ := strconv.Atoi(s[:i])
	return time.Duration(n) * map[string]time.Duration{
		"": time.Millisecond, "ms": time.Millisecond, "s": time.Second, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
	}[s[i:]]
}
