package quorumtest

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/lib/pq"
	"go.uber.org/goleak"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/leasepg"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// envClient makes the test program a client of a lease; its value is a
// clientConfig in JSON.
const envClient = "BALDUR_NEMESIS_CLIENT"

func TestMain(m *testing.M) {
	if config := os.Getenv(envClient); config != "" {
		if err := clientMain(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	pgtest.Main(m)
}

// clientConfig says what a client is.
type clientConfig struct {
	Name, Region string
	DSN          string
	Role         string // that it connects as; "": a superuser
	Options      string // more of the DSN
	TTL, Margin  time.Duration
	Attempt      time.Duration
	Renew        time.Duration // 0: the default
	MaxOpen      int           // of its pool
	Migrate      bool          // make the lease table, and end
	Manual       bool          // call TryAcquirePrimary and RenewLease rather than StartAutoRenew
	Deaf         bool          // no LISTEN
	Runs         bool          // Run and InTx, rather than StartAutoRenew and transactions of its own
	Writes       bool          // guarded transactions all the time
	Sample       time.Duration // pause between two samples of IsPrimary; 0: none, as fast as it can
	Procs        int           // GOMAXPROCS; 0: the default
	FenceIdle    time.Duration // how long a guarded transaction may be idle; 0: the default
	OpenTx       bool          // its driver begins the next transaction when it ends one
	Begun        bool          // its driver begins a transaction on each new connection, when told to
	Jumps        bool          // its clock jumps when told to
	Seed         uint64
}

// event is what a client tells. Its times are in ns of the machine's monotonic
// clock, which all clients share.
//
//	kind     From … To                                  also
//	ready    -                                          it runs
//	belief   samples of IsPrimary: after the first,     Epoch, LeaseID; told again as it grows, and when it is Over
//	         before the last one that was true
//	point    before and after one true sample           of no known epoch
//	acquire  request sent … answer seen                 Epoch, LeaseID
//	renew    request sent … answer seen                 Epoch, LeaseID
//	release  call … return                              Epoch, LeaseID, Unknown: the result
//	verify   call … return of IsPrimaryVerified, true   Epoch, LeaseID
//	write    -                                          Epoch, N: a guarded transaction has committed
//	denied   -                                          N, Text: InTx's error, by which it has not committed
//	strayed  -                                          Epoch, N: a transaction of another epoch than the others of its turn of Run's f
//	opened   -                                          Epoch: txbegin is done
//	closed   -                                          Text: error of txend's commit
//	dirtied  -                                          N: how many pooled connections
//	lost     -                                          Epoch, Text: reason
//	end      -                                          Text: what has leaked
type event struct {
	Kind     string
	From, To int64
	Epoch    int64  `json:",omitempty"`
	LeaseID  string `json:",omitempty"`
	N        int64  `json:",omitempty"`
	Unknown  bool   `json:",omitempty"`
	Over     bool   `json:",omitempty"`
	Text     string `json:",omitempty"`
}

// monotonic reads CLOCK_MONOTONIC, in ns.
func monotonic() int64 {
	var ts syscall.Timespec
	const clockMonotonic = 1
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		panic(errno)
	}
	return ts.Nano()
}

// client is the process's one.
type client struct {
	cfg   clientConfig
	db    *sql.DB
	q     *baldur.PGQuorum
	rand  *rand.Rand // of writes only
	jump  atomic.Int64
	begun atomic.Bool
	end   chan struct{} // closed when it is to end
	wg    sync.WaitGroup
	n     int64 // guarded transactions

	mu  sync.Mutex // guards the field below
	out *bufio.Writer

	open *sql.Tx // of txbegin
}

func clientMain(config string) (err error) {
	c := &client{end: make(chan struct{}), out: bufio.NewWriter(os.Stdout)}
	if err := json.Unmarshal([]byte(config), &c.cfg); err != nil {
		return err
	}
	if c.cfg.Procs > 0 {
		runtime.GOMAXPROCS(c.cfg.Procs)
	}
	if c.db, err = c.openPool(); err != nil {
		return err
	}
	c.db.SetMaxOpenConns(c.cfg.MaxOpen)
	c.db.SetMaxIdleConns(c.cfg.MaxOpen) // what is left on one stays
	leasepg.AllowTriggers = true
	if c.cfg.Migrate {
		return errors.Join(baldur.MigrateQuorum(context.Background(), c.db), c.db.Close())
	}
	c.rand = rand.New(rand.NewPCG(c.cfg.Seed, 1))
	opts := []baldur.QuorumOption{
		baldur.WithLeaseTTL(c.cfg.TTL), baldur.WithSafetyMargin(c.cfg.Margin), baldur.WithAttemptTimeout(c.cfg.Attempt),
		baldur.WithQuorumLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))),
		baldur.WithOnLost(func(l baldur.QuorumLease, why baldur.LossReason) {
			c.tell(event{Kind: "lost", Epoch: l.Epoch, Text: string(why)})
		}),
	}
	if c.cfg.Jumps {
		opts = append(opts, baldur.WithQuorumClock(func() time.Duration { return time.Duration(monotonic() + c.jump.Load()) }))
	}
	if c.cfg.Renew > 0 {
		opts = append(opts, baldur.WithRenewInterval(c.cfg.Renew))
	}
	if c.cfg.Deaf {
		opts = append(opts, baldur.WithoutNotify())
	}
	if c.cfg.FenceIdle > 0 {
		opts = append(opts, baldur.WithFenceIdleTimeout(c.cfg.FenceIdle))
	}
	if c.q, err = baldur.NewPGQuorum(c.db, c.cfg.Region, opts...); err != nil {
		return err
	}
	c.start()
	c.tell(event{Kind: "ready"})
	c.obey(os.Stdin)
	return c.stop()
}

