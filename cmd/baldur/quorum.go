package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/baldur-go/baldur/internal/text"
)

const quorumUsage = `Usage: baldur quorum run --lease NAME --region R [flags] [DSN] -- COMMAND ARGS...
       baldur quorum status [flags] [DSN]

run runs a command only while this process is primary: while it holds a lease
in a PostgreSQL, which one process has at a time. status shows who has which.

baldur quorum run -h and baldur quorum status -h tell more of each.
`

func runQuorum(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usageError{"quorum: run or status? see baldur help quorum"}
	}
	switch args[0] {
	case "run":
		return runQuorumRun(ctx, args[1:])
	case "status":
		return runQuorumStatus(ctx, args[1:])
	case "-h", "-help", "--help", "help":
		_, err := os.Stdout.WriteString(quorumUsage)
		return err
	}
	if looksLikeDSN(args[0]) {
		return usageError{"quorum: run or status must come before the DSN; see baldur help quorum"}
	}
	return usageError{fmt.Sprintf("quorum: there is no %q, only run and status; see baldur help quorum", args[0])}
}

// parseWithDSN parses flags and a DSN, which may stand anywhere among them; by
// default it is that in BALDUR_DSN. The DSN is in no error.
func parseWithDSN(flags *flag.FlagSet, args []string, usage string) (dsn string, helped bool, err error) {
	name := flags.Name()
	options, dsns := splitDSN(flags, args)
	misplaced := usageError{name + ": a DSN is where a flag's value belongs; see baldur help " + name}
	if helped, err = parseFlags(flags, options, usage); err != nil && looksLikeDSN(err.Error()) {
		err = misplaced
	}
	if helped || err != nil {
		return "", helped, err
	}
	flags.VisitAll(func(f *flag.Flag) {
		if looksLikeDSN(f.Value.String()) {
			err = misplaced
		}
	})
	dsn = os.Getenv(envDSN)
	if len(dsns) > 0 {
		dsn = dsns[0]
	}
	switch {
	case err != nil:
	case len(dsns) > 1:
		err = usageError{name + ": more than one DSN (a DSN with spaces needs quotes); see baldur help " + name}
	case dsn == "":
		err = usageError{name + ": give a DSN, or set " + envDSN + "; see baldur help " + name}
	}
	return dsn, false, err
}

// splitDSN takes what is neither a flag nor the value of one out of args.
func splitDSN(flags *flag.FlagSet, args []string) (options, dsns []string) {
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			dsns = append(dsns, args[i])
			continue
		}
		options = append(options, args[i])
		f := flags.Lookup(strings.TrimLeft(args[i], "-"))
		if f == nil {
			continue // it is not known, or has its value with it
		}
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
			continue
		}
		if i++; i < len(args) {
			options = append(options, args[i])
		}
	}
	return options, dsns
}

func looksLikeDSN(s string) bool {
	return strings.Contains(s, "://") || strings.Contains(s, "password=")
}

// say tells something on stderr, in one line.
func say(format string, args ...any) {
	fmt.Fprintln(os.Stderr, "baldur:", oneLine(fmt.Sprintf(format, args...)))
}

func oneLine(s string) string {
	return text.Clean(strings.ReplaceAll(strings.TrimPrefix(s, "baldur: "), "\n", "; "))
}
