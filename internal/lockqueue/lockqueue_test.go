package lockqueue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// enter enters in a goroutine of its own, and waits until that has entered or waits.
func enter(ctx context.Context, l *Locks, shared bool) <-chan error {
	done := make(chan error, 1)
	go func() {
		ok, err := l.Enter(ctx, 1, shared, true)
		if ok == (err != nil) {
			err = fmt.Errorf("%v, %w", ok, err)
		}
		done <- err
	}()
	synctest.Wait()
	return done
}

func decided(c <-chan error) bool { return len(c) == 1 }

// TestTurns: first come, first served; those that share go together, and do not overtake.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Locks
		ctx := t.Context()
		holder := enter(ctx, &l, false)
		s1, s2, x, s3 := enter(ctx, &l, true), enter(ctx, &l, true), enter(ctx, &l, false), enter(ctx, &l, true)
		expect := func(want ...bool) {
			t.Helper()
			synctest.Wait()
			if got := []bool{decided(s1), decided(s2), decided(x), decided(s3)}; !slices.Equal(got, want) {
				t.Errorf("%v are in, want %v", got, want)
			}
		}
		if !decided(holder) {
			t.Error("a free lock is not to be had")
		}
		if ok, err := l.Enter(ctx, 1, true, false); ok || err != nil {
			t.Errorf("without waiting: %v, %v", ok, err)
		}
		if ok, err := l.Enter(ctx, 2, false, false); !ok || err != nil {
			t.Errorf("of another id: %v, %v", ok, err)
		}
		l.Leave(2, false)
		expect(false, false, false, false)
		l.Leave(1, false)
		expect(true, true, false, false)
		l.Leave(1, true)
		expect(true, true, false, false)
		l.Leave(1, true)
		expect(true, true, true, false)
		l.Leave(1, false)
		expect(true, true, true, true)
		l.Leave(1, true)
		if len(l.locks) != 0 {
			t.Errorf("%d locks are kept", len(l.locks))
		}
	})
}

// TestGivingUp: who gives up is not waited for.
func TestGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Locks
		ctx, cancel := context.WithCancel(t.Context())
		enter(t.Context(), &l, true)
		impatient := enter(ctx, &l, false)
		after := enter(t.Context(), &l, true)
		if decided(after) {
			t.Error("overtaken")
		}
		cancel()
		synctest.Wait()
		if !decided(impatient) || !errors.Is(<-impatient, context.Canceled) || !decided(after) {
			t.Error("who waited behind one that has given up waits on")
		}
		if ok, err := l.Enter(ctx, 1, true, true); ok || !errors.Is(err, context.Canceled) {
			t.Errorf("with a ctx that has ended: %v, %v", ok, err)
		}
		l.Leave(1, true)
		l.Leave(1, true)
		if len(l.locks) != 0 {
			t.Errorf("%d locks are kept", len(l.locks))
		}
	})
}

// TestClose: waiters end, holders may leave, and nobody enters.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Locks
		closed := errors.New("closed")
		enter(t.Context(), &l, false)
		waiter := enter(t.Context(), &l, true)
		l.Close(closed)
		synctest.Wait()
		if !decided(waiter) || <-waiter != closed {
			t.Error("a waiter waits on")
		}
		l.Leave(1, false)
		if ok, err := l.Enter(t.Context(), 1, false, true); ok || err != closed {
			t.Errorf("%v, %v", ok, err)
		}
	})
}

// TestExclusion: many goroutines, of which some give up.
func TestExclusion(t *testing.T) {
	var l Locks
	var alone, sharing int // guarded by mu
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			for j := range 200 {
				ctx, cancel := context.WithCancel(context.Background())
				if (i+j)%7 == 0 {
					go cancel()
				}
				shared := (i+j)%3 == 0
				if ok, _ := l.Enter(ctx, 1, shared, (i+j)%5 != 0); ok {
					count := func(d int) {
						mu.Lock()
						defer mu.Unlock()
						if shared {
							sharing += d
						} else {
							alone += d
						}
						if alone > 1 || alone == 1 && sharing > 0 {
							t.Errorf("%d alone and %d sharing", alone, sharing)
						}
					}
					count(1)
					count(-1)
					l.Leave(1, shared)
				}
				cancel()
			}
		})
	}
	all.Wait()
	if len(l.locks) != 0 {
		t.Errorf("%d locks are kept", len(l.locks))
	}
}
