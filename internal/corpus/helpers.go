package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// A group is as errgroup's: its ctx ends with the first error.
type group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func newGroup(ctx context.Context) *group {
	ctx, cancel := context.WithCancelCause(ctx)
	return &group{ctx: ctx, cancel: cancel}
}

func (g *group) run(f func(ctx context.Context) error) {
	g.wg.Go(func() {
		if err := f(g.ctx); err != nil {
			g.cancel(err)
		}
	})
}

func (g *group) wait() error {
	g.wg.Wait()
	defer g.cancel(nil)
	return context.Cause(g.ctx)
}

// get serves h and makes one request to it.
func get(w *world, h http.HandlerFunc) error {
	url, err := w.serve(h)
	if err != nil {
		return err
	}
	return request(url)
}

// request makes a request on a connection of its own.
func request(url string) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}
