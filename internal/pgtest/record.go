package pgtest

import (
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/lib/pq"
)

// Recording has the statements that go over a wire.
type Recording struct {
	mu         sync.Mutex // guards the fields below
	statements []string
	total      int
}

// Statements returns what has been sent since the last call: simple queries and
// statements that were prepared.
func (r *Recording) Statements() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.statements
	r.statements = nil
	return s
}

// Record is a DSN through a proxy that records the statements, whatever the
// driver. It ends with the test.
func Record(t testing.TB, dsn string) (string, *Recording) {
	t.Helper()
	cfg, err := pq.NewConfig(dsn)
	if err != nil {
		t.Fatal("pgtest: the server's DSN is not valid") // the error may hold the password
	}
	network, address := "tcp", net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))
	if strings.HasPrefix(cfg.Host, "/") {
		network, address = "unix", cfg.Host+"/.s.PGSQL."+strconv.Itoa(int(cfg.Port))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	r := new(Recording)
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.total == 0 {
			t.Error("pgtest: no statement has come by the DSN of Record")
		}
	})
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(network, address)
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(client, server)
				_ = client.Close()
			}()
			go func() {
				r.pass(server, client)
				_ = server.Close()
			}()
		}
	}()
	return withAddr(t, dsn, listener.Addr().String()), r
}

// pass passes a client's messages on.
func (r *Recording) pass(server io.Writer, client io.Reader) {
	for first := true; ; first = false {
		head := make([]byte, 5)
		if first { // a start-up packet has no type
			head = head[:4]
		}
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		body := make([]byte, max(0, int(binary.BigEndian.Uint32(head[len(head)-4:]))-4))
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		if !first {
			r.note(head[0], string(body))
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return
		}
	}
}

func (r *Recording) note(kind byte, body string) {
	switch kind {
	case 'Q':
	case 'P': // after the statement's name
		_, body, _ = strings.Cut(body, "\x00")
	default:
		return
	}
	query, _, _ := strings.Cut(body, "\x00")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statements = append(r.statements, query)
	r.total++
}
