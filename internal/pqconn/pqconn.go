// Package pqconn is all that is particular to lib/pq: its DSN, its sockets, its
// quirks, and how it tells errors.
package pqconn

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

// NewConnector returns lib/pq's connector on sockets of ours, for [Connect].
func NewConnector(cfg pq.Config, cancelTimeout time.Duration) (driver.Connector, error) {
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
// repeats the second pass while no host answers, whatever ctx says.
type preferStandby struct{ standby, any *pq.Connector }

func (c preferStandby) Connect(ctx context.Context) (driver.Conn, error) {
	ci, err := c.standby.Connect(ctx)
	if err != nil && ctx.Err() == nil {
		ci, err = c.any.Connect(ctx)
	}
	return ci, err
}

func (c preferStandby) Driver() driver.Driver { return c.any.Driver() }

// Poisoned recognises the error with which a connection that lib/pq 1.12.0 to 1.12.3
// has left in a wrong state answers every query, while it claims to be valid
// (lib/pq#1298, #1320, #1450). pq returns it before it writes a byte.
func Poisoned(err error) bool {
	return err.Error() == "pq: there is already a query being processed on this connection"
}

// TxStatus reads a connection's transaction status, which pq keeps to itself:
// 'I' idle, 'T' in a transaction, 'E' in a failed one; 0 if it is not known.
func TxStatus(ci driver.Conn) byte {
	if f := field(ci, "txnStatus"); f.IsValid() && f.Kind() == reflect.Uint8 {
		return byte(f.Uint())
	}
	return 0
}

// PID reads the backend's process id, which pq keeps to itself, or 0: a
// SELECT pg_backend_pid() would cost each connect a round trip. Behind
// PgBouncer the number is PgBouncer's.
func PID(ci driver.Conn) int {
	if f := field(ci, "pid"); f.IsValid() && f.CanInt() {
		return int(f.Int())
	}
	return 0
}

// Is tells whether a connection is lib/pq's.
func Is(ci driver.Conn) bool { return field(ci, "pid").IsValid() }

// Buffered is how many bytes pq has read from the network and not used yet: after a
// call, those of asynchronous messages. 0 if it is not known.
func Buffered(ci driver.Conn) int {
	buf := field(ci, "buf")
	if !buf.IsValid() || buf.Kind() != reflect.Pointer || buf.Type() != reflect.TypeFor[*bufio.Reader]() || buf.IsNil() {
		return 0
	}
	r, w := buf.Elem().FieldByName("r"), buf.Elem().FieldByName("w")
	if !r.IsValid() || !w.IsValid() || !r.CanInt() || !w.CanInt() {
		return 0
	}
	return int(w.Int() - r.Int())
}

// field is a field of pq's connection, or invalid.
func field(ci driver.Conn, name string) reflect.Value {
	v := reflect.ValueOf(ci)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Type().Elem().PkgPath() != "github.com/lib/pq" || v.Type().Elem().Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.Elem().FieldByName(name)
}

// ParseDSN parses dsn and returns baldur's own parameters apart. Its error quotes no
// value of the DSN.
func ParseDSN(dsn string) (pq.Config, map[string]string, error) {
	cfg, err := pq.NewConfig(dsn)
	if err != nil {
		return pq.Config{}, nil, fmt.Errorf("baldur: DSN: %s", DSNError(dsn, err))
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
	wrongValue = regexp.MustCompile(`^pq: wrong value for "?(\$?[A-Za-z_]+)"?:( .* is not supported; supported values are .*)?`)
	quoted     = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	token      = regexp.MustCompile(`[^\s=:/?#&@%',"]{3,}`)
	// What lib/pq's messages quote that is its own, and the names and values of
	// settings that are words of its language.
	ownWords = regexp.MustCompile(`(?i)^"?(UTF8|ISO, MDY|require|verify-ca|verify-full|disable|allow|prefer|direct|system|latest|\d\.\d|` +
		`sslmode|sslnegotiation|sslrootcert|service|client_encoding|datestyle|(min|max)_protocol_version|pqgo-|postgres|postgresql)"?$`)
)

// DSNError says what is wrong with a DSN. What lib/pq quotes is left out, except
// for words of its own: any value may be the password, or a part of it where the
// DSN was not escaped. A message that repeats a part of the DSN outside of quotes
// is withheld.
func DSNError(dsn string, err error) string {
	text := err.Error()
	if m := wrongValue.FindStringSubmatch(text); m != nil {
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
	said := quoted.ReplaceAllStringFunc(text, func(q string) string {
		if ownWords.MatchString(q) {
			return q
		}
		return `"…"`
	})
	for _, part := range token.FindAllString(dsn, -1) {
		if !ownWords.MatchString(part) && strings.Contains(said, part) {
			return "it is not valid; lib/pq's message is withheld since it may quote the password"
		}
	}
	return strings.TrimPrefix(said, "pq: ")
}

// Nameable tells whether the parts of a DSN may be shown as what they were parsed
// as. They may not if one looks like a part of a password that was not escaped:
// "postgres://user:12345/secret@host/db" has the host user, the port 12345 and the
// database secret@host/db.
func Nameable(dsn string, cfg pq.Config) bool {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		_, rest, _ := strings.Cut(dsn, "://")
		if i := strings.IndexAny(rest, "/?#"); i >= 0 && (strings.Contains(rest[i:], "@") || strings.Contains(rest[i:], "#")) {
			return false
		}
	}
	for key := range cfg.Runtime {
		if !plainKey.MatchString(key) {
			return false
		}
	}
	host := host(cfg)
	socket := strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") // or an abstract one
	return !strings.ContainsAny(database(cfg), "@:/ ") && (socket || !strings.ContainsAny(host, "@/ "))
}

var plainKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// A Target is what a DSN tells of the server and the database.
type Target struct {
	Address  string // host name, IP address, or a Unix socket's path; "": one of several
	Port     int    // 0: a Unix socket
	Database string
	Schema   string // the first of the search_path
}

// TargetOf returns the target of a parsed DSN.
func TargetOf(cfg pq.Config) Target {
	target := Target{Database: database(cfg), Schema: schema(cfg.Runtime["search_path"])}
	if len(cfg.Multi) > 0 {
		return target
	}
	switch host := host(cfg); {
	case strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@"):
		target.Address = host + "/.s.PGSQL." + strconv.Itoa(int(cfg.Port))
	default:
		target.Address, target.Port = host, int(cfg.Port)
	}
	return target
}

// schema is the first schema of a search_path, where its name is plain.
func schema(path string) string {
	first, _, _ := strings.Cut(path, ",")
	first = strings.TrimSpace(first)
	if strings.ContainsAny(first, `"$`) {
		return ""
	}
	return first
}

func host(cfg pq.Config) string {
	if cfg.Hostaddr.IsValid() {
		return cfg.Hostaddr.String()
	}
	return cfg.Host
}

func database(cfg pq.Config) string {
	if cfg.Database == "" {
		return cfg.User
	}
	return cfg.Database
}

// PoolName is the default of the semantic conventions for a pool's name:
// server.address:server.port/db.namespace.
func PoolName(cfg pq.Config) string {
	return net.JoinHostPort(host(cfg), strconv.Itoa(int(cfg.Port))) + "/" + database(cfg)
}
