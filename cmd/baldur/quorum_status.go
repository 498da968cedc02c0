package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/leasepg"
	"github.com/baldur-go/baldur/internal/text"
)

const quorumStatusUsage = `Usage: baldur quorum status [--lease NAME] [--json] [--watch] [DSN]

Prints who has the leases in the PostgreSQL of the DSN (default: that in
BALDUR_DSN), by that server's clock. It reads, and changes nothing.

The exit status is 0; with --lease 1 if nobody has that lease; 2 if it cannot
be found out.

`

const (
	statusTimeout = 10 * time.Second // of one look
	watchInterval = time.Second
)

// leaseStatus is what status prints of one lease.
type leaseStatus struct {
	Name   string            `json:"name"`
	State  baldur.LeaseState `json:"state"`
	Region string            `json:"region,omitempty"` // of the holder, or the last one
	Epoch  int64             `json:"epoch,omitempty"`
	TTL    float64           `json:"ttl_seconds,omitempty"`
	// By the server's clock. Until is for a free lease when it was released.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

// statusReport is one look.
type statusReport struct {
	Target  string        `json:"target"` // address:port/database
	Now     time.Time     `json:"now"`    // by the server's clock
	Standby bool          `json:"standby"`
	Table   bool          `json:"table"` // there is a table of leases
	Leases  []leaseStatus `json:"leases"`

	asked string // the only lease asked for; "": all
}

func runQuorumStatus(ctx context.Context, args []string) error {
	flags := newFlags("quorum status")
	lease := flags.String("lease", "", "only the lease of this name (default all)")
	asJSON := flags.Bool("json", false, "print JSON; with --watch a line for each change")
	watch := flags.Bool("watch", false, "look every second, until Ctrl-C")
	dsn, helped, err := parseWithDSN(flags, args, quorumStatusUsage)
	if helped || err != nil {
		return err
	}
	db, err := sql.Open(baldur.DriverName, dsn)
	if err != nil {
		return usageError{"quorum status: " + oneLine(err.Error())}
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	report, err := lookAtLeases(ctx, db, *lease)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		return usageError{"quorum status: " + oneLine(err.Error())}
	}
	if *watch {
		return watchLeases(ctx, db, report, *asJSON)
	}
	if *asJSON {
		err = printJSON(report, "  ")
	} else {
		_, err = os.Stdout.WriteString(report.text(colours()))
	}
	if err == nil && *lease != "" && (len(report.Leases) == 0 || report.Leases[0].State != baldur.LeaseHeld) {
		return exitStatus(exitFailure)
	}
	return err
}

// lookAtLeases reads the table, in a transaction that cannot write.
func lookAtLeases(ctx context.Context, db *sql.DB, lease string) (*statusReport, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	r := &statusReport{Target: baldur.TrackerOf(db).PoolName(), asked: lease, Leases: []leaseStatus{}}
	if err := db.PingContext(ctx); err != nil {
		return nil, fmt.Errorf("cannot connect: %w%s", err, connectAdvice(err))
	}
	table, err := baldur.LeaseTable(ctx, db)
	if err != nil {
		return nil, err
	}
	r.Table = table != ""
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }()
	err = tx.QueryRowContext(ctx, "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.clock_timestamp()").Scan(&r.Standby, &r.Now)
	if err != nil || table == "" {
		return r, err
	}
	entries, err := leasepg.Entries(ctx, tx, table, lease)
	if err != nil {
		return nil, tableAdvice(err)
	}
	for _, e := range entries {
		r.Now = e.Now
		l := leaseStatus{Name: e.Name, Region: e.Region}
		switch {
		case !e.Held:
			l.State = baldur.LeaseFree
		case e.Expires.After(e.Now):
			l.State = baldur.LeaseHeld
		default:
			l.State = baldur.LeaseExpired
		}
		if e.Acquired.Valid { // else the epoch is no hold's
			l.Epoch, l.TTL, l.Since, l.Until = e.Epoch, e.TTL.Seconds(), e.Acquired.Time, e.Expires
		}
		r.Leases = append(r.Leases, l)
	}
	return r, nil
}

