package quorumtest

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgserver"
)

// patience is for what must happen some time.
const patience = 60 * time.Second

// cluster is a server, its clients, and what they have told.
type cluster struct {
	t       testing.TB
	server  *pgserver.Server
	dbname  string
	admin   *sql.DB  // of the database, over the socket
	bin     string   // the client program
	lossy   bool     // a failover has lost commits
	found   problems // what no history shows
	poolers []*pooler

	mu      sync.Mutex    // guards the fields below, and the procs' events
	changed chan struct{} // closed and replaced at each event
	procs   []*proc       // those that have ended too
}

// proc is one client process.
type proc struct {
	c     *cluster
	cfg   clientConfig
	bin   string
	via   *pooler // nil: it connects to the server
	proxy *faultproxy.Proxy
	cmd   *exec.Cmd
	stdin io.WriteCloser
	log   bytes.Buffer  // what it logs; read it after done
	done  chan struct{} // closed when it has ended

	halfOpen       chan struct{} // if set, its network outlives it until this is closed
	started, ended int64         // monotonic; ended 0: it runs
	events         []event
	beliefs        map[int64]event // by epoch, the latest
	now            event           // the last event of a belief or its loss
}

// newCluster makes a database on the server, with the lease table that the client
// program makes, and the tables that record what happens to it.
func newCluster(t testing.TB, server *pgserver.Server, dbname, bin string) *cluster {
	t.Helper()
	c := emptyCluster(t, server, dbname, bin)
	migrate := c.start(clientConfig{Name: "migrate", Migrate: true})
	<-migrate.done
	if !migrate.cmd.ProcessState.Success() {
		t.Fatal(migrate.log.String())
	}
	c.audit()
	return c
}

func emptyCluster(t testing.TB, server *pgserver.Server, dbname, bin string) *cluster {
	t.Helper()
	c := &cluster{t: t, server: server, dbname: dbname, bin: bin, changed: make(chan struct{})}
	if err := server.CreateDatabase(t.Context(), dbname); err != nil {
		t.Fatal(err)
	}
	c.openAdmin()
	t.Cleanup(func() { c.stopAll(); _ = c.admin.Close() })
	return c
}

// audit begins to record. Whoever has the lease already has it by its first
// acquisition.
func (c *cluster) audit() {
	c.t.Helper()
	c.exec(auditSchema + "INSERT INTO public.nemesis_commit (no, kind, epoch, lease_id) SELECT nextval('public.nemesis_no'), 'grant', epoch, lease_id FROM public.baldur_lease WHERE lease_id IS NOT NULL")
}

func (c *cluster) exec(query string) {
	c.t.Helper()
	if _, err := c.admin.Exec(query); err != nil {
		c.t.Fatalf("%s: %v", query, err)
	}
}

func (c *cluster) openAdmin() {
	c.t.Helper()
	if c.admin != nil {
		_ = c.admin.Close()
	}
	var err error
	if c.admin, err = sql.Open("postgres", c.server.SocketDSN(c.dbname)+"&connect_timeout=5"); err != nil {
		c.t.Fatal(err)
	}
	c.admin.SetMaxIdleConns(0) // so that nothing is left of a server that has crashed
}

// start starts a client, which reaches the server through a proxy of its own.
func (c *cluster) start(cfg clientConfig) *proc { return c.startBy(c.bin, nil, cfg) }

// startBy is start of another program, or through a pooler.
func (c *cluster) startBy(bin string, via *pooler, cfg clientConfig) *proc {
	c.t.Helper()
	to := c.server.Addr()
	if via != nil {
		to = via.addr
	}
	proxy, err := faultproxy.New(to)
	if err != nil {
		c.t.Fatal(err)
	}
	dsn, err := url.Parse(c.server.DSNAt(proxy.Addr(), c.dbname))
	if err != nil {
		c.t.Fatal(err)
	}
	if cfg.Role != "" {
		dsn.User = url.UserPassword(cfg.Role, rolePassword)
	}
	dsn.RawQuery += "&application_name=" + cfg.Name + cfg.Options
	cfg.DSN = dsn.String()
	config, err := json.Marshal(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	p := &proc{c: c, cfg: cfg, bin: bin, via: via, proxy: proxy, done: make(chan struct{}), started: monotonic(), beliefs: map[int64]event{}}
	p.cmd = exec.Command(bin)
	p.cmd.Env = append(os.Environ(), envClient+"="+string(config))
	p.cmd.Stderr = &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		c.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.procs = append(c.procs, p)
	c.mu.Unlock()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig: the thread must stay
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.read(out)
		_ = p.cmd.Wait()
		if p.halfOpen != nil {
			<-p.halfOpen
		}
		_ = proxy.Close()
		c.note(func() { p.ended, p.now = monotonic(), event{} })
	}()
	if err := <-started; err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (p *proc) read(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // cut by kill -9
		}
		p.c.note(func() { p.add(e) })
	}
}

// add takes in an event. The caller has c.mu.
func (p *proc) add(e event) {
	switch e.Kind {
	case "belief":
		p.beliefs[e.Epoch] = e
		if p.now = e; e.Over {
			p.now = event{}
		}
		return
	}
	p.events = append(p.events, e)
}

