package baldur_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

const secret = "hunter2-s3cret"

// TestBadDSN: each error names the culprit, and none tells the password.
func TestBadDSN(t *testing.T) {
	const good = "postgres://u:" + secret + "@h/d?sslmode=disable"
	cases := []struct{ dsn, want string }{
		{good + "&baldur_leak_treshold=5s", `unknown parameter "baldur_leak_treshold"`},
		{good + "&baldur_leak_threshold=soon", "baldur_leak_threshold: want a duration"},
		{good + "&baldur_leak_threshold=0", "leak threshold"},
		{good + "&baldur_leak_threshold=-5s", "leak threshold"},
		{good + "&baldur_warning_threshold=95", "warning must be below critical"},
		{good + "&baldur_warning_threshold=0.7", "it is a percentage: 70, not 0.7"},
		{good + "&baldur_warning_threshold=NaN", "baldur_warning_threshold: want a percentage"},
		{good + "&baldur_critical_threshold=101", "at most 100"},
		{good + "&baldur_cancel_grace=0s", "cancel grace"},
		{good + "&baldur_query_text=perhaps", "baldur_query_text: want on or off"},
		{good + "&baldur_leak_threshold=" + secret, "baldur_leak_threshold"},
		{good + "&port=" + secret, "wrong value for port"},
		{"postgres://u:" + secret + "#@h/d", "not a valid URL"},
		{"postgres://u:" + secret + "/@h:port/d", "not a valid URL"},
		{"postgres://u:%zz" + secret + "@h/d", "not a valid URL"},
		{"host=h password=a " + secret, `missing "="`},
		{"host=h password='" + secret, "unterminated quoted string"},
		{"host=h password=" + secret + `\`, "missing character after backslash"},
		{"host=h port=" + secret + " password=" + secret, "wrong value for port"},
		{"host=h password=" + secret + " sslmode=" + secret, "wrong value for sslmode"},
		{"host=h password=" + secret + " baldur_pool=x", `unknown parameter "baldur_pool"`},
		{"service=" + secret, "service"},
		{good + "&client_encoding=LATIN1", `unsupported client_encoding "…": must be absent or "UTF8"`},
		{good + "&client_encoding=" + secret, `unsupported client_encoding`},
		{"sslrootcert=system sslmode=require password=" + secret, `weak sslmode "require" may not be used with sslrootcert=system (use "verify-full")`},
		{"sslnegotiation=direct sslmode=prefer password=" + secret, `weak sslmode "prefer" may not be used with sslnegotiation=direct`},
		{"datestyle=German password=" + secret, `unsupported datestyle "…": must be absent or "ISO, MDY"`},
		{"min_protocol_version=3.2 password=" + secret, `min_protocol_version "3.2" cannot be greater than max_protocol_version "3.0"`},
		{"sslmode=on password=" + secret, "wrong value for sslmode; supported values are"},
		{"postgres://u?baldur_:" + secret + "=0", `unknown parameter "baldur_…"`},
	}
	for _, c := range cases {
		db, err := sql.Open("baldur-pq", c.dsn)
		if err == nil {
			db.Close()
			t.Errorf("%s: no error", c.dsn)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\ngot  %v\nwant %s", c.dsn, err, c.want)
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the password is told: %v", err)
		}
		if !strings.HasPrefix(err.Error(), "baldur: ") {
			t.Errorf("%v: does not say from whom", err)
		}
	}
}

func TestBadOptions(t *testing.T) {
	var noConnector driver.Connector
	for _, c := range []struct {
		db   *sql.DB
		want string
	}{
		{baldur.OpenDB(noConnector), "need a connector, got nil"},
		{sql.OpenDB(baldur.Wrap(nil)), "need a connector, got nil"},
		{baldur.OpenDB(&fakeDB{}, baldur.WithLeakThreshold(0)), "leak threshold"},
		{baldur.OpenDB(&fakeDB{}, baldur.WithWarningThreshold(90)), "warning must be below critical"},
		{baldur.OpenDB(&fakeDB{}, nil), "nil Option"},
	} {
		err := c.db.Ping()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
		if tr := baldur.TrackerOf(c.db); tr != nil {
			t.Errorf("a pool that cannot connect has the tracker %v", tr)
		}
		c.db.Close()
	}
	if tr := baldur.TrackerOf(nil); tr != nil {
		t.Error("nil has a tracker")
	}
	foreign := sql.OpenDB(&fakeDB{})
	defer foreign.Close()
	if tr := baldur.TrackerOf(foreign); tr != nil {
		t.Error("a foreign pool has a tracker")
	}
}

// TestNearestSettingWins: option, DSN parameter, environment, default.
func TestNearestSettingWins(t *testing.T) {
	const dsn = "postgres://u@h/d?sslmode=disable"
	threshold := func(dsn string, opts ...baldur.Option) time.Duration {
		t.Helper()
		db, err := baldur.Open(dsn, opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		return baldur.TrackerOf(db).Report().LeakThreshold
	}
	if got := threshold(dsn); got != 300*time.Second {
		t.Errorf("default: %v", got)
	}
	t.Setenv("BALDUR_POOL_MONITOR_LEAK_THRESHOLD_SECONDS", "120")
	if got := threshold(dsn); got != 120*time.Second {
		t.Errorf("environment: %v", got)
	}
	if got := threshold(dsn + "&baldur_leak_threshold=90s"); got != 90*time.Second {
		t.Errorf("DSN: %v", got)
	}
	if got := threshold("host=h baldur_leak_threshold=45"); got != 45*time.Second {
		t.Errorf("DSN, key=value: %v", got)
	}
	if got := threshold(dsn+"&baldur_leak_threshold=90s", baldur.WithLeakThreshold(time.Second)); got != time.Second {
		t.Errorf("option: %v", got)
	}
	t.Setenv("BALDUR_POOL_MONITOR_WARNING_THRESHOLD", "lots")
	if _, err := baldur.Open(dsn); err == nil || !strings.Contains(err.Error(), "BALDUR_POOL_MONITOR_WARNING_THRESHOLD: want") {
		t.Errorf("bad environment: %v", err)
	}
}

// TestOwnParametersStayHere: the server refuses parameters that it does not know.
func TestOwnParametersStayHere(t *testing.T) {
	u, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	for k, v := range map[string]string{"baldur_pool_name": "orders", "baldur_leak_threshold": "5m", "baldur_warning_threshold": "60", "baldur_critical_threshold": "80", "baldur_cancel_grace": "2s", "baldur_query_text": "off"} {
		q.Set(k, v)
	}
	u.RawQuery = q.Encode()
	db, err := sql.Open("baldur-pq", u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(context.Background()); err != nil {
		t.Fatal(err)
	}
	if name := baldur.TrackerOf(db).PoolName(); name != "orders" {
		t.Errorf("pool name %q", name)
	}
}

func TestPoolNames(t *testing.T) {
	open := func(dsn string) *sql.DB { return must(baldur.Open(dsn)) }
	name := func(db *sql.DB) string { return baldur.TrackerOf(db).PoolName() }
	a, b := open("host=names.example port=6432 dbname=shop"), open("postgres://names.example:6432/shop")
	defer b.Close()
	if name(a) != "names.example:6432/shop" || name(b) != "names.example:6432/shop#2" {
		t.Errorf("got %q and %q", name(a), name(b))
	}
	var listed []string
	for _, tr := range baldur.Trackers() {
		if strings.HasPrefix(tr.PoolName(), "names.example") {
			listed = append(listed, tr.PoolName())
		}
	}
	if len(listed) != 2 {
		t.Errorf("Trackers: %v", listed)
	}
	a.Close()
	c := open("postgres://names.example:6432/shop")
	defer c.Close()
	if name(c) != "names.example:6432/shop" {
		t.Errorf("the name of a closed pool is not free: %q", name(c))
	}
}

// FuzzDSN: whatever the DSN, no crash, and no error, report or name of ours
// tells the password.
func FuzzDSN(f *testing.F) {
	for _, s := range []string{"", "baldur_leak_threshold=5s", "&baldur_leak_threshold=x", "sslmode=disable", "@h/d?port=x", " port=1 '", `\`, "%zz", "#", "?baldur_x=1", "host=a,b port=1,2"} {
		f.Add(s, s, true)
		f.Add(s, s, false)
	}
	f.Fuzz(func(t *testing.T, before, after string, isURL bool) {
		var dsn string
		if isURL {
			dsn = "postgres://u" + before + ":" + secret + after
		} else {
			dsn = before + " password=" + secret + " " + after
		}
		db, err := sql.Open("baldur-pq", dsn)
		if err != nil {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("DSN %q: error tells the password: %v", dsn, err)
			}
			return
		}
		defer db.Close()
		if strings.Contains(before+after, "baldur_pool_name") {
			return // who names a pool decides what is told
		}
		cfg, err := parsedPassword(dsn)
		if err != nil || !strings.Contains(cfg, secret) {
			return // what we took for the password is not one: it may be the host
		}
		if r := baldur.TrackerOf(db).Report(); strings.Contains(r.String(), secret) {
			t.Errorf("DSN %q: report tells the password:\n%s", dsn, r)
		}
	})
}

// parsedPassword returns what lib/pq takes for the password.
func parsedPassword(dsn string) (string, error) {
	cfg, err := pq.NewConfig(dsn)
	return cfg.Password, err
}

// TestNamesKeepPasswords: no part of a pool's name, or of what hooks are told of
// the server, comes from what may be a password that was not escaped.
func TestNamesKeepPasswords(t *testing.T) {
	const secret = "hunter2"
	for _, dsn := range []string{
		"postgres://u:12345/hunter2@127.0.0.1:6499/db",
		"postgres://u:12345?hunter2@127.0.0.1:6499/db",
		"postgres://u:12345?x=hunter2@127.0.0.1:6499/db",
		"postgres://u:12345#hunter2@127.0.0.1:6499/db",
		"postgres://u:12345#@127.0.0.1:6499/hunter2",
		"postgresql://12345/hunter2@h",
		"dbname=postgres://u:hunter2@h:12345/d",
		"host=postgres://u:hunter2@h port=12345",
		"host=u:hunter2@h port=12345",
		"host=h port=12345 user=u:hunter2@h",
		"host=h port=12345 user=u 'hunter2=x",
	} {
		db, err := baldur.Open(dsn, baldur.WithHooks("test", func(target baldur.Target) baldur.Hooks {
			if target.Address+target.Database+target.Schema != "" || target.Port != 0 {
				t.Errorf("%s: hooks are told %+v", dsn, target)
			}
			return baldur.Hooks{}
		}))
		if err != nil {
			if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "12345") {
				t.Errorf("%s: %v", dsn, err)
			}
			continue
		}
		defer db.Close()
		if name := baldur.TrackerOf(db).PoolName(); !strings.HasPrefix(name, "pool") {
			t.Errorf("%s: named %q", dsn, name)
		}
	}
	for dsn, want := range map[string]string{
		"postgres://u:12345%2Fhunter2@db.example:6499/db?application_name=a":  "db.example:6499/db",
		"host=db.example port=6499 dbname=db user=u@azure password='a@b c/d'": "db.example:6499/db",
		"host=/run/pg dbname=db password=a":                                   "/run/pg",
	} {
		db := must(baldur.Open(dsn))
		defer db.Close()
		if name := baldur.TrackerOf(db).PoolName(); !strings.Contains(name, want) {
			t.Errorf("%s: named %q", dsn, name)
		}
	}
}

// secretConnector has its password in a field, as pgx's connector has.
type secretConnector struct {
	driver.Connector
	Password string
}

// TestPrintingKeepsPasswords: whatever verb fmt prints ours with.
func TestPrintingKeepsPasswords(t *testing.T) {
	const secret = "hunter2"
	inner := secretConnector{&fakeDB{}, secret}
	open, own := baldur.OpenDB(inner), must(baldur.Open("postgres://u:"+secret+"@h/d"))
	defer open.Close()
	defer own.Close()
	values := map[string]any{
		"Wrap":      baldur.Wrap(inner),
		"Open":      own.Driver(),
		"Driver":    baldur.Wrap(inner).Driver(),
		"TrackerOf": baldur.TrackerOf(open),
		"DB":        open,
		"broken":    baldur.Wrap(inner, nil),
	}
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
			text := fmt.Sprintf(verb, v)
			if strings.Contains(text, secret) || strings.Contains(text, fmt.Sprintf("%x", secret)) {
				t.Errorf("%s by %s: %s", name, verb, text)
			}
		}
	}
}

// TestBadEnvironment: the value may be a secret that was put into the wrong variable.
func TestBadEnvironment(t *testing.T) {
	t.Setenv("BALDUR_POOL_MONITOR_WARNING_THRESHOLD", "hunter2")
	_, err := baldur.Open("postgres://u@h/d")
	if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "BALDUR_POOL_MONITOR_WARNING_THRESHOLD: want a percentage") {
		t.Errorf("got %v", err)
	}
}

// TestPrivateLayoutsOff runs in a process of its own, since the switch is for good.
func TestPrivateLayoutsOff(t *testing.T) {
	if os.Getenv("BALDUR_PRIVATE_LAYOUTS") == "" {
		child := exec.Command(os.Args[0], "-test.run=^TestPrivateLayoutsOff$", "-test.v")
		child.Env = append(os.Environ(), "BALDUR_PRIVATE_LAYOUTS=off")
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestPrivateLayoutsOff") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	db := baldur.OpenDB(nullDB{}, baldur.WithLeakThreshold(50*time.Millisecond))
	defer db.Close()
	db.SetMaxOpenConns(1)
	tx := must(db.Begin())
	must(tx.Exec("x"))
	done := make(chan bool)
	go func() { defer close(done); must(db.Exec("y")) }()
	tr := baldur.TrackerOf(db)
	var r baldur.LeakReport
	for end := time.Now().Add(10 * time.Second); r.LeakCount() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		r = tr.Report()
	}
	if s := r.Stats; r.LeakCount() != 1 || r.Health != baldur.HealthExhausted || s.WaitingRequests != -1 || s.ActiveConnections != 1 || r.Waiters != nil || r.Deadlock != nil {
		t.Fatalf("%d suspected, %+v\n%s", r.LeakCount(), s, r)
	}
	c := r.SuspectedLeaks[0]
	if c.Verdict != baldur.VerdictSuspected || c.Goroutine != baldur.GoroutineUnknown || c.Where != "" || c.Now != nil || !strings.HasSuffix(c.CallSite().File, "options_test.go") {
		t.Errorf("%+v", c)
	}
	if text := r.String(); !strings.Contains(text, "waiting unknown") {
		t.Errorf("%s", text)
	}
	_ = tx.Rollback()
	<-done
}
