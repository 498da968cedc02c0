package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

const doctorUsage = `Usage: baldur doctor [--json] [--pool-size N] [DSN]

Looks at the PostgreSQL of a DSN (default: that in BALDUR_DSN) and prints what
to know before trusting the setup. It changes nothing there. The exit status is
0 if all is fine, 1 if there is something to mend, 2 if it cannot connect.

`

// doctorTimeout is how long the whole of it may take.
const doctorTimeout = 30 * time.Second

// diagnosis is what doctor prints.
type diagnosis struct {
	Target string  `json:"target"` // address:port/database
	OK     bool    `json:"ok"`
	Checks []check `json:"checks"`
}

type check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Found  string `json:"found"`
	Advice string `json:"advice"`
}

func runDoctor(ctx context.Context, args []string) error {
	flags := newFlags("doctor")
	asJSON := flags.Bool("json", false, "print JSON")
	poolSize := flags.Int("pool-size", 0, "the most connections of all pools together, as of SetMaxOpenConns; 0: unlimited")
	options, dsns := splitArgs(args)
	helped, err := parseFlags(flags, options, doctorUsage)
	if err != nil && (strings.Contains(err.Error(), "://") || strings.Contains(err.Error(), "password")) {
		err = usageError{"doctor: a DSN is where a flag's value belongs; see baldur help doctor"} // and is not quoted
	}
	if helped || err != nil {
		return err
	}
	dsn := os.Getenv(envDSN)
	if len(dsns) > 0 {
		dsn = dsns[0]
	}
	switch {
	case len(dsns) > 1:
		return usageError{"doctor: more than one DSN (a DSN with spaces needs quotes); see baldur help doctor"}
	case dsn == "":
		return usageError{"doctor: give a DSN, or set " + envDSN + "; see baldur help doctor"}
	case *poolSize < 0:
		return usageError{fmt.Sprintf("doctor: --pool-size is %d; it must not be negative", *poolSize)}
	}
	d, err := diagnose(ctx, dsn, *poolSize)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return usageError{"doctor: " + err.Error()}
	}
	if *asJSON {
		err = printJSON(d, "  ")
	} else {
		_, err = io.WriteString(os.Stdout, d.String())
	}
	if err == nil && !d.OK {
		return exitStatus(exitFailure)
	}
	return err
}

// splitArgs takes the DSN out, wherever it stands among the flags: an argument
// that is not understood is quoted in an error, and a DSN must not be.
func splitArgs(args []string) (options, dsns []string) {
	for i, arg := range args {
		value := i > 0 && (args[i-1] == "-pool-size" || args[i-1] == "--pool-size")
		if strings.HasPrefix(arg, "-") || value {
			options = append(options, arg)
		} else {
			dsns = append(dsns, arg)
		}
	}
	return options, dsns
}

// exitStatus ends the program without a word.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func (d diagnosis) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", text.Clean(d.Target))
	for _, c := range d.Checks {
		fmt.Fprintf(&b, "%-5s %s: %s\n      %s\n", map[bool]string{true: "ok", false: "MEND"}[c.OK], c.Name, text.Clean(c.Found), text.Clean(c.Advice))
	}
	return b.String()
}

// diagnose connects, and looks.
func diagnose(ctx context.Context, dsn string, poolSize int) (*diagnosis, error) {
	limited, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	db, err := sql.Open(baldur.DriverName, dsn)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	db.SetMaxOpenConns(2)
	admin := baldur.NewPGAdmin(db)
	defer admin.Close()
	if err := admin.Ping(limited); err != nil {
		return nil, fmt.Errorf("cannot connect: %w%s", err, connectAdvice(err))
	}
	d := &diagnosis{Target: baldur.TrackerOf(db).PoolName(), OK: true}
	for _, look := range []func(context.Context, *sql.DB, *baldur.PGAdmin, int) (check, error){
		checkVersion, checkPooler, checkConnections, checkIdleTimeout, checkTLS, checkRights,
	} {
		c, err := look(limited, db, admin, poolSize)
		if err != nil {
			return nil, err
		}
		d.Checks = append(d.Checks, c)
		d.OK = d.OK && c.OK
	}
	return d, nil
}