func (c *cluster) note(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// until waits until f, which the events decide; it has c.mu when called.
func (c *cluster) until(what string, f func() bool) {
	c.t.Helper()
	if !c.untilIn(patience, f) {
		c.t.Fatalf("after %v: not so: %s\n%s", patience, what, c.report())
	}
}

func (c *cluster) untilIn(d time.Duration, f func() bool) bool {
	end := time.After(d)
	for {
		c.mu.Lock()
		ok, changed := f(), c.changed
		c.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-end:
			return false
		}
	}
}

// poll waits until f, which no event tells.
func (c *cluster) poll(what string, f func() bool) {
	c.t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("after %v: not so: %s\n%s", patience, what, c.report())
		}
	}
}

// logged tells whether a client has logged a text. They have ended.
func (c *cluster) logged(text string) bool {
	return slices.ContainsFunc(c.procs, func(p *proc) bool { return strings.Contains(p.log.String(), text) })
}

// report is what each client has logged last.
func (c *cluster) report() string {
	var b strings.Builder
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.procs {
		if p.ended == 0 {
			log := p.log.String() // a race that is worth it: the test has failed
			fmt.Fprintf(&b, "%s:\n%s\n", p.cfg.Name, log[max(0, len(log)-1500):])
		}
	}
	return b.String()
}

// awaitHolder waits for a primary of an epoch above one.
func (c *cluster) awaitHolder(above int64) (p *proc, epoch int64) {
	c.t.Helper()
	c.until(fmt.Sprintf("there is a primary of an epoch above %d", above), func() bool {
		for _, q := range c.procs {
			if q.now.Kind == "belief" && q.now.Epoch > above {
				p, epoch = q, q.now.Epoch
				return true
			}
		}
		return false
	})
	return p, epoch
}

// elections counts the beliefs so far, each of which has an epoch of its own.
func (c *cluster) elections() (n int, top int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.procs {
		n += len(p.beliefs)
		for epoch := range p.beliefs {
			top = max(top, epoch)
		}
	}
	return n, top
}

func (c *cluster) running() []*proc {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.procs), func(p *proc) bool { return p.ended != 0 })
}

func (p *proc) tell(command string) {
	_, _ = io.WriteString(p.stdin, command+"\n") // it may have ended
}

// told counts the events of a kind so far.
func (p *proc) told(kind string) (n int) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for _, e := range p.events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// has waits for the nth event of a kind and returns it.
func (p *proc) has(kind string, n int) (e event) {
	p.c.t.Helper()
	p.c.until(fmt.Sprintf("%s has told %q %d times", p.cfg.Name, kind, n), func() bool {
		found := 0
		for _, e = range p.events {
			if e.Kind == kind {
				if found++; found == n {
					return true
				}
			}
		}
		return false
	})
	return e
}

func (p *proc) signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

func (p *proc) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// stopAll ends the clients, as programs are ended.
func (c *cluster) stopAll() {
	running := c.running()
	for _, p := range running {
		p.signal(syscall.SIGCONT)
		_ = p.stdin.Close()
	}
	for _, p := range running {
		select {
		case <-p.done:
		case <-time.After(patience):
			c.t.Errorf("client %s does not end", p.cfg.Name)
			p.signal(syscall.SIGQUIT) // for its goroutines
			select {
			case <-p.done:
			case <-time.After(5 * time.Second):
				p.kill()
			}
			c.t.Log(p.log.String())
		}
	}
}

// finish ends the clients, and returns the history; what they leave is an error.
func (c *cluster) finish() *history {
	c.t.Helper()
	stopped := c.running()
	c.stopAll()
	for _, p := range stopped {
		end := event{}
		for _, e := range p.events {
			if e.Kind == "end" {
				end = e
			}
		}
		if end.Kind == "" || end.Text != "" || !p.cmd.ProcessState.Success() {
			c.t.Errorf("client %s has ended with %s, and left behind: %q\n%s", p.cfg.Name, p.cmd.ProcessState, end.Text, p.log.String())
		}
	}
	for _, p := range c.poolers {
		p.stop() // with the connections that it keeps
	}
	c.poll("no connection is left", func() bool {
		var n int
		err := c.admin.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'").Scan(&n)
		return err == nil && n == 0
	})
	return c.history()
}

// history gathers what is known of the run.
func (c *cluster) history() *history {
	c.t.Helper()
	h := &history{}
	c.mu.Lock()
	for _, p := range c.procs {
		for _, epoch := range slices.Sorted(maps.Keys(p.beliefs)) {
			h.beliefs = append(h.beliefs, belief{p.cfg.Name, p.beliefs[epoch]})
		}
		for _, e := range p.events {
			h.events = append(h.events, told{p.cfg.Name, e})
		}
	}
	c.mu.Unlock()
	h.found = c.found
	rows, err := c.admin.Query("SELECT no, kind, epoch, coalesce(lease_id, ''), coalesce(client, ''), coalesce(n, 0) FROM public.nemesis_commit ORDER BY no")
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var r commit
		if err := rows.Scan(&r.no, &r.kind, &r.epoch, &r.leaseID, &r.client, &r.n); err != nil {
			c.t.Fatal(err)
		}
		h.commits = append(h.commits, r)
	}
	if err := rows.Err(); err != nil {
		c.t.Fatal(err)
	}
	return h
}
