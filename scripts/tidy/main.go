// Command tidy runs go mod tidy in each module of the checkout as if the others
// were released at the version that it requires of them, which the go command
// cannot do by itself before they are: within a workspace, too, it asks the proxy.
//
//	go run ./scripts/tidy [-diff]
//
// With -diff it changes nothing, prints what it would change, and fails if that is anything.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/baldur-go/baldur/internal/modproxy"
)

func main() {
	diff := flag.Bool("diff", false, "change nothing, and fail where something would be changed")
	flag.Parse()
	if err := tidy(*diff); err != nil {
		fmt.Fprintln(os.Stderr, "tidy:", err)
		os.Exit(1)
	}
}

func tidy(diff bool) (err error) {
	scratch, err := os.MkdirTemp("", "baldur-tidy-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	published, err := modproxy.Publish(".", scratch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, published.Unpublish()) }()
	var untidy []string
	for _, m := range published.Modules {
		if _, err := published.Go(filepath.Join(published.Dir, m.Dir), "mod", "tidy"); err != nil {
			return fmt.Errorf("%s: %w", m.Path, err)
		}
		for _, name := range []string{"go.mod", "go.sum"} {
			file := filepath.Join(m.Dir, name)
			was, err := os.ReadFile(file)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			tidied, err := os.ReadFile(filepath.Join(published.Dir, file))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			if name == "go.sum" {
				// The sum of a release is not known before there is one.
				tidied = modproxy.WithoutOurSums(tidied)
			} else if version := requiredVersion.FindSubmatch(was); version != nil {
				tidied = bytes.ReplaceAll(tidied, []byte(published.Version), version[1])
			}
			if m.Dir == "." && bytes.Contains(tidied, []byte(published.Version)) {
				return errors.New("the root imports a module of this repository that requires it")
			}
			if bytes.Equal(was, tidied) {
				continue
			}
			untidy = append(untidy, file)
			if diff {
				fmt.Printf("%s should be\n%s", file, tidied)
			} else if err := os.WriteFile(file, tidied, 0o644); err != nil {
				return err
			}
		}
	}
	if diff && len(untidy) > 0 {
		return fmt.Errorf("not tidy: %v; run go run ./scripts/tidy", untidy)
	}
	return nil
}

var requiredVersion = regexp.MustCompile(`github\.com/baldur-go/baldur\S* (v\S+)`)
