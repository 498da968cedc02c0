package baldurotel_test

import (
	"database/sql/driver"
	"slices"
	"strings"
	"testing"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurotel"
	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
	"github.com/baldur-go/baldur/internal/transparency"
)

func freeze(p *faultproxy.Proxy) { p.Freeze(faultproxy.Both) }

// What the root package does for a connection of lib/pq's it does with otelsql
// in between too. (Cut sockets: TestSilentNetwork.)

func TestBackendPID(t *testing.T) {
	o := newTelemetry(t)
	db := o.open(pgtest.DSN(t))
	c := must(db.Conn(t.Context()))
	defer c.Close()
	var pid int
	if err := c.QueryRowContext(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if h := baldur.TrackerOf(db).Holders(); len(h) != 1 || h[0].BackendPID != pid {
		t.Errorf("got %+v, want pid %d", h, pid)
	}
	var notices []string
	if err := c.Raw(func(dc any) error {
		pq.SetNoticeHandler(baldur.Unwrap(dc.(driver.Conn)), func(n *pq.Error) { notices = append(notices, n.Message) })
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	must(c.ExecContext(t.Context(), "DO $$ BEGIN RAISE NOTICE 'hello'; END $$"))
	if !slices.Equal(notices, []string{"hello"}) {
		t.Errorf("notices %q", notices)
	}
}

func TestPoisonedConnection(t *testing.T) {
	o := newTelemetry(t)
	db := o.open(pgtest.Erring(t))
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("SELECT $1", 1); err == nil || !strings.Contains(err.Error(), "shutting down") {
		t.Fatalf("got %v, want the server's error", err)
	}
	for range 3 {
		if _, err := db.Exec("SELECT 1"); err != nil {
			t.Error(err)
		}
	}
}

// TestReturnAudit: it finds what it finds, and its own query is in no trace.
func TestReturnAudit(t *testing.T) {
	o := newTelemetry(t)
	db := o.open(pgtest.SocketDSN(t), baldur.WithReturnAudit(1))
	db.SetMaxOpenConns(1)
	must(db.Exec("SELECT pg_advisory_lock(42)"))
	must(db.Exec("BEGIN"))
	dirty, total := baldur.TrackerOf(db).DirtyReturns()
	if total != 2 || !slices.Equal(dirty[0].AdvisoryLocks, []string{"42"}) || !dirty[1].OpenTransaction {
		t.Errorf("got %v", dirty)
	}
	spans, _ := o.take()
	if len(spans) != 2 || spans[0].Name != "SELECT" || spans[1].Name != "BEGIN" {
		t.Errorf("got %v", spans)
	}
}

// TestQuorumTraces: what a quorum asks its witness is in no trace; the guard of a
// transaction, which is the program's, is.
func TestQuorumTraces(t *testing.T) {
	o := newTelemetry(t)
	db := o.open(pgtest.DSN(t))
	q := must(baldur.NewPGQuorum(db, "here"))
	defer q.Close()
	for range 2 { // it makes the table; and renews
		if ok, err := q.TryAcquirePrimary(t.Context()); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if spans, _ := o.take(); len(spans) != 0 {
		t.Errorf("got %v", spans)
	}
	tx := must(db.BeginTx(t.Context(), nil))
	defer tx.Rollback()
	must(q.RequirePrimary(t.Context(), tx))
	if spans, _ := o.take(); len(spans) != 2 {
		t.Errorf("got %v", spans)
	}
}

// TestPGAdmin: the connection beside a full pool, by which a pooler is detected.
func TestPGAdmin(t *testing.T) {
	o := newTelemetry(t)
	db := o.open(pgtest.Bouncer(t, "session"))
	db.SetMaxOpenConns(1)
	admin := baldur.NewPGAdmin(db)
	defer admin.Close()
	if mode, err := admin.PoolerMode(t.Context()); err != nil || mode != baldur.PoolerSession {
		t.Errorf("got %v, %v", mode, err)
	}
}

// TestTransparent: with otelsql, which has every interface, between, a driver can
// do what it can without.
func TestTransparent(t *testing.T) {
	transparency.Between(t, transparency.Variant{Name: "OpenTelemetry", Option: baldurotel.With()})
}
