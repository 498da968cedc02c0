package transparency

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"
)

// ops are the operations of a script by their first word; the rest of the line
// is the argument. An operation on what is not open does nothing.
var ops map[string]func(e *env, rest string)

func init() {
	ops = map[string]func(e *env, rest string){
		// What follows uses.
		"background": func(e *env, _ string) { e.ctx = context.Background() },
		"ctx":        (*env).newCtx,
		"cancel":     (*env).cancelAll,
		"age":        func(*env, string) { time.Sleep(2 * time.Second) }, // of the test's own clock
		"args": func(e *env, name string) {
			e.args = argSets[name]
			e.query = "q" + strings.Repeat(" ?", len(e.args)-strings.Count(name, "remove"))
		},
		"inputs": func(e *env, rest string) { e.query = "q" + rest },
		"loose":  func(e *env, _ string) { e.loose = !e.loose },
		"norows": func(e *env, _ string) { e.noRows = !e.noRows },
		"skip":   func(e *env, _ string) { e.skip = !e.skip },
		"opts": func(e *env, rest string) {
			e.opts = map[string]*sql.TxOptions{
				"serializable": {Isolation: sql.LevelSerializable}, "readonly": {ReadOnly: true}, "zero": {},
			}[rest]
		},
		"arm": func(e *env, rest string) {
			i := strings.LastIndexByte(rest, ' ')
			e.armed[rest[:i]] = rest[i+1:]
		},
		"disarm": func(e *env, _ string) { clear(e.armed) },

		// The pool.
		"maxidle":  func(e *env, n string) { e.db.SetMaxIdleConns(len(n)) },
		"lifetime": func(e *env, _ string) { e.db.SetConnMaxLifetime(time.Second) },
		"idletime": func(e *env, _ string) { e.db.SetConnMaxIdleTime(time.Second) },
		"ping":     func(e *env, _ string) { e.says(e.db.PingContext(e.opCtx(nil))) },

		// Queries, on "db", "conn" or "tx".
		"exec": func(e *env, on string) {
			t := e.on(on)
			e.result(t.ExecContext(e.opCtx(t), e.query, e.args...))
		},
		"query": func(e *env, on string) {
			t := e.on(on)
			e.freeTx(t)
			rows, err := t.QueryContext(e.opCtx(t), e.query, e.args...)
			e.opened(t, rows, err)
		},
		"queryrow": func(e *env, on string) {
			t := e.on(on)
			e.freeTx(t)
			e.scanned(t.QueryRowContext(e.opCtx(t), e.query, e.args...))
		},
		"prepare": func(e *env, on string) {
			t := e.on(on)
			if t == e.tx && e.txOnConn {
				return
			}
			stmt, err := t.PrepareContext(e.opCtx(t), e.query)
			e.prepared(t, stmt, err)
		},

		"stmt": func(e *env, rest string) {
			if _, ok := e.stmtOn.(*sql.Tx); e.stmt == nil || ok && e.stmtOn != e.tx {
				return
			}
			if _, ok := e.stmtOn.(*sql.Conn); ok { // perhaps of one before e.conn
				e.free()
			}
			if strings.HasPrefix(rest, "query") {
				e.freeTx(e.stmtOn)
			}
			switch rest {
			case "exec":
				e.result(e.stmt.ExecContext(e.opCtx(e.stmtOn), e.args...))
			case "query":
				rows, err := e.stmt.QueryContext(e.opCtx(e.stmtOn), e.args...)
				e.opened(e.stmtOn, rows, err)
			case "queryrow":
				e.scanned(e.stmt.QueryRowContext(e.opCtx(e.stmtOn), e.args...))
			case "close":
				e.note("%s, %s", errText(e.stmt.Close()), errText(e.stmt.Close()))
			case "tx":
				if e.tx != nil && !e.txOnConn {
					e.prepared(e.tx, e.tx.StmtContext(e.opCtx(e.tx), e.stmt), nil)
				}
			}
		},

		"rows": func(e *env, rest string) {
			if e.rows == nil {
				return
			}
			e.spy.cancel = e.rowsCtx.cancel
			switch rest {
			case "next":
				e.next()
			case "drain":
				for e.next() {
				}
			case "set":
				ok := e.rows.NextResultSet()
				e.note("NextResultSet %v, Err %s", ok, e.rowsErr())
			case "columns":
				columns, err := e.rows.Columns()
				e.note("%q %s", columns, errText(err))
			case "types":
				types, err := e.rows.ColumnTypes()
				for _, t := range types {
					e.note("%+v", *t)
				}
				e.note("%s", errText(err))
			case "wrong":
				var n int
				e.note("Scan %s", errText(e.rows.Scan(&n)))
			case "close":
				e.note("%s, %s, Err %s", errText(e.rows.Close()), errText(e.rows.Close()), e.rowsErr())
			}
		},

		"begin": func(e *env, on string) {
			var b interface {
				BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error)
			} = e.db
			if on != "db" && e.conn != nil {
				if on == "conn" { // else "nested"
					e.free()
				}
				b = e.conn
			}
			tx, err := b.BeginTx(e.opCtx(nil), e.opts)
			e.says(err)
			if err == nil {
				e.outer = e.tx
				e.tx, e.txCtx, e.txOnConn, e.txRows = tx, e.last, b == e.conn && e.ctx.Done() != nil, nil
				end := func() { e.note("Rollback %s", errText(tx.Rollback())) }
				e.cleanup(end)
				if b == e.conn {
					e.busy = append(e.busy, end)
				}
			}
		},
		"outer": func(e *env, _ string) { e.tx, e.outer = e.outer, e.tx },
		"commit": func(e *env, _ string) {
			if e.tx != nil {
				e.endTx(e.tx.Commit)
			}
		},
		"rollback": func(e *env, _ string) {
			if e.tx != nil {
				e.endTx(e.tx.Rollback)
			}
		},

		"conn": func(e *env, rest string) {
			switch {
			case rest == "":
				conn, err := e.db.Conn(e.opCtx(nil))
				e.says(err)
				if err == nil {
					e.conn = conn
					e.cleanup(func() { e.note("conn.Close %s", errText(conn.Close())) })
				}
			case e.conn == nil:
			case rest == "ping":
				e.free()
				e.says(e.conn.PingContext(e.opCtx(nil)))
			case rest == "close":
				e.free()
				e.note("%s, %s", errText(e.conn.Close()), errText(e.conn.Close()))
			}
		},
		"raw": (*env).raw,
	}
}

