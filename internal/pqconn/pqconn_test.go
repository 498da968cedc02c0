package pqconn_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgtest"
	"github.com/baldur-go/baldur/internal/pqconn"
)

func TestParseDSN(t *testing.T) {
	cfg, own, err := pqconn.ParseDSN("host=h baldur_otel=on application_name=a baldur_pool_name='x y'")
	if err != nil || fmt.Sprint(own) != "map[baldur_otel:on baldur_pool_name:x y]" {
		t.Errorf("%v, %v", own, err)
	}
	for k := range cfg.Runtime {
		if strings.HasPrefix(k, "baldur_") {
			t.Errorf("the server is told %s", k)
		}
	}
}

func TestTargetOf(t *testing.T) {
	for _, c := range []struct {
		dsn      string
		want     pqconn.Target
		poolName string
		nameable bool
	}{
		{"postgres://u@h:6499/d?search_path=a,b", pqconn.Target{Address: "h", Port: 6499, Database: "d", Schema: "a"}, "h:6499/d", true},
		{"host=h port=1 user=u", pqconn.Target{Address: "h", Port: 1, Database: "u"}, "h:1/u", true},
		{"host=h hostaddr=::1 port=1 dbname=d", pqconn.Target{Address: "::1", Port: 1, Database: "d"}, "[::1]:1/d", true},
		{"host=/run/pg port=2 dbname=d", pqconn.Target{Address: "/run/pg/.s.PGSQL.2", Database: "d"}, "/run/pg:2/d", true},
		{"host=@abstract port=2 dbname=d", pqconn.Target{Address: "@abstract/.s.PGSQL.2", Database: "d"}, "@abstract:2/d", true},
		{"host=a,b port=1 dbname=d", pqconn.Target{Database: "d"}, "a:1/d", true},
		{`host=h port=1 dbname=d search_path='"$user", public'`, pqconn.Target{Address: "h", Port: 1, Database: "d"}, "h:1/d", true},
		{"postgres://u:12345/s@h/d", pqconn.Target{}, "", false}, // a password that was not escaped
		{"postgres://u:1?s@h/d", pqconn.Target{}, "", false},
		{"host=h port=1 dbname=d 'secret=x", pqconn.Target{}, "", false},
		{"host=u:s@h port=1", pqconn.Target{}, "", false},
	} {
		cfg, _, err := pqconn.ParseDSN(c.dsn)
		if err != nil {
			t.Errorf("%s: %v", c.dsn, err)
			continue
		}
		if nameable := pqconn.Nameable(c.dsn, cfg); nameable != c.nameable {
			t.Errorf("%s: nameable: %v", c.dsn, nameable)
		}
		if !c.nameable {
			continue
		}
		if got := pqconn.TargetOf(cfg); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.dsn, got, c.want)
		}
		if name := pqconn.PoolName(cfg); name != c.poolName {
			t.Errorf("%s: named %q, want %q", c.dsn, name, c.poolName)
		}
	}
}

func TestDSNError(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://u:s ecret@h/d":       "not a valid URL (in user and password, percent-encode : / ? # [ ] @ and %)",
		"host=h password=s ecret":        `missing "=" after a key (a value with spaces needs quotes: key='a b')`,
		"sslmode=secret":                 "wrong value for sslmode",
		"port=secret":                    "wrong value for port",
		"sslnegotiation=secret host=x":   "wrong value for sslnegotiation",
		"client_encoding=secret host=x":  `client_encoding`,
		"host=a,b port=1,2,3 password=s": "",
	} {
		_, _, err := pqconn.ParseDSN(dsn)
		if err == nil || !strings.HasPrefix(err.Error(), "baldur: DSN: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", dsn, err, want)
		}
	}
}

// FuzzDSNError: no error quotes a value of a DSN that lib/pq does not know as a word of its own.
func FuzzDSNError(f *testing.F) {
	for _, s := range []string{"", "sslmode=", "port=", "@h/d?port=", " '", `\`, "%", "#", "[", "sslmode=a", "postgres://", "connect_timeout="} {
		f.Add(s, "s3cr3t", "")
		f.Add("", "s3cr3t", s)
		f.Add("postgres://u:", "s3cr3t", s+"@h")
	}
	f.Fuzz(func(t *testing.T, before, secret, after string) {
		if len(secret) < 6 || strings.Trim(secret, "0123456789qxzj") != "" {
			return // not to be taken for a word of the message
		}
		if _, _, err := pqconn.ParseDSN(before + secret + after); err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", before+secret+after, err)
		}
	})
}

type otherConn struct{ driver.Conn }

// TestConn: what is read of lib/pq's connection, and what of others.
func TestConn(t *testing.T) {
	cfg, _, err := pqconn.ParseDSN(pgtest.Erring(t))
	if err != nil {
		t.Fatal(err)
	}
	connector, err := pqconn.NewConnector(cfg, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	ci, sock, err := pqconn.Connect(t.Context(), connector)
	if err != nil {
		t.Fatal(err)
	}
	defer ci.Close()
	if !pqconn.Is(ci) || sock == nil || pqconn.TxStatus(ci) != 'I' || pqconn.Buffered(ci) != 0 {
		t.Errorf("pq's: %v, socket %v, transaction %q, %d bytes", pqconn.Is(ci), sock, pqconn.TxStatus(ci), pqconn.Buffered(ci))
	}
	for _, other := range []driver.Conn{nil, otherConn{}, &otherConn{}, (*otherConn)(nil), &otherConn{ci}} {
		if pqconn.Is(other) || pqconn.PID(other) != 0 || pqconn.TxStatus(other) != 0 || pqconn.Buffered(other) != 0 {
			t.Errorf("%T is taken for pq's", other)
		}
	}
	if reads := sock.Reads(); reads == 0 {
		t.Error("the socket has seen no reads: it is not the connection's")
	}
	if _, err := ci.(driver.ExecerContext).ExecContext(context.Background(), "SELECT $1", []driver.NamedValue{{Ordinal: 1, Value: int64(1)}}); err == nil {
		t.Fatal("the server answered")
	}
	_, err = ci.(driver.ExecerContext).ExecContext(context.Background(), "SELECT 1", nil)
	if err == nil || !pqconn.Poisoned(err) {
		t.Errorf("%v is not told as a connection of no use: has lib/pq#1450 been mended? Then Poisoned can go", err)
	}
	if pqconn.Poisoned(errors.New("x")) || pqconn.Poisoned(&pq.Error{Message: "x"}) {
		t.Error("another error is told so")
	}
}
