package pgserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/lib/pq"
)

// Standby returns a new server that follows this one by asynchronous streaming
// replication. It accepts read-only connections, until Promote. It is this one's
// copy, password included, and is stopped on its own: by Stop, or when ctx ends.
func (s *Server) Standby(ctx context.Context) (_ *Server, err error) {
	home, err := newHome(s.home.owner, filepath.Dir(s.home.dir))
	if err != nil {
		return nil, fmt.Errorf("pgserver: %w", err)
	}
	defer func() {
		if err != nil {
			_ = home.remove()
		}
	}()
	if err := s.backup(ctx, home); err != nil {
		return nil, fmt.Errorf("pgserver: copying the server: %w", err)
	}
	standby := &Server{bin: s.bin, home: home, password: s.password, env: s.env, settings: maps.Clone(s.settings)}
	standby.settings["primary_conninfo"] = fmt.Sprintf("host='%s' port=%d user=%s", s.home.socketDir(), s.port, Superuser)
	if err := standby.startOnFreePort(ctx); err != nil {
		return nil, fmt.Errorf("pgserver: %w", err)
	}
	standby.release = context.AfterFunc(ctx, func() { _ = standby.Stop() })
	return standby, nil
}

// Promote makes a standby a server of its own, on a new timeline. The one that it
// has followed must not be reachable any more.
func (s *Server) Promote(ctx context.Context) error {
	return s.admin(ctx, func(conn *sql.Conn) error {
		var ok bool
		if err := conn.QueryRowContext(ctx, "SELECT pg_promote()").Scan(&ok); err != nil || !ok {
			return fmt.Errorf("pgserver: the standby is not promoted (%v): %w", ok, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.settings, "primary_conninfo")
		return nil
	})
}

// backup copies the data into a home, as pg_basebackup does, which not every
// package of PostgreSQL has.
func (s *Server) backup(ctx context.Context, to *home) error {
	return s.admin(ctx, func(conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, "SELECT pg_backup_start('standby', true)"); err != nil {
			return err
		}
		if err := copyTree(to, s.home.dataDir()); err != nil {
			return err
		}
		var label string
		if err := conn.QueryRowContext(ctx, "SELECT labelfile FROM pg_backup_stop(false)").Scan(&label); err != nil {
			return err
		}
		for name, content := range map[string]string{"backup_label": label, "standby.signal": ""} {
			if _, err := to.writeFile(filepath.Join("data", name), content); err != nil {
				return err
			}
		}
		return nil
	})
}

// copyTree copies a data directory that is in use. What vanishes meanwhile the
// WAL does not need.
func copyTree(to *home, from string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, from)
		target := filepath.Join(to.dataDir(), name)
		switch {
		case name == "" || name == "/postmaster.pid" || name == "/postmaster.opts":
			return nil
		case entry.IsDir():
			if err := os.Mkdir(target, 0o700); err != nil {
				return err
			}
			return to.give(target)
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return to.writeSparse(filepath.Join("data", name), content)
	})
}

// admin calls f with a connection to the database postgres.
func (s *Server) admin(ctx context.Context, f func(*sql.Conn) error) error {
	connector, err := pq.NewConnector(s.SocketDSN("postgres"))
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer func() { _ = db.Close() }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return f(conn)
}
