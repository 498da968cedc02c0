// Package tsc reads the time-stamp counter of the CPU, for a third of what the
// kernel's clock takes. It does not say how long a tick of it is, nor that it
// never stops, jumps or changes: whoever uses it has to compare.
//
// Where Trusted is true, Linux makes its own monotonic clock of this very
// counter, by a line from its last look at it: the counter is as good as
// time.Now. That is so on machines, and in virtual machines whose hypervisor
// promises a steady counter; others have kvm-clock, Hyper-V's or another source,
// and Trusted is false. It is false on anything but Linux on amd64, too: on
// other systems nothing was measured.
package tsc
