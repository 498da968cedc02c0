package baldur_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// Tests of what WithLeaseTable and WithLeaseOwner promise.

// TestWithLeaseTable: of several tables it chooses one, by its full name, whatever
// the search_path.
func TestWithLeaseTable(t *testing.T) {
	ctx := testCtx(t)
	for _, path := range []string{"public", "tenant_42", "", "tenant_42, public", `"$user"`} {
		t.Run(path, func(t *testing.T) {
			dsn := pgtest.SocketDSN(t)
			adm := plainPool(t, dsn)
			mustExec(t, adm, "CREATE SCHEMA tenant_42", landedLease("public"), landedLease("tenant_42"))
			as := withParams(t, dsn, "search_path", path)
			for i, table := range []string{"tenant_42.baldur_lease", "public.baldur_lease"} {
				q := newQuorum(t, openPool(t, as), "a", baldur.WithLeaseTable(table), baldur.WithLeaseTTL(shortTTL))
				mustAcquire(t, q)
				if n := scan[int](t, adm, "SELECT count(*) FROM "+table+" WHERE lease_id IS NOT NULL"); n != 1 {
					t.Errorf("%d rows in %s", n, table)
				}
				if i == 0 {
					if n := scan[int](t, adm, "SELECT count(*) FROM public.baldur_lease"); n != 0 {
						t.Errorf("%d rows in the other table", n)
					}
				}
				if _, err := guard(ctx, q, openPool(t, as)); err != nil {
					t.Error(err)
				}
			}
			if tables, err := leaseTables(ctx, adm); len(tables) != 2 || err != nil {
				t.Errorf("lease tables %q, %v", tables, err)
			}
		})
	}
}

// TestWithLeaseTableNames: names that need quotes, and what is no name.
func TestWithLeaseTableNames(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	adm := plainPool(t, dsn)
	mustExec(t, adm, `CREATE SCHEMA "Zürich's"`, strings.NewReplacer("{schema}", `"Zürich's"`).Replace(landedLease("{schema}")),
		`ALTER TABLE "Zürich's".baldur_lease RENAME TO "The.Lease"`)
	q := newQuorum(t, openPool(t, withParams(t, dsn, "search_path", "")), "a", baldur.WithLeaseTable(`"Zürich's"."The.Lease"`), baldur.WithLeaseTTL(shortTTL))
	mustAcquire(t, q)
	if _, err := guard(testCtx(t), q, adm); err != nil {
		t.Error(err)
	}
	if got := onlyTable(t, adm); got != `"Zürich's"."The.Lease"` {
		t.Error(got)
	}
	for _, bad := range []string{"", ".", "a.", ".b", "a.b.c", `"a`, `a"b`, "a b", "x; DROP TABLE y", "a\x00b", "a.\"b\x00\"", strings.Repeat("x", 64) + ".t", "pg_temp.lease", "pg_catalog.lease"} {
		if _, err := baldur.NewPGQuorum(openPool(t, dsn), "a", baldur.WithLeaseTable(bad)); err == nil || !strings.Contains(err.Error(), "WithLeaseTable") {
			t.Errorf("%.70q: %v", bad, err)
		}
	}
}

// TestWithLeaseTableMissing: a table that was named and is not there is not looked
// for elsewhere.
func TestWithLeaseTableMissing(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	adm := plainPool(t, dsn)
	mustExec(t, adm, "CREATE SCHEMA tenant_42", landedLease("public"))
	q := newQuorum(t, openPool(t, dsn), "a", baldur.WithLeaseTable("tenant_42.baldur_lease"), baldur.WithLeaseTTL(shortTTL))
	if ok, err := q.TryAcquirePrimary(testCtx(t)); ok {
		// Made, since it was asked for by name: then it is that one that is used.
		if n := scan[int](t, adm, "SELECT count(*) FROM tenant_42.baldur_lease WHERE lease_id IS NOT NULL"); n != 1 {
			t.Errorf("%d rows", n)
		}
	} else if err == nil || !strings.Contains(err.Error(), "tenant_42.baldur_lease") {
		t.Error(err)
	}
	if n := scan[int](t, adm, "SELECT count(*) FROM public.baldur_lease"); n != 0 {
		t.Error("the table that was not named is used")
	}
}

