package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/baldur-go/baldur/internal/pgserver"
)

// The servers of this process. A start holds the read lock from beginning to
// end, so that whoever holds the write lock sees every server there is.
var (
	starting sync.RWMutex
	mu       sync.Mutex // guards servers among starts
	servers  []*pgserver.Server
	cluster  pgserver.Template
)

// start starts a server that ends with the process: by stopAll, or by a signal.
func start(cfg pgserver.Config) (*pgserver.Server, error) {
	starting.RLock()
	defer starting.RUnlock()
	cfg.Dir, cfg.Template = memory(), &cluster
	server, err := pgserver.Start(interrupt(), cfg)
	if err != nil {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	servers = append(servers, server)
	return server, nil
}

var memory = sync.OnceValue(pgserver.MemoryDir)

// stopAll stops the servers that are still running.
func stopAll() {
	starting.Lock()
	defer starting.Unlock()
	for _, server := range servers {
		if err := server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	servers = nil
	if err := cluster.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// interrupt returns a context that ends when the process is told to end.
// The process then ends as soon as the servers are gone.
var interrupt = sync.OnceValue(func() context.Context {
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() {
		restore() // a second Ctrl-C does not wait
		stopAll()
		os.Exit(1)
	})
	return ctx
})
