// Package lack ends tests for want of a tool.
package lack

import (
	"os"
	"testing"
)

// Of ends the test t, which must be the one that is running, because this
// machine lacks a tool. The test is skipped, or fails where CI is set.
// scripts/test counts the skipped tests by tool, so its name stands first;
// how to get it is as "Debian: apt-get install pgbouncer", or an error.
func Of(t testing.TB, tool, how string) {
	t.Helper()
	said := "for want of " + tool + " (" + how + ")"
	if os.Getenv("CI") != "" {
		t.Fatal(said)
	}
	t.Skip("skipped " + said)
}
