//go:build unix

package main

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/lib/pq"
)

func TestCommandLine(t *testing.T) {
	for _, test := range []struct {
		args   string
		status int
		want   string // in what is printed: on stderr if the status is not 0
	}{
		{"help", 0, "demo "},
		{"-h", 0, "demo "},
		{"--help", 0, "demo "},
		{"help demo", 0, "--json"},
		{"demo -h", 0, "--json"},
		{"help help", 0, "demo "},
		{"version", 0, "baldur "},
		{"--version", 0, "lib/pq v1"},
		{"dmeo", 2, `unknown command "dmeo"; there are demo, doctor, quorum, help, version`},
		{"help dmeo", 2, `unknown command "dmeo"`},
		{"help doctor", 0, "--pool-size"},
		{"doctor", 2, "doctor: give a DSN, or set BALDUR_DSN"},
		{"doctor host=a password=b", 2, "doctor: more than one DSN"},
		{"doctor --pool-size postgres://u:secret@h/d", 2, "doctor: a DSN is where a flag's value belongs"},
		{"doctor postgres://u:secret@127.0.0.1:1/d?sslmode=disable --json", 2, "cannot connect: "},
		{"doctor --pool-size -1 postgres://h/d", 2, "--pool-size is -1"},
		{"doctor --pool-size x postgres://h/d", 2, `invalid value "x"`},
		{"doctor postgres://u:secret@%zz/d", 2, "not a valid URL"},
		{"doctor postgres://u:secret@127.0.0.1:1/d?sslmode=disable", 2, "cannot connect: "},
		{"help quorum", 0, "baldur quorum status [flags] [DSN]"},
		{"quorum run -h", 0, "--grace"},
		{"quorum status --help", 0, "--watch"},
		{"quorum", 2, "quorum: run or status?"},
		{"quorum ran", 2, `quorum: there is no "ran", only run and status`},
		{"quorum postgres://u:secret@h/d", 2, "quorum: run or status must come before the DSN"},
		{"quorum run --lease a --region b -- true", 2, "quorum run: give a DSN, or set BALDUR_DSN"},
		{"quorum run --lease a --region b postgres://u:secret@h/d", 2, "quorum run: there is no command; give it after --"},
		{"quorum run --lease a --region b postgres://u:secret@h/d true", 2, "quorum run: there is no command; give it after --"},
		{"quorum run --lease a --region b postgres://u:secret@h/d true -- true", 2, "quorum run: more than one DSN"},
		{"quorum run --lease a --region b postgres://u:secret@h/d --", 2, "quorum run: the command after -- is empty"},
		{"quorum run --lease a --region postgres://u:secret@h/d -- true", 2, "quorum run: a DSN is where a flag's value belongs"},
		{"quorum run --lease a --region b --ttl postgres://u:secret@h/d -- true", 2, "quorum run: a DSN is where a flag's value belongs"},
		{"quorum run --region b postgres://u:secret@h/d -- true", 2, "quorum run: --lease is not given"},
		{"quorum run --lease a postgres://u:secret@h/d -- true", 2, "quorum run: --region is not given"},
		{"quorum run --lease a --region b --tll 1s postgres://u:secret@h/d -- true", 2, "flag provided but not defined: -tll"},
		{"quorum run --lease a --region b --ttl 1 postgres://u:secret@h/d -- true", 2, `invalid value "1" for flag -ttl`},
		{"quorum run --lease a --region b --ttl 0 postgres://u:secret@h/d -- true", 2, "quorum run: --ttl is 0s; it must be above 0"},
		{"quorum run --lease a --region b --ttl 499ms postgres://u:secret@h/d -- true", 2, "quorum run: --ttl is 499ms; it must be from 500ms to 5m0s"},
		{"quorum run --lease a --region b --ttl 301s postgres://u:secret@h/d -- true", 2, "quorum run: --ttl is 5m1s; it must be from 500ms to 5m0s"},
		{"quorum run --lease a --region b --ttl 1s --grace 400ms postgres://u:secret@h/d -- true", 2, "--grace is 400ms; it must be less than 400ms, so that the command is dead before a lease of 1s ends: grace < TTL/2 - TTL/10"},
		{"quorum run --lease a --region b --grace -1s postgres://u:secret@h/d -- true", 2, "--grace is -1s; it must not be negative"},
		{"quorum run --lease a --region b --wait -1s postgres://u:secret@h/d -- true", 2, "--wait is -1s; it must not be negative"},
		{"quorum run --lease a --region b --hold-at-least -1s postgres://u:secret@h/d -- true", 2, "--hold-at-least is -1s; it must not be negative"},
		{"quorum run --lease a --region b postgres://u:secret@%zz/d -- true", 2, "not a valid URL"},
		{"quorum run --lease " + strings.Repeat("a", 201) + " --region b postgres://u:secret@h/d -- true", 2, "quorum run: --lease has 201 bytes"},
		{"quorum run --lease a --region b postgres://u:secret@h/d -- no-such-command", 127, `"no-such-command": executable file not found`},
		{"quorum run --lease a --region b --wait 0 postgres://u:secret@127.0.0.1:1/d?sslmode=disable -- true", 1, `quorum run: lease "a" is not to be had now: dial`},
		{"quorum status", 2, "quorum status: give a DSN, or set BALDUR_DSN"},
		{"quorum status --lease", 2, "quorum status: flag needs an argument: -lease"},
		{"quorum status --lease postgres://u:secret@h/d", 2, "quorum status: a DSN is where a flag's value belongs"},
		{"quorum status postgres://u:secret@h/d more", 2, "quorum status: more than one DSN"},
		{"quorum status --json postgres://u:secret@127.0.0.1:1/d?sslmode=disable", 2, "quorum status: cannot connect: dial"},
		{"demo now", 2, `demo: unexpected argument "now"`},
		{"version now", 2, `version: unexpected argument "now"`},
		{"demo --jsno", 2, "demo: flag provided but not defined: -jsno"},
		{"--jsno", 2, "demo: flag provided but not defined: -jsno"},
		{"demo --json=maybe", 2, `invalid boolean value "maybe"`},
	} {
		t.Run(test.args, func(t *testing.T) {
			p := start(t, nil, strings.Fields(test.args)...)
			stdout := p.ends(test.status)
			said, silent := stdout, p.errors()
			if test.status != 0 {
				said, silent = silent, said
			}
			if !strings.Contains(said, test.want) {
				t.Errorf("does not say %q:\n%s", test.want, said)
			}
			if strings.Contains(said+silent, "secret") {
				t.Errorf("a password is printed:\n%s%s", said, silent)
			}
			if silent != "" {
				t.Errorf("and this on the other channel:\n%s", silent)
			}
			if test.status != 0 && strings.Count(said, "\n") != 1 {
				t.Errorf("an error of more than a line:\n%s", said)
			}
		})
	}
}

