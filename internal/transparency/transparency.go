// Package transparency plays scripts of operations on a bare driver and on the
// wrapped one, with every set of capabilities that a driver can have: the calls
// that the driver gets, what the operations return and the pool's figures must be
// the same, line by line.
//
// Scripts in which a ctx ends run in a synctest bubble, where each operation
// waits until database/sql's own goroutines have done their part. Those in
// which the driver panics do not: database/sql then leaves locks behind.
package transparency

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baldur-go/baldur"
)

// A Variant is a way of wrapping.
type Variant struct {
	Name   string
	Option baldur.Option
}

// compare plays a script on the bare driver, and on the wrapped one in each way.
func compare(t *testing.T, c caps, script []string, variants []Variant) {
	t.Helper()
	run := func(open func(driver.Connector) *sql.DB) (log, broken []string) {
		if slices.ContainsFunc(script, func(op string) bool { return strings.HasSuffix(op, "panic") }) {
			log, broken = play(c, open, false, script)
		} else {
			synctest.Test(t, func(*testing.T) { log, broken = play(c, open, true, script) })
		}
		sortCloses(log)
		return log, broken
	}
	bare, _ := run(sql.OpenDB)
	for _, m := range variants {
		got, broken := run(func(inner driver.Connector) *sql.DB { return baldur.OpenDB(inner, m.Option) })
		for i := range max(len(bare), len(got)) {
			if i < len(bare) && i < len(got) && bare[i] == got[i] {
				continue
			}
			from := max(0, i-25)
			t.Errorf("%+v, %s, differs\nbare:\n%s\nwrapped:\n%s", c, m.Name,
				strings.Join(bare[min(from, len(bare)):min(i+3, len(bare))], "\n"), strings.Join(got[min(from, len(got)):min(i+3, len(got))], "\n"))
			break
		}
		if len(broken) > 0 {
			t.Errorf("%+v, %s: %s", c, m.Name, broken[0])
		}
	}
}

// sortCloses sorts runs of lines about statements that are closed together:
// database/sql keeps those of a connection in a map.
func sortCloses(log []string) {
	isClose := func(line string) bool { return strings.Contains(line, "stmt.Close ") }
	for i := 0; i < len(log); i++ {
		j := i
		for j < len(log) && isClose(log[j]) {
			j++
		}
		slices.Sort(log[i:j])
		i = j
	}
}

// scripts is the fixed part: what each capability is for, and what database/sql
// does where it is missing.
var scripts = map[string]string{
	"queries": "ping; exec db; query db; rows columns; rows types; rows next; rows types; rows wrong; rows drain; rows set; rows next; rows columns; rows set;" +
		"rows set; rows close; query db; rows next; rows close; rows next; rows columns; rows types; queryrow db; query db; rows set; rows drain; rows close; exec db",
	"prepared": "args plain; prepare db; stmt exec; stmt query; rows next; rows close; stmt queryrow; begin db; stmt tx; stmt exec; stmt query; rows drain; stmt close;" +
		"commit; prepare db; begin db; stmt exec; stmt query; rollback; stmt close; prepare db; stmt exec",
	"tx": "opts zero; begin db; exec tx; query tx; rows next; commit; commit; rollback; exec tx; begin db; prepare tx; stmt exec; rollback; rollback; stmt exec;" +
		"opts serializable; begin db; exec tx; rollback; opts readonly; begin db; exec tx; commit; exec db",
	"tx ctx":    "ctx; begin db; exec tx; cancel; exec tx; commit; rollback; exec db; exec db",
	"tx rows":   "ctx; begin db; query tx; rows next; cancel; rows next; rows close; rollback; background; exec db",
	"tx stmts":  "ctx; prepare db; begin db; stmt tx; stmt query; cancel; stmt exec; background; begin db; exec db; commit",
	"tx late":   "ctx; begin db; exec tx; commit; cancel; background; exec db; ping",
	"tx bad":    "begin db; arm rollback bad; rollback; exec db; begin db; arm commit bad; commit; exec db; begin db; arm exec bad; exec tx; rollback; exec db",
	"tx error":  "ctx; begin db; arm rollback error; cancel; rollback; background; begin db; arm rollback error; rollback; begin db; arm commit error; commit; exec db",
	"tx in end": "ctx; begin db; arm rollback cancel; rollback; background; exec db; ctx; begin db; arm commit cancel; commit; background; exec db",
	// The ctx ends during Tx.Rollback, before the driver's.
	"tx at end": "ctx; begin db; query tx; arm rows close cancel; rollback; background; exec db; exec db",
	"conn": "conn; conn ping; exec conn; query conn; rows next; raw; begin conn; exec tx; commit; begin conn; rollback; conn close; conn; raw; conn close; conn; raw; prepare conn; stmt exec; stmt query; rows drain;" +
		"arm stmt close error; stmt close; begin conn; begin nested; exec tx; outer; exec tx; rollback; outer; commit; raw error; exec conn; raw bad; exec conn; conn close; conn ping; exec conn; begin conn; conn; raw; conn close; exec db",
	"conn ctx": "ctx; conn; begin conn; cancel; exec conn; background; exec conn; ctx; query conn; cancel; rows next; background; exec conn; conn close; exec db",
	"conn tx":  "conn; ctx; begin conn; exec tx; arm rollback error; cancel; exec tx; background; exec conn; conn; ctx; begin conn; query tx; cancel; rows next; background; raw; exec db",
	"ended":    "exec db; prepare db; conn; ctx; cancel; ping; exec db; query db; queryrow db; prepare db; stmt exec; stmt query; begin db; exec conn; query conn; begin conn; conn ping; conn; background; exec db",
	"rows ctx": "ctx; query db; rows next; cancel; rows next; rows columns; rows set; rows close; ctx; query db; arm next cancel; rows next; rows next; rows close; background; exec db",
	"skip":     "skip; exec db; query db; rows close; queryrow db; conn; exec conn; query conn; begin conn; exec tx; query tx; commit; ctx; arm exec cancel; exec db; arm query cancel; query db",
	"no rows":  "norows; query db; rows columns; rows types; rows close; prepare db; stmt query; rows columns; rows close; norows; query db; rows drain; rows close",
	"pool":     "maxidle ; exec db; conn; conn close; maxidle xxx; begin db; exec db; commit; lifetime; exec db; age; exec db; begin db; age; commit; idletime; exec db; age; exec db",
	"invalid":  "exec db; arm valid error; exec db; exec db; begin db; arm valid error; commit; conn; exec conn; arm valid error; conn close; exec db",
	"reset":    "exec db; arm reset error; exec db; arm reset bad; exec db; arm reset badwrap; query db; rows close; arm reset bad; begin db; commit; arm reset error; conn; conn close",
	"connect": "arm connect error; exec db; arm connect bad; exec db; arm connect badwrap; begin db; arm connect canceled; conn; exec db;" +
		"arm close error; arm exec bad; exec db; arm connector close error",
}

