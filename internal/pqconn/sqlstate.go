package pqconn

import (
	"errors"
	"slices"
)

// SQLState is the code of a server's answer, by any driver whose errors tell it.
func SQLState(err error) (code string, ok bool) {
	var e interface{ SQLState() string }
	if errors.As(err, &e) && len(e.SQLState()) == 5 {
		return e.SQLState(), true
	}
	return "", false
}

// HasState tells whether err is the server's answer, with one of the codes.
func HasState(err error, codes ...string) bool {
	code, ok := SQLState(err)
	return ok && slices.Contains(codes, code)
}
