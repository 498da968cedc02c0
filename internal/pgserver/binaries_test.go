//go:build unix

package pgserver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeProgram(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestBadBinDir(t *testing.T) {
	dir := scratch(t)
	other := filepath.Join(dir, "other")
	for _, name := range []string{"initdb", "postgres"} {
		writeProgram(t, other, name, "echo something else 1.0")
	}
	half := filepath.Join(dir, "half")
	writeProgram(t, half, "initdb", "echo 'initdb (PostgreSQL) 18.99'")
	broken := filepath.Join(dir, "broken")
	writeProgram(t, broken, "initdb", "echo 'libfoo.so: not found' >&2; exit 127")
	closed := filepath.Join(dir, "closed")
	for _, name := range []string{"initdb", "postgres"} {
		writeProgram(t, closed, name, "echo '"+name+" (PostgreSQL) 18.99'")
	}
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(closed, 0o700) }) // so that it can be removed
	missing := filepath.Join(dir, "missing")

	for bin, wants := range map[string][]string{
		missing: {"no such file"},
		half:    {"postgres", "no such file"},
		other:   {"not PostgreSQL's", "something else 1.0"},
		broken:  {"exit status 127", "libfoo.so: not found"},
		closed:  {"permission denied"},
	} {
		for how, run := range map[string]func() error{
			"BinDir " + bin: func() error {
				_, err := Start(t.Context(), Config{BinDir: bin})
				return err
			},
			EnvBinDir + "=" + bin: func() error {
				t.Setenv(EnvBinDir, bin)
				_, err := Start(t.Context(), Config{})
				return err
			},
		} {
			err := run()
			if err == nil {
				t.Fatalf("%s: a server started", how)
			}
			for _, want := range append(wants, how) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%s: the error does not say %q: %v", how, want, err)
				}
			}
			if errors.Is(err, ErrNoPostgres) {
				t.Errorf("%s: a wrong choice is not a lack: %v", how, err)
			}
		}
	}
}

func TestVersionInPath(t *testing.T) {
	for _, pair := range [][2]string{
		{"/usr/lib/postgresql/9.6/bin/initdb", "/usr/lib/postgresql/15/bin/initdb"},
		{"/usr/lib/postgresql/15/bin/initdb", "/usr/pgsql-18/bin/initdb"},
		{"/usr/libexec/postgresql/initdb", "/usr/libexec/postgresql16/initdb"},
	} {
		if old, new := versionInPath(pair[0]), versionInPath(pair[1]); old >= new {
			t.Errorf("%s has version %d, %s has %d", pair[0], old, pair[1], new)
		}
	}
}
