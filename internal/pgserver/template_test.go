//go:build unix

package pgserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/baldur-go/baldur/internal/lack"
)

// Servers of one template are copies of one cluster, and do not share it.
func TestTemplate(t *testing.T) {
	dir := scratch(t)
	var template Template
	if err := template.Remove(); err != nil {
		t.Errorf("before it is made: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ended, Config{Template: &template}); errors.Is(err, ErrNoPostgres) {
		lack.Of(t, "PostgreSQL", err.Error())
	} else if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	wantEmpty(t, dir)

	a, b := startNew(t, Config{Template: &template}), startNew(t, Config{Template: &template})
	const system = "SELECT system_identifier FROM pg_control_system()"
	if x, y := mustQuery(t, a.DSN("postgres"), system), mustQuery(t, b.DSN("postgres"), system); x != y {
		t.Errorf("the systems are %s and %s", x, y)
	}
	mustQuery(t, a.DSN("postgres"), "CREATE TABLE t(n int); SELECT 1")
	if n := mustQuery(t, b.DSN("postgres"), "SELECT count(*) FROM pg_class WHERE relname = 't'"); n != "0" {
		t.Error("what is done to one server is done to the other")
	}
	if err := a.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := a.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	wal := filepath.Join("data", "pg_wal", "000000010000000000000001")
	for _, home := range []*home{template.home, b.home} {
		if info, err := os.Stat(filepath.Join(home.dir, wal)); err != nil || info.Size() != 16<<20 {
			t.Errorf("%s: %v, %v", home.dir, info, err)
		}
	}
	for range 2 {
		if err := template.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	mustQuery(t, b.DSN("postgres"), "SELECT 1")
	for _, s := range []*Server{a, b} {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, dir)
}
