package wrap

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"
	"weak"

	"github.com/baldur-go/baldur/internal/checkout"
	"github.com/baldur-go/baldur/internal/pqconn"
)

var (
	_ driver.Rows                           = (*rows)(nil)
	_ driver.RowsNextResultSet              = (*rows)(nil)
	_ driver.RowsColumnTypeScanType         = (*rows)(nil)
	_ driver.RowsColumnTypeDatabaseTypeName = (*rows)(nil)
	_ driver.RowsColumnTypeLength           = (*rows)(nil)
	_ driver.RowsColumnTypeNullable         = (*rows)(nil)
	_ driver.RowsColumnTypePrecisionScale   = (*rows)(nil)

	// Absent: driver.RowsColumnScanner, which replaces Next where it is found:
	// see rows_go1.27.go.
)

// rows wraps a driver's Rows so that reading is seen as use. What inner cannot do is
// answered as database/sql answers for a Rows that lacks the interface
// (Rows.NextResultSet and rowsColumnInfoSetupConnLocked in sql.go). These methods are
// called seldom, so they assert when they are called.
//
// A rows is used again once it is closed and its connection has been back in the
// pool, so that a query does not allocate one. Not sooner: code that reads a driver's
// Rows through sql.Conn.Raw may close one twice. An open rows is not reachable from
// its connection, which would keep an abandoned one from being collected.
type rows struct {
	handle checkout.Handle
	weak   weak.Pointer[checkout.Handle] // to handle

	rec   *checkout.Record
	inner driver.Rows
	c     *conn
	ctx   context.Context // of the query
	seq   uint64          // of the checkout; 0: closed
	stmt  bool            // of a prepared statement
	read  bool            // Next was called
	next  *rows           // in a list of closed ones
}

// maxFreeRows is how many closed rows a connection keeps.
const maxFreeRows = 16

func (c *conn) wrapRows(ctx context.Context, inner driver.Rows, stmt bool) driver.Rows {
	if inner == nil {
		return nil // database/sql has an error of its own for it
	}
	r := c.free
	if r == nil {
		r = &rows{rec: c.rec, c: c}
		r.weak = weak.Make(&r.handle)
	} else {
		c.free = r.next
	}
	// Field by field: writing pointers is expensive while garbage is collected.
	r.inner, r.ctx, r.seq, r.stmt, r.read = inner, ctx, c.rec.Seq, stmt, false
	c.rec.OpenRows(r.weak)
	return scannerRows(r)
}

// recycleRows makes the rows that were closed during the checkout available.
func (c *conn) recycleRows() {
	if c.used == nil {
		return
	}
	n := 0
	for r := c.used; r != nil && n < maxFreeRows; n++ {
		next := r.next
		r.inner, r.ctx, r.next, c.free = closedRows{}, nil, c.free, r
		r = next
	}
	c.used = nil
}

// closedRows stands in for a driver's Rows that must not be kept in memory.
type closedRows struct{}

func (closedRows) Columns() []string         { return nil }
func (closedRows) Close() error              { return nil }
func (closedRows) Next([]driver.Value) error { return io.EOF }

func (r *rows) Columns() []string { return r.inner.Columns() }

// begin notes who reads, at the first row.
func (r *rows) begin() {
	if !r.read {
		r.read = true
		r.rec.Reader()
	}
}

func (r *rows) Next(dest []driver.Value) error {
	r.begin()
	r.rec.BeginRow()
	defer r.rec.EndRow() // also when the driver panics
	err := r.inner.Next(dest)
	if err != nil && err != io.EOF {
		return r.c.fail(r.ctx, false, err)
	}
	return err
}

func (r *rows) Close() error {
	c := r.c
	if r.seq != c.rec.Seq {
		return r.inner.Close() // after the connection went back, or again
	}
	c.rec.ResumeDraining(r.ctx)
	defer c.rec.End()
	var err error
	if sock := c.rec.Sock; r.stmt && sock.Outlives(r.ctx) {
		inner := r.inner // which recycleRows replaces
		_, err = pqconn.UntilCut(sock, func() (struct{}, error) { return struct{}{}, inner.Close() })
	} else {
		err = r.inner.Close()
	}
	c.rec.CloseRows()
	if err != nil {
		err = c.fail(r.ctx, false, err)
	}
	r.seq, r.next, c.used = 0, c.used, r
	return err
}

func (r *rows) HasNextResultSet() bool {
	x, ok := r.inner.(driver.RowsNextResultSet)
	return ok && x.HasNextResultSet()
}

func (r *rows) NextResultSet() error {
	x, ok := r.inner.(driver.RowsNextResultSet)
	if !ok {
		return io.EOF
	}
	r.rec.BeginRow()
	defer r.rec.EndRow()
	err := x.NextResultSet()
	if err != nil && err != io.EOF {
		return r.c.fail(r.ctx, false, err)
	}
	return err
}

func (r *rows) ColumnTypeScanType(i int) reflect.Type {
	if x, ok := embedded(r.c, r.inner, "Rows").(driver.RowsColumnTypeScanType); ok {
		return x.ColumnTypeScanType(i)
	}
	return reflect.TypeFor[any]()
}

func (r *rows) ColumnTypeDatabaseTypeName(i int) string {
	if x, ok := r.inner.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return x.ColumnTypeDatabaseTypeName(i)
	}
	return ""
}

func (r *rows) ColumnTypeLength(i int) (int64, bool) {
	if x, ok := r.inner.(driver.RowsColumnTypeLength); ok {
		return x.ColumnTypeLength(i)
	}
	return 0, false
}

func (r *rows) ColumnTypeNullable(i int) (nullable, ok bool) {
	if x, ok := r.inner.(driver.RowsColumnTypeNullable); ok {
		return x.ColumnTypeNullable(i)
	}
	return false, false
}

func (r *rows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	if x, ok := r.inner.(driver.RowsColumnTypePrecisionScale); ok {
		return x.ColumnTypePrecisionScale(i)
	}
	return 0, 0, false
}
