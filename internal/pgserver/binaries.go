package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// ErrNoPostgres says that this machine has no PostgreSQL and that none can be downloaded.
var ErrNoPostgres = errors.New("no PostgreSQL found: install it (Debian: apt-get install postgresql; macOS: brew install postgresql), " +
	"or set BALDUR_PGBIN to the directory of its initdb and postgres")

// EnvBinDir names the environment variable with the directory of initdb and postgres.
const EnvBinDir = "BALDUR_PGBIN"

// places are where packages install the binaries.
var places = []string{
	"/usr/lib/postgresql/*/bin",            // Debian, Ubuntu
	"/usr/pgsql-*/bin",                     // postgresql.org's RPMs
	"/opt/homebrew/opt/postgresql@*/bin",   // macOS
	"/usr/local/opt/postgresql@*/bin",      // macOS on Intel
	"/usr/libexec/postgresql*",             // Alpine
	"/Library/PostgreSQL/*/bin",            // EDB's installer
	"/Applications/Postgres.app/*/*/*/bin", // Postgres.app
}

// binaries are the programs of one PostgreSQL.
type binaries struct {
	dir     string
	version string
}

func (b binaries) path(program string) string { return filepath.Join(b.dir, program) }

// findBinaries finds binaries that the server's user can run.
func findBinaries(ctx context.Context, dir string, owner *account, progress func(string)) (binaries, error) {
	if dir != "" {
		return checkBinaries(ctx, dir, owner, "BinDir "+dir)
	}
	if dir := os.Getenv(EnvBinDir); dir != "" {
		return checkBinaries(ctx, dir, owner, EnvBinDir+"="+dir)
	}
	if dir := installedBinaries(); dir != "" {
		return checkBinaries(ctx, dir, owner, dir)
	}
	dir, err := Download(ctx, progress)
	if err != nil {
		return binaries{}, fmt.Errorf("%w (a download was tried: %w)", ErrNoPostgres, err)
	}
	return checkBinaries(ctx, dir, owner, dir)
}

// installedBinaries returns the directory of initdb, "" if there is none.
func installedBinaries() string {
	if path, err := exec.LookPath("initdb"); err == nil {
		// Beside the link's target lies postgres, and not always beside the link.
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path)
		}
	}
	var found []string
	for _, place := range places {
		paths, _ := filepath.Glob(filepath.Join(place, "initdb"))
		found = append(found, paths...)
	}
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int {
		return versionInPath(a) - versionInPath(b)
	}))
}

var firstNumber = regexp.MustCompile(`\d+`)

func versionInPath(path string) int {
	n, _ := strconv.Atoi(firstNumber.FindString(path))
	return n
}

var versionNumber = regexp.MustCompile(`\) (\d+\S*)`) // of "postgres (PostgreSQL) 18.4"

// checkBinaries runs both programs as the server's user and asks the version.
func checkBinaries(ctx context.Context, dir string, owner *account, culprit string) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, fmt.Errorf("%s: %w", culprit, err)
	}
	b := binaries{dir: dir}
	for _, program := range []string{"initdb", "postgres"} {
		path := b.path(program)
		cmd := exec.CommandContext(ctx, path, "--version")
		cmd.Dir = "/"
		cmd.Env = environment()
		cmd.SysProcAttr = processAttributes(owner, kill)
		output, err := cmd.CombinedOutput()
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if errors.Is(err, os.ErrPermission) && owner != nil {
				err = owner.cannotRun(path, err)
			}
			return binaries{}, fmt.Errorf("%s is not usable: %s: %w %s", culprit, program, err, bytes.TrimSpace(output))
		}
		match := versionNumber.FindSubmatch(output)
		if match == nil {
			return binaries{}, fmt.Errorf("%s is not usable: %s is not PostgreSQL's, it says %.80q", culprit, path, output)
		}
		b.version = string(match[1])
	}
	return b, nil
}
