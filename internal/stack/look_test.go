package stack

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func needLooks(t testing.TB) {
	t.Helper()
	if !Self().Looks {
		t.Skip("no looks in this build: ", Self().Reason)
	}
}

// await looks at a goroutine until it does what is wanted. A test that waits in vain ends by its deadline.
func await(g G, want Doing) *View {
	v := new(View)
	for g.Look(v) != want {
		runtime.Gosched()
	}
	return v
}

func TestLook(t *testing.T) {
	needLooks(t)
	ready, end := make(chan G), make(chan struct{})
	go waitHere(ready, end)
	g := <-ready
	v := await(g, Parked)
	frames := v.Frames()
	i := slices.IndexFunc(frames, func(f Frame) bool { return strings.HasSuffix(f.Function, ".waitHere") })
	if i < 0 || frames[i].Line != waitHereLine || !v.Whole() || v.Reason() != "chan receive" || frames[len(frames)-1].Function != "runtime.goexit" {
		t.Errorf("whole %v, %q, want line %d\n%s", v.Whole(), v.Reason(), waitHereLine, list(frames))
	}
	close(end)
	v = await(g, Ended)
	if len(v.Frames()) != 0 || v.Whole() || v.Reason() != "" {
		t.Errorf("an ended goroutine has %v", v.Frames())
	}

	stop := make(chan int)
	go func() { ready <- CurrentG(); spinUntil(stop) }()
	g = <-ready
	await(g, Running)
	close(stop)
	await(g, Ended)

	if d := CurrentG().Look(v); d != Running || len(v.Frames()) != 0 {
		t.Errorf("of itself: %v", d)
	}
	if d := (G{}).Look(v); d != Unseen {
		t.Errorf("of none: %v", d)
	}
}

var waitHereLine int

//go:noinline
func waitHere(ready chan<- G, end <-chan struct{}) {
	_, _, waitHereLine, _ = runtime.Caller(0)
	waitHereLine += 3
	ready <- CurrentG()
	<-end
}

// announcement is what a goroutine says of itself while it is in pause.
type announcement struct {
	key   stackKey // of pause's callers, the innermost
	n     int
	whole bool
}

// worker pauses at random depths of random stacks.
type worker struct {
	g    G
	at   atomic.Pointer[announcement] // nil: not in pause
	wake chan struct{}
	mu   sync.Mutex
	rng  *rand.Rand
}

//go:noinline
func (w *worker) pause(kind uint64) {
	a := new(announcement)
	var rest uintptr
	a.n, _, rest = walk(&a.key, 0, 0, 0)
	a.whole = rest == 0
	w.at.Store(a)
	switch kind % 5 {
	case 0:
		<-w.wake
	case 1:
		select {
		case <-w.wake:
		case <-time.After(50 * time.Microsecond):
		}
	case 2:
		time.Sleep(time.Duration(kind % 50_000))
	case 3:
		w.mu.Lock()
		w.mu.Unlock()
	case 4:
		runtime.Gosched()
	}
	w.at.Store(nil)
}

// dive makes a stack of calls in frames of several sizes, pausing here and there.
//
//go:noinline
func (w *worker) dive(depth int) {
	x := w.rng.Uint64()
	if x%4 == 0 {
		w.pause(x >> 2)
	}
	if depth == 0 {
		return
	}
	switch x >> 8 % 4 {
	case 0:
		w.dive(depth - 1)
	case 1:
		w.diveBig(depth - 1)
	case 2:
		func() { w.dive(depth - 1) }()
	case 3:
		defer w.dive(depth - 1)
	}
}

//go:noinline
func (w *worker) diveBig(depth int) {
	var frame [3000]byte
	w.dive(depth)
	runtime.KeepAlive(&frame)
}

