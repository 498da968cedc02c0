package baldur

import (
	"bufio"
	"database/sql/driver"
	"fmt"
	"net"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"
)

// All that is particular to lib/pq: its DSN, its errors.

// newPQConnector returns lib/pq's connector on sockets of ours.
func newPQConnector(cfg pq.Config, grace time.Duration) (socketConnector, error) {
	c, err := pq.NewConnectorConfig(cfg)
	if err != nil {
		return socketConnector{}, err
	}
	c.Dialer(&dialer{grace: grace})
	return socketConnector{c}, nil
}

// pqPoisoned tells the error by which a pq connection that lib/pq 1.12.0 to
// 1.12.3 has left in a wrong state answers every query, while it claims to be
// valid (lib/pq#1298, #1320, #1450). pq gives it before it writes a byte.
func pqPoisoned(err error) bool {
	return err.Error() == "pq: there is already a query being processed on this connection"
}

// pqTxStatus reads a connection's transaction status, which pq keeps to itself:
// 'I' idle, 'T' in a transaction, 'E' in a failed one; 0 if it is not known.
func pqTxStatus(ci driver.Conn) byte {
	if f := pqField(ci, "txnStatus"); f.IsValid() && f.Kind() == reflect.Uint8 {
		return byte(f.Uint())
	}
	return 0
}

// pqPID reads the backend's process id, which pq keeps to itself, or 0: a
// SELECT pg_backend_pid() would cost each connect a round trip. Behind
// PgBouncer it is a number of PgBouncer's.
func pqPID(ci driver.Conn) int {
	if f := pqField(ci, "pid"); f.IsValid() && f.CanInt() {
		return int(f.Int())
	}
	return 0
}

// isPQ tells whether a connection is lib/pq's.
func isPQ(ci driver.Conn) bool { return pqField(ci, "pid").IsValid() }

// pqBuffered is how much pq has read from the network and not used yet: after a
// call, asynchronous messages. 0 if it is not known.
func pqBuffered(ci driver.Conn) int {
	buf := pqField(ci, "buf")
	if !buf.IsValid() || buf.Kind() != reflect.Pointer || buf.Type() != reflect.TypeFor[*bufio.Reader]() || buf.IsNil() {
		return 0
	}
	r, w := buf.Elem().FieldByName("r"), buf.Elem().FieldByName("w")
	if !r.IsValid() || !w.IsValid() || !r.CanInt() || !w.CanInt() {
		return 0
	}
	return int(w.Int() - r.Int())
}

// pqField is a field of pq's connection, or invalid.
func pqField(ci driver.Conn, name string) reflect.Value {
	v := reflect.ValueOf(ci)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Type().Elem().PkgPath() != "github.com/lib/pq" || v.Type().Elem().Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.Elem().FieldByName(name)
}

// parseDSN parses dsn and takes baldur's own parameters out.
func parseDSN(dsn string) (pq.Config, map[string]string, error) {
	cfg, err := pq.NewConfig(dsn)
	if err != nil {
		return pq.Config{}, nil, fmt.Errorf("baldur: DSN: %s", pqDSNError(err))
	}
	own := map[string]string{}
	for k, v := range cfg.Runtime {
		if strings.HasPrefix(k, "baldur_") {
			own[k] = v
			delete(cfg.Runtime, k)
		}
	}
	return cfg, own, nil
}

var (
	pqWrongValue = regexp.MustCompile(`^pq: wrong value for "?(\$?[A-Za-z_]+)"?:`)
	pqPlain      = regexp.MustCompile(`^(unterminated quoted string literal in connection string|missing character after backslash` +
		`|pq: could not match \d+ (host names|port numbers) to \d+ (hostaddr values|hosts))$`)
)

// pqDSNError says what is wrong with a DSN without quoting from it: where a DSN
// does not parse, any part of it may be the password.
func pqDSNError(err error) string {
	text := err.Error()
	if m := pqWrongValue.FindStringSubmatch(text); m != nil {
		return "wrong value for " + strings.ToLower(strings.TrimPrefix(m[1], "$"))
	}
	if m := pqPlain.FindString(text); m != "" {
		return strings.TrimPrefix(m, "pq: ")
	}
	switch {
	case strings.Contains(text, `missing "=" after `):
		return `missing "=" after a key (a value with spaces needs quotes: key='a b')`
	case strings.HasPrefix(text, "parse "), strings.Contains(text, "url"):
		return "not a valid URL (in user and password, percent-encode : / ? # [ ] @ and %)"
	}
	return "it does not parse; lib/pq's message is withheld since it may quote the password"
}

// pqTarget is what a DSN tells of the server and the database.
func pqTarget(cfg pq.Config) Target {
	target := Target{Database: pqDatabase(cfg), Schema: pqSchema(cfg.Runtime["search_path"])}
	if len(cfg.Multi) > 0 {
		return target
	}
	switch host := pqHost(cfg); {
	case strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@"):
		target.Address = host + "/.s.PGSQL." + strconv.Itoa(int(cfg.Port))
	default:
		target.Address, target.Port = host, int(cfg.Port)
	}
	return target
}

// pqSchema is the first schema of a search_path, where its name is plain.
func pqSchema(path string) string {
	first, _, _ := strings.Cut(path, ",")
	first = strings.TrimSpace(first)
	if strings.ContainsAny(first, `"$`) {
		return ""
	}
	return first
}

func pqHost(cfg pq.Config) string {
	if cfg.Hostaddr.IsValid() {
		return cfg.Hostaddr.String()
	}
	return cfg.Host
}

func pqDatabase(cfg pq.Config) string {
	if cfg.Database == "" {
		return cfg.User
	}
	return cfg.Database
}

// pqPoolName is the default of the semantic conventions for a pool's name:
// server.address:server.port/db.namespace.
func pqPoolName(cfg pq.Config) string {
	return net.JoinHostPort(pqHost(cfg), strconv.Itoa(int(cfg.Port))) + "/" + pqDatabase(cfg)
}
