package pgtest

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// Erring speaks enough of PostgreSQL's protocol to log in and to answer a
// simple query; to a statement with arguments it answers an error and closes,
// as a pooler does that is shut down.
func Erring(t testing.TB) (dsn string) {
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
