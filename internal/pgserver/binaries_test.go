//go:build unix

package pgserver

import (
	"archive/zip"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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

// archive is a .txz of scripts named as PostgreSQL's programs, of which
// initdb and postgres know --version and nothing else.
const archive = "" +
	"/Td6WFoAAAFpIt42AgAhARwAAAAQz1jM4Cf/AMldADEaShsO1TDyWxuE7yh9tnRTrysNXAd2cu/lxabLVkmF7kX84vFXu7denT96" +
	"YdMhFVw70m90ZJ3bUp4ZqU+aG6JHgL9maXuRzsihjG4tCUSexH4EMD1yChhAwUIKs32bQwjE74QUhNXigkGtbwT+Ym7h5GHw+n5f" +
	"wX8qUueBqt95U+RqwKkPBaHWFzPSKv+EIsQdig47+ifMpn32FgE7LPREAUCMcx23m72/KNoGW8ouxubvSiY8pW7zXPqhBd7cEPbe" +
	"sNgOFAk2AAAAAAA8vteSAAHhAYBQAADBrciiPjANiwIAAAAAAVla"

func TestDownload(t *testing.T) {
	requests := 0
	repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		if strings.HasSuffix(r.URL.Path, ".sha256") {
			http.NotFound(w, r)
			return
		}
		txz, err := base64.StdEncoding.DecodeString(archive)
		if err != nil {
			t.Error(err)
		}
		jar := zip.NewWriter(w)
		file, err := jar.Create("postgres.txz")
		if err != nil {
			t.Error(err)
		}
		file.Write(txz)
		jar.Close()
	}))
	defer repository.Close()
	cache := filepath.Join(scratch(t), "cache")

	for _, want := range []int{3, 3} { // reachable? archive, checksum, and then no more
		dir, err := downloadBinaries(t.Context(), cache, repository.URL, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		owner, err := serverUser()
		if err != nil {
			t.Skip(err)
		}
		bin, err := checkBinaries(t.Context(), dir, owner, dir)
		if err != nil {
			t.Fatal(err)
		}
		if bin.version != "18.99" {
			t.Errorf("downloaded version %s, want 18.99", bin.version)
		}
		if requests != want {
			t.Errorf("%d requests, want %d", requests, want)
		}
	}
	if entries, _ := os.ReadDir(cache); len(entries) != 1 {
		t.Errorf("the cache holds %v, want the binaries only", entries)
	}
}

func TestDownloadFails(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	block := make(chan struct{})
	repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/silent/io/") {
			cancel()
			<-block
		}
		http.NotFound(w, r)
	}))
	defer repository.Close()
	cache := filepath.Join(scratch(t), "cache")

	if dir, err := downloadBinaries(t.Context(), cache, repository.URL, func(string) {}); err == nil {
		t.Errorf("nothing was there to download, got %s", dir)
	}
	const nobody = "http://127.0.0.1:1" // as on a closed network
	if dir, err := downloadBinaries(t.Context(), cache, nobody, func(string) {}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody was there to ask: %s, %v", dir, err)
	}
	dir, err := downloadBinaries(ctx, cache, repository.URL+"/silent", func(string) {})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled download: %s, %v", dir, err)
	}
	close(block)
	eventually(t, "the cache is empty", func() bool { return empty(t, cache) })
}
