package baldur_test

import (
	"bytes"
	"context"
	"database/sql"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baldur-go/baldur"
)

// TestExhausted: Watch and Log tell once that a pool is exhausted, a second after that has
// begun, with who holds it, and once that it is not, with how long it was; and of what lasts
// less nothing.
func TestExhausted(t *testing.T) {
	bubble(t, &fakeDB{}, func(t *testing.T, db *sql.DB, tr *baldur.Tracker) {
		watching, stop := context.WithCancel(ctx)
		var log lockedBuffer
		var mu sync.Mutex // guards what was told
		var reports []baldur.LeakReport
		var all sync.WaitGroup
		all.Go(func() {
			_ = tr.Watch(watching, time.Minute, func(r baldur.LeakReport) {
				mu.Lock()
				defer mu.Unlock()
				reports = append(reports, r)
			})
		})
		now := func() []baldur.LeakReport {
			mu.Lock()
			defer mu.Unlock()
			return reports
		}
		all.Go(func() {
			_ = tr.Log(watching, time.Minute, slog.New(slog.NewTextHandler(&log, nil)))
		})
		outage := func(d time.Duration) {
			var txs []*sql.Tx
			for range 10 {
				txs = append(txs, must(db.Begin()))
			}
			var waiters sync.WaitGroup
			for range 25 {
				waiters.Go(func() { must(db.Exec("x")) })
			}
			pass(d)
			for _, tx := range txs {
				_ = tx.Rollback()
			}
			waiters.Wait()
		}
		outage(900 * time.Millisecond)
		pass(5 * time.Second)
		synctest.Wait()
		if told := now(); len(told) != 0 || log.String() != "" {
			t.Errorf("told of 900 ms: %d, %s", len(told), log.String())
		}
		begun := time.Now()
		outage(8 * time.Second)
		synctest.Wait()
		told := now()
		if len(told) != 1 || told[0].Exhausted < time.Second || told[0].ReportTime.Sub(begun) > 2*time.Second || len(told[0].Holding) != 10 {
			t.Fatalf("told of 8 s: %+v", told)
		}
		inOrder(t, told[0].String(), "exhausted for 1", "25 requests wait; held by", "10 connections taken at")
		inOrder(t, log.String(), `level=WARN msg="baldur: pool exhausted" pool=outage in_use=10 max=10 waiting=25 held_by="[`, "watch_test.go:", " ×10, unused for 1")
		pass(5 * time.Second)
		synctest.Wait()
		told = now()
		if len(told) != 2 || told[1].Recovered < 7*time.Second || told[1].Recovered > 9*time.Second || told[1].Exhausted != 0 {
			t.Fatalf("told afterwards: %+v", told[1:])
		}
		inOrder(t, log.String(), `level=INFO msg="baldur: pool recovered" pool=outage lasted=8`)
		pass(10 * time.Minute)
		synctest.Wait()
		if told := now(); len(told) != 2 || strings.Count(log.String(), "\n") != 2 {
			t.Errorf("told %d times; log:\n%s", len(told), log.String())
		}
		stop()
		all.Wait()
	}, baldur.WithPoolName("outage"))
}

// lockedBuffer is a buffer that a logger writes to while a test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
