//go:build !race

package leadershipmodel

const raceEnabled = false