// TestWithLeaseOwner: a table of a role that is named is accepted, one of another
// is not.
func TestWithLeaseOwner(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	table := migrated(t, dsn)
	adm := plainPool(t, dsn)
	role, as := newRole(t, adm, dsn, "app", "")
	owner, _ := newRole(t, adm, dsn, "owner", "")
	other, _ := newRole(t, adm, dsn, "other", "")
	mustExec(t, adm, "ALTER TABLE "+table+" OWNER TO "+owner)
	grantLease(t, adm, table, role)
	mustAcquire(t, newQuorum(t, openPool(t, as), "a", baldur.WithLeaseOwner(owner), baldur.WithLeaseName("named")))
	ok, err := newQuorum(t, openPool(t, as), "a", baldur.WithLeaseOwner(other)).TryAcquirePrimary(testCtx(t))
	if ok || err == nil || !strings.Contains(err.Error(), owner) {
		t.Errorf("%v, %v; want a refusal that names %s", ok, err, owner)
	}
	// It accepts an owner, and nothing else.
	evilFunctions(t, adm, owner)
	for _, w := range wrecks("region", "ttl_ms") {
		if w.name != "before trigger" {
			continue
		}
		w.wreck(t, adm, table, owner)
		ok, err := newQuorum(t, openPool(t, as), "a", baldur.WithLeaseOwner(owner), baldur.WithLeaseName("wrecked")).TryAcquirePrimary(testCtx(t))
		w.refusedFor(t, adm, table, "TryAcquirePrimary", err)
		if ok {
			t.Error("primary")
		}
	}
	for _, bad := range []string{"", "a\x00b", strings.Repeat("x", 64)} {
		if _, err := baldur.NewPGQuorum(openPool(t, dsn), "a", baldur.WithLeaseOwner(bad)); err == nil || !strings.Contains(err.Error(), "WithLeaseOwner") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestMigrateInTheWay: what is in the way of the table for good is an error at once, and not
// tried for a minute.
func TestMigrateInTheWay(t *testing.T) {
	for _, there := range []string{"CREATE TYPE {} AS ENUM ()", "CREATE SEQUENCE {}", "CREATE DOMAIN {} AS int"} {
		t.Run(there, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			db := openPool(t, pgtest.DSN(t))
			mustExec(t, db, strings.Replace(there, "{}", "public.baldur_lease", 1))
			if err := baldur.MigrateQuorum(ctx, db); err == nil || ctx.Err() != nil {
				t.Error(err)
			}
		})
	}
}

// TestMoveLeaseTableNames: a table can be moved from and to a schema of any name.
func TestMoveLeaseTableNames(t *testing.T) {
	ctx := testCtx(t)
	db := openPool(t, pgtest.DSN(t))
	mustExec(t, db, `CREATE SCHEMA "Zürich's"`, `CREATE SCHEMA "a.b"`)
	if err := baldur.MigrateQuorum(ctx, db); err != nil {
		t.Fatal(err)
	}
	from := "public.baldur_lease"
	for _, to := range []string{`"Zürich's"."Lease ""ä"""`, `"a.b".lease`, `"Zürich's".baldur_lease`, "public.baldur_lease"} {
		if err := baldur.MoveLeaseTable(ctx, db, to, baldur.WithLeaseTable(from)); err != nil {
			t.Fatal(from, to, err)
		}
		if got := onlyTable(t, db); got != to {
			t.Errorf("%s, want %s", got, to)
		}
		from = to
	}
}

// TestMoveLeaseTableHeld: that a lease is held is told without waiting for the table, behind
// which the holder's renewals would wait too.
func TestMoveLeaseTableHeld(t *testing.T) {
	ctx := testCtx(t)
	dsn := pgtest.DSN(t)
	db := openPool(t, dsn)
	q := newQuorum(t, openPool(t, dsn), "a")
	mustAcquire(t, q)
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := q.RequirePrimary(ctx, tx); err != nil {
		t.Fatal(err)
	}
	if err := baldur.MoveLeaseTable(ctx, db, "public.moved"); err == nil || !strings.Contains(err.Error(), "live") {
		t.Error(err)
	}
	if ok, err := q.RenewLease(ctx); !ok || err != nil {
		t.Error(ok, err)
	}
}
