package quorumtest

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgserver"
)

// nemesis makes things fail, one after the other. A fault is over, and mended,
// when its function returns.
type nemesis struct {
	c     *cluster
	rand  *rand.Rand
	ttl   time.Duration
	clock *serverClock // nil: it cannot be stepped
	spawn func(clientConfig) *proc
	dirt  []string // that is still to be left
	spans []span
}

// span is when something went on.
type span struct {
	what     string
	from, to int64
}

type fault struct {
	name string
	do   func(*nemesis)
}

var faults = []fault{
	{"kill -9 postmaster", (*nemesis).killPostmaster},
	{"kill -9 backend", (*nemesis).killBackend},
	{"stop server", (*nemesis).stopServer},
	{"stop holder", (*nemesis).stopHolder},
	{"kill -9 holder", (*nemesis).killHolder},
	{"kill -9 holder, half-open", (*nemesis).killHolderHalfOpen},
	{"terminate connections", (*nemesis).terminate},
	{"freeze to server", func(n *nemesis) { n.freeze(faultproxy.ToServer) }},
	{"freeze to client", func(n *nemesis) { n.freeze(faultproxy.ToClient) }},
	{"freeze both", func(n *nemesis) { n.freeze(faultproxy.Both) }},
	{"delay", (*nemesis).delay},
	{"reset", (*nemesis).reset},
	{"lose reply to acquire", func(n *nemesis) { n.loseReply(acquireRequest, true) }},
	{"lose reply to renew", func(n *nemesis) { n.loseReply(renewRequest, false) }},
	{"lose reply to release", func(n *nemesis) { n.loseReply(releaseRequest, true) }},
	{"clock forward", func(n *nemesis) { n.setClock(30*time.Second, false) }},
	{"clock back", func(n *nemesis) { n.setClock(-40*time.Second, false) }},
	{"clock x2", func(n *nemesis) { n.setClock(0, true) }},
	{"full pool", (*nemesis).fullPool},
	{"exhausted pool of 1", (*nemesis).poolOfOne},
	{notifyFull, (*nemesis).notifyFull},
	{"cancel synchronous wait", (*nemesis).cancelSync},
	{"dirty session", (*nemesis).dirtySession},
	{"table locked", (*nemesis).tableLocked},
	{"moved table", (*nemesis).moveTable},
	{"role without rights", (*nemesis).revoke},
}

// someTime is a random time, in TTLs.
func (n *nemesis) someTime(from, to float64) time.Duration {
	return time.Duration((from + (to-from)*n.rand.Float64()) * float64(n.ttl))
}

// someone returns mostly the holder, else any client.
func (n *nemesis) someone() *proc {
	if n.rand.IntN(4) > 0 {
		p, _ := n.c.awaitHolder(0)
		return p
	}
	running := n.c.running()
	return running[n.rand.IntN(len(running))]
}

func (n *nemesis) killPostmaster() {
	if err := n.c.server.Crash(); err != nil {
		n.c.t.Fatal(err)
	}
	time.Sleep(n.someTime(0, 1))
	if err := n.c.server.Restart(n.c.t.Context()); err != nil {
		n.c.t.Fatal(err)
	}
}

// killBackend makes the postmaster restart everything, after recovery.
func (n *nemesis) killBackend() {
	pid := 0
	n.c.poll("there is a backend to kill", func() bool {
		return n.c.admin.QueryRow("SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY random()", n.someone().cfg.Name).Scan(&pid) == nil
	})
	_ = syscall.Kill(pid, syscall.SIGKILL)
	n.c.poll("the server has recovered", func() bool { return n.c.admin.Ping() == nil })
}

func (n *nemesis) stopServer() {
	pid := n.c.server.PostmasterPID()
	signalTree(pid, syscall.SIGSTOP)
	time.Sleep(n.someTime(0.2, 2))
	signalTree(pid, syscall.SIGCONT)
}

// signalTree signals a process and its children.
func signalTree(pid int, sig syscall.Signal) {
	_ = syscall.Kill(pid, sig)
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, child := range strings.Fields(string(children)) {
		if pid, err := strconv.Atoi(child); err == nil {
			_ = syscall.Kill(pid, sig)
		}
	}
}

