package transparency

import "reflect"

// caps choose what the connections, statements and rows of a spy can do: each
// is an index into the table of that name.
type caps struct {
	conn, stmt, rows int
	closer           bool // the connector is an io.Closer
}

// build makes a value of one of the struct types below, whose embedded pointers
// all point to base.
func build[B any](like any, base *B) any {
	v := reflect.New(reflect.TypeOf(like)).Elem()
	fill(v, reflect.ValueOf(base))
	return v.Interface()
}

func fill(v, base reflect.Value) {
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Pointer {
			f.Set(base.Convert(f.Type()))
		} else {
			fill(f, base)
		}
	}
}

// connTypes has each combination of Exec, Query (absent, present, with ctx) and
// CheckNamedValue twice, with complementary sets of the other five interfaces;
// all 32 of these sets are there.
var connTypes = []any{
	struct {
		*SpyConn
	}{},
	struct {
		*SpyConn
		*HasPrepareCtx
		*HasBeginTx
		*HasPing
		*HasReset
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasCheck
		*HasPrepareCtx
	}{},
	struct {
		*SpyConn
		*HasCheck
		*HasBeginTx
		*HasPing
		*HasReset
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasQuery
		*HasBeginTx
	}{},
	struct {
		*SpyConn
		*HasQuery
		*HasPrepareCtx
		*HasPing
		*HasReset
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasQuery
		*HasCheck
		*HasPrepareCtx
		*HasBeginTx
	}{},
	struct {
		*SpyConn
		*HasQuery
		*HasCheck
		*HasPing
		*HasReset
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasQueryCtx
		*HasPing
	}{},
	struct {
		*SpyConn
		*HasQueryCtx
		*HasPrepareCtx
		*HasBeginTx
		*HasReset
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasQueryCtx
		*HasCheck
		*HasPrepareCtx
		*HasPing
	}{},
	struct {
		*SpyConn
		*HasQueryCtx
		*HasCheck
		*HasBeginTx
		*HasReset
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasBeginTx
		*HasPing
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasPrepareCtx
		*HasReset
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasCheck
		*HasPrepareCtx
		*HasBeginTx
		*HasPing
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasCheck
		*HasReset
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasQuery
		*HasReset
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasQuery
		*HasPrepareCtx
		*HasBeginTx
		*HasPing
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasQuery
		*HasCheck
		*HasPrepareCtx
		*HasReset
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasQuery
		*HasCheck
		*HasBeginTx
		*HasPing
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasQueryCtx
		*HasBeginTx
		*HasReset
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasQueryCtx
		*HasPrepareCtx
		*HasPing
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasQueryCtx
		*HasCheck
		*HasPrepareCtx
		*HasBeginTx
		*HasReset
	}{},
	struct {
		*SpyConn
		*HasExec
		*HasQueryCtx
		*HasCheck
		*HasPing
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasPing
		*HasReset
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasPrepareCtx
		*HasBeginTx
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasCheck
		*HasPrepareCtx
		*HasPing
		*HasReset
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasCheck
		*HasBeginTx
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasQuery
		*HasBeginTx
		*HasPing
		*HasReset
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasQuery
		*HasPrepareCtx
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasQuery
		*HasCheck
		*HasPrepareCtx
		*HasBeginTx
		*HasPing
		*HasReset
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasQuery
		*HasCheck
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasQueryCtx
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasQueryCtx
		*HasPrepareCtx
		*HasBeginTx
		*HasPing
		*HasReset
		*HasValid
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasQueryCtx
		*HasCheck
		*HasPrepareCtx
	}{},
	struct {
		*SpyConn
		*HasExecCtx
		*HasQueryCtx
		*HasCheck
		*HasBeginTx
		*HasPing
		*HasReset
		*HasValid
	}{},
}

// stmtTypes has every combination.
var stmtTypes = []any{
	struct{ *SpyStmt }{},
	struct {
		*SpyStmt
		*HasStmtExecCtx
	}{},
	struct {
		*SpyStmt
		*HasStmtQueryCtx
	}{},
	struct {
		*SpyStmt
		*HasStmtExecCtx
		*HasStmtQueryCtx
	}{},
	struct {
		*SpyStmt
		*HasStmtCheck
	}{},
	struct {
		*SpyStmt
		*HasStmtExecCtx
		*HasStmtCheck
	}{},
	struct {
		*SpyStmt
		*HasStmtQueryCtx
		*HasStmtCheck
	}{},
	struct {
		*SpyStmt
		*HasStmtExecCtx
		*HasStmtQueryCtx
		*HasStmtCheck
	}{},
	struct {
		*SpyStmt
		*HasColumn
	}{},
	struct {
		*SpyStmt
		*HasStmtExecCtx
		*HasColumn
	}{},
	struct {
		*SpyStmt
		*HasStmtQueryCtx
		*HasColumn
	}{},
	struct {
		*SpyStmt
		*HasStmtExecCtx
		*HasStmtQueryCtx
		*HasColumn
	}{},
	struct {
		*SpyStmt
		*HasStmtCheck
		*HasColumn
	}{},
	struct {
		*SpyStmt
		*HasStmtExecCtx
		*HasStmtCheck
		*HasColumn
	}{},
	struct {
		*SpyStmt
		*HasStmtQueryCtx
		*HasStmtCheck
		*HasColumn
	}{},
	struct {
		*SpyStmt
		*HasStmtExecCtx
		*HasStmtQueryCtx
		*HasStmtCheck
		*HasColumn
	}{},
}

// rowsTypes has none, all, each alone, and all but each. See also caps_go1.27.go.
var rowsTypes = []any{
	struct{ *SpyRows }{},
	struct {
		*SpyRows
		*HasNextSet
		*HasScanType
		*HasTypeName
		*HasLength
		*HasNullable
		*HasPrecision
	}{},
	struct {
		*SpyRows
		*HasNextSet
	}{},
	struct {
		*SpyRows
		*HasScanType
	}{},
	struct {
		*SpyRows
		*HasTypeName
	}{},
	struct {
		*SpyRows
		*HasLength
	}{},
	struct {
		*SpyRows
		*HasNullable
	}{},
	struct {
		*SpyRows
		*HasPrecision
	}{},
	struct {
		*SpyRows
		*HasScanType
		*HasTypeName
		*HasLength
		*HasNullable
		*HasPrecision
	}{},
	struct {
		*SpyRows
		*HasNextSet
		*HasTypeName
		*HasLength
		*HasNullable
		*HasPrecision
	}{},
	struct {
		*SpyRows
		*HasNextSet
		*HasScanType
		*HasLength
		*HasNullable
		*HasPrecision
	}{},
	struct {
		*SpyRows
		*HasNextSet
		*HasScanType
		*HasTypeName
		*HasNullable
		*HasPrecision
	}{},
	struct {
		*SpyRows
		*HasNextSet
		*HasScanType
		*HasTypeName
		*HasLength
		*HasPrecision
	}{},
	struct {
		*SpyRows
		*HasNextSet
		*HasScanType
		*HasTypeName
		*HasLength
		*HasNullable
	}{},
}
