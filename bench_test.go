package baldur_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"sync"
	"testing"

	"github.com/baldur-go/baldur"
)

// The benchmarks measure on a driver that does nothing, raw beside tracked in
// one run: what counts is the ratio. No allocation may be added.
//
//	go test -run=NONE -bench=. -count=10 . | tee new.txt && benchstat -col /driver new.txt

type nullDB struct{}
type nullConn struct{}
type nullRows struct{ left int }

var (
	nullColumns              = []string{"n"}
	boxed       driver.Value = int64(7)
)

func (nullDB) Connect(context.Context) (driver.Conn, error) { return &nullConn{}, nil }
func (nullDB) Driver() driver.Driver                        { return nil }

func (*nullConn) Prepare(string) (driver.Stmt, error)                          { return nullStmt{}, nil }
func (*nullConn) Close() error                                                 { return nil }
func (*nullConn) Begin() (driver.Tx, error)                                    { return nullTx{}, nil }
func (*nullConn) ResetSession(context.Context) error                           { return nil }
func (*nullConn) IsValid() bool                                                { return true }
func (*nullConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return nullTx{}, nil }
func (*nullConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}
func (*nullConn) QueryContext(_ context.Context, q string, _ []driver.NamedValue) (driver.Rows, error) {
	n := 1
	if q == "1000" {
		n = 1000
	}
	return &nullRows{n}, nil
}

type nullStmt struct{}

func (nullStmt) Close() error                               { return nil }
func (nullStmt) NumInput() int                              { return -1 }
func (nullStmt) Exec([]driver.Value) (driver.Result, error) { return driver.ResultNoRows, nil }
func (nullStmt) Query([]driver.Value) (driver.Rows, error)  { return &nullRows{1}, nil }
func (nullStmt) ExecContext(context.Context, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}
func (nullStmt) QueryContext(context.Context, []driver.NamedValue) (driver.Rows, error) {
	return &nullRows{1}, nil
}

type nullTx struct{}

func (nullTx) Commit() error   { return nil }
func (nullTx) Rollback() error { return nil }

func (r *nullRows) Columns() []string { return nullColumns }
func (r *nullRows) Close() error      { return nil }
func (r *nullRows) Next(dest []driver.Value) error {
	if r.left == 0 {
		return io.EOF
	}
	r.left--
	dest[0] = boxed
	return nil
}

// deep calls f from n frames further down: a real program is some 20 deep.
//
//go:noinline
func deep(n int, f func()) {
	if n == 0 {
		f()
		return
	}
	deep(n-1, f)
}

// eachPool runs f on a pool of the bare null driver and on a tracked one.
func eachPool(b *testing.B, f func(b *testing.B, db *sql.DB)) {
	for _, kind := range []string{"raw", "baldur"} {
		b.Run("driver="+kind, func(b *testing.B) {
			connector := driver.Connector(nullDB{})
			if kind == "baldur" {
				connector = baldur.Wrap(connector)
			}
			db := sql.OpenDB(connector)
			defer db.Close()
			b.ReportAllocs()
			f(b, db)
		})
	}
}

func benchmark(b *testing.B, op func(db *sql.DB) error) {
	eachPool(b, func(b *testing.B, db *sql.DB) {
		deep(15, func() {
			for b.Loop() {
				if err := op(db); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

func execOnce(db *sql.DB) error { _, err := db.Exec("SELECT 1"); return err }

func queryOnce(db *sql.DB) error {
	rows, err := db.Query("SELECT 1")
	if err != nil {
		return err
	}
	return rows.Close()
}

func BenchmarkExec(b *testing.B)  { benchmark(b, execOnce) }
func BenchmarkQuery(b *testing.B) { benchmark(b, queryOnce) }

func BenchmarkQueryRow(b *testing.B) {
	var n int64
	benchmark(b, func(db *sql.DB) error { return db.QueryRow("SELECT 1").Scan(&n) })
}

func BenchmarkTx(b *testing.B) {
	benchmark(b, func(db *sql.DB) error {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		if _, err := tx.Exec("SELECT 1"); err != nil {
			return err
		}
		rows, err := tx.Query("SELECT 1")
		if err != nil {
			return err
		}
		rows.Close()
		return tx.Commit()
	})
}

// BenchmarkRows reads 1,000 rows: divide by 1,000 for the cost of one.
func BenchmarkRows(b *testing.B) {
	var n int64
	benchmark(b, func(db *sql.DB) error {
		rows, err := db.Query("1000")
		if err != nil {
			return err
		}
		for rows.Next() {
			if err := rows.Scan(&n); err != nil {
				return err
			}
		}
		return rows.Close()
	})
}

func BenchmarkExecParallel(b *testing.B) {
	eachPool(b, func(b *testing.B, db *sql.DB) {
		b.RunParallel(func(pb *testing.PB) {
			deep(15, func() {
				for pb.Next() {
					if err := execOnce(db); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	})
}

func BenchmarkStmt(b *testing.B) {
	eachPool(b, func(b *testing.B, db *sql.DB) {
		st, err := db.Prepare("SELECT 1")
		if err != nil {
			b.Fatal(err)
		}
		defer st.Close()
		deep(15, func() {
			for b.Loop() {
				if _, err := st.Exec(); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

// BenchmarkReport looks at 10,000 holders, none of them over the threshold.
func BenchmarkReport(b *testing.B) {
	db := baldur.OpenDB(nullDB{})
	defer db.Close()
	for range 10_000 {
		c, err := db.Conn(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
	}
	tr := baldur.TrackerOf(db)
	b.ReportAllocs()
	for b.Loop() {
		if r := tr.Report(); r.Tracked != 10_000 {
			b.Fatal(r)
		}
	}
}

// BenchmarkReportFull is of a pool of 1,000 connections that is full: each holder is
// looked at. They stand in ten places.
func BenchmarkReportFull(b *testing.B) {
	const n = 1_000
	db := baldur.OpenDB(nullDB{})
	defer db.Close()
	db.SetMaxOpenConns(n)
	end := make(chan struct{})
	var taken, all sync.WaitGroup
	defer all.Wait()
	defer close(end)
	for i := range n {
		taken.Add(1)
		all.Go(func() {
			c, err := db.Conn(context.Background())
			if err != nil {
				panic(err)
			}
			defer c.Close()
			taken.Done()
			stand(i%10, end)
		})
	}
	taken.Wait()
	tr := baldur.TrackerOf(db)
	b.ReportAllocs()
	for b.Loop() {
		if r := tr.Report(); len(r.Holding) != n {
			b.Fatal(r)
		}
	}
}

//go:noinline
func stand(depth int, end <-chan struct{}) {
	if depth > 0 {
		stand(depth-1, end)
		return
	}
	<-end
}