func (n *nemesis) stopHolder() {
	p, _ := n.c.awaitHolder(0)
	p.signal(syscall.SIGSTOP)
	time.Sleep(n.someTime(0.3, 2.5))
	p.signal(syscall.SIGCONT)
}

func (n *nemesis) killHolder() {
	p, _ := n.c.awaitHolder(0)
	p.kill()
	cfg := p.cfg
	cfg.Runs = !cfg.Runs && !cfg.Manual
	n.spawn(cfg)
}

// killHolderHalfOpen has the server think that the holder still runs, and keep
// what its transactions lock.
func (n *nemesis) killHolderHalfOpen() {
	p, _ := n.c.awaitHolder(0)
	p.halfOpen = make(chan struct{})
	p.proxy.Freeze(faultproxy.Both)
	p.signal(syscall.SIGKILL)
	n.spawn(p.cfg)
	time.Sleep(n.someTime(1, 3))
	close(p.halfOpen)
	<-p.done
}

func (n *nemesis) terminate() { n.c.terminate(n.someone().cfg.Name) }

// freeze makes a client's network silent in a direction; at the end what was
// held back arrives, or the connections are reset.
func (n *nemesis) freeze(d faultproxy.Direction) {
	p := n.someone().proxy
	p.Freeze(d)
	time.Sleep(n.someTime(0.3, 2))
	if n.rand.IntN(2) == 0 {
		p.Cut()
	}
	p.Unfreeze(d)
}

func (n *nemesis) delay() {
	p := n.someone().proxy
	p.Delay(faultproxy.ToServer, n.someTime(0, 0.1))
	p.Delay(faultproxy.ToClient, n.someTime(0, 0.1))
	time.Sleep(n.someTime(0.5, 1.5))
	p.Delay(faultproxy.Both, 0)
}

func (n *nemesis) reset() { n.someone().proxy.Cut() }

// What the requests to the witness have in them, but for spaces.
const (
	acquireRequest = "acquired_at=pg_catalog"
	renewRequest   = "int8,renewed_at="
	releaseRequest = "int8,lease_id=NULL"
)

func isRequest(data []byte, request string) bool {
	return bytes.Contains(bytes.ReplaceAll(data, []byte(" "), nil), []byte(request))
}

// loseReply lets a request of a kind through and nothing back after it.
func (n *nemesis) loseReply(request string, handOver bool) {
	var lost atomic.Pointer[proc]
	happened := make(chan struct{})
	clients := n.c.running()
	for _, p := range clients {
		p.proxy.OnData(func(d faultproxy.Direction, data []byte) {
			if d == faultproxy.ToServer && isRequest(data, request) && lost.CompareAndSwap(nil, p) {
				p.proxy.Freeze(faultproxy.ToClient)
				close(happened)
			}
		})
	}
	for end := time.Now().Add(patience); lost.Load() == nil; {
		if holder, _ := n.c.awaitHolder(0); handOver {
			holder.tell("release")
		}
		select {
		case <-happened:
			time.Sleep(n.someTime(0.3, 1.5))
		case <-time.After(n.ttl): // it may have been lost meanwhile
		}
		if time.Now().After(end) {
			n.c.t.Fatalf("no request has %q", request)
		}
	}
	for _, p := range clients {
		p.proxy.OnData(func(faultproxy.Direction, []byte) {})
	}
	if p := lost.Load(); p != nil {
		p.proxy.Unfreeze(faultproxy.ToClient)
	}
}

// setClock steps the server's clock, or doubles its rate, has a takeover happen
// by it, and steps it back.
func (n *nemesis) setClock(ahead time.Duration, double bool) {
	n.clock.set(ahead, double)
	time.Sleep(n.someTime(0.5, 1.5))
	if got := n.clockAhead() - ahead; double && got < n.ttl/2 || !double && (got > time.Second || got < -time.Second) {
		n.c.t.Errorf("the server's clock is ahead by %v when it was set to %v (double %v)", got+ahead, ahead, double)
	}
	holder, _ := n.c.awaitHolder(0)
	holder.signal(syscall.SIGSTOP)
	time.Sleep(n.someTime(1, 2))
	holder.signal(syscall.SIGCONT)
	n.clock.set(0, false)
}

