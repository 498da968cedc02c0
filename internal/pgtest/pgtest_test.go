//go:build unix

package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgserver"
)

// envChild makes TestChild do something in a process of its own.
const envChild = "BALDUR_PGTEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(envChild) == "without Main" {
		os.Exit(m.Run())
	}
	Main(m)
}

func value(t *testing.T, dsn, query string) string {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var value string
	if err := db.QueryRow(query).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestDSN(t *testing.T) {
	all, atEnd := DSN(t), t.Cleanup
	var names []string
	for range 2 {
		t.Run("A/longer name than PostgreSQL can take: "+strings.Repeat("é", 60), func(t *testing.T) {
			dsn := DSN(t)
			name := value(t, dsn, "SELECT current_database()")
			if cfg, err := pq.NewConfig(dsn); err != nil || cfg.Database != name {
				t.Errorf("DSN names database %q (%v), connected to %q", cfg.Database, err, name)
			}
			// A connection that is left open does not keep the database.
			db, err := sql.Open("postgres", dsn)
			if err != nil {
				t.Fatal(err)
			}
			atEnd(func() { db.Close() })
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		})
	}
	if len(names) != 2 || names[0] == names[1] {
		t.Errorf("two tests have the databases %q", names)
	}
	for _, name := range names {
		if n := value(t, all, "SELECT count(*) FROM pg_database WHERE datname = "+pq.QuoteLiteral(name)); n != "0" {
			t.Errorf("database %s is left", name)
		}
	}
}

// A server that runs already is used, in both forms of its DSN.
func TestRunningServer(t *testing.T) {
	server := Server(t)
	for form, dsn := range map[string]string{
		"URL": server.DSN("postgres"),
		"list": func() string {
			cfg, err := pq.NewConfig(server.DSN("postgres"))
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=postgres sslmode=disable", cfg.Host, cfg.Port, cfg.User, cfg.Password)
		}(),
	} {
		t.Run(form, func(t *testing.T) {
			t.Setenv(EnvDSN, dsn)
			if dir := value(t, DSN(t), "SHOW data_directory"); dir != server.DataDir() {
				t.Errorf("connected to the server in %s, want %s", dir, server.DataDir())
			}
			dsn, proxy := Proxy(t)
			if dir := value(t, dsn, "SHOW data_directory"); dir != server.DataDir() {
				t.Errorf("through the proxy connected to the server in %s, want %s", dir, server.DataDir())
			}
			if n := proxy.Stats().Accepted; n != 1 {
				t.Errorf("the proxy has seen %d connections, want 1", n)
			}
		})
	}
	if n := value(t, server.DSN("postgres"), "SELECT count(*) FROM pg_database WHERE NOT datistemplate"); n != "1" {
		t.Errorf("the server has %s databases left, want 1", n)
	}
}

func TestServer(t *testing.T) {
	server := Server(t, "fsync=on", "max_connections=9")
	for name, want := range map[string]string{"fsync": "on", "max_connections": "9"} {
		if got := value(t, server.DSN("postgres"), "SHOW "+name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// Through a frozen proxy a query gets no answer, and lib/pq does not honour
// its deadline: this is what the tests of the driver stand on.
func TestProxy(t *testing.T) {
	dsn, proxy := Proxy(t)
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ping(); err != nil {
		t.Fatal(err)
	}
	if got := proxy.Stats(); got.Open != 1 || got.ToServer == 0 || got.ToClient == 0 {
		t.Errorf("the proxy has seen %+v", got)
	}
	proxy.Freeze(faultproxy.Both)
	answer := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	go func() {
		var n int
		answer <- db.QueryRowContext(ctx, "SELECT 1").Scan(&n)
	}()
	<-ctx.Done()
	select {
	case err := <-answer:
		t.Fatalf("an answer through a frozen proxy: %v", err)
	case <-time.After(100 * time.Millisecond): // can only miss a fault
	}
	proxy.Cut()
	if err := <-answer; err == nil {
		t.Error("an answer through a cut connection")
	}
	proxy.Unfreeze(faultproxy.Both)
	if err := db.Ping(); err != nil {
		t.Errorf("a new connection after the cut: %v", err)
	}
}

// verdict is a testing.TB that notes how a test was ended.
type verdict struct {
	testing.TB
	said string
}

func (v *verdict) Helper()           {}
func (v *verdict) Skip(args ...any)  { v.said = "skip"; panic(v) }
func (v *verdict) Fatal(args ...any) { v.said = "fatal"; panic(v) }

// Only the lack of a PostgreSQL skips a test, and not in CI.
func TestUnavailable(t *testing.T) {
	lack := fmt.Errorf("wrapped: %w", pgserver.ErrNoPostgres)
	for _, test := range []struct {
		err      error
		ci, want string
	}{
		{lack, "", "skip"},
		{lack, "true", "fatal"},
		{errors.New("broken"), "", "fatal"},
		{errors.New("broken"), "true", "fatal"},
	} {
		t.Setenv("CI", test.ci)
		v := &verdict{}
		func() {
			defer func() { recover() }()
			unavailable(v, test.err)
		}()
		if v.said != test.want {
			t.Errorf("%v with CI=%q: %s, want %s", test.err, test.ci, v.said, test.want)
		}
	}
}

// TestChild does nothing unless another test runs it in a process of its own.
func TestChild(t *testing.T) {
	mode := os.Getenv(envChild)
	if mode == "" {
		t.Skip("is run by other tests")
	}
	DSN(t)
	Server(t)
	if mode == "interrupted" {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		select {} // the signal ends the process
	}
}

// However the tests' process ends, no server stays.
func TestNothingStays(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	DSN(t) // skips without a PostgreSQL
	for _, mode := range []string{"with Main", "without Main", "interrupted"} {
		t.Run(mode, func(t *testing.T) {
			dir, err := os.MkdirTemp("/tmp", "pgt-") // t.TempDir is closed to the server's user
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, "-test.run=^TestChild$")
			cmd.Env = append(os.Environ(), envChild+"="+mode, EnvDSN+"=", "TMPDIR="+dir)
			output, err := cmd.CombinedOutput()
			if failed := err != nil; failed != (mode == "interrupted") {
				t.Errorf("the child: %v\n%s", err, output)
			}
			homes, _ := filepath.Glob(dir + "/*")
			if mode == "without Main" {
				if len(homes) != 2 {
					t.Errorf("left: %q, want the server's directory and the template's", homes)
				}
				for _, home := range homes {
					eventually(t, "the server has removed its pid file", func() bool {
						_, err := os.Stat(home + "/data/postmaster.pid")
						return os.IsNotExist(err)
					})
				}
			} else if len(homes) > 0 {
				t.Errorf("left: %q", homes)
			}
		})
	}
}

// eventually waits until ok, for what gives no event.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	const deadline = 30 * time.Second
	for end := time.Now().Add(deadline); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v: not so: %s", deadline, what)
		}
	}
}