func TestWithParams(t *testing.T) {
	added := map[string]string{"search_path": "a'b\\c d", "application_name": "x"}
	for _, dsn := range []string{
		"postgres://u:p%2F@h:1/d",
		"postgresql://u:p%2F@h:1/d?search_path=public&search_path=more",
		"user=u password=p/ host=h port=1 dbname=d search_path=public",
		"user=u password='p/' host=h port=1 dbname=d application_name= ",
	} {
		got, err := withParams(dsn, map[string]string{"application_name": "x"}, map[string]string{"search_path": "a'b\\c d"})
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := pq.NewConfig(got)
		if err != nil {
			t.Fatalf("%s: %v", got, err)
		}
		if cfg.User != "u" || cfg.Password != "p/" || cfg.Host != "h" || cfg.Port != 1 || cfg.Database != "d" {
			t.Errorf("%s: became %s", dsn, got)
		}
		have := maps.Clone(cfg.Runtime)
		have["application_name"] = cfg.ApplicationName
		if !maps.Equal(have, added) {
			t.Errorf("%s: the parameters became %v", got, have)
		}
	}
}

func TestProgressOnTerminal(t *testing.T) {
	var b bytes.Buffer
	p := &progress{w: &b, live: true}
	p.say("one")
	p.say(strings.Repeat("two ", 30))
	p.done()
	p.done()
	parts := strings.Split(b.String(), "\r\x1b[K")
	want := []string{"", "one …", strings.Repeat("two ", 19) + "tw…", ""}
	if !slices.Equal(parts, want) {
		t.Errorf("wrote %q, want %q", parts, want)
	}
	if strings.Contains(b.String(), "\n") {
		t.Errorf("a line is left: %q", b.String())
	}
}
