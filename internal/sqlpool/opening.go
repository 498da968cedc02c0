package sqlpool

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"reflect"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"
)

// Layout is something private of the runtime or of database/sql that this package
// reads.
type Layout uint32

const (
	Fields      Layout = 1 << iota // fields of sql.DB
	OwnStack                       // a pointer on the goroutine's own stack
	OtherStacks                    // the stacks of other goroutines
	Layouts     = Fields | OwnStack | OtherStacks
)

var off atomic.Uint32

// Disable keeps this package from reading layouts, so that it answers "unknown" for
// what only they tell, until restore is called.
func Disable(layouts Layout) (restore func()) {
	before := off.Or(uint32(layouts))
	return func() { off.And(before | ^uint32(layouts)) }
}

func enabled(layouts Layout) bool { return Layout(off.Load())&layouts == 0 }

// Opening returns the pool whose call of connector's Connect this goroutine is in, or
// nil: if the pool calls another connector, which wraps this one, if nobody's pool
// does, or if it cannot be told. It takes some 20 µs, and a few hundred once.
//
// The pool's address is what runtime.Stack prints as the receiver of the frame that
// calls Connect. It is not believed but proven, before it becomes a pointer:
//
//   - The runtime marks by "?" what may not be the argument's value. Without it, the
//     compiler has shown that the value was stored at its place on every path to this
//     program counter, and database/sql assigns nothing to its receivers. This excludes
//     inlined frames, too, which have no values.
//   - The self-test has found the value to be right at the same program counter.
//   - The two words at the field connector are the words of the interface value that
//     the caller knows. They are read as numbers, and a fault is caught.
//
// The object is alive meanwhile: the frame uses it after Connect has returned.
func Opening(connector driver.Connector) *sql.DB {
	if connector == nil || reflect.TypeOf(connector).Kind() != reflect.Pointer || !enabled(OwnStack|Fields) {
		return nil
	}
	Prepare()
	for range 1000 { // another goroutine may be at the self-test, or this one, within it
		if reading.done.Load() != nil {
			break
		}
		runtime.Gosched()
	}
	if reading := reading.done.Load(); reading != nil && reading.places != nil {
		if f := connectFrame(); reading.places[f.place] && f.pool != 0 && holds(f.pool+reading.connector, connector) {
			return *(**sql.DB)(unsafe.Pointer(&f.pool))
		}
	}
	return nil
}

// holds tells whether an interface value is at an address.
func holds(addr uintptr, value driver.Connector) (same bool) {
	if addr%unsafe.Alignof(addr) != 0 {
		return false
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return peekWords(addr) == *(*[2]uintptr)(unsafe.Pointer(&value))
}

// peekWords reads two words at an address that may be anything. No pointer to there is
// in a variable that the garbage collector knows of, whose invalid pointers are fatal.
//
//go:norace
//go:noinline
func peekWords(addr uintptr) [2]uintptr { return **(**[2]uintptr)(unsafe.Pointer(&addr)) }

// A poolFrame is a frame of a method of sql.DB.
type poolFrame struct {
	pool  uintptr // 0: not told
	place string  // the program counter, by file, line and offset in the function
}

// connectFrame returns the innermost frame on the own stack that calls a connector.
func connectFrame() poolFrame {
	buf := make([]byte, 16<<10) // the innermost frames come first
	buf = buf[:runtime.Stack(buf, false)]
	for len(buf) > 0 {
		var line []byte
		line, buf, _ = bytes.Cut(buf, []byte("\n"))
		if name, args := cutArgs(string(line)); name == connMethod || name == "database/sql.(*DB).openNewConnection" {
			place, _, whole := bytes.Cut(buf, []byte("\n"))
			if !whole {
				break
			}
			return poolFrame{firstArg(args), string(place)}
		}
	}
	return poolFrame{}
}

const connMethod = "database/sql.(*DB).conn"

// cutArgs cuts a line of a stack trace as "main.f(0x1, {0x2, 0x3})".
func cutArgs(line string) (function, args string) {
	i := strings.LastIndexByte(line, '(')
	if i < 0 || !strings.HasSuffix(line, ")") {
		return "", ""
	}
	return line[:i], line[i+1 : len(line)-1]
}

// firstArg returns the value of the first argument, or 0 where it is not told or not
// certain: "0xc000?", "...", "_".
func firstArg(args string) uintptr {
	arg, _, _ := strings.Cut(args, ",")
	hex, ok := strings.CutPrefix(arg, "0x")
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(hex, 16, strconv.IntSize)
	if err != nil {
		return 0
	}
	return uintptr(n)
}

// A howToRead is how Opening reads.
type howToRead struct {
	connector uintptr         // offset of the field
	places    map[string]bool // where frames were found to tell the right pool; nil: nowhere
}

// reading is the outcome of the self-test. It is not a sync.OnceValue: the self-test opens a
// pool, and whoever replaces database/sql's functions may call back.
var reading struct {
	begun atomic.Bool
	done  atomic.Pointer[howToRead]
}

// Prepare runs the self-test of Opening, once.
func Prepare() {
	if reading.begun.CompareAndSwap(false, true) {
		r := connectFrames()
		reading.done.Store(&r)
	}
}

// connectFrames has database/sql call a connector on both ways.
func connectFrames() (r howToRead) {
	f, ok := reflect.TypeFor[sql.DB]().FieldByName("connector")
	if !ok || f.Type != reflect.TypeFor[driver.Connector]() {
		return r
	}
	r.connector = f.Offset
	probe := &probeConnector{frames: make(chan poolFrame, 8)}
	c, err := newCanary(probe)
	if err != nil {
		return r
	}
	Discard(c.held) // its place is the waiter's: the opener connects for it
	<-c.waiter
	c.close()
	places := map[string]bool{}
	for range len(probe.frames) {
		f := <-probe.frames
		if f.pool == 0 { // inlined
			continue
		}
		if f.pool != address(c.db) || !holds(f.pool+r.connector, probe) || holds(f.pool+r.connector, &probeConnector{}) {
			return r
		}
		places[f.place] = true
	}
	r.places = places
	return r
}

func address(db *sql.DB) uintptr { return uintptr(unsafe.Pointer(db)) }

// A probeConnector notes the frames that call it.
type probeConnector struct {
	nullConnector
	frames chan poolFrame
}

func (p *probeConnector) Connect(context.Context) (driver.Conn, error) {
	p.frames <- connectFrame()
	return nullConn{}, nil
}

// A canary is a pool of one connection, which is out, and a goroutine that waits for
// another.
type canary struct {
	db     *sql.DB
	held   *sql.Conn
	waiter chan struct{} // closed when it has ended
	cancel func()
}

func newCanary(connector driver.Connector) (*canary, error) {
	ctx, cancel := context.WithCancel(context.Background())
	c := &canary{db: sql.OpenDB(connector), waiter: make(chan struct{}), cancel: cancel}
	c.db.SetMaxOpenConns(1)
	var err error
	if c.held, err = c.db.Conn(ctx); err != nil {
		cancel()
		_ = c.db.Close()
		return nil, err
	}
	go func() {
		defer close(c.waiter)
		if conn, err := c.db.Conn(ctx); err == nil {
			_ = conn.Close()
		}
	}()
	for c.db.Stats().WaitCount == 0 { // the waiter raises it in the step in which it joins the queue
		runtime.Gosched()
	}
	return c, nil
}

// close returns when the waiter has ended.
func (c *canary) close() {
	_ = c.held.Close()
	<-c.waiter
	c.cancel()
	_ = c.db.Close()
}
