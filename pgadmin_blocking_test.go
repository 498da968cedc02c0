package baldur_test

import (
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestBlockingTree(t *testing.T) {
	for _, path := range paths {
		t.Run(path.name, func(t *testing.T) {
			dsn := path.dsn(t)
			db, admin := adminOn(t, dsn, 3)
			if tree := must(admin.BlockingTree(ctx)); len(tree) != 0 {
				t.Errorf("a tree without a wait: %v", tree)
			}
			must(db.Exec("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)"))
			root := must(db.Begin())
			var rootPID int
			fine(t, root.QueryRow("UPDATE t SET n = 1 RETURNING pg_backend_pid()").Scan(&rootPID))
			done := make(chan error, 3)
			for range 3 {
				go func() {
					_, err := other(t, dsn, "SELECT 1").ExecContext(ctx, "UPDATE t SET n = n + 1")
					done <- err
				}()
			}
			var tree []*baldur.BlockingNode
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
				if tree = must(admin.BlockingTree(ctx)); count(tree) == 4 {
					break
				}
			}
			if len(tree) != 1 || count(tree) != 4 || tree[0].PID != rootPID || tree[0].State != "idle in transaction" || tree[0].XactStart.IsZero() {
				t.Fatalf("the tree:\n%v", tree)
			}
			text := tree[0].String()
			if strings.Count(text, "\n") != 4 || !strings.Contains(text, "    ") || !strings.Contains(text, "UPDATE t SET n = n + 1") {
				t.Errorf("as text:\n%s", text)
			}
			// One that waits is cancelled, one is terminated, and one goes on.
			waiter := tree[0].Blocks[0]
			if ok, err := admin.Cancel(ctx, waiter.PID); !ok || err != nil {
				t.Errorf("Cancel: %v, %v", ok, err)
			}
			wantState(t, <-done, "57014")
			for tree = must(admin.BlockingTree(ctx)); count(tree) != 3; tree = must(admin.BlockingTree(ctx)) {
			}
			if ok, err := admin.Terminate(ctx, tree[0].Blocks[0].PID); !ok || err != nil {
				t.Errorf("Terminate: %v, %v", ok, err)
			}
			if err := <-done; err == nil {
				t.Error("terminated, and no error")
			}
			fine(t, root.Commit())
			fine(t, <-done)
		})
	}
	_, admin := adminOn(t, pgtest.SocketDSN(t), 1)
	large := int64(1 << 31) // on 32 bits it wraps around, to a negative one
	for _, pid := range []int{0, -1, int(large)} {
		_, err := admin.Terminate(ctx, pid)
		wantError(t, err, "is not that of a backend")
		_, err = admin.Cancel(ctx, pid)
		wantError(t, err, "is not that of a backend")
	}
	if ok, err := admin.Cancel(ctx, 1<<31-1); ok || err != nil {
		t.Errorf("nobody was cancelled: %v, %v", ok, err)
	}
}

func count(tree []*baldur.BlockingNode) int {
	n := len(tree)
	for _, t := range tree {
		n += count(t.Blocks)
	}
	return n
}

func TestLockHolders(t *testing.T) {
	dsn := pgtest.SocketDSN(t)
	_, admin := adminOn(t, dsn, 3)
	if got := must(admin.LockHolders(ctx, 42)); len(got) != 0 {
		t.Errorf("holders of a free lock: %+v", got)
	}
	other(t, dsn+"&application_name=night", "SELECT pg_advisory_lock_shared(42)")
	other(t, dsn, "SELECT pg_advisory_lock(0, 42)") // a lock of two keys is another one
	must(admin.AcquireAdvisoryLockShared(ctx, 42, true))
	got := must(admin.LockHolders(ctx, 42))
	if len(got) != 2 || !got[0].Shared || !got[1].Shared {
		t.Fatalf("%+v", got)
	}
	own, rival := got[0], got[1]
	if own.ApplicationName == "night" {
		own, rival = rival, own
	}
	if rival.ApplicationName != "night" || rival.Query != "SELECT pg_advisory_lock_shared(42)" || rival.SinceExact || !rival.Since.Equal(rival.BackendStart) || rival.QueryStart.IsZero() {
		t.Errorf("the other program's: %+v", rival)
	}
	if !own.SinceExact || time.Since(own.Since) > time.Minute {
		t.Errorf("ours: %+v", own)
	}
}

// TestBlockingText: what sessions call themselves gets out of its line in no way.
func TestBlockingText(t *testing.T) {
	n := &baldur.BlockingNode{Backend: baldur.Backend{PID: 1, ApplicationName: "a\x1b[2J\nb", State: "active", Query: "SELECT\n\u202e1"}}
	n.Blocks = []*baldur.BlockingNode{{Backend: baldur.Backend{PID: 2, ApplicationName: "c", State: "idle"}}}
	if got, want := n.String(), "1 a\ufffd[2J\ufffdb active: SELECT \ufffd1\n    2 c idle: \n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
