package stack

import (
	"bytes"
	"net"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestReasons compares with what a stack dump says, for goroutines that wait in every way.
func TestReasons(t *testing.T) {
	needLooks(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	var rw, held sync.RWMutex
	mu.Lock()
	defer mu.Unlock()
	rw.Lock()
	defer rw.Unlock()
	held.RLock()
	defer held.RUnlock()
	c, other, out := make(chan int), make(chan int), make(chan int)
	defer close(c)
	defer func() { <-out }()
	var hold sync.WaitGroup
	hold.Add(1)
	defer hold.Done()
	cond, over := sync.NewCond(new(sync.Mutex)), false
	defer func() { cond.L.Lock(); over = true; cond.L.Unlock(); cond.Broadcast() }()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer server.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	timer := time.NewTimer(time.Hour)
	defer timer.Reset(0)
	var awake atomic.Bool
	defer awake.Store(true)
	for name, wait := range map[string]func(){
		"chan receive": func() { <-c },
		"range": func() {
			for range c {
			}
		},
		"timer":     func() { <-timer.C },
		"chan send": func() { out <- 1 },
		"select": func() {
			select {
			case <-c:
			case <-other:
			}
		},
		"select receive": func() {
			select {
			case <-c:
			}
		},
		"sleep": func() {
			for !awake.Load() {
				time.Sleep(50 * time.Millisecond)
			}
		},
		"sync.Mutex.Lock":                func() { mu.Lock(); mu.Unlock() },
		"sync.RWMutex.RLock":             func() { rw.RLock(); rw.RUnlock() },
		"sync.RWMutex.Lock":              func() { held.Lock(); held.Unlock() },
		"RWMutex.Lock waits for another": func() { rw.Lock(); rw.Unlock() },
		"sync.WaitGroup.Wait":            func() { hold.Wait() },
		"sync.Cond.Wait": func() {
			cond.L.Lock()
			for !over {
				cond.Wait()
			}
			cond.L.Unlock()
		},
		"accept": func() { server.Accept() },
		"read":   func() { r.Read(make([]byte, 1)) },
	} {
		ready := make(chan G)
		wg.Go(func() { ready <- CurrentG(); wait() })
		g := <-ready
		// The chan send of ready may still be going on.
		for try := 0; ; try++ {
			v := await(g, Parked)
			got, want := v.Reason(), dumped(g)
			if got == want && got != "" {
				break
			}
			if try == 1000 {
				t.Errorf("%s: %q, in the dump: %q\n%s", name, got, want, list(v.Frames()))
				break
			}
			runtime.Gosched()
		}
	}
}

// dumped returns what a goroutine waits for according to a dump of all stacks.
func dumped(g G) string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	m := regexp.MustCompile(`(?m)^goroutine ` + strconv.FormatInt(g.ID(), 10) + ` \[([^],]*)`).FindSubmatch(buf)
	if m == nil {
		return ""
	}
	return string(bytes.TrimSpace(m[1]))
}

// TestReasonsBubble: what waits in a synctest bubble has numbers of its own, which are not learnt.
func TestReasonsBubble(t *testing.T) {
	needLooks(t)
	synctest.Test(t, func(t *testing.T) {
		c := make(chan int)
		var g G
		go func() { g = CurrentG(); <-c }()
		synctest.Wait()
		v := await(g, Parked)
		if r := v.Reason(); r != "" || !v.calls("runtime.chanrecv1") {
			t.Errorf("%q\n%s", r, list(v.Frames()))
		}
		close(c)
	})
}
