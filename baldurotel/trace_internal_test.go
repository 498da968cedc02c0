package baldurotel

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/XSAM/otelsql"

	"github.com/baldur-go/baldur/internal/hook"
)

type lyingError string

func (e lyingError) Error() string    { return "" }
func (e lyingError) SQLState() string { return string(e) }

// TestErrorType: of errors without an SQLSTATE.
func TestErrorType(t *testing.T) {
	live := t.Context()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		kind string
	}{
		{live, lyingError("<b>"), "github.com/baldur-go/baldur/baldurotel.lyingError"},
		{live, lyingError("abcde"), "github.com/baldur-go/baldur/baldurotel.lyingError"},
		{live, context.Canceled, "context.Canceled"},
		{live, fmt.Errorf("x: %w", context.DeadlineExceeded), "context.DeadlineExceeded"},
		{live, driver.ErrBadConn, "driver.ErrBadConn"},
		{live, &net.OpError{Err: io.EOF}, "*net.OpError"},
		{ended, &net.OpError{Err: io.EOF}, "context.Canceled"},
		{live, errors.New("secret"), "*errors.errorString"},
	} {
		if kind := errorType(c.ctx, c.err); kind != c.kind {
			t.Errorf("%v: type %q, want %q", c.err, kind, c.kind)
		}
	}
}

func TestWanted(t *testing.T) {
	row := []driver.NamedValue{{Ordinal: 1}}
	for _, c := range []struct {
		method otelsql.Method
		query  string
		args   []driver.NamedValue
		want   bool
	}{
		{otelsql.MethodStmtExec, ` copy "t" FROM STDIN`, row, false},
		{otelsql.MethodStmtExec, `COPY "t" FROM STDIN`, nil, true},
		{otelsql.MethodStmtExec, "UPDATE t SET a = $1", row, true},
		{otelsql.MethodStmtExec, "", row, true},
		{otelsql.MethodConnExec, "COPY t FROM STDIN", row, true},
	} {
		if got := wanted(t.Context(), c.method, c.query, c.args); got != c.want {
			t.Errorf("%s %q: %v", c.method, c.query, got)
		}
	}
	if wanted(hook.Own(t.Context()), otelsql.MethodConnQuery, "SELECT 1", nil) {
		t.Error("a query of baldur's own is wanted")
	}
}

// TestDescriptions: the memory of texts is bounded, and tells the same.
func TestDescriptions(t *testing.T) {
	var d descriptions
	for i := range 2 * maxKept {
		for range 2 {
			if got := d.of(fmt.Sprintf("SELECT 1 FROM t%d", i)); got.summary != fmt.Sprintf("SELECT t%d", i) {
				t.Fatalf("got %q", got)
			}
		}
	}
	d.of("SELECT " + strings.Repeat("1,", maxKeptText))
	n := 0
	d.m.Range(func(any, any) bool { n++; return true })
	if n != maxKept {
		t.Errorf("%d are kept", n)
	}
}