func (e *env) newCtx(string) {
	e.ctxs++
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), ctxKey{}, e.ctxs))
	e.ctx = ctx
	e.live = append(e.live, opCtx{ctx, cancel})
	e.cleanup(cancel)
}

// opCtx is the ctx of one operation.
type opCtx struct {
	context.Context
	cancel func()
}

// opCtx returns the ctx for an operation, one of its own so that there is no
// race among those who wait for its end, and makes it what a call cancels that
// is armed for that. An operation in a transaction has the transaction's.
func (e *env) opCtx(on target) context.Context {
	switch {
	case e.tx != nil && on == e.tx && e.txCtx.Done() != nil:
		e.last = e.txCtx
	case e.ctx.Done() == nil:
		e.last = opCtx{e.ctx, func() {}}
	default:
		ctx, cancel := context.WithCancel(e.ctx)
		e.last = opCtx{ctx, cancel}
		e.live = append(e.live, e.last)
	}
	e.spy.cancel = e.last.cancel
	return e.last.Context
}

func (e *env) endTx(end func() error) {
	if !e.bubble {
		e.freeTx(e.tx) // else its rows are closed beside the script
	}
	e.spy.cancel = e.txCtx.cancel
	e.says(end())
}

// cancelAll ends every ctx, the newest first, one after the other.
func (e *env) cancelAll(string) {
	for _, ctx := range slices.Backward(e.live) {
		ctx.cancel()
		e.wait()
	}
	e.live = nil
}