func connectAdvice(err error) string {
	var e *pq.Error
	switch {
	case strings.Contains(err.Error(), "unsupported startup parameter"):
		return "; a PgBouncer needs ignore_startup_parameters = extra_float_digits"
	case errors.As(err, &e) && e.Code == "28P01":
		return "; user or password is wrong"
	case errors.Is(err, pq.ErrSSLNotSupported):
		return "; add sslmode=disable to the DSN, or turn TLS on at the server"
	}
	return ""
}

func checkVersion(ctx context.Context, db *sql.DB, _ *baldur.PGAdmin, _ int) (check, error) {
	var number int
	var version string
	if err := db.QueryRowContext(ctx, "SELECT pg_catalog.current_setting('server_version_num'::pg_catalog.text)::pg_catalog.int4, pg_catalog.current_setting('server_version'::pg_catalog.text)").Scan(&number, &version); err != nil {
		return check{}, err
	}
	c := check{Name: "server version", Found: "PostgreSQL " + version, OK: number >= 140000}
	c.Advice = "Nothing to do: baldur is tested on 15 and 18."
	if !c.OK {
		c.Advice = "Upgrade: this version gets no more fixes from postgresql.org."
	}
	return c, nil
}

func checkPooler(ctx context.Context, _ *sql.DB, admin *baldur.PGAdmin, _ int) (check, error) {
	mode, err := admin.PoolerMode(ctx)
	if err != nil {
		return check{}, err
	}
	c := check{Name: "connection pooler", OK: true}
	switch mode {
	case baldur.PoolerNone:
		c.Found, c.Advice = "none seen", "Nothing to do: session locks and settings work."
	case baldur.PoolerSession:
		c.Found = "PgBouncer or the like, in session mode"
		c.Advice = "Session locks and settings work. Process ids in reports are the pooler's."
	case baldur.PoolerTransaction:
		c.OK, c.Found = false, "PgBouncer or the like, in transaction mode"
		c.Advice = "Session locks, SET, LISTEN do not work: use WithTxAdvisoryLock, or connect those parts of the program directly. With lib/pq add binary_parameters=yes."
	case baldur.PoolerStatement:
		c.OK, c.Found = false, "PgBouncer or the like, in statement mode"
		c.Advice = "There are no transactions: set pool_mode to transaction or session."
	default:
		c.OK, c.Found = false, "PgBouncer or the like, in a mode that could not be found out"
		c.Advice = "Its pool has no second connection to compare with: raise default_pool_size, and see SHOW CONFIG in its console."
	}
	return c, nil
}

func checkConnections(ctx context.Context, db *sql.DB, _ *baldur.PGAdmin, poolSize int) (check, error) {
	var most, reserved, used int
	var limit sql.NullInt64
	err := db.QueryRowContext(ctx, `SELECT pg_catalog.current_setting('max_connections'::pg_catalog.text)::pg_catalog.int4,`+
		` pg_catalog.current_setting('superuser_reserved_connections'::pg_catalog.text)::pg_catalog.int4`+
		` OPERATOR(pg_catalog.+) coalesce(pg_catalog.current_setting('reserved_connections'::pg_catalog.text, true)::pg_catalog.int4, 0),`+
		` (SELECT pg_catalog.sum(numbackends) FROM pg_catalog.pg_stat_database),`+
		` (SELECT CASE WHEN datconnlimit OPERATOR(pg_catalog.<>) (-1) THEN datconnlimit END FROM pg_catalog.pg_database`+
		` WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())`).Scan(&most, &reserved, &used, &limit)
	if err != nil {
		return check{}, err
	}
	room, why := most-reserved, "max_connections"
	if limit.Valid && int(limit.Int64) < room {
		room, why = int(limit.Int64), "the database's CONNECTION LIMIT"
	}
	c := check{Name: "connections"}
	c.Found = fmt.Sprintf("max_connections %d, %d of them reserved, %d in use now; ", most, reserved, used)
	switch {
	case poolSize == 0:
		c.Found += "the pool is unlimited (--pool-size not given)"
		c.Advice = fmt.Sprintf("Limit the pool (SetMaxOpenConns): all programs together below %d; database/sql has no limit by default.", room)
	case poolSize > room:
		c.Found += fmt.Sprintf("the pool takes up to %d", poolSize)
		c.Advice = fmt.Sprintf("More than the %d that %s leaves: make the pool smaller, or the limit larger.", room, why)
	default:
		c.OK = true
		c.Found += fmt.Sprintf("the pool takes up to %d", poolSize)
		c.Advice = fmt.Sprintf("It fits, together with up to %d connections of others.", room-poolSize)
	}
	return c, nil
}

