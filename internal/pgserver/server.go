// Package pgserver starts a throw-away PostgreSQL for the demo and the tests.
//
// A server lives in a private directory of its own. It is reached over TCP on
// 127.0.0.1 with a random password (other users of the machine can reach the
// port too), and without one through a Unix socket in a directory that only
// its owner can enter.
//
// Nothing outlives the server:
//
//   - Stop, and the end of the context given to Start, stop it and remove its directory;
//   - it has a process group of its own, so Ctrl-C does not reach it half-way
//     through the program's own clean-up: handle the signal and call Stop
//     (signal.NotifyContext with Start's ctx does both);
//   - when the program dies without clean-up (a panic, kill -9), Linux tells
//     the server to quit at once; the directory that is left is removed by the next
//     Start on this machine. Elsewhere a server whose parent was killed stays.
//
// PostgreSQL refuses to run as root. When the program is root the server runs
// as the user "postgres", else "nobody", who must be able to read the binaries.
package pgserver

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

// Superuser is the role that DSN and SocketDSN connect as.
const Superuser = "postgres"

const (
	startTimeout = 60 * time.Second // initdb, and crash recovery on a slow disk
	stopTimeout  = 20 * time.Second // an immediate shutdown kills what is left after 5 s
)

// Config says how to start a server. Its zero value works.
type Config struct {
	// BinDir is the directory of initdb and postgres. When empty they are
	// looked for in $BALDUR_PGBIN, in $PATH, in the places where packages
	// install them (the newest version wins), and are downloaded at last.
	BinDir string

	// Progress, if not nil, is told in a few words what is being waited for.
	Progress func(string)

	// Settings are server settings ("max_connections": "20"). They win over
	// the defaults, which trade durability for speed: fsync,
	// synchronous_commit and full_page_writes are off.
	Settings map[string]string

	// Env is added to the environment of the server's processes, as "NAME=value".
	Env []string

	// Dir is where the server's directory is made, if its user can enter that; else
	// it is made in the directory for temporary files.
	Dir string

	// Template, if not nil, is where a finished cluster is copied from.
	Template *Template
}

// Server is a running PostgreSQL. Its methods may be called concurrently.
type Server struct {
	bin      binaries
	home     *home
	settings map[string]string
	env      []string
	password string
	port     int
	release  func() bool // detaches Stop from Start's ctx

	mu      sync.Mutex // guards the fields below
	proc    *process
	stopped bool
}

// Start creates a database cluster, starts a server on it and waits until it
// accepts connections. The server is stopped when ctx ends, so pass a context
// that lives as long as the server is wanted. The error is ErrNoPostgres
// (errors.Is) when there are no binaries to be had.
func Start(ctx context.Context, cfg Config) (_ *Server, err error) {
	progress := cfg.Progress
	if progress == nil {
		progress = func(string) {}
	}
	owner, err := serverUser()
	if err != nil {
		return nil, fmt.Errorf("pgserver: %w", err)
	}
	bin, err := findBinaries(ctx, cfg.BinDir, owner, progress)
	if err != nil {
		return nil, fmt.Errorf("pgserver: %w", err)
	}
	home, err := newHome(owner, cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("pgserver: %w", err)
	}
	defer func() {
		if err != nil {
			home.remove()
		}
	}()

	s := &Server{bin: bin, home: home, password: randomPassword(), env: cfg.Env, settings: map[string]string{
		"fsync":              "off",
		"synchronous_commit": "off",
		"full_page_writes":   "off",
	}}
	for name, value := range cfg.Settings {
		s.settings[name] = value
	}
	progress(fmt.Sprintf("initialising PostgreSQL %s (%s)", bin.version, bin.dir))
	if err := s.create(ctx, cfg.Template); err != nil {
		return nil, fmt.Errorf("pgserver: %w", err)
	}
	progress("starting PostgreSQL " + bin.version)
	if err := s.startOnFreePort(ctx); err != nil {
		return nil, fmt.Errorf("pgserver: %w", err)
	}
	s.release = context.AfterFunc(ctx, func() { s.Stop() })
	return s, nil
}

// DSN returns the URL of a database over TCP. It holds the password.
func (s *Server) DSN(database string) string { return s.DSNAt(s.Addr(), database) }

// DSNAt is DSN for another address that leads to this server, as a proxy's.
func (s *Server) DSNAt(addr, database string) string {
	return (&url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(Superuser, s.password),
		Host:     addr,
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}).String()
}

// SocketDSN returns the URL of a database over the Unix socket.
func (s *Server) SocketDSN(database string) string {
	return (&url.URL{
		Scheme: "postgres",
		Path:   "/" + database,
		RawQuery: url.Values{
			"host":    {s.home.socketDir()},
			"port":    {strconv.Itoa(s.port)},
			"user":    {Superuser},
			"sslmode": {"disable"},
		}.Encode(),
	}).String()
}

