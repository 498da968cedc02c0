package baldurotel

import "strings"

// What a command may have.
const (
	hasTarget = 1 << iota // a name after it
	hasObject             // a kind of object, and its name
	hasQuery              // a query in it
	canParams             // parameters
)

// commands are PostgreSQL's (part VI of its manual).
var commands = func() map[string]byte {
	m := map[string]byte{}
	for flags, list := range map[byte]string{
		0: "ABORT BEGIN CHECKPOINT CLOSE COMMENT COMMIT DEALLOCATE DISCARD DO END EXECUTE FETCH GRANT IMPORT LISTEN LOAD MOVE" +
			" NOTIFY REASSIGN REINDEX RELEASE RESET REVOKE ROLLBACK SAVEPOINT SECURITY SET SHOW START UNLISTEN",
		hasTarget:                        "CALL CLUSTER LOCK TRUNCATE VACUUM ANALYZE",
		hasTarget | hasQuery:             "COPY",
		hasTarget | hasQuery | canParams: "TABLE UPDATE",
		hasQuery:                         "DECLARE EXPLAIN PREPARE",
		hasQuery | canParams:             "DELETE INSERT MERGE SELECT VALUES WITH",
		hasObject:                        "ALTER DROP REFRESH",
		hasObject | hasQuery:             "CREATE",
	} {
		for _, w := range strings.Fields(list) {
			m[w] = flags
		}
	}
	return m
}()

var (
	// objects are what CREATE, ALTER, DROP and REFRESH may be about.
	objects = words("DATABASE EXTENSION FUNCTION INDEX PROCEDURE ROLE SCHEMA SEQUENCE TABLE TRIGGER TYPE USER VIEW")
	// fillers may stand between a word and the name that it is about.
	fillers = words("CONCURRENTLY EXISTS FULL IF LATERAL NOT ONLY TABLE VERBOSE ANALYZE")
	// listEnds end the list after FROM.
	listEnds = words("EXCEPT FETCH FOR GROUP HAVING INTERSECT LIMIT OFFSET ORDER RETURNING SET UNION WHEN WHERE WINDOW")
	// others matter too.
	others = words("AS DISTINCT FALSE FROM INTO JOIN ON TO TRUE USING")
)

func words(list string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(list) {
		m[w] = true
	}
	return m
}

// keywords are all of the above, each by itself.
var keywords = func() map[string]string {
	all := map[string]string{}
	for w := range commands {
		all[w] = w
	}
	for _, m := range []map[string]bool{objects, fillers, listEnds, others} {
		for w := range m {
			all[w] = w
		}
	}
	return all
}()

// keyword is a word in capitals, "" if it is none of ours.
func keyword(word string) string {
	var buf [12]byte // the longest is CONCURRENTLY
	if len(word) > len(buf) {
		return ""
	}
	for i := range len(word) {
		c := word[i]
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		buf[i] = c
	}
	return keywords[string(buf[:len(word)])]
}
