package leasepg

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pgsql"
)

// Which table holds the leases, or the sealed epochs, of a database, and whether it may be
// trusted.
//
// The answer must be the same in every session, since two processes that use two tables are
// two primaries. A table is therefore looked up in the catalogs, in whatever schema it is, and
// not along the search_path, which differs between roles, tenants and poolers. Once found, it
// is known by its oid. Where several could be meant, none is used.
//
// A new table is made in the schema public. A schema of its own would be tidier, but processes
// of the version before this one look along the search_path: they would not find the table
// there, and would make a second one.

// defaultSchema is where a new table is made.
const defaultSchema = "public"

// A tableSpec says which table is looked for, and what it must be.
type tableSpec struct {
	usual   string            // its name where none was asked for
	table   string            // its name
	schema  string            // the only schema in which it may be (WithLeaseTable); "": any
	owners  []string          // roles that may own it, besides those that may in any case
	columns map[string]string // names and types; there may be others
	mark    string            // how its comment begins, which identifies a table of another name; "": none
	create  []string          // the statements that make it; {table} is its name
	fence   string            // the statement that makes its index of (name, epoch)
	remedy  string            // what errors advise
}

// A foundTable is a table that could be meant.
type foundTable struct {
	oid      int64
	quoted   string // its name with its schema, as the server quotes it
	name     string // that in ASCII
	namesake bool   // its name is the spec's, and its schema if that has one
	public   bool   // it is in defaultSchema
	kind     string // pg_class.relkind
	logged   bool
	comment  string
	owner    string
	accepted bool     // its owner may own it
	key      bool     // it has a unique index of (name)
	fence    bool     // and one of (name, epoch)
	columns  []string // "name type", of types of PostgreSQL's own
	refused  []string // what would run other people's code, or hide rows
	lacks    []string // the rights that the role lacks
}

// AllowTriggers accepts a lease table that has triggers, by which internal/quorumtest records
// what happens to it.
var AllowTriggers bool

// asker runs a query and calls each for every row.
type asker func(ctx context.Context, query string, each func(*sql.Rows) error) error

// find returns the tables that spec could mean.
func (spec *tableSpec) find(ctx context.Context, ask asker) (found []foundTable, err error) {
	owners := make([]string, len(spec.owners))
	for i, o := range spec.owners {
		owners[i] = pgsql.Text(o)
	}
	query := pgsql.Fill(findTables, "{triggers}", strconv.FormatBool(AllowTriggers), "{table}", pgsql.Text(spec.table), "{usual}", pgsql.Text(spec.usual), "{schema}", pgsql.Text(spec.schema), "{mark}", pgsql.Text(spec.mark), "{owners}", strings.Join(owners, ", "))
	err = ask(ctx, query, func(rows *sql.Rows) error {
		var t foundTable
		var name, comment, owner, columns, refused, lacks pgsql.HexText
		if err := rows.Scan(&t.oid, &name, &t.namesake, &t.public, &t.kind, &t.logged, &comment, &owner, &t.accepted, &t.key, &t.fence, &columns, &refused, &lacks); err != nil {
			return err
		}
		t.quoted, t.name, t.comment, t.owner = string(name), pgsql.PlainIdentifier(string(name)), string(comment), string(owner)
		t.columns, t.refused, t.lacks = columns.Lines(), refused.Lines(), lacks.Lines()
		found = append(found, t)
		return nil
	})
	return found, err
}

// choose returns the table that spec means, of those found, for a process that has so far
// used the one with the oid known (0: none yet); nil if there is none. An error names the
// tables that could be meant.
func (spec *tableSpec) choose(found []foundTable, known int64) (*foundTable, error) {
	namesake := func(t foundTable) bool { return t.namesake }
	if i := slices.IndexFunc(found, func(t foundTable) bool { return t.oid == known }); i >= 0 {
		t := &found[i]
		if other := slices.IndexFunc(found, namesake); !t.namesake && other >= 0 {
			// Processes that start now use the other one.
			return t, fmt.Errorf("the table that was used is now %s, and there is %s %s", t.name, tableKinds[found[other].kind], found[other].name)
		}
		return t, spec.check(t)
	}
	var ours, others, rest []foundTable
	for _, t := range found {
		switch {
		case !t.namesake:
			rest = append(rest, t)
		case t.accepted:
			ours = append(ours, t)
		default:
			others = append(others, t)
		}
	}
	switch {
	case len(found) == 0:
		return nil, nil
	case len(ours) == 1 && (ours[0].public || spec.schema != "" || len(others) == 0):
		// A stranger's table of the same name in another schema must not keep us from the one
		// in public. In other schemas, a process of another role may accept another table.
		return &ours[0], spec.check(&ours[0])
	case len(ours) == 0 && len(others) == 1:
		return nil, spec.check(&others[0])
	case len(ours)+len(others) == 0: // do not make one silently beside one that others use
		return nil, fmt.Errorf("there is no table %s, but %s; %s", spec, theirNames(rest), spec.remedy)
	}
	return nil, fmt.Errorf("several tables could be meant: %s; %s", theirNames(append(ours, others...)), spec.remedy)
}

