// Package leadershipmodel explores every state, within bounds, of the protocol
// by which the quorum keeps at most one primary on one PostgreSQL witness. It is
// read beside package lease, and run by its tests; no program imports it. What a client
// decides about the row that it has seen (what it now knows, when it may take the lease,
// and whether against the server's clock), and which epoch follows, is not restated here:
// package lease is asked, so that a mistake made there is found here.
//
// # The protocol
//
// A row holds an epoch, a lease id (none: released), a sequence number of
// renewals, the time it expires by the server's clock, and the identity of the
// witness when the epoch was granted. The identity of a witness is its system
// identifier and its timeline: a promotion changes it, a restart does not. The
// version of the row is (epoch, sequence number). Every reply carries the row and
// the identity of the server that executed the request. A process draws its lease
// id when it starts, and keeps it.
//
//   - Belief. A client is primary while its own clock is before s + Belief, where
//     s is when it sent the takeover or renewal that the witness confirmed. An
//     answer that does not come changes nothing: the old deadline stays. A renewal
//     that finds another's row, or none, ends the belief at once.
//   - Observe. Every reply is an observation. A version counts as watched from
//     when the reply with it was received, and so does an identity as seen.
//   - Trust. A version may be acted upon if its epoch was granted under the
//     identity that the reply carries, or if that identity was first seen a
//     quarantine ago. This holds for a fresh process too: whatever the first
//     identity is that it sees, it does not know what was lost before. A new
//     identity restarts the watch.
//   - Take over a trusted version at once if it is free or the client's own, else
//     when it was watched unchanged for Watch. The statement compares the version
//     and the identity, and that the row is free, or has the client's lease id, or
//     is expired by the server's clock, or was watched for Escape.
//   - Its own, which it does not believe in: an answer was lost, or came too late.
//     It is not renewed but taken, which gives a new epoch. So an epoch names one
//     unbroken belief, and what is still under way for the last one (a release
//     above all) finds it no more.
//   - Renew by lease id and epoch, while the belief holds. The expiry is not
//     compared. The reply counts, from whatever identity, if the belief still holds
//     when it is received. From the identity that the client knew it could count
//     later too, and nothing would break; but one epoch would then be believed
//     twice.
//   - Release by lease id and epoch: first the belief ends, then the request is
//     sent. It may be sent without a belief, too.
//   - Epoch. A takeover under the identity that granted the last epoch adds 1.
//     Under another it raises the upper half by the number of timelines that went
//     by (under another system identifier: by the timeline), and starts the lower
//     half at 1. In a cluster that pg_upgrade never touched the upper half is the
//     timeline. It cannot be used as such: pg_upgrade starts again at timeline 1,
//     and the next promotions then repeat epochs and are not noticed.
//   - A new row is made by each connection that finds none. In the first timeline
//     it is as if granted under the present identity, else under none, and not
//     trusted: a failover may have lost it.
//   - Fence. A transaction that was let in under an epoch keeps that epoch from
//     changing until it ends. Renewals pass.
//
// # What was modelled
//
// Two clients and a witness, in steps that happen in any order: each statement
// is sent, executed and answered separately. A request may take any time. Its
// client may give up at any time; the request is then lost, or late: executed at
// any time after, on a promoted server too. A reply may be lost. A client may
// restart at any time, and then knows nothing; and it may stop believing at any
// time, also while it waits for a reply. A client's clock misses ticks; the
// server's clock steps forward or back; replication stops, and later the standby
// is promoted with the row as it was, or without it; pg_upgrade gives a new
// identity; the row is lost. A restart of the witness that loses nothing is a lost
// request or a lost reply, and has no step of its own.
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
// An old primary that still executes statements after its standby was promoted
// (so that a reply from an older timeline than one already seen does not occur
// here), and two standbys promoted to the same timeline; a restore from a dump or
// a snapshot, which may bring back an old row under an unchanged identity; fsync
// off. No rule of a client can make up for these. Not either: the floor that a
// candidate gives for the epoch, which only raises it; a statement that waits for
// the row's lock, is refused and tells the row as it was before; different TTLs
// (Watch has to be the row's, the quarantine the longest that any process uses);
// clocks that run at a different rate, but for the missed ticks, which is what the
// margin between Belief and Watch is for; a suspended machine, whose clock
// stands still for longer than that; more than two clients; sealed leases;
// NOTIFY, which may only prompt an observation; progress: the goals of the test
// show that the protocol can do what it is for, and in what time at best, not
// that it does.
//
// # What does not hold
//
// The epoch is kept in the row, and pg_upgrade begins at timeline 1 again: what no
// row remembers can then be granted again. (a) All epochs that were granted under
// some identity are lost in a failover, and none is granted before pg_upgrade,
// where the row is of an identity before that: two failovers, or pg_upgrade and a
// failover, and then pg_upgrade. (b) A failover loses a row made in the first
// timeline, and none is granted before pg_upgrade; if nobody has even connected in
// between, the row that is made then is trusted as well, so that there may be two
// primaries for what remains of a belief. One takeover between the last failover
// and pg_upgrade prevents both.
//
// # Figures
//
// 26 s of CPU time in all on a busy machine, two variants at a time, 0.65 GB; under
// the race detector with narrower bounds. What holds was exhausted:
//
//	   states  transitions
//	1 500 402   10 483 972  failover that loses commits, late requests
//	1 249 647    8 563 642  failover, a client's clock loses a tick, margin 1
//	  244 153    1 335 986  failover, the server's clock steps by 3
//	  809 331    4 780 313  failover, guarded transactions
//	  468 341    2 885 574  failover of a new table
//	   76 386      404 790  failover of a new table that was made in timeline 2
//	  707 652    4 243 034  two failovers
//	  860 312    5 217 407  pg_upgrade and failover
//	  513 090    4 032 887  three takeovers, two late requests
//	  518 806    3 971 254  a client's clock loses a tick, margin 1
//	  377 813    2 606 482  the server's clock steps twice by 3, escape
//	  346 616    2 420 899  guarded transactions
//	  105 365      699 761  the server's clock alone, no watch, step = margin
//
// Each mistake was found, by a trace as short as there is: go test -v prints it.
//
//	 states  steps
//	  2 750     14  deadline from the reply
//	 23 979     15  watch from the send (the server's clock steps: alone it hides it)
//	  7 365     14  the server's clock alone, step > margin
//	  5 040     14  no margin, a client's clock loses a tick
//	 12 762     15  margin 1, a client's clock loses two ticks
//	 48 843     18  release of whoever holds it
//	  2 699     14  release sent while believing
//	 28 025     18  own lease adopted by a renewal
//	    938     12  renewal by region
//	     66      6  row lost: epoch reused
//	    857     11  fence that locks nothing: commit of a fenced epoch
//	 12 298     14  failover, no quarantine
//	 20 753     15  failover, quarantine shorter than the belief
//	 12 454     14  failover, a fresh process trusts a released row
//	384 720     22  failover, own lease taken in the quarantine
//	 15 754     14  failover, takeover not bound to the identity
//	 99 369     19  failover, renewal counts after the belief has ended
//	 11 747     14  failover, epoch a plain counter: epoch reused
//	 15 679     14  failover of a new table, a new row is trusted in any timeline
//	 46 158     15  pg_upgrade and failover, epoch above timeline<<32 only: epoch reused
//	153 771     17  pg_upgrade and failover, trust by the epoch's upper half
//	197 195     17  (a) above: epoch reused
//	 18 805     13  (b) above: epoch reused
package leadershipmodel
