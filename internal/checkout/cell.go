//go:build !race && (amd64 || arm64 || loong64 || mips64 || mips64le || ppc64 || ppc64le || riscv64 || s390x)

package checkout

import "sync/atomic"

// A cell is 64 bits with one writer at a time and any number of readers.
//
// database/sql serialises the calls on a connection, so its cell has one
// writer; only a report reads it from elsewhere. set is a plain store: on amd64
// an atomic store is an XCHG of 4 ns, twice for each row read, which is a
// quarter of what database/sql spends on a row of a null driver (53 → 64 ns);
// two plain stores are within 2 ns of none (BenchmarkRows). It is sound by the Go
// memory model (go.dev/ref/mem, "Implementation Restrictions for Programs
// Containing Data Races"): a read of a machine word observes a value that was
// written, never a mixture. No ordering with other fields is needed or assumed. On 32
// bits a plain store tears, and an atomic access needs an alignment that only
// atomic.Uint64 guarantees. Builds for those, and with -race, so that the detector
// sees no race of ours, are in cell_race.go.
type cell struct{ v uint64 }

func (w *cell) set(v uint64) { w.v = v }
func (w *cell) get() uint64  { return atomic.LoadUint64(&w.v) }