// newName is the quoted name of a table that is to be made.
func (spec *tableSpec) newName() string {
	return pgsql.QuoteIdentifier(cmp.Or(spec.schema, defaultSchema)) + "." + pgsql.QuoteIdentifier(spec.table)
}

// String is that name as people write it.
func (spec *tableSpec) String() string {
	name := spec.newName()
	if bare := strings.ReplaceAll(name, `"`, ""); strings.Trim(bare, "abcdefghijklmnopqrstuvwxyz0123456789_.") == "" && strings.Count(bare, ".") == 1 {
		return bare
	}
	return name
}

func theirNames(found []foundTable) string {
	names := make([]string, len(found))
	for i, t := range found {
		names[i] = t.name + " of role " + pq.QuoteIdentifier(t.owner)
	}
	return strings.Join(names, " and ")
}

// check returns an error that names what is wrong with a table.
func (spec *tableSpec) check(t *foundTable) error {
	var missing []string
	for name, typ := range spec.columns {
		if !slices.Contains(t.columns, name+" "+typ) {
			missing = append(missing, name+" "+typ)
		}
	}
	slices.Sort(missing)
	switch version := t.version(spec); {
	case version > leaseVersion:
		return fmt.Errorf("table %s is of version %d and this program knows version %d: it is older than the table", t.name, version, leaseVersion)
	case t.kind != "r":
		return fmt.Errorf("%s is no plain table but a %s", t.name, tableKinds[t.kind])
	case !t.accepted:
		return fmt.Errorf("table %s belongs to role %s, which is not this role, the owner of the database or a superuser, nor one that this role was made a member of by these: "+
			"what it has put there would run with this role's rights (WithLeaseOwner accepts it)", t.name, pq.QuoteIdentifier(t.owner))
	case len(t.refused) > 0:
		return fmt.Errorf("table %s must be plain, and has: %s", t.name, strings.Join(t.refused, ", "))
	case !t.logged:
		return fmt.Errorf("table %s is UNLOGGED: a crash would empty it, and what it keeps be given twice", t.name)
	case len(missing) > 0:
		return fmt.Errorf("table %s lacks columns: %s; it is no table of ours, or of another version", t.name, strings.Join(missing, ", "))
	case !t.key:
		return fmt.Errorf("table %s has no unique index of (name)", t.name)
	case !t.fence:
		return fmt.Errorf("table %s %w", t.name, errNoFence)
	}
	return nil
}

var tableKinds = map[string]string{"r": "table", "p": "partitioned table", "v": "view", "m": "materialized view", "f": "foreign table"}

// version is what a table's comment says of it; 0: nothing.
func (t *foundTable) version(spec *tableSpec) (version int) {
	if text, ok := strings.CutPrefix(t.comment, spec.mark); ok && spec.mark != "" {
		_, _ = fmt.Sscanf(text, "%d", &version)
	}
	return version
}

var errNoFence = errors.New("has no unique index of (name, epoch), without which a takeover does not wait for guarded transactions: call MigrateQuorum")

