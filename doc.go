// Package baldur is a database/sql driver for PostgreSQL that knows who holds
// every connection. It wraps lib/pq, or any other driver, and changes one
// string of a program:
//
//	db, err := sql.Open("baldur-pq", dsn) // was "postgres"
//
// From then on the program can ask, at any moment, which connections are out of
// the pool, since when, taken by which line of code in which goroutine, what
// they are doing, and which of them look leaked:
//
//	fmt.Print(baldur.TrackerOf(db).Report())
//
// Or it is told: by [Tracker.Log] in its log, and by the packages on top of this
// one where operators look:
//
//   - [github.com/baldur-go/baldur/baldurhttp]: a page, JSON, and a profile for go tool pprof
//   - [github.com/baldur-go/baldur/baldurprom]: metrics for Prometheus
//   - [github.com/baldur-go/baldur/baldurotel]: spans, metrics and leak records for OpenTelemetry
//   - [github.com/baldur-go/baldur/baldurtest]: leaks as failures of tests
//
// On the same pool there are [PGAdmin], for advisory locks, timeouts and who
// blocks whom, and [PGQuorum], a lease that says which one of several processes
// is the primary.
//
// # The life of a checkout
//
// database/sql does not tell a driver when a connection leaves the pool or comes
// back. A wrapper sees it all the same:
//
//   - A pooled connection goes out in ResetSession, on its holder's goroutine, even
//     if that returns an error, unless it is driver.ErrBadConn.
//   - A new connection goes out in Connect, except where database/sql's own
//     connectionOpener makes it, as it does when the pool was full. Who gets that
//     connection is not known until it is first used; it is bound to its holder then.
//   - A connection comes back in IsValid, or in Close where IsValid is skipped, on
//     any goroutine, and sometimes in both.
//   - In between, each call is a use: queries, statements, Commit, Ping, and the
//     reading of a row. Closing a statement does not count as a use, since
//     database/sql also closes statements on idle connections.
//
// At a checkout the time, the goroutine and the call stack are noted; at a call, what
// it is and when it began and ended. Each connection has a record of its own: no lock
// is shared between connections on the way out or in, and no query allocates anything
// for it.
//
// # What a report says
//
// A holder is suspected of a leak if it has had its connection for longer than the
// threshold, 300 s by default, and has not used it for that long: no call is in
// flight, none has ended, no row was read. A holder that keeps a connection for long
// and uses it, such as a slow export or a long transaction, is listed apart and not
// accused. A suspicion is no proof: a program may have its reasons.
//
// Two things are proofs, and are told whatever the threshold (see [Verdict]): nothing in
// the program refers to the Rows that a connection was taken for, so that nobody can close
// it; and a deadlock of pools, whose holders all wait for a connection themselves.
// [LeakReport.Accused] has those, and nothing else. docs/corpus.md says what 186 small
// programs that leak, think or are in order are told.
//
// While a pool is full, or anyone waits, a report lists all holders, the longest unused
// first, and who waits, by line. Of each holder it says what its goroutine is doing now:
// that is read from the goroutine's stack, without a pause.
//
// Stacks start at the application's own frame: frames of database/sql and of the
// well-known libraries on top of it are left out (see [WithSkipPackages]). They have no
// argument values. The text of the last statement is as the program wrote it, without
// its arguments ([WithQueryText] leaves the text out). No error, report or name has a
// password in it.
//
// A leak under a ctx that ends soon, such as that of an HTTP request, does not last:
// when the ctx ends, database/sql closes the Rows and rolls the transaction back. Such
// returns are counted by line ([ContextEnded]). The leaks that stay are those under a ctx
// that does not end, and every sql.Conn.
//
// # What cannot be seen
//
//   - A connection from the connectionOpener that sql.DB.Conn has handed out and that
//     has not been used since: nothing has called the driver. It is counted as
//     Unattributed, from what database/sql says is in use, and its holder is unknown.
//   - A transaction that the text of a query began (BEGIN) is not shown as one.
//   - How many requests wait is read from private fields of sql.DB, after a self-test.
//     In a Go version where that fails it is −1, as every unknown figure.
//   - A pool opened by plain sql.Open becomes known at its first connect, from the stack
//     of the call, or by [TrackerOf]. Until then its figures are −1. So are those of a pool
//     that reaches this package's connector through another one, and those of several
//     pools on one connector.
//   - That a connection is lost is not seen of a sql.Conn, of a transaction, of a Rows whose
//     ctx can end, or before a garbage collection.
//   - Where a goroutine is cannot be seen while it runs, nor on systems other than Linux on
//     amd64 and arm64. The self-test of package internal/stack decides.
//   - The time of a use is known to a tenth of a second.
//   - A goroutine that has exited is strong evidence against the connection that it
//     took, but no proof: it may have handed the connection on.
//   - Behind PgBouncer the backend's process id is not the server's.
//
// # Transparency
//
// A wrapped connection has the optional interfaces that the driver's own has, and
// errors are the driver's own values. Go's own tests of database/sql pass with the
// wrapper around their drivers, except those that assert the driver's concrete types,
// which pass if they look at what is wrapped (gosuite_test.go lists them). Code that
// needs the driver's own connection in sql.Conn.Raw gets it by [Unwrap].
//
// Two things differ from the bare driver: sql.DB.Driver returns a value that belongs to
// the pool; and on a driver without SessionResetter or Validator (pgx), after the ctx of
// a transaction on a sql.Conn has ended, its statements return sql.ErrTxDone.
//
// Two faults of lib/pq 1.12 are mended, on connections that this package dials:
//
//   - A call whose ctx ends returns at most [WithCancelGrace] (1 s) and 100 ms later
//     with the ctx's error, on a silent network too. lib/pq alone waits for ever.
//   - A connection that lib/pq has left in a wrong state ("there is already a query
//     being processed") is replaced, not handed out again.
//
// # Where things are
//
// The public surface, in the order in which a program meets it:
//
//	driver.go     registration, Open, OpenDB, Wrap, TrackerOf
//	options.go    every setting of a pool: option, DSN parameter, environment variable
//	conn.go       what baldur adds to a connection: Unwrap, Raw, Label, the return audit
//	tracker.go    Tracker: Report, Holders, Stats, and the rule of suspicion
//	watch.go      reports that come by themselves: Watch, Log
//	leak.go       the values of a report; text.go: how they read, as text, JSON and log values
//	stats.go      figures and health
//	callsites.go  hold times, of a pool and of lines of code
//	hooks.go      functions that are called as a pool lives
//	pgadmin.go    admin SQL; pgadmin_locks.go, pgadmin_session.go: locks, sessions, timeouts, poolers;
//	              pgadmin_blocking.go: who blocks whom; pgadmin_probes.go: what only the reference calls
//	quorum.go     what a quorum is; quorum_pg.go: the lease, for people; quorum_fence.go: transactions;
//	              quorum_options.go: its settings
//
// The mechanism, each package on top of those after it:
//
//	internal/wrap       the transparent connection, statement, rows and transaction
//	internal/checkout   what is noted of a connection, and of a pool's; when a call is cut
//	internal/evidence   what the goroutine does that holds a connection
//	internal/deadlock   pools whose holders wait for each other
//	internal/callsite   from a call stack to the application's line
//	internal/stack      call stacks and goroutines, read fast
//	internal/leasepg    PostgreSQL as the witness of a lease
//	internal/lease      the protocol of a lease, which knows no SQL
//	internal/advisory   advisory locks: taking, holding, noticing a loss, releasing
//	internal/pgsession  a clean connection of a pool; a pinned one with its locks and settings
//	internal/backends   the server's sessions: who has a lock, who blocks whom
//	internal/sqlpool    what database/sql knows of a pool: figures, who waits, which pool connects
//	internal/pqconn     lib/pq's DSN, sockets and quirks
//	internal/clock      the time, coarse and exact
//	internal/aside      the program's functions, called on a goroutine of their own
//	internal/lockqueue  who waits for a lock within the process
//	internal/pgsql      text of SQL
//	internal/sqltext    a statement that may be shown: one that carries a secret, without its literals
//	internal/text       foreign text made safe
//	internal/profile    profiles for go tool pprof
//	internal/tsc        the CPU's counter
//	internal/hook       what baldurotel is told beside the public surface
//
// deps_test.go says what each may import.
package baldur
