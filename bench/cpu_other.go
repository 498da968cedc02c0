//go:build !unix

package main

import "time"

// measureCPU is the time on the wall: nothing better is known here.
func measureCPU() time.Duration { return measureWall() }
