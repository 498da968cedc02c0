package main

import "slices"

// programs has each program of the corpus once.
var programs = map[kind][]program{
	leaks:    slices.Concat(rowsLeaks, rowLeaks, txLeaks, connLeaks, stmtLeaks),
	stuck:    deadlocked,
	piles:    stmtPiles,
	heals:    healing,
	honest:   slices.Concat(honestUse, honestKeep),
	thinking: thinkers,
	told:     falseAlarms,
}
