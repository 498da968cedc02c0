package baldur_test

import (
	"database/sql"
	"strings"
	"testing"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// TestPoisonedConnection: after such an error lib/pq 1.12.3 answers every query
// on the pooled connection with an error of its own; the wrapper has it replaced.
func TestPoisonedConnection(t *testing.T) {
	failures := func(driver string) (failed int, last error) {
		db, err := sql.Open(driver, pgtest.Erring(t))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxOpenConns(1)
		if _, err := db.Exec("SELECT $1", 1); err == nil || !strings.Contains(err.Error(), "shutting down") {
			t.Fatalf("%s: got %v, want the server's error", driver, err)
		}
		for range 3 {
			if _, err := db.Exec("SELECT 1"); err != nil {
				failed, last = failed+1, err
			}
		}
		return failed, last
	}
	if n, err := failures("postgres"); n != 3 {
		t.Errorf("lib/pq alone: %d of 3 queries failed (%v), want 3: has lib/pq#1450 been mended? Then pqconn.Poisoned can go", n, err)
	}
	if n, err := failures(baldur.DriverName); n != 0 {
		t.Errorf("%d of 3 queries failed: %v", n, err)
	}
}
