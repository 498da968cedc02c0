package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// account is the user that the server runs as when we are root.
type account struct {
	name     string
	uid, gid int
}

// serverUser returns whom to run the server as; nil means as ourselves.
func serverUser() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("user %q: %w", name, err)
		}
		return &account{name, uid, gid}, nil
	}
	return nil, errors.New(`PostgreSQL does not run as root, and there is neither a user "postgres" nor "nobody" to run it as`)
}

// canEnter says whether everybody, and so the server's user, can enter a directory.
func (a *account) canEnter(dir string) error {
	if a == nil {
		return nil
	}
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("directory %s: user %q, who runs the server, cannot enter it", dir, a.name)
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil
		}
		dir = up
	}
}

func (a *account) cannotRun(path string, err error) error {
	return fmt.Errorf("%w: PostgreSQL does not run as root but as user %q, who must be able to read %s and enter the directories above it",
		err, a.name, path)
}
