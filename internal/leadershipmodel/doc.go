// Package leadershipmodel explores every state, within bounds, of the protocol
// by which the quorum keeps at most one primary on one PostgreSQL witness. It is
// read beside quorum_pg.go, and run by its tests; no program imports it.
//
// # The protocol
//
// A row holds an epoch, a lease id (none: released), a sequence number of
// renewals, the time it expires by the server's clock, and the identity of the
// witness when the epoch was granted. The identity of a witness is its system
// identifier and its timeline: a promotion changes it, a restart does not. The
// version of the row is (epoch, sequence number). Every reply carries the
// identity of the server that executed the request.
//
//   - Belief. A client is primary while its own clock is before s + Belief, where
//     s is when it sent the takeover or renewal that the witness confirmed. An
//     answer that does not come changes nothing: the old deadline stays. A renewal
//     that finds no row ends the belief at once.
//   - Observe. A version counts as watched from when the reply with it was
//     received, and so does an identity as seen.
//   - Trust. A version may be acted upon if its epoch was granted under the
//     identity that the reply carries, or if that identity was first seen a
//     quarantine ago. This holds for a fresh process too: whatever the first
//     identity is that it sees, it does not know what was lost before. A new
//     identity restarts the watch.
//   - Take over a trusted version at once if it was released, else when it was
//     watched unchanged for Watch. The statement compares the version and the
//     identity, and that the row is released, or expired by the server's clock, or
//     was watched for Escape. Nothing is believed whose reply comes from another
//     identity than the one decided under.
//   - Renew by lease id and epoch, while the belief holds. The expiry is not
//     compared. If the reply comes from another identity, it counts if the belief
//     still holds when it is received; if not, it counts as unanswered.
//   - Adopt: a trusted version that carries the client's own lease id is renewed,
//     which makes it primary from the send of that renewal.
//   - Release by lease id and epoch: first the belief ends and the client draws
//     a new lease id, then the request is sent. A client that kept its id could
//     adopt the lease that its own late release then frees.
//   - Epoch. A takeover under the identity that granted the last epoch adds 1.
//     Under another it raises the upper half by the number of timelines that went
//     by (under another system identifier: by the timeline), and starts the lower
//     half at 1. In a cluster that pg_upgrade never touched the upper half is the
//     timeline. It cannot be used as such: pg_upgrade starts again at timeline 1,
//     and the next promotions then repeat epochs and are not noticed.
//   - Fence. A transaction that was let in under an epoch keeps that epoch from
//     changing until it ends. Renewals pass.
//
// # What was modelled
//
// Two clients and a witness, in steps that happen in any order: each statement
// is sent, executed and answered separately. A request may take any time. Its
// client may give up at any time; the request is then lost, or late: executed at
// any time after, on a promoted server too. A reply may be lost. A client may
// restart at any time, and then knows nothing. A client's clock misses ticks;
// the server's clock steps forward or back; replication stops, and later the
// standby is promoted with the row as it was; pg_upgrade gives a new identity;
// the row is lost. A restart of the witness that loses nothing is a lost request
// or a lost reply, and has no step of its own.
//
// Times are kept relative to now, and stop counting where more of it changes
// nothing. So there is no horizon in time: the bounds are on the number of
// takeovers and renewals that succeed and of faults, and within them everything
// is visited. Which client is called A makes no difference, and a late request
// that no row to come can match is dropped: both only save states.
//
// Three invariants are checked in every state: no two clients believe; each
// epoch granted is above all granted before, those lost in a failover included;
// no transaction commits under an epoch below the row's.
//
// # What was not
//
// An old primary that still executes statements after its standby was promoted,
// and two standbys promoted to the same timeline; a restore from a dump or a
// snapshot, which may bring back an old row under an unchanged identity; fsync
// off. No rule of a client can make up for these. Not either: different TTLs
// (Watch has to be the row's, the quarantine the longest that any process uses);
// clocks that run at a different rate, but for the missed ticks, which is what the
// margin between Belief and Watch is for; a suspended machine, whose clock
// stands still for longer than that; more than two clients; sealed leases;
// NOTIFY, which may only prompt an observation; progress: the goals of the test
// show that the protocol can do what it is for, not that it does.
//
// # Figures
//
// 14 s of CPU time in all, two variants at a time, 0.65 GB; under the race
// detector with narrower bounds. What holds was exhausted:
//
//	   states  transitions
//	  995 452    6 587 441  failover that loses commits, late requests
//	1 097 469    7 451 398  failover, a client's clock loses a tick, margin 1
//	1 533 007   10 339 202  failover, the server's clock steps by 3
//	  713 777    4 111 201  failover, guarded transactions
//	  385 284    2 325 924  failover of a new table
//	  528 190    3 094 034  two failovers
//	  737 850    4 356 099  pg_upgrade and failover
//	  265 647    1 922 104  three takeovers, two late requests
//	  443 515    3 293 419  a client's clock loses a tick, margin 1
//	  390 078    2 722 138  the server's clock steps twice by 3, escape
//	  315 486    2 125 937  guarded transactions
//	  104 641      699 870  the server's clock alone, no watch, step = margin
//
// Each mistake was found, by a trace as short as there is: go test -v prints it.
//
//	 states  steps
//	  2 016     14  deadline from the reply
//	 35 171     15  watch from the send (the server's clock steps: alone it hides it)
//	  6 070     14  the server's clock alone, step > margin
//	  3 916     14  no margin, a client's clock loses a tick
//	  9 465     15  margin 1, a client's clock loses two ticks
//	 84 163     23  release of whoever holds it
//	  2 474     14  release sent while believing
//	 50 374     21  lease id kept after a release
//	    784     12  renewal by region
//	     63      6  row lost: epoch reused
//	  3 548     15  fence that locks nothing: commit of a fenced epoch
//	  9 308     14  failover, no quarantine
//	 14 462     15  failover, quarantine shorter than the belief
//	  9 520     14  failover, a fresh process trusts a released row
//	128 782     22  failover, own lease adopted in the quarantine
//	217 285     20  failover, takeover not bound to the identity
//	 52 537     19  failover, renewal counts after the lease lapsed
//	  8 953     14  failover, epoch a plain counter: epoch reused
//	 37 196     15  pg_upgrade and failover, epoch above timeline<<32 only: epoch reused
//	111 922     17  pg_upgrade and failover, trust by the epoch's upper half
package leadershipmodel
