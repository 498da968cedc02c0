package baldur

import (
	"context"
	"database/sql/driver"

	"github.com/baldur-go/baldur/internal/pqconn"
)

var (
	_ driver.Stmt              = (*stmt)(nil)
	_ driver.StmtExecContext   = (*stmt)(nil)
	_ driver.StmtQueryContext  = (*stmt)(nil)
	_ driver.NamedValueChecker = (*stmt)(nil)
	_ driver.ColumnConverter   = converterStmt{} // for drivers that have it
)

type stmt struct {
	c       *conn
	inner   driver.Stmt
	query   string
	execCtx driver.StmtExecContext
	qryCtx  driver.StmtQueryContext
	checker driver.NamedValueChecker // the statement's, else the connection's, as database/sql chooses
}

// converterStmt is a stmt whose driver has a ColumnConverter, for which no
// answer means "none".
type converterStmt struct {
	*stmt
	cc driver.ColumnConverter // embedded, it would hide its own method
}

func (s converterStmt) ColumnConverter(i int) driver.ValueConverter { return s.cc.ColumnConverter(i) }

func (c *conn) wrapStmt(inner driver.Stmt, query string) driver.Stmt {
	s := &stmt{c: c, inner: inner, query: query}
	c.rec.statements.Add(1)
	s.execCtx, _ = inner.(driver.StmtExecContext)
	s.qryCtx, _ = inner.(driver.StmtQueryContext)
	if s.checker, _ = inner.(driver.NamedValueChecker); s.checker == nil {
		s.checker = c.checker
	}
	if cc, ok := embedded(c, inner, "Stmt").(driver.ColumnConverter); ok {
		return converterStmt{s, cc}
	}
	return s
}

// Close may run after the connection was returned, even under the pool's own
// lock (Stmt.Close, putConn's onPut): it does not count as a use then. On a
// connection of ours, where closing takes a round trip, it is put off until the
// connection is next taken or closed, so that a silent network blocks one
// holder, not the pool.
func (s *stmt) Close() error {
	r := s.c.rec
	defer r.statements.Add(-1)
	if r.sock != nil && (r.flags&flagOut == 0 || s.c.bad) {
		s.c.unclosed = append(s.c.unclosed, s.inner)
		return nil
	}
	r.beginClose(flagClosing)
	defer r.endClose()
	if err := s.inner.Close(); err != nil {
		return s.c.fail(context.Background(), false, err)
	}
	return nil
}

func (s *stmt) NumInput() int { return s.inner.NumInput() }

func (s *stmt) CheckNamedValue(nv *driver.NamedValue) error {
	if s.checker == nil {
		return driver.ErrSkip // database/sql goes on with ColumnConverter or its default
	}
	return s.checker.CheckNamedValue(nv)
}

// Exec and Query are driver.Stmt's; database/sql calls the Context forms.
func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.ExecContext(context.Background(), namedValues(args))
}

func (s *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.QueryContext(context.Background(), namedValues(args))
}

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (res driver.Result, err error) {
	s.c.rec.begin(ctx, kindStmt, s.query)
	defer s.c.rec.end()
	if sock := s.c.rec.sock; s.execCtx != nil && sock.Outlives(ctx) {
		res, err = pqconn.UntilCut(sock, func() (driver.Result, error) { return s.execCtx.ExecContext(ctx, args) })
	} else if s.execCtx != nil {
		res, err = s.execCtx.ExecContext(ctx, args)
	} else if values, e := plainValues(ctx, args); e != nil {
		return nil, e
	} else {
		res, err = s.inner.Exec(values) // pq's COPY statement has no other
	}
	if err != nil {
		return res, s.c.fail(ctx, false, err)
	}
	return res, nil
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (rs driver.Rows, err error) {
	s.c.rec.begin(ctx, kindStmt, s.query)
	defer s.c.rec.end()
	if sock := s.c.rec.sock; s.qryCtx != nil && sock.Outlives(ctx) {
		rs, err = pqconn.UntilCut(sock, func() (driver.Rows, error) { return s.qryCtx.QueryContext(ctx, args) })
	} else if s.qryCtx != nil {
		rs, err = s.qryCtx.QueryContext(ctx, args)
	} else if values, e := plainValues(ctx, args); e != nil {
		return nil, e
	} else {
		rs, err = s.inner.Query(values)
	}
	if err != nil {
		return rs, s.c.fail(ctx, false, err)
	}
	return s.c.wrapRows(ctx, rs, true), nil
}

func namedValues(args []driver.Value) []driver.NamedValue {
	named := make([]driver.NamedValue, len(args))
	for i, v := range args {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
	}
	return named
}
