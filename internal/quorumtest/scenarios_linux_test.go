package quorumtest

import (
	"sync/atomic"
	"syscall"
	"time"

	"github.com/baldur-go/baldur/internal/faultproxy"
)

// The lease of the scenarios: as little margin as can be, and answers may come as
// late as can be.
const (
	scenarioTTL = time.Second
	lateAnswer  = 200 * time.Millisecond
)

func scenarioClient(name string) clientConfig {
	return clientConfig{
		Name: name, Region: "one", TTL: scenarioTTL, Margin: scenarioTTL / 100, Attempt: lateAnswer + 40*time.Millisecond,
		MaxOpen: 4, Sample: 200 * time.Microsecond,
	}
}

// scenarios are each what one mistake shows in. Whatever is right stays right in
// them. They tell whether all went as it was meant to: on a slow machine a lease
// may be lost before its time.
var scenarios = map[string]func(*cluster) bool{
	"late reply":                      lateReply,
	"old transaction":                 oldTransaction,
	"release carried out late":        lateRelease,
	"two of one region":               oneRegion,
	"paused in a guarded transaction": pausedInTransaction,
	"holder stopped and resumed":      stoppedHolder,
	"lost takeover":                   lostTakeover,
	"role with a search_path":         rolesSearchPath,
	"connection in a transaction":     openTransaction,
	"table locked":                    lockedTable,
}

// silence lets the first renewals through, the last of them with a late answer,
// and nothing from the next one on; it returns then. It is false if there was none.
func (p *proc) silence(renewals int64, late time.Duration) (ok bool) {
	silent := make(chan struct{})
	var n atomic.Int64
	p.proxy.OnData(func(d faultproxy.Direction, data []byte) {
		if d != faultproxy.ToServer || !isRequest(data, renewRequest) {
			return
		}
		switch n.Add(1) {
		case renewals:
			p.proxy.Delay(faultproxy.ToClient, late)
		case renewals + 1:
			p.proxy.Freeze(faultproxy.Both)
			close(silent)
		}
	})
	select {
	case <-silent:
		ok = true
	case <-time.After(3 * scenarioTTL): // it has lost the lease before
		p.proxy.Freeze(faultproxy.Both)
	}
	p.proxy.Delay(faultproxy.ToClient, 0)
	return ok
}

func (p *proc) endSilence() {
	p.proxy.Cut()
	p.proxy.Unfreeze(faultproxy.Both)
}

// lasts waits until a client has believed for a time.
func (p *proc) lasts(epoch int64, d time.Duration) {
	p.c.t.Helper()
	p.c.until(p.cfg.Name+" believes for "+d.String(), func() bool {
		b := p.beliefs[epoch]
		return b.To-b.From > int64(d) || b.Over
	})
}

// lateReply: the holder's last renewal is answered late, and then the network is
// silent.
func lateReply(c *cluster) bool {
	cfg := scenarioClient("a")
	cfg.Deaf = true // answers are one packet
	a := c.start(cfg)
	_, epoch := c.awaitHolder(0)
	c.start(scenarioClient("b")).has("ready", 1)
	ok := a.silence(2, lateAnswer)
	b, next := c.awaitHolder(epoch)
	b.lasts(next, scenarioTTL/4)
	a.endSilence()
	return ok
}

// oldTransaction: the holder's driver puts each statement into a transaction that
// has begun when the one before it ended. Then the network is silent, and the
// clock of the candidate jumps: the server's clock must hold it.
func oldTransaction(c *cluster) bool {
	cfg := scenarioClient("a")
	cfg.OpenTx = true
	cfg.Renew = scenarioTTL * 32 / 100 // so that the transactions are old
	a := c.start(cfg)
	_, epoch := c.awaitHolder(0)
	cfg = scenarioClient("b")
	cfg.Jumps = true
	b := c.start(cfg)
	b.has("ready", 1)
	ok := a.silence(4, 0)
	b.tell("jump " + (scenarioTTL * 6 / 5).String())
	_, next := c.awaitHolder(epoch)
	b.lasts(next, scenarioTTL/4)
	a.endSilence()
	return ok
}

// lateRelease: a release reaches the server when another one holds the lease,
// whose network is silent so that it does not hear of that.
func lateRelease(c *cluster) bool {
	a := c.start(scenarioClient("a"))
	_, epoch := c.awaitHolder(0)
	c.start(scenarioClient("b")).has("ready", 1)
	c.start(scenarioClient("c")).has("ready", 1)
	var held atomic.Bool
	a.proxy.OnData(func(d faultproxy.Direction, data []byte) {
		if d == faultproxy.ToServer && isRequest(data, releaseRequest) {
			a.proxy.Freeze(faultproxy.ToServer)
			held.Store(true)
		}
	})
	a.tell("release")
	b, epoch := c.awaitHolder(epoch)
	b.proxy.Freeze(faultproxy.ToClient)
	a.proxy.Unfreeze(faultproxy.ToServer)
	next, epoch := c.awaitHolder(epoch)
	next.lasts(epoch, scenarioTTL/4)
	b.proxy.Cut()
	b.proxy.Unfreeze(faultproxy.ToClient)
	return held.Load()
}

