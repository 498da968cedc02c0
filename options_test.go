package baldur_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"net/url"
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
	if _, err := baldur.Open(dsn); err == nil || !strings.Contains(err.Error(), `BALDUR_POOL_MONITOR_WARNING_THRESHOLD="lots"`) {
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
