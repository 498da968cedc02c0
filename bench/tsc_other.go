//go:build !amd64

package main

const haveTSC = false

func rdtsc() uint64        { panic("no time-stamp counter") }
func rdtscOrdered() uint64 { panic("no time-stamp counter") }
