package pqconn

import (
	"errors"
	"slices"
	"strings"
)

// SQLState is the code of a server's answer, by any driver whose errors tell it. What is
// not five digits and capital letters is none: metrics have it as an attribute.
func SQLState(err error) (code string, ok bool) {
	var e interface{ SQLState() string }
	if !errors.As(err, &e) {
		return "", false
	}
	code = e.SQLState()
	if len(code) != 5 || strings.Trim(code, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return "", false
	}
	return code, true
}

// HasState tells whether err is the server's answer, with one of the codes.
func HasState(err error, codes ...string) bool {
	code, ok := SQLState(err)
	return ok && slices.Contains(codes, code)
}
