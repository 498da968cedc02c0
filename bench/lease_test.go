package main

import (
	"context"
	"database/sql"
	"io"
	"log"
	"net/url"
	"testing"
	"time"

	"cirello.io/pglock"
	"github.com/lib/pq"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/faultproxy"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const lease = time.Second

// elector is a lock of one process, by one library.
type elector struct {
	acquire func(context.Context) error // waits
	ended   <-chan struct{}             // by when it has ended the work that is done under it
}

// TestSilentHolder has the network of the holder of a lease fall silent, until
// another process has the lease. A holder must not believe in it any more then:
// with baldur's quorum it does not, with cirello.io/pglock it does, since that
// learns of a loss only by a call which does not return.
func TestSilentHolder(t *testing.T) {
	for _, c := range []struct {
		name string
		want bool // what the old holder believes then
		new  func(t *testing.T, dsn string) elector
	}{
		{"baldur", false, newBaldurElector},
		{"pglock", true, newPglockElector},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			direct := pgtest.DSN(t)
			silent, proxy := through(t, direct)
			holder := c.new(t, silent)
			if err := holder.acquire(ctx); err != nil {
				t.Fatal(err)
			}
			rival := c.new(t, direct)
			proxy.Freeze(faultproxy.ToServer)
			proxy.Freeze(faultproxy.ToClient)
			frozen := time.Now()
			if err := rival.acquire(ctx); err != nil {
				t.Fatal(err)
			}
			took := time.Since(frozen)
			both := true
			select {
			case <-holder.ended:
				both = false
			default:
			}
			t.Logf("lease %v: another process has it %v after the network fell silent; the old one still believes: %v", lease, took, both)
			if both != c.want {
				t.Errorf("the old holder believes: %v; want %v", both, c.want)
			}
			if both {
				select { // and goes on
				case <-holder.ended:
					t.Log("the old one has noticed after", time.Since(frozen))
				case <-time.After(4 * lease):
					t.Log("the old one still believes after", time.Since(frozen))
				}
			}
			proxy.Cut()
		})
	}
}

// through is the DSN by way of a proxy.
func through(t *testing.T, dsn string) (string, *faultproxy.Proxy) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil || u.Host == "" {
		t.Skip("the DSN is not a URL of a TCP address")
	}
	proxy, err := faultproxy.New(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	u.Host = proxy.Addr()
	return u.String(), proxy
}

func newBaldurElector(t *testing.T, dsn string) elector {
	db, err := baldur.Open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q, err := baldur.NewPGQuorum(db, "a", baldur.WithLeaseTTL(lease))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = q.Close(), db.Close() })
	ended := make(chan struct{})
	return elector{
		acquire: func(ctx context.Context) error {
			q.StartAutoRenew()
			work, err := q.AwaitPrimary(ctx)
			if err == nil {
				context.AfterFunc(work, func() { close(ended) })
			}
			return err
		},
		ended: ended,
	}
}

func newPglockElector(t *testing.T, dsn string) elector {
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		t.Fatal("the DSN is not valid")
	}
	db := sql.OpenDB(connector)
	client, err := pglock.New(db, pglock.WithLeaseDuration(lease), pglock.WithHeartbeatFrequency(lease/4), pglock.WithLogger(log.New(io.Discard, "", 0)))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.TryCreateTable(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { go db.Close() }) // which the stuck call would keep
	ended := make(chan struct{})
	lock := make(chan struct{})
	failed := make(chan error, 1)
	return elector{
		acquire: func(ctx context.Context) error {
			go func() {
				failed <- client.Do(ctx, "primary", func(ctx context.Context, _ *pglock.Lock) error {
					close(lock)
					<-ctx.Done()
					close(ended)
					return ctx.Err()
				})
			}()
			select {
			case <-lock:
				return nil
			case err := <-failed:
				return err
			}
		},
		ended: ended,
	}
}