func script(text string) []string {
	var ops []string
	for op := range strings.SplitSeq(text, ";") {
		ops = append(ops, strings.TrimPrefix(op, " "))
	}
	return ops
}

// Scripts plays the fixed part on every connection type.
func Scripts(t *testing.T, variants ...Variant) {
	for name, text := range scripts {
		t.Run(name, func(t *testing.T) {
			for i := range connTypes {
				for j := range 2 {
					n := i*2 + j
					compare(t, caps{i, n % len(stmtTypes), n % len(rowsTypes), n%3 == 0}, script(text), variants)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// Between is Scripts, once a connection type, for a wrapper of others that lies
// between baldur and the driver and has every interface: it changes nothing about
// what a connection, a statement and rows can do. Left out is what otelsql itself
// does to a driver that returns no Rows.
func Between(t *testing.T, variant Variant) {
	for name, text := range scripts {
		if name == "no rows" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			for i := range connTypes {
				compare(t, caps{i, i % len(stmtTypes), i % len(rowsTypes), i%3 == 0}, script(text), []Variant{variant})
				if t.Failed() {
					return
				}
			}
		})
	}
}

// Arguments: who converts one depends on the connection, on the statement and on
// whether the connection can execute by itself: every combination, in every way.
func Arguments(t *testing.T, lessBreadth bool, variants ...Variant) {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(argSets)) {
		all = append(all, script("args "+name+"; exec db; query db; rows close; queryrow db; prepare db; stmt exec; stmt query; rows close; stmt close;"+
			"conn; exec conn; begin conn; query tx; prepare tx; stmt exec; commit; conn close;"+
			"skip; exec db; query db; rows close; skip; loose; exec db; prepare db; stmt exec; loose; inputs ?; exec db; prepare db; stmt exec; query db; rows close")...)
	}
	for i := 0; i < len(connTypes); i += 2 { // the other half differs by what has no part in it
		for j := range stmtTypes {
			if lessBreadth && (i/2+j)%3 != 0 { // ten times as slow, and nothing for it in the breadth
				continue
			}
			compare(t, caps{conn: i, stmt: j}, all, variants)
		}
		if t.Failed() {
			return
		}
	}
}

// workload has every kind of call.
const workload = "ping; exec db; query db; rows next; rows types; rows drain; rows set; rows drain; rows close; queryrow db; args plain; prepare db; stmt exec; stmt query; rows next; rows close;" +
	"begin db; exec tx; query tx; rows next; rows close; stmt tx; stmt exec; commit; begin db; rollback; conn; conn ping; exec conn; query conn; rows close; raw; stmt close; prepare conn; stmt exec; stmt close; conn close; exec db"

var (
	calls = []string{"connect", "close", "prepare", "begin", "exec", "query", "ping", "reset", "valid", "conn check", "stmt close", "inputs", "stmt exec", "stmt query", "stmt check", "column",
		"columns", "rows close", "next", "has next set", "next set", "types", "commit", "rollback", "last id", "affected", "next row", "scan column"}
	// Where a ctx may end without a race in database/sql itself.
	cancellable = []string{"exec", "query", "ping", "begin", "stmt exec", "stmt query", "commit", "rollback", "reset"}
	// database/sql calls Close and ScanColumn with a lock held that a panic does
	// not release: what comes next blocks for ever.
	unpanicking = []string{"close", "stmt close", "scan column"}
)

// Faults has every kind of call fail in every way.
func Faults(t *testing.T, variants ...Variant) {
	for i, call := range calls {
		t.Run(call, func(t *testing.T) {
			var texts []string
			for _, fault := range slices.Sorted(maps.Keys(faults)) {
				texts = append(texts, "arm "+call+" "+fault+"; "+workload, "skip; "+workload+"; arm "+call+" "+fault+"; "+workload)
			}
			if slices.Contains(cancellable, call) {
				texts = append(texts, "ctx; arm "+call+" cancel; "+workload, "ctx; "+workload+"; arm "+call+" cancel; "+workload)
			}
			if !slices.Contains(unpanicking, call) {
				texts = append(texts, "arm "+call+" panic; "+workload, workload+"; arm "+call+" panic; "+workload)
			}
			for j, text := range texts {
				for k := range connTypes {
					n := 3*i + 5*j + k // an eighth of all, another one each time
					if n%8 != 0 {
						continue
					}
					compare(t, caps{k, (n / 8) % len(stmtTypes), (n / 8) % len(rowsTypes), false}, script(text), variants)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// Random plays random scripts on random drivers. A failure names
// its seed; BALDUR_SEED plays one again.
func Random(t *testing.T, variants ...Variant) {
	first, n := uint64(time.Now().UnixNano()), uint64(400)
	if s := os.Getenv("BALDUR_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, n = seed, 1
	} else if testing.Short() {
		n = 50
	}
	for seed := first; seed < first+n && !t.Failed(); seed++ {
		rnd := rand.New(rand.NewPCG(seed, 0))
		c := caps{rnd.IntN(len(connTypes)), rnd.IntN(len(stmtTypes)), rnd.IntN(len(rowsTypes)), rnd.IntN(2) == 0}
		compare(t, c, randomScript(rnd), variants)
		if t.Failed() {
			t.Logf("BALDUR_SEED=%d", seed)
		}
	}
}

func randomScript(rnd *rand.Rand) []string {
	panics := rnd.IntN(4) == 0
	any := func(words ...string) string { return words[rnd.IntN(len(words))] }
	on := func() string { return any("db", "db", "tx", "conn") }
	names, kinds := slices.Sorted(maps.Keys(argSets)), slices.Sorted(maps.Keys(faults))
	var text []string
	for range 80 {
		var op string
		switch rnd.IntN(22) {
		case 0, 1:
			op = "exec " + on()
		case 2, 3:
			op = "query " + on()
		case 4:
			op = "queryrow " + on()
		case 5:
			op = "prepare " + on()
		case 6, 7, 8:
			op = "stmt " + any("exec", "query", "queryrow", "close", "tx")
		case 9, 10, 11:
			op = "rows " + any("next", "drain", "set", "columns", "types", "wrong", "close", "close")
		case 12:
			op = "begin " + any("db", "conn")
		case 13:
			op = any("commit", "rollback")
		case 14:
			op = any("conn", "conn ping", "conn close")
		case 15:
			op = any("raw", "raw", "raw error", "raw bad")
		case 16:
			op = "args " + any(names...)
		case 17:
			op = any("skip", "loose", "ping", "disarm", "opts zero", "opts serializable", "opts readonly", "opts none")
		case 18:
			op = any("maxidle ", "maxidle x", "maxidle xxx")
		case 19:
			if panics {
				// The rows of a transaction are closed on a goroutine of database/sql's.
				if call := any(calls...); call != "rows close" && !slices.Contains(unpanicking, call) {
					op = "arm " + call + " panic"
				}
				break
			}
			op = any("ctx", "ctx", "cancel", "background", "lifetime", "idletime", "age", fmt.Sprint("arm ", any(cancellable...), " cancel"))
		default:
			op = "arm " + any(calls...) + " " + any(kinds...)
		}
		if op != "" {
			text = append(text, op)
		}
	}
	return text
}
