package baldur

import (
	"bufio"
	"context"
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
func newPQConnector(cfg pq.Config, cancelTimeout time.Duration) (driver.Connector, error) {
	connector := func(cfg pq.Config) (*pq.Connector, error) {
		c, err := pq.NewConnectorConfig(cfg)
		if err == nil {
			c.Dialer(&dialer{cancelTimeout: cancelTimeout})
		}
		return c, err
	}
	if cfg.TargetSessionAttrs != pq.TargetSessionAttrsPreferStandby {
		return connector(cfg)
	}
	standby, any := cfg.Clone(), cfg.Clone()
	standby.TargetSessionAttrs, any.TargetSessionAttrs = pq.TargetSessionAttrsStandby, pq.TargetSessionAttrsAny
	first, err := connector(standby)
	if err != nil {
		return nil, err
	}
	second, err := connector(any)
	return preferStandby{first, second}, err
}

// preferStandby connects to a standby, or else to any server: one pass over the
// hosts each. lib/pq does the same with target_session_attrs=prefer-standby, but
// makes the second pass again and again while no host answers, ctx or not.
type preferStandby struct{ standby, any *pq.Connector }

func (c preferStandby) Connect(ctx context.Context) (driver.Conn, error) {
	ci, err := c.standby.Connect(ctx)
	if err != nil && ctx.Err() == nil {
		ci, err = c.any.Connect(ctx)
	}
	return ci, err
}

func (c preferStandby) Driver() driver.Driver { return c.any.Driver() }

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
		return pq.Config{}, nil, fmt.Errorf("baldur: DSN: %s", pqDSNError(dsn, err))
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
	pqWrongValue = regexp.MustCompile(`^pq: wrong value for "?(\$?[A-Za-z_]+)"?:( .* is not supported; supported values are .*)?`)
	pqQuoted     = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	pqToken      = regexp.MustCompile(`[^\s=:/?#&@%',"]{3,}`)
	// What lib/pq's messages quote of its own, and the settings' names and values
	// that are words of its language.
	pqWords = regexp.MustCompile(`(?i)^"?(UTF8|ISO, MDY|require|verify-ca|verify-full|disable|allow|prefer|direct|system|latest|\d\.\d|` +
		`sslmode|sslnegotiation|sslrootcert|service|client_encoding|datestyle|(min|max)_protocol_version|pqgo-|postgres|postgresql)"?$`)
)

// pqDSNError says what is wrong with a DSN. What lib/pq quotes is left out, but
// for words of its own: any value may be the password, or a part of it where the
// DSN was not escaped. A message that repeats a part of the DSN outside of quotes
// is withheld.
func pqDSNError(dsn string, err error) string {
	text := err.Error()
	if m := pqWrongValue.FindStringSubmatch(text); m != nil {
		said := "wrong value for " + strings.ToLower(strings.TrimPrefix(m[1], "$"))
		if i := strings.LastIndex(m[2], "; supported values are "); i >= 0 {
			said += m[2][i:]
		}
		return said
	}
	switch {
	case strings.Contains(text, `missing "=" after `):
		return `missing "=" after a key (a value with spaces needs quotes: key='a b')`
	case strings.HasPrefix(text, "parse "), strings.Contains(text, "url"), strings.HasPrefix(text, "invalid connection protocol"):
		return "not a valid URL (in user and password, percent-encode : / ? # [ ] @ and %)"
	}
	said := pqQuoted.ReplaceAllStringFunc(text, func(q string) string {
		if pqWords.MatchString(q) {
			return q
		}
		return `"…"`
	})
	for _, token := range pqToken.FindAllString(dsn, -1) {
		if !pqWords.MatchString(token) && strings.Contains(said, token) {
			return "it is not valid; lib/pq's message is withheld since it may quote the password"
		}
	}
	return strings.TrimPrefix(said, "pq: ")
}

// pqNameable tells whether parts of a DSN may be told as what they were parsed
// for. They may not where one looks like a part of a password that was not
// escaped: "postgres://user:12345/secret@host/db" has the host user, the port
// 12345 and the database secret@host/db.
func pqNameable(dsn string, cfg pq.Config) bool {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		_, rest, _ := strings.Cut(dsn, "://")
		if i := strings.IndexAny(rest, "/?#"); i >= 0 && (strings.Contains(rest[i:], "@") || strings.Contains(rest[i:], "#")) {
			return false
		}
	}
	for key := range cfg.Runtime {
		if !pqKey.MatchString(key) {
			return false
		}
	}
	host := pqHost(cfg)
	socket := strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") // or an abstract one
	return !strings.ContainsAny(pqDatabase(cfg), "@:/ ") && (socket || !strings.ContainsAny(host, "@/ "))
}

var pqKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

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
