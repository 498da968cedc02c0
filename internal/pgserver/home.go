package pgserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// homePrefix begins the name of every server's directory.
const homePrefix = "baldur-pg-"

// home is the directory of one server: the cluster in data, the socket in s.
// It is locked as long as a process needs it; without a lock it is stale.
type home struct {
	dir   string
	lock  *os.File // dir, opened and locked
	owner *account // whom the server runs as; nil: as we do
}

// newHome makes a directory, after removing those of dead programs. It is in the
// first usable one of prefer and parentDir's.
func newHome(owner *account, prefer ...string) (*home, error) {
	parent, err := parentDir(owner, prefer...)
	if err != nil {
		return nil, err
	}
	removeStale(parent, homePrefix)
	dir, lock, err := makeLockedDir(parent, homePrefix)
	if err != nil {
		return nil, err
	}
	h := &home{dir: dir, lock: lock, owner: owner}
	if err := h.furnish(); err != nil {
		return nil, errors.Join(err, h.remove())
	}
	return h, nil
}

func (h *home) dataDir() string   { return filepath.Join(h.dir, "data") }
func (h *home) socketDir() string { return filepath.Join(h.dir, "s") }

// furnish lets the server's user in, and gives it directories of its own. The
// directory itself stays ours: the server's user can neither move nor remove it.
func (h *home) furnish() error {
	if h.owner != nil {
		if err := os.Chown(h.dir, -1, h.owner.gid); err != nil {
			return err
		}
		if err := os.Chmod(h.dir, 0o710); err != nil {
			return err
		}
	}
	for _, dir := range []string{h.dataDir(), h.socketDir()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := h.give(dir); err != nil {
			return err
		}
	}
	return nil
}

// writeFile makes a file that only the server's user, and root, can read.
func (h *home) writeFile(name, content string) (string, error) {
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return "", err
	}
	return path, h.give(path)
}

// writeSparse is writeFile with holes for what is zero at the end, as most of a WAL file is.
func (h *home) writeSparse(name string, content []byte) error {
	path, err := h.writeFile(name, string(bytes.TrimRight(content, "\x00")))
	if err != nil {
		return err
	}
	return os.Truncate(path, int64(len(content)))
}

func (h *home) give(path string) error {
	if h.owner == nil {
		return nil
	}
	return os.Chown(path, h.owner.uid, h.owner.gid)
}

// remove removes the directory, then lets go of the lock.
func (h *home) remove() error {
	return errors.Join(os.RemoveAll(h.dir), h.lock.Close())
}

// removeSharedMemory removes the System V segment that a killed postmaster
// leaves in the kernel; its next start would, but may never come. Best effort.
func (h *home) removeSharedMemory() {
	pidFile, err := os.ReadFile(filepath.Join(h.dataDir(), "postmaster.pid"))
	if err != nil {
		return
	}
	lines := strings.Split(string(pidFile), "\n")
	if len(lines) < 7 { // storage/pg_shmem.h: line 7 is the segment's key and id
		return
	}
	if ids := strings.Fields(lines[6]); len(ids) == 2 {
		exec.Command("ipcrm", "-m", ids[1]).Run()
	}
}

// parentDir returns where to put directories: the temporary directory, unless
// the server's user cannot enter it or a socket's path in it would be too long.
func parentDir(owner *account, prefer ...string) (string, error) {
	const socket = homePrefix + "1234567890/s/.s.PGSQL.65535"
	const longest = 103 // bytes of sockaddr_un.sun_path on macOS; 107 on Linux
	var errs []error
	for _, dir := range append(prefer, os.TempDir(), "/tmp") {
		if dir == "" {
			continue
		}
		if len(filepath.Join(dir, socket)) > longest {
			errs = append(errs, fmt.Errorf("directory %s: its name is too long for a Unix socket", dir))
		} else if err := owner.canEnter(dir); err != nil {
			errs = append(errs, err)
		} else {
			return dir, nil
		}
	}
	return "", errors.Join(errs...)
}

// makeLockedDir makes a directory that removeStale keeps as long as it is locked.
func makeLockedDir(parent, prefix string) (string, *os.File, error) {
	for {
		dir, err := os.MkdirTemp(parent, prefix)
		if err != nil {
			return "", nil, err
		}
		lock, err := lockDir(dir)
		if err == nil {
			return dir, lock, nil
		}
		if !errors.Is(err, errLocked) && !errors.Is(err, os.ErrNotExist) {
			return "", nil, errors.Join(err, os.Remove(dir))
		} // between the two calls another program took it for stale
	}
}

// removeStale removes directories that no living process has locked.
func removeStale(parent, prefix string) {
	dirs, _ := filepath.Glob(filepath.Join(parent, prefix+"*"))
	for _, dir := range dirs {
		if lock, err := lockDir(dir); err == nil {
			os.RemoveAll(dir)
			lock.Close()
		}
	}
}
