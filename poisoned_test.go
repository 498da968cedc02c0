package baldur_test

import (
	"database/sql"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/baldur-go/baldur"
)

// erringServer speaks enough of PostgreSQL's protocol to log in and to answer a
// simple query; to a statement with arguments it answers an error and closes,
// as a pooler does that is shut down.
func erringServer(t *testing.T) (dsn string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveErring(c)
		}
	}()
	return "postgres://u@" + l.Addr().String() + "/d?sslmode=disable"
}

func serveErring(c net.Conn) {
	defer c.Close()
	read := func(typed bool) (kind byte, ok bool) {
		head := make([]byte, 5)
		if !typed {
			head = head[1:]
		}
		if _, err := io.ReadFull(c, head); err != nil {
			return 0, false
		}
		n := binary.BigEndian.Uint32(head[len(head)-4:]) - 4
		_, err := io.CopyN(io.Discard, c, int64(n))
		return head[0], err == nil
	}
	send := func(kind byte, body string) {
		msg := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))
		_, _ = c.Write(append(msg, body...))
	}
	if _, ok := read(false); !ok {
		return
	}
	send('R', "\x00\x00\x00\x00")
	send('Z', "I")
	for {
		switch kind, ok := read(true); {
		case !ok || kind == 'X':
			return
		case kind == 'Q':
			send('C', "SELECT 1\x00")
			send('Z', "I")
		case kind == 'P':
			send('E', "SERROR\x00VERROR\x00C57P05\x00Mpooler is shutting down\x00\x00")
			return
		}
	}
}

// TestPoisonedConnection: after such an error lib/pq 1.12.3 answers every query
// on the pooled connection with an error of its own; the wrapper has it replaced.
func TestPoisonedConnection(t *testing.T) {
	failures := func(driver string) (failed int, last error) {
		db, err := sql.Open(driver, erringServer(t))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxOpenConns(1)
		if _, err := db.Exec("SELECT $1", 1); err == nil || !strings.Contains(err.Error(), "shutting down") {
			t.Fatalf("%s: got %v, want the server's error", driver, err)
		}
		for range 3 {
			if _, err := db.Exec("SELECT 1"); err != nil {
				failed, last = failed+1, err
			}
		}
		return failed, last
	}
	if n, err := failures("postgres"); n != 3 {
		t.Errorf("lib/pq alone: %d of 3 queries failed (%v), want 3: has lib/pq#1450 been mended? Then pqPoisoned can go", n, err)
	}
	if n, err := failures(baldur.DriverName); n != 0 {
		t.Errorf("%d of 3 queries failed: %v", n, err)
	}
}
