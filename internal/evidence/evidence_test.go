package evidence

import (
	"runtime"
	"strings"
	"testing"

	"github.com/baldur-go/baldur/internal/callsite"
	"github.com/baldur-go/baldur/internal/checkout"
	"github.com/baldur-go/baldur/internal/stack"
)

// A holder takes a connection, and then goes where a test sends it.
type holder struct {
	checkout checkout.Checkout
	ready    chan struct{}
	leave    chan struct{}
}

//go:noinline
func (h *holder) take() {
	h.checkout = checkout.Checkout{Site: stack.Capture(0), Holder: stack.CurrentG(), Last: stack.CurrentG()}
}

//go:noinline
func (h *holder) takeAndStay() {
	h.checkout = checkout.Checkout{Site: stack.Capture(0), Holder: stack.CurrentG(), Last: stack.CurrentG()}
	h.stay()
}

//go:noinline
func (h *holder) stay() {
	h.ready <- struct{}{}
	<-h.leave
	runtime.KeepAlive(h)
}

//go:noinline
func (h *holder) takeAndReturn() { h.take(); runtime.KeepAlive(h) }

func needLooks(t *testing.T) {
	t.Helper()
	if !stack.Self().Looks {
		t.Skip("goroutines cannot be looked at: ", stack.Self().Reason)
	}
}

// settled looks until the goroutine does what is wanted.
func settled(l *Looker, c *checkout.Checkout, want stack.Doing) Place {
	for {
		if p := l.Of(c); p.Doing == want {
			return p
		}
		runtime.Gosched()
	}
}

// TestOf: where a holder is, and whether the function that took the connection has returned.
func TestOf(t *testing.T) {
	needLooks(t)
	for name, c := range map[string]struct {
		run           func(h *holder)
		taker, taking stack.Fate
		at            string
	}{
		"in the call that took it":      {func(h *holder) { h.takeAndStay() }, stack.MaybeActive, stack.MaybeActive, ".(*holder).stay"},
		"the taker has returned":        {func(h *holder) { h.takeAndReturn(); h.stay() }, stack.Returned, stack.MaybeActive, ".(*holder).stay"},
		"everything of it has returned": {func(h *holder) { func() { h.takeAndReturn() }(); h.stay() }, stack.Returned, stack.MaybeActive, ".(*holder).stay"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &holder{ready: make(chan struct{}), leave: make(chan struct{})}
			done := make(chan struct{})
			go func() { defer close(done); c.run(h) }()
			<-h.ready
			l := NewLooker(callsite.Skip{})
			p := settled(l, &h.checkout, stack.Parked)
			if p.Taker != c.taker || p.Taking != c.taking || p.Waits || p.At >= len(p.Frames) || !strings.HasSuffix(p.Frames[p.At].Function, c.at) {
				t.Errorf("%+v", p)
			}
			if again := l.Of(&h.checkout); again.Taker != p.Taker || len(again.Frames) != len(p.Frames) || again.Goroutine != p.Goroutine {
				t.Errorf("from what is known: %+v, first %+v", again, p)
			}
			if l.Left(&h.checkout) {
				t.Error("it has left, while a caller of what took the connection is there")
			}
			close(h.leave)
			<-done
			if p := settled(l, &h.checkout, stack.Ended); p.Taker != stack.Returned || p.Taking != stack.Returned || p.Frames != nil {
				t.Errorf("ended: %+v", p)
			}
			if !l.Left(&h.checkout) {
				t.Error("it has not left, and has exited")
			}
		})
	}
}

// TestOther: where another goroutine has used the connection last that is what counts, until it
// has exited; and while it is there nobody has left.
func TestOther(t *testing.T) {
	needLooks(t)
	h := &holder{ready: make(chan struct{}), leave: make(chan struct{})}
	done := make(chan struct{})
	go func() { defer close(done); h.takeAndStay() }()
	<-h.ready
	user := &holder{ready: make(chan struct{}), leave: make(chan struct{})}
	userDone := make(chan struct{})
	go func() { defer close(userDone); user.takeAndStay() }()
	<-user.ready
	h.checkout.Last = user.checkout.Holder
	l := NewLooker(callsite.Skip{})
	if p := settled(l, &h.checkout, stack.Parked); p.Goroutine != user.checkout.Holder || p.Taking != stack.Undecided {
		t.Errorf("%+v", p)
	}
	close(h.leave)
	<-done
	for h.checkout.Holder.State() != stack.Exited {
		runtime.Gosched()
	}
	if l.Left(&h.checkout) {
		t.Error("it has left, while its last user is there")
	}
	close(user.leave)
	<-userDone
	if p := settled(l, &h.checkout, stack.Ended); p.Goroutine != h.checkout.Holder {
		t.Errorf("%+v", p)
	}
}