// oneRegion: a second process of the holder's region begins.
func oneRegion(c *cluster) bool {
	a := c.start(scenarioClient("a"))
	_, epoch := c.awaitHolder(0)
	c.start(scenarioClient("b")).has("ready", 1)
	return !c.untilIn(scenarioTTL*3/2, func() bool { return a.now.Epoch != epoch })
}

// pausedInTransaction: the holder is stopped in a guarded transaction, and
// commits when another one has the lease.
func pausedInTransaction(c *cluster) bool {
	cfg := scenarioClient("a")
	cfg.FenceIdle = 2 * scenarioTTL
	a := c.start(cfg)
	_, epoch := c.awaitHolder(0)
	cfg = scenarioClient("b")
	cfg.Writes = true
	c.start(cfg).has("ready", 1)
	a.tell("txbegin")
	a.has("opened", 1)
	a.signal(syscall.SIGSTOP)
	b, next := c.awaitHolder(epoch)
	b.lasts(next, scenarioTTL/20)
	a.tell("txend")
	a.signal(syscall.SIGCONT)
	a.has("closed", 1)
	return true
}

// stoppedHolder: the holder is stopped until another one has the lease.
func stoppedHolder(c *cluster) bool {
	cfg := scenarioClient("a")
	cfg.Sample, cfg.Procs = 0, 1 // so that it asks when it is stopped, and before all else when it goes on
	a := c.start(cfg)
	_, epoch := c.awaitHolder(0)
	c.start(scenarioClient("b")).has("ready", 1)
	a.signal(syscall.SIGSTOP)
	b, next := c.awaitHolder(epoch)
	b.lasts(next, scenarioTTL/20)
	a.signal(syscall.SIGCONT)
	b.lasts(next, scenarioTTL/4)
	return true
}

// lostTakeover: the server is replaced by a standby that has the lease free: the
// takeover is lost, and the holder, who can reach no server, goes on believing.
func lostTakeover(c *cluster) bool {
	c.lossy = true
	standby, walsender := c.standby()
	a := c.start(scenarioClient("a"))
	_, epoch := c.awaitHolder(0)
	a.tell("release")
	c.poll("the standby has the release", func() bool {
		var caughtUp bool
		err := c.admin.QueryRow("SELECT lease_id IS NULL AND (SELECT replay_lsn >= pg_current_wal_lsn() FROM pg_stat_replication) FROM baldur_lease").Scan(&caughtUp)
		return err == nil && caughtUp
	})
	_ = syscall.Kill(walsender, syscall.SIGSTOP)
	a.kill()
	b := c.start(scenarioClient("b"))
	if holder, _ := c.awaitHolder(epoch); holder != b {
		return false
	}
	_, epoch = c.elections()
	c.replaceBy(standby, walsender)
	c.start(scenarioClient("c"))
	next, epoch := c.awaitHolder(epoch)
	next.lasts(epoch, scenarioTTL/4)
	return next != b
}

// rolesSearchPath: a candidate's role and DSN put a tenant's schema first, and
// its connections are ended.
func rolesSearchPath(c *cluster) bool {
	c.makeSchemas("PUBLIC")
	c.start(scenarioClient("a"))
	_, epoch := c.awaitHolder(0)
	cfg := scenarioClient("b")
	cfg.Options = "&search_path=tenant_42"
	b := c.start(cfg)
	b.has("ready", 1)
	c.dirty([]*proc{b}, []string{"SET search_path = tenant_42"})
	c.terminate("b")
	lost := c.untilIn(scenarioTTL*3/2, func() bool { return b.now.Kind != "" })
	c.oneTable("a client came with a tenant's search_path")
	_, top := c.elections()
	return !lost && top == epoch
}

// openTransaction: a client gives the lease back and gets it again, on a
// connection that a hook of the program's has left a transaction open on. Then its
// network is silent, and the server ends its session: what it was granted must be
// committed.
func openTransaction(c *cluster) bool {
	cfg := scenarioClient("a")
	cfg.Begun = true
	a := c.start(cfg)
	_, epoch := c.awaitHolder(0)
	a.tell("begun")
	a.tell("release")
	a.has("release", 1)
	c.terminate("a")
	_, epoch = c.awaitHolder(epoch)
	b := c.start(scenarioClient("b"))
	b.has("ready", 1)
	held := !c.untilIn(scenarioTTL/2, func() bool { return a.now.Epoch != epoch })
	a.proxy.Freeze(faultproxy.Both)
	c.terminate("a")
	c.until("b is primary", func() bool { // of the same epoch, if that was not committed
		epoch = b.now.Epoch
		return epoch > 0
	})
	b.lasts(epoch, scenarioTTL/4)
	a.endSilence()
	return held
}

// lockedTable: somebody locks the lease table for longer than any request may
// wait, and a candidate has to connect meanwhile, for which its TTL leaves it time.
func lockedTable(c *cluster) bool {
	cfg := scenarioClient("a")
	c.start(cfg)
	c.awaitHolder(0)
	b := scenarioClient("b")
	b.TTL = 4 * scenarioTTL
	c.start(b).has("ready", 1)
	c.lockTable(cfg.Attempt+2*time.Second, cfg.Attempt, "b")
	c.awaitHolder(0)
	return true
}