// Addr returns the TCP address, as "127.0.0.1:15432".
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Version returns the version of the server, as "15.18".
func (s *Server) Version() string { return s.bin.version }

// DataDir returns the directory of the database cluster.
func (s *Server) DataDir() string { return s.home.dataDir() }

// PostmasterPID returns the process id of the postmaster, 0 when it is down.
func (s *Server) PostmasterPID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil || s.proc.exited() {
		return 0
	}
	return s.proc.pid
}

// Log returns the end of the server's log since it last started.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return ""
	}
	return s.proc.log.String()
}

// CreateDatabase creates an empty database.
func (s *Server) CreateDatabase(ctx context.Context, name string) error {
	connector, err := pq.NewConnector(s.SocketDSN("postgres"))
	if err != nil {
		return fmt.Errorf("pgserver: %w", err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+pq.QuoteIdentifier(name)); err != nil {
		return fmt.Errorf("pgserver: creating database %q: %w", name, err)
	}
	return nil
}

// Stop ends the server and every connection at once, waits until its last
// process is gone, and removes its directory. Further calls do nothing.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil
	}
	if s.release != nil {
		s.release()
	}
	// The data is thrown away, so there is nothing to write out first.
	if err := s.endLocked(quit); err != nil {
		return err
	}
	s.stopped = true
	if err := s.home.remove(); err != nil {
		return fmt.Errorf("pgserver: %w", err)
	}
	return nil
}

// Crash kills the postmaster with SIGKILL, as the kernel does when memory runs
// out, and waits until its last process is gone. Restart brings the server back.
func (s *Server) Crash() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endLocked(kill)
}

// Restart shuts the server down, disconnecting everybody, and starts it again
// at the same address. A server that is down is started.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errors.New("pgserver: restart of a stopped server")
	}
	if err := s.endLocked(shutDown); err != nil {
		return err
	}
	if err := s.startLocked(ctx); err != nil {
		return fmt.Errorf("pgserver: %w", err)
	}
	return nil
}

// endLocked ends the process by the signal and waits until it is gone.
func (s *Server) endLocked(sig endSignal) error {
	if s.proc == nil {
		return nil
	}
	if err := s.proc.end(sig, stopTimeout); err != nil {
		return fmt.Errorf("pgserver: %w", err)
	}
	if sig == kill {
		s.home.removeSharedMemory()
	}
	return nil
}

// create makes the database cluster.
func (s *Server) create(ctx context.Context, from *Template) error {
	if from != nil {
		if ok, err := from.copy(ctx, s); ok || err != nil {
			return err
		}
	}
	return s.initdb(ctx)
}

func (s *Server) initdb(ctx context.Context) error {
	passwordFile, err := s.home.writeFile("password", s.password+"\n")
	if err != nil {
		return err
	}
	defer os.Remove(passwordFile)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return run(ctx, s.home, s.bin.path("initdb"),
		"--pgdata="+s.home.dataDir(), "--username="+Superuser, "--pwfile="+passwordFile,
		"--auth-local=trust", "--auth-host=scram-sha-256",
		"--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
}

// startOnFreePort starts the server on a port that nobody uses. PostgreSQL
// cannot choose one itself, and another program may be faster.
func (s *Server) startOnFreePort(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for range 5 {
		if s.port, err = freePort(); err != nil {
			return err
		}
		if err = s.startLocked(ctx); err == nil || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
	}
	return err
}

func (s *Server) startLocked(ctx context.Context) error {
	args := []string{"-D", s.home.dataDir()}
	for name, value := range s.settings {
		args = append(args, "-c", name+"="+value)
	}
	// Last, because the last one wins: what this package relies on.
	for _, setting := range []string{
		"listen_addresses=127.0.0.1",
		"port=" + strconv.Itoa(s.port),
		"unix_socket_directories=" + s.home.socketDir(),
		"logging_collector=off",
		"log_destination=stderr",
		"lc_messages=C",
		"dynamic_shared_memory_type=mmap", // in the data directory: a crash leaves the others in the kernel
	} {
		args = append(args, "-c", setting)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	proc, err := startProcess(ctx, s.home, s.env, s.bin.path("postgres"), args...)
	if err != nil {
		return err
	}
	s.proc = proc
	return nil
}

// freePort returns a TCP port that is free now. It is taken from below the
// range out of which systems give ports to outgoing connections, so that it is
// still free when a crashed server comes back to it.
func freePort() (int, error) {
	var err error
	for range 100 {
		var b [2]byte
		rand.Read(b[:])
		port := 15000 + (int(b[0])<<8|int(b[1]))%17000
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			l.Close()
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free TCP port: %w", err)
}

func randomPassword() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}