// findTables finds the tables that a spec could mean.
//
// By pg_has_role a superuser is a member of every role, and superusers are the ones worth
// tricking: membership is read from the catalog instead. A grant needs no consent of the new
// member, and whoever has a role's admin option, as for a role that he has made, can grant it
// to anyone: what counts is who granted it. Dependencies on built-in functions are not in
// pg_depend, so that each function found there belongs to somebody.
var findTables = `
WITH RECURSIVE trusted(id) AS MATERIALIZED (
	SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolsuper OR r.rolname {=} CURRENT_USER OR r.rolname::pg_catalog.text {=} ANY (ARRAY[{owners}]::pg_catalog.text[])
	UNION SELECT d.datdba FROM pg_catalog.pg_database d WHERE d.datname {=} pg_catalog.current_database()
), member(id) AS (
	SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname {=} CURRENT_USER
	UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN member ON m.member {=} member.id JOIN trusted ON trusted.id {=} m.grantor
), accepted(id) AS MATERIALIZED (
	SELECT member.id FROM member UNION SELECT trusted.id FROM trusted
	UNION SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname {=} 'pg_database_owner'::pg_catalog.name
), candidate(id) AS (
	SELECT c.oid FROM pg_catalog.pg_class c
	WHERE c.relname::pg_catalog.text {=} {table} OR c.relname::pg_catalog.text {=} {usual}
	UNION SELECT d.objoid FROM pg_catalog.pg_description d
	WHERE d.classoid {=} 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid AND d.objsubid {=} 0
		AND {mark} {<>} ''::pg_catalog.text AND pg_catalog.starts_with(d.description, {mark})
)
SELECT c.oid::pg_catalog.int8, ` + pgsql.Hex(sqlQualified) + `, 
	c.relname::pg_catalog.text {=} {table} AND (n.nspname::pg_catalog.text {=} {schema} OR {schema} {=} ''::pg_catalog.text), n.nspname {=} '` + defaultSchema + `'::pg_catalog.name,
	c.relkind::pg_catalog.text, c.relpersistence {=} 'p'::pg_catalog."char",
	` + pgsql.Hex(`coalesce(pg_catalog.obj_description(c.oid, 'pg_class'::pg_catalog.name), ''::pg_catalog.text)`) + `,
	` + pgsql.Hex(`pg_catalog.pg_get_userbyid(c.relowner)::pg_catalog.text`) + `, EXISTS (SELECT FROM accepted WHERE accepted.id {=} c.relowner),
	EXISTS (` + uniqueIndex + ` AND i.indnkeyatts {=} 1::pg_catalog.int2 AND a.attname {=} 'name'::pg_catalog.name),
	EXISTS (` + sqlFenceIndex + `),
	` + pgsql.Lines(`SELECT a.attname::pg_catalog.text {||} ' '::pg_catalog.text {||} t.typname::pg_catalog.text`+columnsOf+` {=} 'pg_catalog'::pg_catalog.name`) + `,
	` + pgsql.Lines(`SELECT 'trigger '::pg_catalog.text {||} t.tgname::pg_catalog.text FROM pg_catalog.pg_trigger t
		WHERE t.tgrelid {=} c.oid AND NOT t.tgisinternal AND NOT {triggers}
	UNION ALL SELECT 'rule '::pg_catalog.text {||} r.rulename::pg_catalog.text FROM pg_catalog.pg_rewrite r WHERE r.ev_class {=} c.oid
	UNION ALL SELECT 'row level security'::pg_catalog.text WHERE c.relrowsecurity
	UNION ALL SELECT 'unique index '::pg_catalog.text {||} x.relname::pg_catalog.text {||} ' of another column than name and epoch'::pg_catalog.text
		FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid {=} i.indexrelid
		WHERE i.indrelid {=} c.oid AND i.indisunique AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
			WHERE a.attrelid {=} c.oid AND a.attnum {=} ANY (i.indkey::pg_catalog.int2[]) AND a.attname {<>} 'name'::pg_catalog.name AND a.attname {<>} 'epoch'::pg_catalog.name)
	UNION ALL SELECT 'inheritance, with '::pg_catalog.text {||} o.relname::pg_catalog.text FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class o
		ON o.oid {=} CASE WHEN h.inhrelid {=} c.oid THEN h.inhparent ELSE h.inhrelid END WHERE h.inhrelid {=} c.oid OR h.inhparent {=} c.oid
	UNION ALL SELECT 'foreign key '::pg_catalog.text {||} k.conname::pg_catalog.text FROM pg_catalog.pg_constraint k
		WHERE k.contype {=} 'f'::pg_catalog."char" AND (k.conrelid {=} c.oid OR k.confrelid {=} c.oid)
	UNION ALL SELECT 'a type that is not built in, of column '::pg_catalog.text {||} a.attname::pg_catalog.text`+columnsOf+` {<>} 'pg_catalog'::pg_catalog.name
	UNION ALL SELECT 'a nondeterministic collation, of column '::pg_catalog.text {||} a.attname::pg_catalog.text
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_collation l ON l.oid {=} a.attcollation
		WHERE a.attrelid {=} c.oid AND NOT a.attisdropped AND NOT l.collisdeterministic
	UNION ALL SELECT 'function '::pg_catalog.text {||} p.proname::pg_catalog.text {||} ' of role '::pg_catalog.text
			{||} pg_catalog.pg_get_userbyid(p.proowner)::pg_catalog.text {||} ' in '::pg_catalog.text {||} part.name
		FROM (SELECT 'a default'::pg_catalog.text, 'pg_catalog.pg_attrdef'::pg_catalog.regclass::pg_catalog.oid, d.oid FROM pg_catalog.pg_attrdef d WHERE d.adrelid {=} c.oid
			UNION ALL SELECT 'constraint '::pg_catalog.text {||} k.conname::pg_catalog.text, 'pg_catalog.pg_constraint'::pg_catalog.regclass::pg_catalog.oid, k.oid
				FROM pg_catalog.pg_constraint k WHERE k.conrelid {=} c.oid
			UNION ALL SELECT 'index '::pg_catalog.text {||} x.relname::pg_catalog.text, 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, x.oid
				FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid {=} i.indexrelid WHERE i.indrelid {=} c.oid) AS part(name, class, id)
		JOIN pg_catalog.pg_depend d ON d.classid {=} part.class AND d.objid {=} part.id
		LEFT JOIN pg_catalog.pg_operator o ON d.refclassid {=} 'pg_catalog.pg_operator'::pg_catalog.regclass::pg_catalog.oid AND o.oid {=} d.refobjid
		JOIN pg_catalog.pg_proc p ON p.oid {=} CASE WHEN d.refclassid {=} 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid THEN d.refobjid ELSE o.oprcode::pg_catalog.oid END
		WHERE NOT EXISTS (SELECT FROM accepted WHERE accepted.id {=} p.proowner)`) + `,
	` + pgsql.Lines(`SELECT w.p {||} ' on the table'::pg_catalog.text
		FROM pg_catalog.unnest(ARRAY['SELECT'::pg_catalog.text, 'INSERT'::pg_catalog.text, 'UPDATE'::pg_catalog.text]) AS w(p)
		WHERE NOT pg_catalog.has_table_privilege(c.oid, w.p)
	UNION ALL SELECT 'USAGE on its schema'::pg_catalog.text WHERE NOT pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'::pg_catalog.text)
	UNION ALL SELECT 'EXECUTE on function pg_catalog.pg_control_system()'::pg_catalog.text
		WHERE NOT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()'::pg_catalog.regprocedure::pg_catalog.oid, 'EXECUTE'::pg_catalog.text)`) + `
FROM candidate JOIN pg_catalog.pg_class c ON c.oid {=} candidate.id JOIN pg_catalog.pg_namespace n ON n.oid {=} c.relnamespace
WHERE c.relpersistence {<>} 't'::pg_catalog."char" AND c.relkind {=} ANY (ARRAY['r', 'p', 'v', 'm', 'f']::pg_catalog."char"[])
ORDER BY 1`

