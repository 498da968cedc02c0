package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// newFlags returns the flags of a command, to be parsed by parseFlags.
func newFlags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // parseFlags speaks
	flags.Usage = func() {}
	return flags
}

// parseFlags parses the arguments of a command that takes flags only. helped
// tells that the help was asked for, and given.
func parseFlags(flags *flag.FlagSet, args []string, usage string) (helped bool, err error) {
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		var b strings.Builder
		b.WriteString(usage)
		flags.VisitAll(func(f *flag.Flag) { fmt.Fprintf(&b, "  --%-8s %s\n", f.Name, f.Usage) })
		_, err := io.WriteString(os.Stdout, b.String())
		return true, err
	case err != nil:
		return false, usageError{fmt.Sprintf("%s: %v; see baldur help %[1]s", flags.Name(), err)}
	case flags.NArg() > 0:
		return false, usageError{fmt.Sprintf("%s: unexpected argument %q; see baldur help %[1]s", flags.Name(), flags.Arg(0))}
	}
	return false, nil
}
