//go:build !race

package quorumtest

const raceDetector = false
