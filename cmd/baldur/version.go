package main

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
)

func runVersion(_ context.Context, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Sprintf("version: unexpected argument %q", args[0])}
	}
	version, pq := "", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
		for _, m := range info.Deps {
			if m.Path == "github.com/lib/pq" {
				pq = m.Version
			}
		}
	}
	_, err := fmt.Printf("baldur %s (lib/pq %s, %s, %s/%s)\n", cmp.Or(version, "(devel)"), pq, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
