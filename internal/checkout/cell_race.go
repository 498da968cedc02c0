//go:build race || !(amd64 || arm64 || loong64 || mips64 || mips64le || ppc64 || ppc64le || riscv64 || s390x)

package checkout

import "sync/atomic"

// cell: see cell.go.
type cell struct{ v atomic.Uint64 }

func (w *cell) set(v uint64) { w.v.Store(v) }
func (w *cell) get() uint64  { return w.v.Load() }