func checkIdleTimeout(ctx context.Context, db *sql.DB, _ *baldur.PGAdmin, _ int) (check, error) {
	const name = "idle_in_transaction_session_timeout"
	var v string
	if err := db.QueryRowContext(ctx, "SELECT pg_catalog.current_setting('"+name+"'::pg_catalog.text)").Scan(&v); err != nil {
		return check{}, err
	}
	if v == "0" {
		return check{name, false, "0 (off)", "A leaked transaction keeps its locks, and holds vacuum up, for ever: ALTER ROLE … SET " + name + " = '5min', or so."}, nil
	}
	return check{name, true, v, "Nothing to do: the server ends a transaction that does nothing for so long."}, nil
}

func checkTLS(ctx context.Context, db *sql.DB, admin *baldur.PGAdmin, _ int) (check, error) {
	var version sql.NullString
	var tcp, local bool
	// Behind a pooler this is its connection, and what is between us and it is not known.
	err := db.QueryRowContext(ctx, `SELECT s.version, a.client_addr IS NOT NULL,`+
		` coalesce(a.client_addr OPERATOR(pg_catalog.<<=) '127.0.0.0/8'::pg_catalog.inet OR a.client_addr OPERATOR(pg_catalog.=) '::1'::pg_catalog.inet, false)`+
		` FROM pg_catalog.pg_stat_ssl s JOIN pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a ON a.pid OPERATOR(pg_catalog.=) s.pid`).Scan(&version, &tcp, &local)
	if err != nil {
		return check{}, err
	}
	whose := ""
	if mode, err := admin.PoolerMode(ctx); err == nil && mode != baldur.PoolerNone {
		whose = " (the pooler's connection to the server)"
	}
	switch {
	case version.Valid:
		return check{"TLS", true, version.String + whose, "Nothing to do; sslmode=verify-full also checks whose certificate it is."}, nil
	case !tcp:
		return check{"TLS", true, "off, over a Unix socket" + whose, "Nothing to do."}, nil
	case local:
		return check{"TLS", true, "off, within this machine" + whose, "Nothing to do."}, nil
	}
	return check{"TLS", false, "off, over the network" + whose, "Passwords and data can be read on the way: sslmode=verify-full."}, nil
}

func checkRights(ctx context.Context, db *sql.DB, _ *baldur.PGAdmin, _ int) (check, error) {
	var role string
	var all bool
	if err := db.QueryRowContext(ctx, "SELECT current_user, pg_catalog.pg_has_role(current_user, 'pg_read_all_stats'::pg_catalog.name, 'USAGE'::pg_catalog.text)").Scan(&role, &all); err != nil {
		return check{}, err
	}
	c := check{"rights", all, fmt.Sprintf("role %q sees all of pg_stat_activity", role), "Nothing to do."}
	if !all {
		c.Found = fmt.Sprintf("role %q sees only its own sessions in pg_stat_activity", role)
		c.Advice = "ConnectionStats, LockHolders and BlockingTree say little of others: GRANT pg_read_all_stats TO " + pq.QuoteIdentifier(cmp.Or(role, "…")) + "."
	}
	return c, nil
}