func (c *client) openPool() (*sql.DB, error) {
	if !c.cfg.OpenTx && !c.cfg.Begun {
		return baldur.Open(c.cfg.DSN)
	}
	connector, err := pq.NewConnector(c.cfg.DSN)
	if err != nil {
		return nil, errors.New("the DSN is not valid") // the error may hold the password
	}
	if c.cfg.Begun {
		return baldur.OpenDB(begunConnector{connector, &c.begun}), nil
	}
	return baldur.OpenDB(openTxConnector{connector}), nil
}

func (c *client) start() {
	c.wg.Go(c.sample)
	switch {
	case c.cfg.Manual:
		c.wg.Go(c.drive)
	case c.cfg.Runs:
		c.wg.Go(func() {
			if err := c.q.Run(context.Background(), c.turn); !errors.Is(err, baldur.ErrQuorumClosed) {
				panic(err)
			}
		})
		return
	default:
		c.q.StartAutoRenew()
	}
	if c.cfg.Writes {
		c.wg.Go(c.write)
	}
}

// stop ends all, as a program does that shuts down, and tells what is left.
func (c *client) stop() error {
	if c.cfg.Manual {
		close(c.end)
		c.wg.Wait()
	}
	c.release(c.q.Close) // also of StartAutoRenew
	if !c.cfg.Manual {
		close(c.end)
		c.wg.Wait()
	}
	err := c.db.Close()
	left := ""
	if err := goleak.Find(); err != nil {
		left = err.Error()
	}
	c.tell(event{Kind: "end", Text: left})
	return err
}

func (c *client) tell(e event) {
	line, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.out.Write(append(line, '\n'))
	if err := c.out.Flush(); err != nil {
		os.Exit(2) // the test is gone
	}
}

func (c *client) ended() bool {
	select {
	case <-c.end:
		return true
	default:
		return false
	}
}

func (c *client) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-c.end:
	}
}

// sample asks IsPrimary all the time. A true sample is a belief at an instant
// between the clock readings before and after it: not earlier, and not later. An
// epoch is one unbroken belief, so that two true samples of it are a belief in
// between, too.
func (c *client) sample() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var now event  // the belief that is open; Kind "": none
	var told int64 // when it was told last
	var points []event
	var seen struct { // the lease as it was seen last
		epoch   int64
		expires time.Time
	}
	closeNow := func() {
		if now.Kind != "" {
			now.Over = true
			c.tell(now)
		}
		now = event{}
	}
	for !c.ended() {
		l1, ok1 := c.q.Lease()
		before := monotonic()
		is := c.q.IsPrimary()
		after := monotonic()
		l2, ok2 := c.q.Lease()
		switch {
		case is && ok1 && ok2 && l1.Epoch == l2.Epoch && l2.Epoch == now.Epoch:
			now.To = before
			now.N++
			if before-told > int64(2*time.Millisecond) {
				c.tell(now)
				told = before
			}
		case is && ok1 && ok2 && l1.Epoch == l2.Epoch:
			closeNow()
			now = event{Kind: "belief", From: after, To: after, Epoch: l2.Epoch, LeaseID: l2.LeaseID, N: 1}
			c.tell(now)
			told = before
		case is:
			if len(points) < 1000 {
				points = append(points, event{Kind: "point", From: before, To: after})
			}
			continue // at once: this does not last
		default:
			closeNow()
		}
		for _, p := range points {
			c.tell(p)
		}
		points = nil
		if ok2 && (l2.Epoch != seen.epoch || !l2.ExpiresAt.Equal(seen.expires)) {
			kind := "renew"
			if l2.Epoch != seen.epoch {
				kind = "acquire"
			}
			seen.epoch, seen.expires = l2.Epoch, l2.ExpiresAt
			c.tell(event{Kind: kind, From: c.sentAt(l2), To: monotonic(), Epoch: l2.Epoch, LeaseID: l2.LeaseID})
		}
		if c.cfg.Sample > 0 {
			time.Sleep(c.cfg.Sample)
		}
	}
	closeNow()
}

