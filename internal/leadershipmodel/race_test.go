//go:build race

package leadershipmodel

// raceEnabled tells whether the race detector is on, which makes the explorer
// ten times slower and has nothing to find: it is one goroutine.
const raceEnabled = true
