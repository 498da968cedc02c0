package leasepg

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// lawful is a lease table that nothing is wrong with.
func lawful(oid int64, name string) foundTable {
	t := foundTable{oid: oid, name: name, namesake: strings.HasSuffix(name, "."+leaseTable), public: strings.HasPrefix(name, defaultSchema+"."),
		kind: "r", logged: true, owner: "app", accepted: true, key: true, fence: true}
	for column, typ := range new(Config).leaseTable().columns {
		t.columns = append(t.columns, column+" "+typ)
	}
	return t
}

func with(t foundTable, change func(*foundTable)) foundTable { change(&t); return t }

func foreign(t *foundTable) { t.accepted, t.owner = false, "mallory" }

// TestChooseTable: which table a process means, by what it has found and has used before.
func TestChooseTable(t *testing.T) {
	public, ops, tenant := lawful(1, "public.baldur_lease"), lawful(2, "ops.baldur_lease"), lawful(3, "tenant.baldur_lease")
	other := lawful(4, "ops.leases")
	for _, c := range []struct {
		name  string
		found []foundTable
		known int64
		table string // of WithLeaseTable
		want  string // a name, or what the error says; "": there is none
	}{
		{"none", nil, 0, "", ""},
		{"one", []foundTable{public}, 0, "", "public.baldur_lease"},
		{"one elsewhere", []foundTable{ops}, 0, "", "ops.baldur_lease"},
		{"two", []foundTable{ops, public}, 0, "", "several tables could be meant: ops.baldur_lease of role \"app\" and public.baldur_lease of role \"app\"; name the one"},
		{"two, one known", []foundTable{ops, public}, 2, "", "ops.baldur_lease"},
		{"the known one has gone", []foundTable{public}, 2, "", "public.baldur_lease"},
		{"the known one has another name", []foundTable{with(ops, func(t *foundTable) { t.name, t.namesake = "ops.old", false })}, 2, "", "ops.old"},
		{"another one in the place of the known one", []foundTable{with(ops, func(t *foundTable) { t.name, t.namesake = "ops.old", false }), public}, 2, "", "the table that was used is now ops.old, and there is table public.baldur_lease"},
		{"somebody's beside public", []foundTable{public, with(tenant, foreign)}, 0, "", "public.baldur_lease"},
		{"somebody's in public", []foundTable{with(public, foreign)}, 0, "", "belongs to role \"mallory\""},
		{"somebody's in public, ours elsewhere", []foundTable{ops, with(public, foreign)}, 0, "", "several"},
		{"another role's beside ours, neither in public", []foundTable{ops, with(tenant, foreign)}, 0, "", "several"},
		{"the known one is somebody's now", []foundTable{with(public, foreign)}, 1, "", "belongs to role"},
		{"only one of another name", []foundTable{other}, 0, "", `there is no table public.baldur_lease, but ops.leases`},
		{"one of another name beside", []foundTable{other, public}, 0, "", "public.baldur_lease"},
		{"named", []foundTable{with(other, func(t *foundTable) { t.namesake = true }), with(public, func(t *foundTable) { t.namesake = false })}, 0, "ops.leases", "ops.leases"},
		{"named, and not there", []foundTable{with(public, func(t *foundTable) { t.namesake = false })}, 0, "ops.leases", `there is no table ops.leases, but public.baldur_lease`},
		{"trigger", []foundTable{with(public, func(t *foundTable) { t.refused = []string{"trigger x"} })}, 0, "", "must be plain, and has: trigger x"},
		{"view", []foundTable{with(public, func(t *foundTable) { t.kind = "v" })}, 0, "", "no plain table but a view"},
		{"unlogged", []foundTable{with(public, func(t *foundTable) { t.logged = false })}, 0, "", "UNLOGGED"},
		{"no fence", []foundTable{with(public, func(t *foundTable) { t.fence = false })}, 0, "", "call MigrateQuorum"},
		{"newer", []foundTable{with(public, func(t *foundTable) { t.comment = leaseComment + "2" })}, 0, "", "older than the table"},
		{"people's comment", []foundTable{with(public, func(t *foundTable) { t.comment = "owner: the platform team" })}, 0, "", "public.baldur_lease"},
	} {
		cfg := new(Config)
		if c.table != "" {
			table, err := ParseTable(c.table)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Table = &table
		}
		got := ""
		chosen, err := cfg.leaseTable().choose(c.found, c.known)
		switch {
		case err != nil:
			got = err.Error()
			if !strings.Contains(got, c.want) || c.want == "" {
				t.Errorf("%s: %s; want %s", c.name, got, c.want)
			}
			continue
		case chosen != nil:
			got = chosen.name
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestChooseTableOnce: two processes of whatever roles, that look at the same tables for the first
// time, do not mean two of them.
func TestChooseTableOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"public.baldur_lease", "a.baldur_lease", "b.baldur_lease", "c.leases"}
		var tables []foundTable
		for i, name := range names {
			if rapid.Bool().Draw(t, name) {
				tables = append(tables, lawful(int64(i+1), name))
			}
		}
		look := func(who string) *foundTable {
			var seen []foundTable
			for _, table := range tables {
				table.accepted = rapid.Bool().Draw(t, who+" accepts "+table.name)
				seen = append(seen, table)
			}
			chosen, err := new(Config).leaseTable().choose(seen, 0)
			if err != nil {
				return nil
			}
			if chosen == nil && len(seen) > 0 {
				t.Fatalf("%s would make one beside %v", who, seen)
			}
			return chosen
		}
		if a, b := look("a"), look("b"); a != nil && b != nil && a.oid != b.oid {
			t.Fatalf("%s and %s", a.name, b.name)
		}
	})
}