// sentAt returns when the request was sent that a lease is valid by, or somewhat
// earlier: ExpiresAt, whose monotonic reading counts, is a TTL later.
func (c *client) sentAt(l baldur.QuorumLease) int64 {
	now := monotonic()
	return now + int64(time.Until(l.ExpiresAt)-c.cfg.TTL-time.Millisecond)
}

// drive is StartAutoRenew by hand.
func (c *client) drive() {
	for n := 0; !c.ended(); n++ {
		l, ok := c.q.Lease()
		from := monotonic()
		switch {
		case !ok:
			_, _ = c.q.TryAcquirePrimary(context.Background())
		case n%2 == 0:
			_, _ = c.q.RenewLease(context.Background())
		default:
			verified, err := c.q.IsPrimaryVerified(context.Background())
			to := monotonic()
			if after, ok := c.q.Lease(); verified && err == nil && ok && after.Epoch == l.Epoch {
				c.tell(event{Kind: "verify", From: from, To: to, Epoch: l.Epoch, LeaseID: l.LeaseID})
			}
		}
		c.pause(c.cfg.TTL / 12)
	}
}

func (c *client) release(f func() error) {
	l, ok := c.q.Lease()
	from := monotonic()
	err := f()
	if ok {
		c.tell(event{Kind: "release", From: from, To: monotonic(), Epoch: l.Epoch, LeaseID: l.LeaseID, Unknown: err != nil})
	}
}

var isolations = []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable}

// turn is Run's f: it writes by InTx until it is told to stop.
func (c *client) turn(ctx context.Context) error {
	var of int64
	for ctx.Err() == nil && !c.ended() {
		c.n++
		var epoch int64
		err := c.q.InTx(ctx, &sql.TxOptions{Isolation: isolations[c.rand.IntN(len(isolations))]}, func(tx *sql.Tx, e int64) error {
			epoch = e
			_, err := tx.ExecContext(ctx, "INSERT INTO public.nemesis_write (client, n, epoch) VALUES ($1, $2, $3)", c.cfg.Name, c.n, epoch)
			c.dawdle()
			return err
		})
		switch {
		case err == nil:
			c.tell(event{Kind: "write", Epoch: epoch, N: c.n})
		case !errors.Is(err, baldur.ErrCommitUnknown):
			c.tell(event{Kind: "denied", N: c.n, Text: err.Error()})
		}
		if of == 0 {
			of = epoch
		}
		if epoch != 0 && epoch != of {
			c.tell(event{Kind: "strayed", Epoch: epoch, N: c.n})
		}
		c.pause(time.Duration(1+c.rand.IntN(10)) * time.Millisecond)
	}
	return context.Cause(ctx)
}

// write runs guarded transactions, one after the other, while it is primary.
func (c *client) write() {
	for n := int64(1); !c.ended(); n++ {
		ctx, err := c.q.PrimaryContext(context.Background())
		if err == nil {
			var epoch int64
			if epoch, err = c.writeOnce(ctx, n); err == nil {
				c.tell(event{Kind: "write", Epoch: epoch, N: n})
			}
		}
		c.pause(time.Duration(1+c.rand.IntN(10)) * time.Millisecond)
	}
}

