package pqconn_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur/internal/pqconn"
)

// stateError is an error of another driver's, as pgx's.
type stateError string

func (e stateError) Error() string    { return "of state " + string(e) }
func (e stateError) SQLState() string { return string(e) }

func TestSQLState(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("23505"), ""},
		{&pq.Error{Code: "23505"}, "23505"},
		{fmt.Errorf("wrapped: %w", &pq.Error{Code: "40P01"}), "40P01"},
		{errors.Join(errors.New("x"), stateError("57014")), "57014"},
		{stateError(""), ""}, {stateError("2350"), ""}, {stateError("235055"), ""},
		{stateError("<b>ab"), ""}, {stateError("abcde"), ""}, {stateError("2350é"), ""},
	} {
		code, ok := pqconn.SQLState(c.err)
		if code != c.want || ok != (c.want != "") {
			t.Errorf("%v: %q, %v; want %q", c.err, code, ok, c.want)
		}
		if got := pqconn.HasState(c.err, "00000", c.want); got != ok {
			t.Errorf("%v: HasState is %v", c.err, got)
		}
		if pqconn.HasState(c.err) || pqconn.HasState(c.err, "00000") {
			t.Errorf("%v has a state that it has not", c.err)
		}
	}
}
