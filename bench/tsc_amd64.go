package main

const haveTSC = true

// rdtsc reads the CPU's time-stamp counter, in its own units.
func rdtsc() uint64

// rdtscOrdered does so after all earlier instructions have ended.
func rdtscOrdered() uint64
