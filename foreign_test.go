package baldur_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/stack"
)

// TestForeignText: no pool name, label or query gets a character into any form of
// a report that does more than show itself.
func TestForeignText(t *testing.T) {
	var bad []string
	for _, span := range [][2]rune{{0, 0x1f}, {0x7f, 0x9f}, {0x200b, 0x200f}, {0x2028, 0x202e}, {0x2060, 0x206f}, {0xfeff, 0xfeff}, {0xe0001, 0xe0001}} {
		for r := span[0]; r <= span[1]; r++ {
			bad = append(bad, string(r))
		}
	}
	evil := "a" + strings.Join(bad, "x") + "\xff\xc3 pool b: healthy"
	var log bytes.Buffer
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		conn := must(db.Conn(ctx))
		defer conn.Close()
		must(conn.ExecContext(ctx, evil))
		tx := must(db.Begin())
		defer tx.Rollback()
		must(tx.Exec(evil))
		if err := baldur.Label(conn, evil); err != nil {
			t.Fatal(err)
		}
		for _, h := range []slog.Handler{slog.NewJSONHandler(&log, nil), &plainHandler{out: &log}} {
			logCtx, cancel := context.WithTimeout(ctx, time.Minute)
			_ = tr.Log(logCtx, 15*time.Second, slog.New(h))
			cancel()
		}
		r := tr.Report()
		built := r // by hand, not by a tracker
		built.PoolName = evil
		built.SuspectedLeaks = []baldur.ConnectionInfo{{Label: evil, QueryInfo: evil, StackTrace: []baldur.Frame{{Function: evil, File: evil}}}}
		for _, r := range []baldur.LeakReport{r, built} {
			for form, s := range map[string]string{
				"text": r.String(), "JSON": string(must(json.Marshal(r))), "log": log.String(), "LogValue": r.LogValue().String() + r.SuspectedLeaks[0].LogValue().String(),
			} {
				for _, c := range bad {
					if c != "\n" && strings.Contains(s, c) || c == "\t" && form != "text" && strings.Contains(s, c) {
						t.Errorf("%s has %q", form, c)
					}
				}
				if strings.ToValidUTF8(s, "") != s || strings.Contains(s, "\npool b") {
					t.Errorf("%s: %q", form, s)
				}
			}
		}
	}, baldur.WithPoolName(evil))
}

// plainHandler writes attributes as they are.
type plainHandler struct{ out *bytes.Buffer }

func (*plainHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h *plainHandler) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool { h.out.WriteString(a.Key + "=" + a.Value.String() + "\n"); return true })
	return nil
}
func (h *plainHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h *plainHandler) WithGroup(string) slog.Handler      { return h }

// TestSecrets: no form of a report has the password of a statement that sets one.
func TestSecrets(t *testing.T) {
	const secret = "hunter2"
	for _, query := range []string{
		"ALTER ROLE app PASSWORD 'hunter2'",
		"create user app with login encrypted password $$hunter2$$",
		"CREATE USER MAPPING FOR app SERVER s OPTIONS (user 'u', password 'hunter2')",
		"CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (host 'h', key E'hunter2')",
		"CREATE SUBSCRIPTION s CONNECTION 'host=h user=u password=hunter2' PUBLICATION p",
		"SELECT * FROM dblink('host=h password=hunter2', 'SELECT 1')",
		"SELECT crypt('hunter2', gen_salt('bf'))",
		"SELECT pgp_sym_encrypt(data, 'hunter2') FROM t WHERE id = $1",
		"SELECT set_config('app.jwt_token', 'hunter2', false)",
		"COPY t FROM PROGRAM 'curl https://u:hunter2@host/x'",
		"DO $$ BEGIN EXECUTE 'ALTER ROLE app PASSWORD ''hunter2'''; END $$",
		"/* the password is hunter2 */ SELECT 1",
		"ALTER ROLE app PASSWORD 'hunter2",
		"ALTER ROLE app PASSWORD 'x\\' hunter2'",
	} {
		bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
			rows := must(db.Query(query))
			defer rows.Close()
			time.Sleep(20 * time.Second)
			r := tr.Report()
			if r.LeakCount() != 1 || r.SuspectedLeaks[0].QueryInfo == "" {
				t.Fatalf("%s", r)
			}
			if s := r.String() + string(must(json.Marshal(r))) + r.LogValue().String() + r.SuspectedLeaks[0].LogValue().String(); strings.Contains(s, secret) {
				t.Errorf("%s is told as %q", query, r.SuspectedLeaks[0].QueryInfo)
			}
		})
	}
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		rows := must(db.Query("SELECT 'plain', $1", 1))
		defer rows.Close()
		if got := tr.Holders()[0].QueryInfo; got != "SELECT 'plain', $1" {
			t.Errorf("without a secret: %q", got)
		}
		long := must(db.Query("SELECT '" + strings.Repeat("語", 10_000)))
		defer long.Close()
		if got := tr.Holders()[1].QueryInfo; len(got) > 2100 || !strings.HasSuffix(got, "語 …") {
			t.Errorf("a long one: %d bytes, %q", len(got), got[max(0, len(got)-20):])
		}
	})
}

// TestIdleText: a connection in the pool keeps no long text, and none where none
// is wanted.
func TestIdleText(t *testing.T) {
	for _, on := range []bool{true, false} {
		bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
			must(db.Exec(strings.Repeat("x", 300)))
			if got := tr.KeptText(); got != "" {
				t.Errorf("query text %v: %d bytes are kept", on, len(got))
			}
			if must(db.Exec("short")); (tr.KeptText() == "") == on {
				t.Errorf("query text %v: kept is %q", on, tr.KeptText())
			}
		}, baldur.WithQueryText(on))
	}
}

