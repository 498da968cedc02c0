package baldur_test

import (
	"database/sql"
	"database/sql/driver"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func init() {
	otherDriver = func(dsn string) driver.Connector { return stdlib.GetConnector(*must(pgx.ParseConfig(dsn))) }
	drivers = map[string]func(dsn string) *sql.DB{"pgx": func(dsn string) *sql.DB { return baldur.OpenDB(otherDriver(dsn)) }}
	ways = []way{byOther, byOther} // the first is for the sessions of the pool
}

// TestChaosPgx: TestChaos on pgx, where its own bound is known: with a ctx. The
// slot is back when pgx has closed the connection, which takes it up to 15 s.
func TestChaosPgx(t *testing.T) {
	dsn := pgtest.DSN(t)
	var all sync.WaitGroup
	defer all.Wait()
	for _, entry := range entryPoints {
		if entry.closing || strings.HasPrefix(entry.name, "COPY") || strings.Contains(entry.name, "expired") || strings.Contains(entry.name, "after Stmt.Close") {
			continue
		}
		for _, fault := range networkFaults {
			s := strike{make: entry.make, happens: fault.strike, ends: true, bound: 16 * time.Second}
			all.Go(func() {
				proxied, proxy := proxyOf(t, dsn)
				s.proxy = proxy
				s.db = baldur.OpenDB(otherDriver(proxied), baldur.WithLeakThreshold(time.Second))
				s.run(t, entry.name+", "+fault.name)
			})
		}
	}
}