func tableAdvice(err error) error {
	var e *pq.Error
	if errors.As(err, &e) {
		switch e.Code {
		case "42501":
			return fmt.Errorf("%w; the role needs SELECT on baldur_lease", err)
		case "42703":
			return fmt.Errorf("%w; the table is of another version than this program", err)
		}
	}
	return err
}

// watchLeases prints again what has changed; on a terminal in the same place.
func watchLeases(ctx context.Context, db *sql.DB, r *statusReport, asJSON bool) error {
	live := !asJSON && isTerminal(os.Stdout)
	last, failed := "", false
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		var err error
		switch now := r.changes(); {
		case live:
			// To the top left, and what is below the end is removed.
			text := strings.ReplaceAll(r.text(colours()), "\n", "\x1b[K\n")
			if last == "" {
				text = "\x1b[2J" + text
			}
			_, err = os.Stdout.WriteString("\x1b[H" + text + "\x1b[J")
			last = now
		case now == last:
		case asJSON:
			last, err = now, printJSON(r, "")
		default:
			last = now
			_, err = os.Stdout.WriteString(r.text(false) + "\n")
		}
		if err != nil {
			return err
		}
		for again := true; again; {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return nil // that is how it ends
			}
			next, err := lookAtLeases(ctx, db, r.asked)
			if again = err != nil; !again {
				r, failed = next, false
			} else if ctx.Err() == nil && !failed {
				failed = true
				say("quorum status: %s; trying again", oneLine(err.Error()))
			}
		}
	}
}

// changes is what a watcher is told of: not each renewal.
func (r *statusReport) changes() string {
	var b strings.Builder
	fmt.Fprint(&b, r.Table, r.Standby)
	for _, l := range r.Leases {
		fmt.Fprintf(&b, "%q %s %q %d\n", l.Name, l.State, l.Region, l.Epoch)
	}
	return b.String()
}

func (r *statusReport) text(colour bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s", text.Clean(r.Target), r.Now.Local().Format("2006-01-02 15:04:05 MST"))
	if r.Standby {
		b.WriteString(" (a standby: this may be out of date)")
	}
	b.WriteString("\n\n")
	switch {
	case !r.Table:
		b.WriteString("There is no table baldur_lease here: no lease was ever taken in this database.\n")
		return b.String()
	case len(r.Leases) == 0 && r.asked != "":
		fmt.Fprintf(&b, "There is no lease %s: nobody has ever been a candidate for it.\n", text.Word(r.asked))
		return b.String()
	case len(r.Leases) == 0:
		b.WriteString("There are no leases: nobody has ever been a candidate for one.\n")
		return b.String()
	}
	table := [][]string{{"LEASE", "STATE", "REGION", "EPOCH", "SINCE", "UNTIL"}}
	for _, l := range r.Leases {
		row := []string{text.Word(l.Name), string(l.State), text.Word(l.Region), strconv.FormatInt(l.Epoch, 10), r.when(l.Since), r.when(l.Until)}
		if l.Since.IsZero() {
			row = []string{row[0], row[1], "-", "-", "-", "-"}
		}
		table = append(table, row)
	}
	width := make([]int, len(table[0]))
	for _, row := range table {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range table {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2)
			if colour && n > 0 && i == 1 {
				cell = stateColour[baldur.LeaseState(cell)] + cell + "\x1b[0m"
			} else if colour && n == 0 {
				cell = "\x1b[1m" + cell + "\x1b[0m"
			}
			line.WriteString(cell + pad)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

var stateColour = map[baldur.LeaseState]string{
	baldur.LeaseHeld:    "\x1b[32m", // green
	baldur.LeaseExpired: "\x1b[33m", // yellow
	baldur.LeaseFree:    "\x1b[2m",  // faint
}

// when tells a time as the clock shows it and as it is from now.
func (r *statusReport) when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	t, now := t.Local(), r.Now.Local()
	layout := "15:04:05"
	if t.YearDay() != now.YearDay() || t.Year() != now.Year() {
		layout = "2006-01-02 15:04"
	}
	if d := t.Sub(now); d > 0 {
		return fmt.Sprintf("%s (in %s)", t.Format(layout), text.Short(d))
	}
	return fmt.Sprintf("%s (%s ago)", t.Format(layout), text.Short(now.Sub(t)))
}

func colours() bool { return os.Getenv("NO_COLOR") == "" && isTerminal(os.Stdout) }