// TestClosedPool: a pool that is closed with a connection out is told as such.
func TestClosedPool(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		tx := must(db.Begin())
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		r := tr.Report()
		if r.Health != baldur.HealthClosed || tr.CheckHealth() != baldur.HealthClosed || r.LeakCount() != 1 {
			t.Errorf("%s", r)
		}
		if s := r.String(); !strings.Contains(s, ": closed, 1 suspected leak\nclosed, 1 still out\n") || strings.Contains(s, "unknown") {
			t.Errorf("%s", s)
		}
		_ = tx.Rollback()
	})
}

// TestExpired: a connection that has expired and is being closed is out of the
// pool for database/sql, and was taken by nobody.
func TestExpired(t *testing.T) {
	closing, closed := make(chan bool), make(chan bool)
	db := baldur.OpenDB(closeDB{func() { closing <- true; <-closed }})
	tr := baldur.TrackerOf(db)
	must(db.Exec("SELECT 1"))
	db.SetConnMaxLifetime(time.Nanosecond)
	go func() { _ = db.Ping() }()
	<-closing
	r := tr.Report()
	if r.Unattributed != 0 || r.Closing != 1 || strings.Contains(r.String(), "not seen") || !strings.Contains(r.String(), "1 closing") {
		t.Errorf("%s", r)
	}
	close(closed)
	go func() {
		for range closing {
		}
	}()
	_ = db.Close()
}

// TestBetweenPoolAndHolder: a connection that database/sql has taken out and not
// given to the driver, or that the driver has given back and is not in the pool yet,
// is not one that DB.Conn has taken and nobody uses.
func TestBetweenPoolAndHolder(t *testing.T) {
	var tr *baldur.Tracker
	looks := 0
	look := func(when string) {
		if tr == nil {
			return
		}
		looks++
		if r := tr.Report(); r.Unattributed != 0 || strings.Contains(r.String(), "not seen") {
			t.Errorf("%s: %s", when, r.Figures())
		}
	}
	db := baldur.OpenDB(closeDB{func() { look("closing") }}, baldur.WithHooks("test", func(baldur.Target) baldur.Hooks {
		return baldur.Hooks{
			SpanContext: func(context.Context) baldur.SpanContext { look("taking"); return baldur.SpanContext{} },
			Returned:    func(baldur.Return) { look("returning") },
		}
	}))
	must(db.Exec("SELECT 1")) // the first time that it goes out
	tr = baldur.TrackerOf(db)
	for range 3 {
		must(db.Exec("SELECT 1"))
		_ = must(db.Query("SELECT 1")).Close()
		_ = must(db.Begin()).Rollback()
		_ = must(db.Conn(ctx)).Close()
	}
	db.SetConnMaxLifetime(time.Nanosecond)
	must(db.Exec("SELECT 1"))
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if looks < 24 {
		t.Errorf("%d looks", looks)
	}
}

// closeDB is a nullDB whose connections call a function when they are closed.
type closeDB struct{ f func() }
type closeConn struct {
	*nullConn
	f func()
}

func (c closeDB) Connect(context.Context) (driver.Conn, error) {
	return closeConn{new(nullConn), c.f}, nil
}
func (closeDB) Driver() driver.Driver { return nil }
func (c closeConn) Close() error      { c.f(); return nil }

// TestOpenStatements: statements that are prepared and never closed show, on idle
// connections too.
func TestOpenStatements(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		var open []*sql.Stmt
		for i := range baldur.OpenStatementsBound {
			if r := tr.Report(); len(r.OpenStatements) != 0 {
				t.Fatalf("%d are told of", i)
			}
			open = append(open, must(db.Prepare("SELECT 1")))
		}
		r := tr.Report()
		if len(r.OpenStatements) != 1 || r.OpenStatements[0].Open != baldur.OpenStatementsBound || !strings.Contains(r.String(), "connection 1: 50 statements open") {
			t.Errorf("%s", r)
		}
		for _, st := range open {
			_ = st.Close()
		}
		if r := tr.Report(); len(r.OpenStatements) != 0 {
			t.Errorf("closed: %s", r)
		}
	})
}

// TestHintOfWaiter: who waits for a second connection has a Rollback deferred, and
// is not told that one is missing without that being said.
func TestHintOfWaiter(t *testing.T) {
	if !stack.Self().Liveness {
		t.Skip("no liveness in this build: ", stack.Self().Reason)
	}
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		db.SetMaxOpenConns(1)
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan bool)
		go func() {
			defer close(done)
			tx := must(db.Begin())
			defer tx.Rollback()
			_ = db.PingContext(ctx) // waits for the transaction's connection
		}()
		time.Sleep(20 * time.Second)
		r := tr.Report()
		hint := "Tx.Rollback; or it waits for a second connection itself"
		if stack.Self().Looks {
			hint = "waits for a connection itself, at "
			if strings.Contains(r.String(), "missing") {
				t.Errorf("nothing is missing:\n%s", r)
			}
		}
		if r.LeakCount() != 1 || !strings.Contains(r.String(), hint) {
			t.Errorf("%s", r)
		}
		cancel()
		<-done
		tx := must(db.Begin())
		defer tx.Rollback()
		time.Sleep(20 * time.Second)
		if r := tr.Report(); r.LeakCount() != 1 || strings.Contains(r.String(), "connection itself") {
			t.Errorf("nobody waits: %s", r)
		}
	})
}