const (
	sqlQualified = `(pg_catalog.quote_ident(n.nspname::pg_catalog.text) {||} '.'::pg_catalog.text {||} pg_catalog.quote_ident(c.relname::pg_catalog.text))`

	uniqueIndex = `SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid {=} c.oid AND a.attnum {=} i.indkey[0]
		LEFT JOIN pg_catalog.pg_attribute b ON b.attrelid {=} c.oid AND i.indnkeyatts {>} 1::pg_catalog.int2 AND b.attnum {=} i.indkey[1]
		WHERE i.indrelid {=} c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL`

	sqlFenceIndex = uniqueIndex + ` AND i.indnkeyatts {=} 2::pg_catalog.int2
		AND (a.attname {=} 'name'::pg_catalog.name AND b.attname {=} 'epoch'::pg_catalog.name OR a.attname {=} 'epoch'::pg_catalog.name AND b.attname {=} 'name'::pg_catalog.name)`

	// The columns, with a comparison of their type's schema that is yet to be completed.
	columnsOf = ` FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid {=} a.atttypid JOIN pg_catalog.pg_namespace s ON s.oid {=} t.typnamespace
		WHERE a.attrelid {=} c.oid AND a.attnum {>} 0::pg_catalog.int2 AND NOT a.attisdropped AND s.nspname`
)
