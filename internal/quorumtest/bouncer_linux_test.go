package quorumtest

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// pooler is a PgBouncer before the cluster's server, wherever that is.
type pooler struct {
	addr string
	back *faultproxy.Proxy // its way to the server
	stop func()
}

func (c *cluster) pooler(mode string) *pooler {
	t := c.t
	t.Helper()
	back, err := faultproxy.New(c.server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := back.Close(); err != nil {
			t.Error(err)
		}
	})
	dsn, stop := pgtest.BouncerTo(t, c.server.DSNAt(back.Addr(), c.dbname), mode, "server_login_retry=0.05")
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := &pooler{addr: u.Host, back: back, stop: stop}
	c.poolers = append(c.poolers, p)
	return p
}

// TestBouncer has clients that come through PgBouncers, in session and in
// transaction mode, beside one that does not, while the server behind is replaced
// by a standby, or restarts, and sessions are ended and left dirty.
func TestBouncer(t *testing.T) {
	rounds := 1
	if os.Getenv("CI") != "" && !raceDetector || os.Getenv(envElections) != "" {
		rounds = 3
	}
	c := newCluster(t, pgtest.Server(t, serverSettings...), "bouncer", self(t))
	c.lossy = true
	c.makeSchemas("PUBLIC")
	n := &nemesis{c: c, rand: rand.New(rand.NewPCG(seed(t), 0)), ttl: ttl}
	session, transaction := c.pooler("session"), c.pooler("transaction")
	for i, via := range []*pooler{nil, session, transaction, transaction} {
		c.startBy(c.bin, via, clientConfig{
			Name: fmt.Sprintf("client-%d", i+1), Region: "one", TTL: ttl, Margin: ttl / 10, Attempt: ttl / 5,
			MaxOpen: 4, Writes: true, Sample: 200 * time.Microsecond, Manual: i == 2,
		})
	}
	c.awaitHolder(0)
	began := time.Now()
	for range rounds {
		for _, f := range []fault{
			{"failover, takeovers lost", func(*nemesis) { c.failOver(true) }},
			{"dirty session", (*nemesis).dirtyThroughPooler},
			{"kill -9 postmaster", (*nemesis).killPostmaster},
			{"table locked", (*nemesis).tableLocked},
			{"failover", func(*nemesis) { c.failOver(false) }},
			{"moved table", (*nemesis).moveTable},
			{"terminate connections", (*nemesis).terminate},
			{"reset", func(*nemesis) { transaction.back.Cut() }},
		} {
			n.play(f, began)
			n.handOvers()
		}
	}
	took := time.Since(began)
	h := c.finish()
	h.check(!c.lossy).report(t)
	n.figures(h, took)
	if t.Failed() {
		t.Log(c.report())
	}
}

// dirtyThroughPooler leaves, in all clients, what leaves a server connection
// usable for those that PgBouncer gives it to next.
func (n *nemesis) dirtyThroughPooler() {
	n.leaveDirt(n.c.running(), []string{"SET search_path = tenant_42", "SET IntervalStyle = 'sql_standard'", "SET synchronous_commit = off"})
	n.c.oneTable("sessions were left with a tenant's search_path")
}
