// Package compat shows that what people use on top of database/sql works
// unchanged on "baldur-pq" with a real PostgreSQL: a file for each library. It
// has tests only. It is a module of its own, so that baldur does not have these
// libraries among its requirements. docs/compatibility.md has what each needs.
package compat

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate -f internal/sqlcdb/sqlc.yaml
