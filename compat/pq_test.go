package compat

import (
	"context"
	"database/sql/driver"
	"testing"

	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
)

// TestPq: lib/pq's functions on a connection need its own, and panic on another.
func TestPq(t *testing.T) {
	db := open(t)
	ctx := context.Background()
	conn, err := db.Conn(ctx)
	check(t, err)
	defer conn.Close()
	var notices []string
	check(t, conn.Raw(func(dc any) error {
		handler := func(e *pq.Error) { notices = append(notices, e.Message) }
		func() {
			defer func() {
				if recover() == nil {
					t.Error("lib/pq needs no Unwrap any more")
				}
			}()
			pq.SetNoticeHandler(dc.(driver.Conn), handler)
		}()
		pq.SetNoticeHandler(baldur.Unwrap(dc.(driver.Conn)), handler)
		return nil
	}))
	must(conn.ExecContext(ctx, "DO $$BEGIN RAISE NOTICE 'hello'; END$$"))
	if len(notices) != 1 || notices[0] != "hello" {
		t.Errorf("got %q", notices)
	}
}
