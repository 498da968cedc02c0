package quorumtest

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/baldur-go/baldur/internal/pgserver"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// TestFailover replaces the server by its asynchronous standby, again and again:
// one time the standby has all, the next time it has lost the last takeovers. The
// old server is dead before the standby is promoted.
func TestFailover(t *testing.T) {
	rounds := 2
	if os.Getenv("CI") != "" && !raceDetector || os.Getenv(envElections) != "" {
		rounds = 6
	}
	c := newCluster(t, pgtest.Server(t, serverSettings...), "failover", self(t))
	for i := range 3 {
		c.start(clientConfig{
			Name: fmt.Sprintf("client-%d", i+1), Region: "one", TTL: ttl, Margin: ttl / 10, Attempt: ttl / 5,
			MaxOpen: 4, Writes: true, Sample: 200 * time.Microsecond, Manual: i == 0,
		})
	}
	c.awaitHolder(0)
	lost := 0
	for round := range rounds {
		if c.failOver(round%2 == 0) {
			lost++
		}
	}
	h := c.finish()
	h.check(false).report(t)
	if lost == 0 {
		t.Error("no failover has lost a takeover")
	}
	elections, _ := c.elections()
	t.Logf("%d elections, %d failovers, %d of which have lost takeovers", elections, rounds, lost)
}

// standby starts a standby, and returns it when it has all, with the process that
// feeds it.
func (c *cluster) standby() (standby *pgserver.Server, walsender int) {
	t := c.t
	t.Helper()
	standby, err := c.server.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Stop(); err != nil {
			t.Error(err)
		}
	})
	c.poll("the standby streams", func() bool {
		return c.admin.QueryRow("SELECT pid FROM pg_stat_replication WHERE state = 'streaming'").Scan(&walsender) == nil
	})
	return standby, walsender
}

// replaceBy ends the server, and puts the standby in its place.
func (c *cluster) replaceBy(standby *pgserver.Server, walsender int) {
	t := c.t
	t.Helper()
	_ = syscall.Kill(c.server.PostmasterPID(), syscall.SIGKILL)
	_ = syscall.Kill(walsender, syscall.SIGKILL) // a stopped one does not see that
	if err := c.server.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.server = standby
	c.openAdmin()
}

// failOver puts a standby in the server's place, and returns whether a takeover
// was lost by that.
func (c *cluster) failOver(lose bool) bool {
	t := c.t
	t.Helper()
	standby, walsender := c.standby()
	if lose {
		_ = syscall.Kill(walsender, syscall.SIGSTOP)
		// Its socket may hold what it has sent: the takeovers after that are lost.
		for range 2 {
			p, epoch := c.awaitHolder(0)
			p.tell("release")
			c.awaitHolder(epoch)
		}
	}
	_, top := c.elections()
	c.replaceBy(standby, walsender)
	var known int64
	if err := c.admin.QueryRow("SELECT epoch FROM baldur_lease").Scan(&known); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.running() {
		if p.via == nil {
			p.proxy.Retarget(standby.Addr())
		}
	}
	for _, p := range c.poolers {
		p.back.Retarget(standby.Addr())
	}
	// Whoever believes may go on; a takeover must succeed, too.
	p, epoch := c.awaitHolder(0)
	c.untilIn(3*ttl, func() bool { return p.now.Epoch != epoch })
	p, epoch = c.awaitHolder(top - 1)
	p.tell("release")
	_, epoch = c.awaitHolder(max(epoch, top))
	var timeline int64
	if err := c.admin.QueryRow(`SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint`).Scan(&timeline); err != nil {
		t.Fatal(err)
	}
	t.Logf("timeline %d: the standby knew of epoch %s, the last one was %s, the next one is %s", timeline, epochText(known), epochText(top), epochText(epoch))
	return known < top
}