func (c *client) writeOnce(ctx context.Context, n int64) (epoch int64, err error) {
	tx, err := c.db.BeginTx(ctx, &sql.TxOptions{Isolation: isolations[c.rand.IntN(len(isolations))]})
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback() }()
	if epoch, err = c.guardedInsert(ctx, tx, n, c.rand.IntN(2) == 0); err != nil {
		return 0, err
	}
	c.dawdle()
	return epoch, tx.Commit()
}

// dawdle is what a transaction takes its time for.
func (c *client) dawdle() {
	switch pause := c.rand.IntN(100); {
	case pause == 0: // as long as the server lets it
		c.pause(c.cfg.TTL * 3 / 2)
	case pause < 20:
		c.pause(time.Duration(c.rand.IntN(10)) * time.Millisecond)
	}
}

// guardedInsert inserts a row with the epoch, by RequirePrimary or by FenceCTE.
func (c *client) guardedInsert(ctx context.Context, tx *sql.Tx, n int64, fold bool) (epoch int64, err error) {
	if !fold {
		if epoch, err = c.q.RequirePrimary(ctx, tx); err != nil {
			return 0, err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO public.nemesis_write (client, n, epoch) VALUES ($1, $2, $3)", c.cfg.Name, n, epoch)
		return epoch, err
	}
	cte, err := c.q.FenceCTE()
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, "WITH "+cte+" INSERT INTO public.nemesis_write (client, n, epoch) SELECT $1, $2, epoch FROM baldur_fence RETURNING epoch", c.cfg.Name, n).Scan(&epoch)
	return epoch, err
}

// obey does what it is told, a line each, until the end of its input.
func (c *client) obey(input io.Reader) {
	for lines := bufio.NewScanner(input); lines.Scan(); {
		command, arg, _ := strings.Cut(lines.Text(), " ")
		d, _ := time.ParseDuration(arg)
		switch command {
		case "release":
			c.wg.Go(func() { c.release(func() error { return c.q.ReleaseLease(context.Background()) }) })
		case "fill":
			c.wg.Go(func() { c.fillPool(d) })
		case "one":
			c.wg.Go(func() {
				c.db.SetMaxOpenConns(1)
				c.fillPool(d)
				c.db.SetMaxOpenConns(c.cfg.MaxOpen)
				c.db.SetMaxIdleConns(c.cfg.MaxOpen)
			})
		case "dirty":
			c.dirty(arg)
		case "begun":
			c.begun.Store(true)
		case "jump":
			c.jump.Add(int64(d))
		case "txbegin":
			c.txBegin()
		case "txend":
			text := ""
			if err := c.open.Commit(); err != nil {
				text = err.Error()
			}
			c.tell(event{Kind: "closed", Text: text})
		default:
			panic("unknown command " + command)
		}
	}
}

func (c *client) txBegin() {
	tx, err := c.db.Begin()
	if err != nil {
		panic(err)
	}
	epoch, err := c.guardedInsert(context.Background(), tx, 1_000_000, false)
	if err != nil {
		panic(err)
	}
	c.open = tx
	c.tell(event{Kind: "opened", Epoch: epoch})
}

// dirty runs statements, in JSON, on all connections that the pool gives at once,
// and leaves them so. They are named so that they can be told from the others.
func (c *client) dirty(statements string) {
	var state []string
	if err := json.Unmarshal([]byte(statements), &state); err != nil {
		panic(err)
	}
	var conns []*sql.Conn
	for len(conns) < c.cfg.MaxOpen {
		ctx, cancel := context.WithTimeout(context.Background(), c.cfg.TTL/10)
		conn, err := c.db.Conn(ctx)
		cancel()
		if err != nil {
			break
		}
		conns = append(conns, conn)
	}
	dirtied := event{Kind: "dirtied"}
	for _, conn := range conns {
		ctx, cancel := context.WithTimeout(context.Background(), c.cfg.TTL)
		if _, err := conn.ExecContext(ctx, "SET application_name = "+pq.QuoteLiteral(c.cfg.Name+dirtySuffix)); err == nil {
			dirtied.N++
		}
		for _, s := range state {
			_, _ = conn.ExecContext(ctx, s) // a failed transaction is a state, too
		}
		cancel()
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	c.tell(dirtied)
}

// dirtySuffix is added to the application_name of a dirty session.
const dirtySuffix = " dirty"

// fillPool takes all connections that the pool gives, for a time.
func (c *client) fillPool(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var conns []*sql.Conn
	for ctx.Err() == nil {
		if conn, err := c.db.Conn(ctx); err == nil {
			conns = append(conns, conn)
		}
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
}
