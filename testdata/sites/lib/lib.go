// Package lib is a library to the program in sites: it is skipped.
package lib

import (
	"context"
	"database/sql"
	"net/http"
	"testing"
)

type Q struct{ DB *sql.DB }

// Leak is the library's outermost frame wherever it is started.
func (q Q) Leak() {
	q.query() // LINE leak
}

func (q Q) query() {
	rows, err := q.DB.QueryContext(context.Background(), "SELECT 'lib'")
	if err == nil {
		_ = rows.Close()
	}
}

func (q Q) ServeHTTP(http.ResponseWriter, *http.Request) {
	q.query() // LINE serve
}

func (q Q) Benchmark(*testing.B) {
	q.query() // LINE benchmark
}

func (q Q) Values(yield func(int) bool) {
	q.query() // LINE values
	yield(1)
}

// Start is inlined into its caller, and its closure named after that.
func (q Q) Start(done chan<- bool) {
	go func() {
		q.query() // LINE start
		done <- true
	}()
}

// Each has f called by the library.
func (q Q) Each(f func() error) error { return f() }
