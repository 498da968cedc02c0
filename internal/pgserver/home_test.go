//go:build unix

package pgserver

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestRemoveStale(t *testing.T) {
	dir := scratch(t)
	owner, err := serverUser()
	if err != nil {
		t.Skip(err)
	}
	live, err := newHome(owner)
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, homePrefix+"stale")
	if err := os.MkdirAll(filepath.Join(stale, "data", "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(dir, "outside")
	if err := os.Mkdir(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, homePrefix+"link")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, homePrefix+"file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kept := []string{live.dir, outside, link, file}
	if os.Geteuid() == 0 {
		foreign := filepath.Join(dir, homePrefix+"foreign")
		if err := os.Mkdir(foreign, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(foreign, owner.uid, owner.gid); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, foreign)
	}

	removeStale(dir, homePrefix)
	if _, err := os.Lstat(stale); !os.IsNotExist(err) {
		t.Errorf("%s is not removed: %v", stale, err)
	}
	for _, path := range kept {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s is removed: %v", path, err)
		}
	}
	if err := live.remove(); err != nil {
		t.Error(err)
	}
}

// Servers that start at the same time do not take each other's directory for stale.
func TestHomesAtOnce(t *testing.T) {
	dir := scratch(t)
	owner, err := serverUser()
	if err != nil {
		t.Skip(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 15 {
				h, err := newHome(owner)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := h.writeFile("mark", "x"); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(filepath.Join(h.dir, "mark")); err != nil {
					t.Error(err)
				}
				if err := h.remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantEmpty(t, dir)
}

// A temporary directory that the server cannot use is not used.
func TestParentDir(t *testing.T) {
	owner, err := serverUser()
	if err != nil {
		t.Skip(err)
	}
	t.Setenv("TMPDIR", filepath.Join(scratch(t), strings.Repeat("long", 25)))
	if dir, err := parentDir(owner); err != nil || dir != "/tmp" {
		t.Errorf("with a long TMPDIR: %q, %v; want /tmp", dir, err)
	}
	if owner == nil {
		return
	}
	private := scratch(t)
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", private)
	if dir, err := parentDir(owner); err != nil || dir != "/tmp" {
		t.Errorf("with a TMPDIR closed to %s: %q, %v; want /tmp", owner.name, dir, err)
	}
}