// clockAhead is how far the server's clock is ahead of this one.
func (n *nemesis) clockAhead() (d time.Duration) {
	n.c.poll("the server tells the time", func() bool {
		var us int64
		err := n.c.admin.QueryRow("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").Scan(&us)
		d = time.Until(time.UnixMicro(us))
		return err == nil
	})
	return d
}

// fullPool has the holder lose its connection while it has none to spare.
func (n *nemesis) fullPool() {
	p, _ := n.c.awaitHolder(0)
	d := n.someTime(1, 2)
	p.tell("fill " + d.String())
	time.Sleep(d / 4)
	_, _ = n.c.admin.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE '%baldur_lease%'", p.cfg.Name)
	time.Sleep(d)
}

// poolOfOne is fullPool with a pool of one connection: the lease is none of the pool's business.
func (n *nemesis) poolOfOne() {
	p, _ := n.c.awaitHolder(0)
	d := n.someTime(2, 4)
	p.tell("one " + d.String())
	end := time.Now().Add(d)
	time.Sleep(d / 4)
	n.c.terminate(p.cfg.Name)
	n.primarySince(monotonic(), "a pool of one was exhausted")
	time.Sleep(time.Until(end))
}

const notifyFull = "NOTIFY queue full"

// limitNotify has the server's NOTIFY queue be as small as can be, if it can be made small:
// before PostgreSQL 17 it takes 8 GB.
func limitNotify(t testing.TB, server *pgserver.Server) bool {
	t.Helper()
	var major int
	if _, err := fmt.Sscanf(server.Version(), "%d", &major); err != nil {
		t.Fatalf("the server's version is %q", server.Version())
	}
	if major < 17 {
		t.Logf("without the fault %q: PostgreSQL %s has no max_notify_queue_pages", notifyFull, server.Version())
		return false
	}
	db, err := sql.Open("postgres", server.SocketDSN("postgres"))
	if err == nil {
		_, err = db.Exec("ALTER SYSTEM SET max_notify_queue_pages = 64")
		err = errors.Join(err, db.Close(), server.Crash(), server.Restart(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// notifyFull fills the queue, of which somebody reads nothing: whoever notifies is refused, and
// the lease is handed over all the same.
func (n *nemesis) notifyFull() {
	ctx := n.c.t.Context()
	slow, err := n.c.admin.Conn(ctx)
	for _, s := range []string{"LISTEN other_app", "BEGIN", "SELECT 1"} { // of its own each, since it listens from its commit on
		if err == nil {
			_, err = slow.ExecContext(ctx, s)
		}
	}
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.c.poll("the queue is full", func() bool {
		_, err := n.c.admin.Exec("SELECT pg_notify('junk', repeat('x', 7900) || g) FROM generate_series(1, 10) g")
		return err != nil && strings.Contains(err.Error(), "54000")
	})
	p, epoch := n.c.awaitHolder(0)
	p.tell("release")
	n.c.awaitHolder(epoch)
	n.primarySince(monotonic(), "the NOTIFY queue was full")
	if _, err := slow.ExecContext(ctx, "ROLLBACK"); err != nil {
		n.c.t.Error(err)
	}
	_ = slow.Close() // admin keeps none
}

// cancelSync has commits wait for a standby that does not exist, and cancels
// them: they are committed all the same, with a warning.
func (n *nemesis) cancelSync() {
	n.set("ALTER SYSTEM SET synchronous_standby_names = 'missing'")
	for end := time.Now().Add(n.someTime(0.5, 1.5)); time.Now().Before(end); time.Sleep(n.ttl / 50) {
		_, _ = n.c.admin.Exec("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
	}
	n.set("ALTER SYSTEM RESET synchronous_standby_names")
}

func (n *nemesis) set(setting string) {
	n.do(setting)
	n.do("SELECT pg_reload_conf()")
}
