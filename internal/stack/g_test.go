package stack

import (
	"bytes"
	"math/rand/v2"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/petermattis/goid"
)

func TestID(t *testing.T) {
	seen := map[int64]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			g := CurrentG()
			if want := slowG().ID(); g.ID() != want || g.ID() != goid.Get() {
				t.Errorf("id %d, want %d", g.ID(), want)
			}
			if g != CurrentG() {
				t.Error("a goroutine differs from itself")
			}
			mu.Lock()
			seen[g.ID()] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(seen) != 100 || seen[0] {
		t.Errorf("%d ids", len(seen))
	}
}

func TestZeroG(t *testing.T) {
	var g G
	if g.ID() != 0 || g.State() != Unknown {
		t.Errorf("%d, %v", g.ID(), g.State())
	}
}

// untilExited waits until g is gone. There is nothing to wait on: a goroutine's last statement comes
// before its end. A test that waits in vain ends by its deadline.
func untilExited(g G) {
	for g.State() != Exited {
		runtime.Gosched()
	}
}

// needLiveness skips a test where goroutines cannot be told apart by design.
func needLiveness(t *testing.T) {
	t.Helper()
	if !haveWalk {
		t.Skip("no liveness in this build")
	}
}

func TestState(t *testing.T) {
	needLiveness(t)
	for name, body := range map[string]func(c chan int, mu *sync.Mutex){
		"channel": func(c chan int, _ *sync.Mutex) { <-c },
		"mutex":   func(_ chan int, mu *sync.Mutex) { mu.Lock(); defer mu.Unlock() },
		"running": func(c chan int, _ *sync.Mutex) { spinUntil(c) },
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			mu.Lock()
			c, ready := make(chan int), make(chan G)
			go func() { ready <- CurrentG(); body(c, &mu) }()
			g := <-ready
			for range 100 {
				if g.State() != Alive {
					t.Fatal(g.State())
				}
				runtime.Gosched()
			}
			runtime.GC()
			if g.State() != Alive {
				t.Error("after a collection: ", g.State())
			}
			mu.Unlock()
			close(c)
			untilExited(g)
			// Others use its g again, and are alive.
			gs, end := park(1000)
			defer end()
			reused := 0
			for _, other := range gs {
				if other.p == g.p {
					reused++
				}
			}
			if g.State() != Exited || reused > 1 {
				t.Errorf("%v, and its g was used again %d times", g.State(), reused)
			}
			t.Logf("used again: %v", reused == 1)
		})
	}
	if CurrentG().State() != Alive {
		t.Error("the running goroutine is not alive")
	}
}

func spinUntil(c chan int) {
	for {
		select {
		case <-c:
			return
		default:
			runtime.Gosched() // for the sake of GOMAXPROCS=1
		}
	}
}

// TestStateLeaked makes sure that holding a G neither hides a leaked goroutine from the runtime's
// leak profile (Go 1.27) nor makes a goroutine that the profile found look ended.
func TestStateLeaked(t *testing.T) {
	needLiveness(t)
	profile := pprof.Lookup("goroutineleak")
	if profile == nil {
		t.Skip("no leak profile in ", runtime.Version())
	}
	ready := make(chan G)
	go leakForever(ready)
	leaked = <-ready
	var text bytes.Buffer
	for !strings.Contains(text.String(), "leakForever") { // until it waits
		text.Reset()
		if err := profile.WriteTo(&text, 1); err != nil {
			t.Fatal(err)
		}
	}
	if s := leaked.State(); s != Alive {
		t.Error(s)
	}
}

var leaked G

func leakForever(ready chan<- G) {
	ready <- CurrentG()
	<-make(chan int)
}

// TestStateAgainstDump compares with the runtime's own list of goroutines, after random ones ended.
func TestStateAgainstDump(t *testing.T) {
	needLiveness(t)
	const n = 2000
	var gs [n]G
	var stop [n]chan struct{}
	ready := make(chan struct{})
	for i := range gs {
		c := make(chan struct{})
		stop[i] = c
		go func() {
			gs[i] = CurrentG()
			ready <- struct{}{}
			<-c
		}()
	}
	for range gs {
		<-ready
	}
	ended := map[int64]bool{}
	for _, i := range rand.New(rand.NewPCG(1, 3)).Perm(n)[:n/2] {
		close(stop[i])
		stop[i] = nil
		ended[gs[i].ID()] = true
	}
	for _, g := range gs {
		if ended[g.ID()] {
			untilExited(g)
		}
	}
	alive := dump()
	for _, g := range gs {
		want := Alive
		if ended[g.ID()] {
			want = Exited
		}
		if g.State() != want || alive[g.ID()] != (want == Alive) {
			t.Errorf("goroutine %d: %v, in the dump: %v, want %v", g.ID(), g.State(), alive[g.ID()], want)
		}
	}
	for _, c := range stop {
		if c != nil {
			close(c)
		}
	}
}

var header = regexp.MustCompile(`(?m)^goroutine (\d+) \[`)

// dump returns the numbers of all goroutines.
func dump() map[int64]bool {
	buf := make([]byte, 1<<20)
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	ids := map[int64]bool{}
	for _, m := range header.FindAllSubmatch(bytes.Clone(buf[:n]), -1) {
		id, _ := strconv.ParseInt(string(m[1]), 10, 64)
		ids[id] = true
	}
	return ids
}

// TestStateConcurrent looks at goroutines while they start, end, and have their g used again: none
// may be called exited before its last statement, and each must be afterwards.
func TestStateConcurrent(t *testing.T) {
	needLiveness(t)
	type life struct {
		g    G
		over chan struct{} // closed by the last statement
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				born := make(chan life)
				go func() {
					me := life{CurrentG(), make(chan struct{})}
					born <- me
					close(me.over)
				}()
				l := <-born
				switch l.g.State() {
				case Exited:
					select {
					case <-l.over:
					default:
						t.Errorf("goroutine %d is called exited and is not", l.g.ID())
					}
				case Unknown:
					t.Errorf("goroutine %d is in an unknown state", l.g.ID())
				}
				<-l.over
				untilExited(l.g)
			}
		})
	}
	wg.Wait()
}

// TestWithoutLayout is what a runtime with another g gets.
func TestWithoutLayout(t *testing.T) {
	defer living.Store(living.Load())
	want := CurrentG().ID()
	living.Store(false)
	g := CurrentG()
	if g.ID() != want || g.State() != Unknown {
		t.Errorf("%d, %v, want %d", g.ID(), g.State(), want)
	}
}
