package baldur_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// Real drivers below the wrapper, each with what is its own.

// tracked opens a pool whose connections must all be back when the test ends.
func tracked(t *testing.T, db *sql.DB) *sql.DB {
	t.Helper()
	t.Cleanup(func() {
		t.Helper()
		if h := baldur.TrackerOf(db).Holders(); len(h) != 0 {
			t.Errorf("left out of the pool: %v", h)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// eachPQ runs a test on lib/pq bare and wrapped.
func eachPQ(t *testing.T, f func(t *testing.T, db *sql.DB)) {
	bare, wrapped := pgtest.DSN(t), pgtest.DSN(t) // here, since f's results are compared: without a PostgreSQL there are none
	t.Run("bare", func(t *testing.T) {
		db := must(sql.Open("postgres", bare))
		defer db.Close()
		f(t, db)
	})
	t.Run("wrapped", func(t *testing.T) { f(t, tracked(t, must(sql.Open("baldur-pq", wrapped)))) })
}

func TestPQSlices(t *testing.T) {
	eachPQ(t, func(t *testing.T, db *sql.DB) {
		var n int
		if err := db.QueryRow("SELECT cardinality($1::int[])", []int{1, 2, 3}).Scan(&n); err != nil || n != 3 {
			t.Errorf("%d, %v", n, err)
		}
		st := must(db.Prepare("SELECT $1::text[]"))
		defer st.Close()
		var got []string
		if err := st.QueryRow([]string{"a", "b"}).Scan(pq.Array(&got)); err != nil || !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestPQCopy(t *testing.T) {
	eachPQ(t, func(t *testing.T, db *sql.DB) {
		must(db.Exec("CREATE TABLE t (n int, s text)"))
		tx := must(db.Begin())
		st := must(tx.Prepare(pq.CopyIn("t", "n", "s")))
		for n := range 999 {
			must(st.Exec(n, "x"))
		}
		must(st.Exec(nil, nil)) // a row of NULLs
		res := must(st.Exec())  // the end
		if n := must(res.RowsAffected()); n != 1000 {
			t.Errorf("%d rows copied", n)
		}
		if err := errors.Join(st.Close(), tx.Commit()); err != nil {
			t.Error(err)
		}
		var n int
		if err := db.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 1000 {
			t.Errorf("%d, %v", n, err)
		}
	})
}

// TestPQCopyFails: the server refuses a row, which pq tells at the end.
func TestPQCopyFails(t *testing.T) {
	var seen []pq.Error
	eachPQ(t, func(t *testing.T, db *sql.DB) {
		must(db.Exec("CREATE TABLE t (n int PRIMARY KEY)"))
		tx := must(db.Begin())
		st := must(tx.Prepare(pq.CopyIn("t", "n")))
		must(st.Exec(1))
		must(st.Exec(1))
		_, err := st.Exec()
		var e *pq.Error
		if !errors.As(err, &e) {
			t.Fatalf("%T %v", err, err)
		}
		seen = append(seen, *e)
		if err := errors.Join(st.Close(), tx.Rollback()); err != nil {
			t.Error(err)
		}
		var n int
		if err := db.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 0 {
			t.Errorf("%d, %v", n, err)
		}
	})
	if len(seen) != 2 || seen[0].Code != "23505" || !reflect.DeepEqual(seen[0], seen[1]) {
		t.Errorf("%+v", seen)
	}
}

func TestPQColumnTypes(t *testing.T) {
	type column struct {
		name, dbType       string
		scan               reflect.Type
		length, prec, size int64
		ok1, ok2, ok3, nul bool
	}
	var seen [][]column
	eachPQ(t, func(t *testing.T, db *sql.DB) {
		rows := must(db.Query("SELECT 1::int AS i, 'x'::varchar(9) AS v, 2.50::numeric(6,2) AS n, now() AS t, NULL::bytea AS b"))
		defer rows.Close()
		var all []column
		for _, ct := range must(rows.ColumnTypes()) {
			c := column{name: ct.Name(), dbType: ct.DatabaseTypeName(), scan: ct.ScanType()}
			c.length, c.ok1 = ct.Length()
			c.prec, c.size, c.ok2 = ct.DecimalSize()
			c.nul, c.ok3 = ct.Nullable()
			all = append(all, c)
		}
		seen = append(seen, all)
	})
	if len(seen) != 2 || len(seen[0]) != 5 || !reflect.DeepEqual(seen[0], seen[1]) {
		t.Errorf("%v", seen)
	}
}

func TestPQResultSets(t *testing.T) {
	eachPQ(t, func(t *testing.T, db *sql.DB) {
		rows := must(db.Query("SELECT 1; SELECT 2 UNION ALL SELECT 3"))
		defer rows.Close()
		var got []int
		for {
			for rows.Next() {
				var n int
				if err := rows.Scan(&n); err != nil {
					t.Fatal(err)
				}
				got = append(got, n)
			}
			if !rows.NextResultSet() {
				break
			}
			got = append(got, 0)
		}
		if err := rows.Err(); err != nil || !slices.Equal(got, []int{1, 0, 2, 3}) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestPQErrors(t *testing.T) {
	var seen []pq.Error
	eachPQ(t, func(t *testing.T, db *sql.DB) {
		must(db.Exec("CREATE TABLE u (n int PRIMARY KEY); INSERT INTO u VALUES (1)"))
		_, err := db.Exec("INSERT INTO u VALUES ($1)", 1)
		e, ok := err.(*pq.Error) // as gorm and golang-migrate assert
		if !ok {
			t.Fatalf("%T", err)
		}
		seen = append(seen, *e)
	})
	if len(seen) != 2 || seen[0].Code != "23505" || seen[0].Constraint != "u_pkey" || !reflect.DeepEqual(seen[0], seen[1]) {
		t.Errorf("%+v", seen)
	}
}

// TestPQHandlers: pq's handlers panic on a connection that is not pq's own.
func TestPQHandlers(t *testing.T) {
	db := tracked(t, must(sql.Open("baldur-pq", pgtest.DSN(t))))
	c := must(db.Conn(ctx))
	defer c.Close()
	var notices, notifications []string
	err := c.Raw(func(dc any) error {
		own := baldur.Unwrap(dc.(driver.Conn))
		pq.SetNoticeHandler(own, func(e *pq.Error) { notices = append(notices, e.Message) })
		pq.SetNotificationHandler(own, func(n *pq.Notification) { notifications = append(notifications, n.Extra) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	must(c.ExecContext(ctx, "LISTEN here"))
	must(c.ExecContext(ctx, "DO $$ BEGIN RAISE NOTICE 'noted'; END $$"))
	must(c.ExecContext(ctx, "NOTIFY here, 'heard'"))
	must(c.ExecContext(ctx, "SELECT 1"))
	if !slices.Equal(notices, []string{"noted"}) || !slices.Equal(notifications, []string{"heard"}) {
		t.Errorf("notices %q, notifications %q", notices, notifications)
	}
}

// otherDriver connects by a driver that is not lib/pq: here one that does not tell what it is. The module compat has
// these tests run with pgx in its place.
var otherDriver = func(dsn string) driver.Connector { return opaque{must(pq.NewConnector(dsn))} }

// opaque hides what a driver's connection is.
type opaque struct{ driver.Connector }

type opaqueConn struct {
	driver.Conn
	driver.QueryerContext
	driver.ExecerContext
	driver.ConnBeginTx
	driver.Validator
}

func (o opaque) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := o.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return opaqueConn{c, c.(driver.QueryerContext), c.(driver.ExecerContext), c.(driver.ConnBeginTx), c.(driver.Validator)}, nil
}

func TestSQLMock(t *testing.T) {
	t.Run("bare", func(t *testing.T) {
		testSQLMock(t, func(c driver.Connector) *sql.DB {
			db := sql.OpenDB(c)
			t.Cleanup(func() { db.Close() })
			return db
		})
	})
	t.Run("wrapped", func(t *testing.T) {
		testSQLMock(t, func(c driver.Connector) *sql.DB { return tracked(t, baldur.OpenDB(c)) })
	})
}

func testSQLMock(t *testing.T, open func(driver.Connector) *sql.DB) {
	inner, mock, err := sqlmock.NewWithDSN(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mock.ExpectClose()
		if err := errors.Join(inner.Close(), mock.ExpectationsWereMet()); err != nil {
			t.Error(err)
		}
	})
	db := open(dsnConnector{inner.Driver(), t.Name()})
	failure := errors.New("of the test")
	mock.ExpectBegin()
	mock.ExpectExec("UPDATE").WithArgs(7).WillReturnResult(sqlmock.NewResult(3, 5))
	mock.ExpectQuery("SELECT").WillReturnRows(sqlmock.NewRows([]string{"n"}).AddRow(1).AddRow(2).RowError(1, failure))
	mock.ExpectCommit().WillReturnError(failure)
	mock.ExpectClose()
	tx := must(db.Begin())
	res := must(tx.Exec("UPDATE t SET n = ?", 7))
	if id, n := must(res.LastInsertId()), must(res.RowsAffected()); id != 3 || n != 5 {
		t.Errorf("%d, %d", id, n)
	}
	rows := must(tx.Query("SELECT n FROM t"))
	for rows.Next() {
	}
	if rows.Err() != failure {
		t.Errorf("rows: %v", rows.Err())
	}
	rows.Close()
	if err := tx.Commit(); err != failure {
		t.Errorf("commit: %v", err)
	}
}

type dsnConnector struct {
	driver driver.Driver
	dsn    string
}

func (c dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c dsnConnector) Driver() driver.Driver                        { return c.driver }
