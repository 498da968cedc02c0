package aside

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestOrder: calls come one at a time, in order, and Drain waits for them, but not for the
// one that it is called by.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Queue
		var got []int
		for i := range 5 {
			q.Add(func() {
				time.Sleep(time.Second)
				got = append(got, i)
				q.Drain(0)
			})
		}
		began := time.Now()
		if q.Drain(time.Millisecond); time.Since(began) != time.Millisecond {
			t.Error("a limit of 1ms took", time.Since(began))
		}
		q.Drain(0)
		if !slices.Equal(got, []int{0, 1, 2, 3, 4}) {
			t.Error(got)
		}
		q.Drain(0) // there is none
	})
}

type slow struct {
	slog.Handler
	got   *int
	sleep time.Duration
}

func (s slow) Handle(context.Context, slog.Record) error {
	time.Sleep(s.sleep)
	if *s.got++; *s.got == 2 {
		panic("a handler's own")
	}
	return nil
}

// TestHandler: a handler that blocks delays nobody, one that panics ends nothing, and of
// too many records the last ones are dropped.
func TestHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Queue
		var got int
		log := slog.New(Handler(slow{slog.NewTextHandler(t.Output(), nil), &got, time.Minute}, &q))
		began := time.Now()
		for range kept + 500 {
			log.Info("x")
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("the logger took %v", d)
		}
		q.Drain(0)
		if got < kept || got > kept+1 { // one may be in the handler already
			t.Errorf("%d records, want %d", got, kept)
		}
	})
}
