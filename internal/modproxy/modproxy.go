// Package modproxy publishes the modules of a checkout where only one program
// finds them, as if they were released: in a GOPROXY of files, under a version
// of its own. So what a user of a release meets is tried before there is one.
package modproxy

import (
	"archive/zip"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

const ours = "github.com/baldur-go/baldur"

// Module is a module of the checkout.
type Module struct {
	Path string // as in its go.mod
	Dir  string // in the checkout, relative to its root
}

// Published are the modules of a checkout, each at Version and requiring the
// others at Version.
type Published struct {
	Version string
	Modules []Module // the root first

	// Dir is a copy of the checkout without go.work, in which a module is built
	// from the others' releases.
	Dir string

	// Env is what the go command needs to find them, for exec.Cmd.Env after os.Environ().
	Env []string

	modCache string
}

// Publish publishes the checkout at root within the directory scratch.
func Publish(root, scratch string) (*Published, error) {
	random := make([]byte, 8)
	rand.Read(random)
	p := &Published{Version: "v0.0.1-x" + hex.EncodeToString(random), Dir: filepath.Join(scratch, "checkout")}
	proxy := filepath.Join(scratch, "proxy")
	modules, err := find(root)
	if err != nil {
		return nil, err
	}
	p.Modules = modules
	if err := p.copy(root); err != nil {
		return nil, err
	}
	for _, m := range modules {
		if err := p.publish(m, proxy); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Path, err)
		}
	}
	out, err := goCommand(root, nil, "env", "GOMODCACHE", "GOPROXY")
	if err != nil {
		return nil, err
	}
	values := strings.Split(string(out), "\n")
	p.modCache = values[0]
	p.Env = []string{
		"GOWORK=off",
		"GOPROXY=" + fileURL(proxy) + "," + fileURL(filepath.Join(p.modCache, "cache", "download")) + "," + values[1],
		"GOSUMDB=off", // it has none of ours, and a machine without a network does not reach it
		"GOFLAGS=-buildvcs=false",
	}
	return p, nil
}

// Go runs the go command in a directory, with Env.
func (p *Published) Go(dir string, args ...string) ([]byte, error) {
	return goCommand(dir, p.Env, args...)
}

func goCommand(dir string, env []string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("go %s: %w\n%s%s", strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

// fileURL is the URL of an absolute path, a Windows one too: file:///C:/x.
func fileURL(path string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// Unpublish removes what the go command keeps of the modules.
func (p *Published) Unpublish() error {
	var errs []error
	for _, m := range p.Modules {
		code := filepath.Join(p.modCache, filepath.FromSlash(m.Path)+"@"+p.Version)
		filepath.WalkDir(code, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				errs = append(errs, os.Chmod(path, 0o755)) // the go command leaves it read-only
			}
			return nil
		})
		errs = append(errs, os.RemoveAll(code))
		downloads, err := filepath.Glob(filepath.Join(p.modCache, "cache", "download", filepath.FromSlash(m.Path), "@v", p.Version+".*"))
		errs = append(errs, err)
		for _, file := range downloads {
			errs = append(errs, os.RemoveAll(file))
		}
	}
	return errors.Join(errs...)
}

// find returns the modules of a checkout, the root first.
func find(root string) ([]Module, error) {
	var modules []Module
	err := walk(os.DirFS(root), true, func(name string) error {
		if path.Base(name) != "go.mod" {
			return nil
		}
		dir := path.Dir(name)
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(string(text), "\n")
		m := Module{Path: strings.TrimPrefix(first, "module "), Dir: dir}
		if want := path.Join(ours, dir); m.Path != want {
			return fmt.Errorf("%s: its first line is %q, and not \"module %s\"", name, first, want)
		}
		if dir == "." {
			modules = append([]Module{m}, modules...)
		} else {
			modules = append(modules, m)
		}
		return nil
	})
	return modules, err
}

// walk calls f with the files that a module's zip has: not with hidden ones, what
// the tests leave, and, unless nested is set, modules below.
func walk(root fs.FS, nested bool, f func(name string) error) error {
	return fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == ".":
			return nil
		case d.IsDir():
			_, err := fs.Stat(root, name+"/go.mod")
			if strings.HasPrefix(d.Name(), ".") || err == nil && !nested {
				return fs.SkipDir
			}
			return nil
		case !d.Type().IsRegular() || path.Ext(name) == ".test":
			return nil
		}
		return f(name)
	})
}

// copy copies the checkout at root to Dir, and there sets the version.
func (p *Published) copy(root string) error {
	err := walk(os.DirFS(root), true, func(name string) error {
		if name == "go.work" || name == "go.work.sum" {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			return err
		}
		to := filepath.Join(p.Dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, text, info.Mode().Perm())
	})
	if err != nil {
		return err
	}
	for _, m := range p.Modules {
		if err := setVersion(filepath.Join(p.Dir, m.Dir, "go.mod"), p.Version); err != nil {
			return err
		}
	}
	return nil
}

// setVersion sets the version that a go.mod requires of our modules.
func setVersion(file, version string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		fields := strings.Fields(strings.TrimPrefix(line, "require "))
		if len(fields) > 1 && isOurs(fields[0]) && strings.HasPrefix(fields[1], "v") {
			lines[i] = strings.Replace(line, fields[0]+" "+fields[1], fields[0]+" "+version, 1)
		}
	}
	return os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644)
}

func isOurs(module string) bool { return module == ours || strings.HasPrefix(module, ours+"/") }

// WithoutOurSums returns a go.sum without the lines of our modules.
func WithoutOurSums(sums []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(sums) {
		if name, _, _ := bytes.Cut(line, []byte(" ")); !isOurs(string(name)) {
			b.Write(line)
		}
	}
	return b.Bytes()
}

// publish writes what a GOPROXY has of a module.
func (p *Published) publish(m Module, proxy string) error {
	dir := filepath.Join(p.Dir, m.Dir)
	versions := filepath.Join(proxy, filepath.FromSlash(m.Path), "@v")
	if err := os.MkdirAll(versions, 0o755); err != nil {
		return err
	}
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"list":              p.Version + "\n",
		p.Version + ".info": fmt.Sprintf(`{"Version":%q,"Time":"2026-01-01T00:00:00Z"}`, p.Version),
		p.Version + ".mod":  string(mod),
	} {
		if err := os.WriteFile(filepath.Join(versions, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	f, err := os.Create(filepath.Join(versions, p.Version+".zip"))
	if err != nil {
		return err
	}
	w := zip.NewWriter(f)
	err = walk(os.DirFS(dir), false, func(name string) error {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		entry, err := w.Create(m.Path + "@" + p.Version + "/" + name)
		if err == nil {
			_, err = entry.Write(text)
		}
		return err
	})
	return errors.Join(err, w.Close(), f.Close())
}
