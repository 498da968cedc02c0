// Command baldur shows who holds the connections of a database/sql pool.
//
//	go run github.com/baldur-go/baldur/cmd/baldur@latest
//
// See baldur help.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/baldur-go/baldur/internal/text"
)

// A command is one file, with one line in commands.
type command struct {
	name    string
	summary string
	run     func(ctx context.Context, args []string) error
}

// commands lists the commands in the order of the help; the first is the default.
func commands() []command {
	return []command{
		{"demo", "watch an order service leak connections, and see who it was (default)", runDemo},
		{"doctor", "look at a PostgreSQL before trusting the setup", runDoctor},
		{"quorum", "run a command only while primary, and see who is", runQuorum},
		{"help", "print this text, or that of a command", runHelp},
		{"version", "print the version", runVersion},
	}
}

// The exit statuses beside 0.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 130 // as shells report a program that Ctrl-C has ended
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	// Once in its life a program of Go 1.23 to 1.27 forks without blocking
	// signals first, to try pidfds (checkClonePidfd in syscall/exec_linux.go).
	// Ctrl-C at that moment runs the signal handler in the child too, on our
	// memory, and can crash us. It is before the first process is started, or
	// found: so now, when there is nothing to clean up yet.
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Release()
	}

	signalled, stop := signal.NotifyContext(context.Background(), endSignals()...)
	defer stop()
	// The first Ctrl-C ends ctx, so that everything is cleaned up. By then
	// signals do again what they do by default: a second one ends us at once.
	ctx, end := context.WithCancel(context.Background())
	context.AfterFunc(signalled, func() { stop(); end() })
	// Writing to a pipe that nobody reads would end us without clean-up. As
	// soon as somebody listens to the signal, it is an error of the write instead.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	err := dispatch(ctx, args)
	var usage usageError
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		printError(err)
		return exitUsage
	}
	// Ctrl-C also reaches a child that is just being started, and its failure
	// can get here before the signal does.
	select {
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
	switch {
	case ctx.Err() != nil:
		// What failed, failed because of that, but for the clean-up.
		fmt.Fprintln(os.Stderr, "baldur: interrupted")
		var left leftBehind
		if errors.As(err, &left) {
			printError(left)
		}
		return exitInterrupted
	case errors.Is(err, syscall.EPIPE):
		return exitFailure // the reader knows
	}
	printError(err)
	return exitFailure
}

// printError writes an error on stderr. It may quote what a server says.
func printError(err error) { fmt.Fprintln(os.Stderr, "baldur:", text.Lines(err.Error())) }

// printJSON writes v on stdout, in one line if indent is "". It is safe to be read on a
// terminal.
func printJSON(v any, indent string) error {
	b, err := json.Marshal(v)
	if err == nil && indent != "" {
		b, err = json.MarshalIndent(v, "", indent)
	}
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(text.JSON(b), '\n'))
	return err
}

func endSignals() []os.Signal {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup wants it
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

func dispatch(ctx context.Context, args []string) error {
	all := commands()
	if len(args) == 0 {
		return all[0].run(ctx, nil)
	}
	switch args[0] {
	case "-h", "-help", "--help":
		return runHelp(ctx, args[1:])
	case "-version", "--version":
		return runVersion(ctx, args[1:])
	}
	if strings.HasPrefix(args[0], "-") {
		return all[0].run(ctx, args)
	}
	for _, c := range all {
		if c.name == args[0] {
			return c.run(ctx, args[1:])
		}
	}
	return unknownCommand(args[0])
}

// leftBehind is a clean-up that failed.
type leftBehind struct{ error }

// usageError is a command line that cannot be understood.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func unknownCommand(name string) error {
	var names []string
	for _, c := range commands() {
		names = append(names, c.name)
	}
	return usageError{fmt.Sprintf("unknown command %q; there are %s", name, strings.Join(names, ", "))}
}

func runHelp(_ context.Context, args []string) error {
	if len(args) > 0 {
		for _, c := range commands() {
			if c.name == args[0] && c.name != "help" && c.name != "version" {
				return c.run(context.Background(), []string{"-h"})
			}
		}
		if len(args) > 1 || args[0] != "help" && args[0] != "version" {
			return unknownCommand(args[0])
		}
	}
	var b strings.Builder
	b.WriteString("baldur knows who holds each connection of a Go program's PostgreSQL pool.\n\nUsage: baldur [command] [flags]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-9s %s\n", c.name, c.summary)
	}
	b.WriteString("\nbaldur help <command> tells more of one.\n")
	_, err := io.WriteString(os.Stdout, b.String())
	return err
}
