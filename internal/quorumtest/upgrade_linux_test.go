package quorumtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur/internal/pgtest"
)

// landed is the last commit whose processes look for the lease table by the
// search_path.
const landed = "d70734f"

// buildLanded builds this test program, as which the clients run, as it was.
func buildLanded(t *testing.T) (bin string) {
	t.Helper()
	dir := t.TempDir()
	unavailable := func(err error) {
		if os.Getenv("CI") == "" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	source := filepath.Join(dir, "landed")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(dir, name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, bytes.TrimSpace(out))
		}
		return nil
	}
	tar := filepath.Join(dir, "landed.tar")
	if err := run("../..", "git", "archive", "--output="+tar, landed); err != nil { // no git, no repository, or not all of its history
		unavailable(err)
	}
	if err := run(source, "tar", "-xf", tar); err != nil {
		unavailable(err)
	}
	bin = filepath.Join(dir, "client")
	args := []string{"test", "-c", "-vet=off", "-o", bin}
	if raceDetector {
		args = append(args, "-race")
	}
	if err := run(source, "go", append(args, "./internal/quorumtest")...); err != nil { // modules of its own may be missing here
		unavailable(err)
	}
	return bin
}

// TestRollingUpgrade runs the landed version and this one beside each other, from
// either on an empty database on, and replaces the processes of the one by those
// of the other, and back again, one by one: by ending them, or by kill -9.
func TestRollingUpgrade(t *testing.T) {
	server := pgtest.Server(t, serverSettings...) // first: without one there is nothing to build for
	programs := map[string]string{"landed": buildLanded(t), "new": self(t)}
	for _, versions := range [][2]string{{"landed", "new"}, {"new", "landed"}} {
		t.Run(versions[0]+" first", func(t *testing.T) {
			c := emptyCluster(t, server, "upgrade_"+versions[0], self(t))
			started := 0
			start := func(version string, manual bool) *proc {
				started++
				return c.startBy(programs[version], nil, clientConfig{
					Name: fmt.Sprintf("%s-%d", version, started), Region: version, TTL: ttl, Margin: ttl / 10, Attempt: ttl / 5,
					MaxOpen: 4, Sample: 200 * time.Microsecond, Manual: manual,
					Writes: started > 1, // there are tables for it
				})
			}
			slots := make([]*proc, 3)
			slots[0] = start(versions[0], false)
			c.awaitHolder(0)
			c.audit()
			for i := 1; i < len(slots); i++ {
				slots[i] = start(versions[0], i == 2)
				slots[i].has("ready", 1)
			}
			handOver := func() {
				for range 3 {
					p, epoch := c.awaitHolder(0)
					p.tell("release")
					c.awaitHolder(epoch)
				}
			}
			for _, version := range []string{versions[1], versions[0]} {
				for i, p := range slots {
					handOver()
					if (i+started)%2 == 0 {
						p.kill()
					} else {
						_ = p.stdin.Close()
						<-p.done
						if !p.cmd.ProcessState.Success() {
							t.Errorf("%s has ended with %s\n%s", p.cfg.Name, p.cmd.ProcessState, p.log.String())
						}
					}
					slots[i] = start(version, p.cfg.Manual)
					slots[i].has("ready", 1)
					handOver()
					holder, _ := c.awaitHolder(0)
					c.terminate(holder.cfg.Name) // it looks for the table again
					c.oneTable(fmt.Sprintf("%d processes were replaced", started-len(slots)))
				}
			}
			n, _ := c.elections()
			h := c.finish()
			h.check(true).report(t)
			passed := map[string]int{}
			before := ""
			for _, b := range h.sure() {
				version, _, _ := strings.Cut(b.client, "-")
				if before != "" {
					passed[before+" to "+version]++
				}
				before = version
			}
			if passed["landed to new"] == 0 || passed["new to landed"] == 0 {
				t.Errorf("the lease has passed %v: the versions were not beside each other", passed)
			}
			t.Logf("%d elections by %d processes: %v", n, started, passed)
			if t.Failed() {
				t.Log(c.report())
			}
		})
	}
}
