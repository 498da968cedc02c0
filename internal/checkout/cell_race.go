//go:build race || !(amd64 || arm64 || loong64 || mips64 || mips64le || ppc64 || ppc64le || riscv64 || s390x)

package baldur

import "sync/atomic"

// word: see word.go.
type word struct{ v atomic.Uint64 }

func (w *word) set(v uint64) { w.v.Store(v) }
func (w *word) get() uint64  { return w.v.Load() }
