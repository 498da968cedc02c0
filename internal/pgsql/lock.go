package pgsql

import (
	"fmt"
	"strconv"
)

// A Lock names an advisory lock of one int8 key.
type Lock struct {
	ID     int64
	Shared bool
}

// Call is the call of one of the functions named like pg_advisory_lock.
func (l Lock) Call(function string) string {
	if l.Shared {
		function += "_shared"
	}
	return "pg_catalog." + function + "('" + strconv.FormatInt(l.ID, 10) + "'::pg_catalog.int8)"
}

// GrantedLock is the condition that a row of pg_locks is of a session that has the lock id,
// shared or not. The key is split as PostgreSQL does it; oid is an unsigned int4. Locks of
// two int4 keys are others (the manual's 54.12, pg_locks).
func GrantedLock(id int64) string {
	return fmt.Sprintf("locktype OPERATOR(pg_catalog.=) 'advisory' AND granted AND objsubid OPERATOR(pg_catalog.=) 1::pg_catalog.int2"+
		" AND classid OPERATOR(pg_catalog.=) '%d'::pg_catalog.oid AND objid OPERATOR(pg_catalog.=) '%d'::pg_catalog.oid",
		uint64(id)>>32, uint64(id)&0xffffffff)
}
