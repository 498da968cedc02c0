package lease

import (
	"context"
	"sync"
	"testing"
	"time"
)

// quietWitness keeps a row that is free.
type quietWitness struct{ Witness }

func (quietWitness) Observe(context.Context) (Row, error) { return Row{}, nil }

// hookLine is a line that calls onClose.
type hookLine struct {
	wake    chan struct{}
	onClose func()
}

func (l *hookLine) Wait(d time.Duration, _ bool, unless func() bool) {
	if unless() {
		return
	}
	select {
	case <-l.wake:
	case <-time.After(d):
	}
}

func (l *hookLine) Interrupt() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}
func (l *hookLine) Announce(context.Context) {}
func (l *hookLine) IsOpen() bool             { return true }
func (l *hookLine) Close()                   { l.onClose() }

// useObserver notes what InUse says.
type useObserver struct {
	mu    sync.Mutex
	inUse bool
}

func (o *useObserver) Began(*Belief, time.Duration) {}
func (o *useObserver) Lost(*Belief, Reason)         {}
func (o *useObserver) Heard(Row, State, bool)       {}
func (o *useObserver) Renewed(time.Duration)        {}
func (o *useObserver) Failed(string, error)         {}
func (o *useObserver) Ended()                       {}
func (o *useObserver) InUse(inUse bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inUse = inUse
}

func (o *useObserver) get() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.inUse
}

// TestStartWhileHangingUp: an Elector that is started just as it gives its connection up is
// in use.
func TestStartWhileHangingUp(t *testing.T) {
	o, l := &useObserver{}, &hookLine{wake: make(chan struct{}, 1)}
	e := New(Config{TTL: time.Second, Attempt: time.Second, Gone: func() <-chan struct{} { return nil }}, quietWitness{}, l, o)
	var once sync.Once
	l.onClose = func() { once.Do(e.Follow) } // as another goroutine might
	e.Stop(true)
	if !o.get() {
		t.Error("the Elector follows, and counts as not in use")
	}
	if err := e.Close(); err != nil || o.get() {
		t.Error("closed:", err, o.get())
	}
}
