package pgserver

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
)

// A Template makes servers copies of one finished cluster: initdb takes more than
// a second of processor time, a copy a tenth. They have the same password and the
// same system identifier. Its zero value works, its methods may be called concurrently.
//
// The cluster has a directory of its own, which the next Start on this machine
// removes if Remove was not called.
type Template struct {
	mu       sync.Mutex // guards the fields below
	home     *home      // nil: not made yet
	bin      binaries   // whose initdb has made it
	password string
}

// copy fills the data directory of s, unless the template was made by another PostgreSQL.
func (t *Template) copy(ctx context.Context, s *Server) (ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.home == nil {
		if err := t.make(ctx, s); err != nil {
			return false, err
		}
	}
	if s.bin != t.bin {
		return false, nil
	}
	s.password = t.password
	return true, copyTree(s.home, t.home.dataDir())
}

func (t *Template) make(ctx context.Context, like *Server) error {
	home, err := newHome(like.home.owner, filepath.Dir(like.home.dir))
	if err != nil {
		return err
	}
	made := &Server{bin: like.bin, home: home, password: like.password}
	if err := made.initdb(ctx); err != nil {
		return errors.Join(err, home.remove())
	}
	t.home, t.bin, t.password = home, like.bin, like.password
	return nil
}

// Remove removes the template's directory. The servers stay.
func (t *Template) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.home == nil {
		return nil
	}
	home := t.home
	t.home = nil
	return home.remove()
}
