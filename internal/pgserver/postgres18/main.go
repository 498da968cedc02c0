// Postgres18 prints the bin directory of the PostgreSQL that pgserver downloads
// where none is installed, after downloading it if need be. See scripts/postgres18.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/baldur-go/baldur/internal/pgserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	bin, err := pgserver.Download(ctx, func(what string) { fmt.Fprintln(os.Stderr, "postgres18:", what) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "postgres18:", err)
		os.Exit(1)
	}
	fmt.Println(bin)
}
