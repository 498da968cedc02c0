package shop

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A request is what a client wants.
type request struct {
	path     string
	customer int
	product  int
}

const workers = 8

// Run serves a day's requests and runs the nightly jobs beside them, until ctx
// ends or something fails.
func (s *Shop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	const jobs = workers + 4
	ended := make(chan error, jobs)
	requests := make(chan request)
	for range workers {
		go func() { ended <- s.worker(ctx, requests) }()
	}
	go func() { ended <- s.ExportOrders(ctx, slowClient{ctx}) }()
	go func() { ended <- s.CountStock(ctx, countShelf) }()
	go func() { _, err := s.YearlySales(ctx); ended <- err }()
	go func() { ended <- s.NumberInvoices(ctx) }()
	go clients(ctx, requests)
	for range jobs {
		if err := <-ended; err != nil {
			cancel(err) // the first wins
		}
	}
	return context.Cause(ctx)
}

// worker serves one request after the other. The context is the worker's own,
// which nobody ends: with one for each request, the end of that would close
// forgotten Rows and roll back forgotten transactions.
func (s *Shop) worker(ctx context.Context, requests <-chan request) error {
	for r := range requests {
		if err := s.serve(ctx, r); err != nil && !errors.Is(err, ErrSoldOut) {
			return fmt.Errorf("%s: %w", r.path, err)
		}
	}
	return nil
}

func (s *Shop) serve(ctx context.Context, r request) (err error) {
	switch r.path {
	case "/name":
		_, err = s.CustomerName(ctx, r.customer, false)
	case "/welcome":
		_, err = s.CustomerName(ctx, r.customer, true)
	case "/totals":
		_, err = s.OrderTotals(ctx, r.customer)
	case "/unpaid":
		_, err = s.HasUnpaidOrders(ctx, r.customer)
	case "/buy":
		var id int
		if id, err = s.PlaceOrder(ctx, r.customer, r.product); err == nil {
			err = s.PayOrder(ctx, id)
		}
	}
	return err
}

// clients sends requests until ctx ends. Most are harmless.
func clients(ctx context.Context, requests chan<- request) {
	defer close(requests)
	unlucky := map[int]request{
		5:  {path: "/unpaid", customer: debtor},
		11: {path: "/buy", customer: 2, product: soldOut},
		17: {path: "/unpaid", customer: debtor},
		23: {path: "/welcome", customer: 3},
		29: {path: "/unpaid", customer: debtor},
	}
	harmless := []string{"/buy", "/totals", "/name", "/unpaid"}
	for n := 0; ; n++ {
		r, ok := unlucky[n]
		if !ok {
			r = request{path: harmless[n%len(harmless)], customer: 10 + n%40, product: 20 + n%80}
		}
		select {
		case requests <- r:
		case <-ctx.Done():
			return
		}
	}
}

// chargeCard asks the bank.
func chargeCard(ctx context.Context, _ float64) error { return pause(ctx, 15*time.Millisecond) }

// countShelf counts what is on a shelf.
func countShelf(ctx context.Context, _ int) (int, error) { return 12, pause(ctx, 30*time.Millisecond) }

// slowClient reads a line now and then.
type slowClient struct{ ctx context.Context }

func (c slowClient) Write(p []byte) (int, error) { return len(p), pause(c.ctx, 30*time.Millisecond) }

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
