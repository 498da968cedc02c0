package pgtest

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/lack"
)

// Bouncer is DSN through a PgBouncer in a mode: session, transaction or
// statement. It ends with the test. settings are as "default_pool_size=1".
//
// Where there is no PgBouncer (Debian: apt-get install pgbouncer) the test is
// skipped, or fails if CI is set.
func Bouncer(t testing.TB, mode string, settings ...string) string {
	t.Helper()
	dsn, _ := BouncerTo(t, SocketDSN(t), mode, settings...)
	return dsn
}

// BouncerTo is Bouncer before the database of a DSN. stop ends it before the test
// ends.
func BouncerTo(t testing.TB, database, mode string, settings ...string) (dsn string, stop func()) {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/pgbouncer") // not in every user's PATH
	}
	if err != nil {
		lack.Of(t, "PgBouncer", "Debian: apt-get install pgbouncer")
	}
	server, err := pq.NewConfig(database)
	if err != nil {
		t.Fatal("pgtest: the server's DSN is not valid") // the error may hold the password
	}
	dir, err := os.MkdirTemp("", "baldur-bouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()

	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	config := fmt.Sprintf("[databases]\n%s = host=%s port=%d user=%s dbname=%s", server.Database,
		quote(server.Host), server.Port, quote(server.User), quote(server.Database))
	if server.Password != "" {
		config += " password=" + quote(server.Password)
	}
	config += "\n[pgbouncer]\n"
	for _, s := range append([]string{
		"listen_addr=127.0.0.1", "listen_port=" + strconv.Itoa(port), "unix_socket_dir=",
		"auth_type=any", "admin_users=bouncer", "pool_mode=" + mode,
		"default_pool_size=20", "ignore_startup_parameters=extra_float_digits",
	}, settings...) {
		config += s + "\n"
	}
	path := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{path}
	if os.Geteuid() == 0 { // it refuses to be root
		name := "postgres" // who can enter the directory of pgserver's socket
		if _, err := user.Lookup(name); err != nil {
			name = "nobody"
		}
		args = []string{"-u", name, path}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := exec.Command("chown", name, path).Run(); err != nil {
			t.Fatal(err)
		}
	}
	// The shell ends it when its input does: also if this process dies.
	cmd := exec.Command("sh", append([]string{"-c", `"$@" </dev/null & read -r _; kill -KILL $!; wait $!`, "sh", program}, args...)...)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		stdin.Close()
		cmd.Wait() // its status is that of a signal
	})
	dsn = (&url.URL{
		Scheme: "postgres", User: url.UserPassword(server.User, "secret"), Path: "/" + server.Database,
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), RawQuery: "sslmode=disable",
	}).String()
	if err := answers(dsn); err != nil {
		stop()
		t.Fatalf("pgtest: PgBouncer does not start: %v\n%s", err, log.String())
	}
	t.Cleanup(stop)
	return dsn, stop
}

// answers waits until the server of a DSN answers.
func answers(dsn string) error {
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		_, err := db.ExecContext(ctx, "SELECT 1")
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