// judge says what is wrong with a view of a goroutine that was in pause all the time.
func (a *announcement) judge(v *View) error {
	if !v.whole && v.n < viewFrames {
		return fmt.Errorf("the chain is broken after %d frames", v.n)
	}
	pcs := v.pcs[:v.n]
	if base := runtime.FuncForPC(pcs[v.n-1]).Name(); v.whole && base != "runtime.goexit" {
		return fmt.Errorf("the base is %s", base)
	}
	for i := 1; i <= len(pcs); i++ {
		f := runtime.FuncForPC(pcs[i-1] - 1)
		if f != nil && strings.HasSuffix(runtime.FuncForPC(f.Entry()).Name(), ".(*worker).pause") {
			pcs = pcs[i:]
			if a.whole && !slices.Equal(pcs, a.key[:a.n]) || !a.whole && (len(pcs) < a.n || !slices.Equal(pcs[:a.n], a.key[:a.n])) {
				return fmt.Errorf("the callers differ: want\n%s", list(resolve(a.key[:a.n])))
			}
			return nil
		}
	}
	return fmt.Errorf("pause is missing")
}

// TestLookStress judges looks by what the goroutines say of themselves, while their stacks grow, shrink
// and move and the memory of old ones is given to others and back to the system.
func TestLookStress(t *testing.T) {
	needLooks(t)
	want := 150_000
	if testing.Short() {
		want = 20_000
	}
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	var stop atomic.Bool
	var wg sync.WaitGroup
	storm := func(f func()) {
		wg.Go(func() {
			for !stop.Load() {
				f()
			}
		})
	}
	storm(runtime.GC)
	storm(func() { debug.FreeOSMemory(); time.Sleep(5 * time.Millisecond) })
	storm(func() { // others take the memory of freed stacks
		for range 20 {
			wg.Go(func() { recurseThen(200, func() {}) })
		}
		sinkBytes = make([]byte, 32<<10)
		time.Sleep(time.Millisecond)
	})
	var workers [12]*worker
	ready := make(chan struct{})
	for i := range workers {
		w := &worker{wake: make(chan struct{}), rng: rand.New(rand.NewPCG(uint64(i), 7))}
		workers[i] = w
		wg.Go(func() {
			w.g = CurrentG()
			ready <- struct{}{}
			for !stop.Load() {
				w.dive(w.rng.IntN(160))
			}
		})
		<-ready
	}
	storm(func() {
		for _, w := range workers {
			select {
			case w.wake <- struct{}{}:
			default:
			}
			if w.mu.TryLock() {
				runtime.Gosched()
				w.mu.Unlock()
			}
		}
		time.Sleep(20 * time.Microsecond)
	})
	var v View
	var seen [6]int
	judged, wrong, deep, places, frameless, last := 0, 0, 0, 0, 0, make([]*announcement, len(workers))
	start := time.Now()
	for i := 0; judged < want && time.Since(start) < 4*time.Minute; i++ {
		w := workers[i%len(workers)]
		a := w.at.Load()
		d := w.g.Look(&v)
		b := w.at.Load()
		seen[d]++
		if d == Unseen || d == Ended {
			t.Fatalf("%v: %+v", d, Self())
		}
		if d == Parked && a != nil && a == b {
			judged++
			if v.n > maxFrames {
				deep++
			}
			if v.n == 0 && v.Reason() == "" { // it starts or ends a collection
				frameless++
			} else if err := a.judge(&v); err != nil {
				if wrong++; wrong < 4 {
					t.Errorf("%v\n%s", err, list(v.Frames()))
				}
			}
			if last[i%len(workers)] != a {
				places++
				last[i%len(workers)] = a
			} else if i%8 == 0 {
				runtime.Gosched()
			}
		}
	}
	stop.Store(true)
	for _, w := range workers {
		wg.Go(func() {
			for w.g.State() != Exited {
				select {
				case w.wake <- struct{}{}:
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d looks at %d places judged in %v, %d of them deeper than %d frames, %d frameless, %d wrong; all by outcome: %v",
		judged, places, time.Since(start).Round(time.Millisecond), deep, maxFrames, frameless, wrong, seen)
	if judged < want || frameless > want/20 {
		t.Error("too few looks were judged")
	}
}

var sinkBytes []byte
