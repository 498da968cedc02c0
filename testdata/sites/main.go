// Command sites takes connections in every way that is known, and fails if baldur
// names another line than the one that took it. It is built by TestSites with
// whatever makes a compiler inline and rename functions.
package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/testdata/sites/lib"
)

//go:embed main.go lib/lib.go
var sources embed.FS

// lineOf finds the line that is marked with a name.
func lineOf(file, name string) int {
	text, _ := sources.ReadFile(file)
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasSuffix(line, "// LINE "+name) {
			return i + 1
		}
	}
	panic("no line " + name)
}

var ctx = context.Background()

// seen is the holder as a report has it during the last call of the driver.
var (
	tracker *baldur.Tracker
	mu      sync.Mutex
	seen    baldur.ConnectionInfo
	renamed bool // a closure of database/sql's was met under another package's name
)

func look() {
	mu.Lock()
	defer mu.Unlock()
	if all := tracker.Holders(); len(all) == 1 {
		seen = all[0]
	}
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.File, "database/sql/sql.go") && !strings.HasPrefix(f.Function, "database/sql.") {
			renamed = true
		}
		if !more {
			return
		}
	}
}

type connector struct{}
type conn struct{}
type tx struct{}
type rows struct{}
type stmt struct{}

func (connector) Connect(context.Context) (driver.Conn, error) { return &conn{}, nil }
func (connector) Driver() driver.Driver                        { return nil }
func (*conn) Close() error                                     { return nil }
func (*conn) Begin() (driver.Tx, error)                        { look(); return tx{}, nil }
func (*conn) Ping(context.Context) error                       { look(); return nil }
func (*conn) ResetSession(context.Context) error               { return nil }
func (*conn) IsValid() bool                                    { return true }
func (*conn) Prepare(string) (driver.Stmt, error)              { look(); return stmt{}, nil }
func (*conn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	look()
	return tx{}, nil
}
func (*conn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	look()
	return rows{}, nil
}
func (*conn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	look()
	return driver.ResultNoRows, nil
}
func (tx) Commit() error                                { return nil }
func (tx) Rollback() error                              { return nil }
func (rows) Columns() []string                          { return []string{"n"} }
func (rows) Close() error                               { return nil }
func (rows) Next([]driver.Value) error                  { return io.EOF }
func (stmt) Close() error                               { return nil }
func (stmt) NumInput() int                              { return -1 }
func (stmt) Exec([]driver.Value) (driver.Result, error) { look(); return driver.ResultNoRows, nil }
func (stmt) Query([]driver.Value) (driver.Rows, error)  { look(); return rows{}, nil }

func query(db *sql.DB) {
	r, err := db.QueryContext(ctx, "SELECT 1") // LINE query
	if err == nil {
		_ = r.Close()
	}
}

func queryRow(db *sql.DB) { _ = db.QueryRow("SELECT 1").Scan(new(int)) } // LINE queryRow
func exec(db *sql.DB)     { _, _ = db.Exec("SELECT 1") }                 // LINE exec
func ping(db *sql.DB)     { _ = db.Ping() }                              // LINE ping

func begin(db *sql.DB) {
	tx, err := db.Begin() // LINE begin
	if err == nil {
		_ = tx.Rollback()
	}
}

func hold(db *sql.DB) {
	c, err := db.Conn(ctx) // LINE conn
	if err == nil {
		_ = c.PingContext(ctx)
		_ = c.Close()
	}
}

func prepare(db *sql.DB) {
	st, err := db.Prepare("SELECT 1") // LINE prepare
	if err == nil {
		_ = st.Close()
	}
}

func prepared(db *sql.DB) {
	st, err := db.Prepare("SELECT 1")
	if err == nil {
		_, _ = st.Exec() // LINE prepared
		_ = st.Close()
	}
}

// helper is skipped as a function.
func helper(db *sql.DB) error {
	return inTx(db, func(tx *sql.Tx) error { return nil })
}

func inTx(db *sql.DB, f func(*sql.Tx) error) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	return errors.Join(f(tx), tx.Commit())
}

type store struct{ db *sql.DB }

func (s *store) Exec(query string) error {
	_, err := s.db.Exec(query)
	return err
}

var failed bool

// expect compares what was seen with the marked line.
func expect(what, file, name string, kind baldur.Kind) {
	mu.Lock()
	defer mu.Unlock()
	got := seen.CallSite()
	if path.Base(got.File) != path.Base(file) || got.Line != lineOf(file, name) || seen.Kind != kind {
		fmt.Printf("%s: taken at %v, %s; want line %d of %s, %s\n  %v\n", what, got, seen.Kind, lineOf(file, name), file, kind, seen.StackTrace)
		failed = true
	}
	seen = baldur.ConnectionInfo{}
}

func fail(format string, args ...any) {
	fmt.Printf(format+"\n", args...)
	failed = true
}

func main() {
	db := baldur.OpenDB(connector{},
		baldur.WithSkipPackages("github.com/baldur-go/baldur/testdata/sites/lib/"),
		baldur.WithSkipFunctions("main.helper", "main.inTx", "main.(*store).Exec"))
	tracker = baldur.TrackerOf(db)
	testing.Init() // for Benchmark
	q := lib.Q{DB: db}
	for _, idle := range []int{-1, 1} { // every connection is new; pooled
		db.SetMaxIdleConns(idle)
		direct(db)
		started(db, q)
		statements(db)
	}
	lines()
	if failed {
		os.Exit(1)
	}
	fmt.Println("renamed:", renamed)
}

