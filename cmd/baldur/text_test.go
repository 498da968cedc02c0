package main

import (
	"strings"
	"testing"
)

// TestForeignText: a server's words do nothing to a terminal.
func TestForeignText(t *testing.T) {
	const hostile = "a\x1b[2J\nb\u202ec"
	d := diagnosis{Target: hostile, Checks: []check{{Name: "server version", Found: hostile, Advice: hostile}}}
	got := d.String()
	if strings.ContainsAny(got, "\x1b\u202e") || strings.Count(got, "\n") != 4 {
		t.Errorf("doctor: %q", got)
	}
	if got := oneLine("baldur: " + hostile); got != "a\ufffd[2J; b\ufffdc" {
		t.Errorf("quorum: %q", got)
	}
}