// direct: the program's own lines.
func direct(db *sql.DB) {
	for _, c := range []struct {
		name string
		f    func(*sql.DB)
		kind baldur.Kind
	}{
		{"query", query, baldur.KindQuery},
		{"queryRow", queryRow, baldur.KindQuery},
		{"exec", exec, baldur.KindExec},
		{"ping", ping, baldur.KindPing},
		{"begin", begin, baldur.KindTx},
		{"conn", hold, baldur.KindConn},
		{"prepare", prepare, baldur.KindStmt},
		{"prepared", prepared, baldur.KindStmt},
	} {
		c.f(db)
		expect(c.name, "main.go", c.name, c.kind)
		wait(func() { c.f(db) })
		expect(c.name+" on a goroutine", "main.go", c.name, c.kind)
		new(sync.Once).Do(func() { c.f(db) })
		expect(c.name+" in a Once", "main.go", c.name, c.kind)
	}
	// Named directly, and so inlined into this function.
	query(db)
	expect("query, inlined", "main.go", "query", baldur.KindQuery)
	begin(db)
	expect("begin, inlined", "main.go", "begin", baldur.KindTx)
	hold(db)
	expect("conn, inlined", "main.go", "conn", baldur.KindConn)

	_ = helper(db) // LINE helper
	expect("a skipped function", "main.go", "helper", baldur.KindTx)
	_ = (&store{db}).Exec("SELECT 1") // LINE store
	expect("a skipped method", "main.go", "store", baldur.KindExec)
}

// started: the library's lines, where the standard library starts it.
func started(db *sql.DB, q lib.Q) {
	var wg sync.WaitGroup
	wg.Go(q.Leak)
	wg.Wait()
	expect("WaitGroup.Go", "lib/lib.go", "leak", baldur.KindQuery)
	done := make(chan bool, 1)
	once := new(sync.Once)
	wg.Add(1)
	go once.Do(func() { defer wg.Done(); q.Leak() }) // LINE onceClosure
	wg.Wait()
	expect("Once.Do in a closure", "main.go", "onceClosure", baldur.KindQuery)
	once = new(sync.Once)
	go once.Do(q.Leak)
	settle()
	expect("go Once.Do", "lib/lib.go", "leak", baldur.KindQuery)
	time.AfterFunc(0, q.Leak)
	settle()
	expect("AfterFunc", "lib/lib.go", "leak", baldur.KindQuery)
	q.Start(done)
	<-done
	expect("a closure of the library", "lib/lib.go", "start", baldur.KindQuery)
	s := httptest.NewServer(q)
	if res, err := http.Get(s.URL); err == nil {
		_ = res.Body.Close()
	}
	s.Close()
	expect("httptest", "lib/lib.go", "serve", baldur.KindQuery)
	next, stop := iter.Pull(q.Values)
	next()
	stop()
	expect("iter.Pull", "lib/lib.go", "values", baldur.KindQuery)
	context.AfterFunc(ended(), q.Leak)
	settle()
	expect("context.AfterFunc", "lib/lib.go", "leak", baldur.KindQuery)
	testing.Benchmark(q.Benchmark)
	expect("testing", "lib/lib.go", "benchmark", baldur.KindQuery)
	_ = q.Each(func() error {
		query(db)
		return nil
	})
	expect("a callback of the library's", "main.go", "query", baldur.KindQuery)
	go q.Leak()
	settle()
	expect("go statement", "lib/lib.go", "leak", baldur.KindQuery)
}

// statements: goroutines that begin in database/sql.
func statements(db *sql.DB) {
	go db.ExecContext(ctx, "SELECT 2") // LINE goExec
	settle()
	goes("(*DB).ExecContext", "goExec", baldur.KindExec)
	go db.Ping() // LINE goPing
	settle()
	goes("(*DB).Ping", "goPing", baldur.KindPing)
}

func goes(method, name string, kind baldur.Kind) {
	mu.Lock()
	got := seen.CallSite()
	mu.Unlock()
	if got.Function != "database/sql."+method {
		fail("%s: taken in %s, %v", name, got.Function, seen.StackTrace)
	}
	expect(name, "main.go", name, kind)
	for _, f := range seen.StackTrace {
		if strings.Contains(f.Function, "baldur.") {
			fail("%s: a line of baldur's: %v", name, f)
		}
	}
}

// lines: a line is in CallSites once.
func lines() {
	n := map[string]int{}
	for _, s := range baldur.CallSites() {
		f := s.CallSite()
		n[fmt.Sprintf("%s:%d", path.Base(f.File), f.Line)]++
		if strings.HasPrefix(f.File, runtime.GOROOT()+"/") {
			fail("CallSites has %v", f)
		}
	}
	for _, name := range []string{"query", "begin", "conn", "exec", "ping", "prepare", "helper", "store", "goExec", "goPing"} {
		if k := fmt.Sprintf("main.go:%d", lineOf("main.go", name)); n[k] != 1 {
			fail("CallSites has %s %d times", k, n[k])
		}
	}
	if k := fmt.Sprintf("lib.go:%d", lineOf("lib/lib.go", "leak")); n[k] != 1 {
		fail("CallSites has %s %d times", k, n[k])
	}
}

func ended() context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

func wait(f func()) {
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { defer wg.Done(); f() }()
	wg.Wait()
}

// settle waits until a goroutine has used a connection.
func settle() {
	for {
		mu.Lock()
		done := seen.ConnectionID != 0
		mu.Unlock()
		if done {
			break
		}
		runtime.Gosched()
	}
	for len(tracker.Holders()) > 0 {
		runtime.Gosched()
	}
}
