package baldurhttp

import (
	"bufio"
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

// TestLease: the page, the text and the JSON say who has the lease, and what has
// come back dirty.
func TestLease(t *testing.T) {
	db := must(baldur.Open(pgtest.DSN(t), baldur.WithPoolName("shop"), baldur.WithReturnAudit(1)))
	t.Cleanup(func() { db.Close() })
	url := serve(t, WithTrackers(baldur.TrackerOf(db)))
	resources := []string{"", "report.txt", "report.json"}
	for _, r := range resources {
		if _, body := get(t, url+r); strings.Contains(body, "eu-west") || strings.Contains(strings.ToLower(body), "came back") {
			t.Errorf("before the first use, %q is %s", r, body)
		}
	}
	q := must(baldur.NewPGQuorum(db, "eu-west"))
	t.Cleanup(func() { _ = q.Close() })
	if ok, err := q.TryAcquirePrimary(ctx); !ok || err != nil {
		t.Fatal(ok, err)
	}
	must(db.Exec("SELECT pg_advisory_lock(42)"))
	for i, want := range [][]string{
		{`<p class="foreign">lease &#34;primary&#34;: primary here (eu-west), epoch 4294967297, `, "Came back dirty, 1 in all", "came back with advisory lock 42; taken by "},
		{"\nlease \"primary\": primary here (eu-west), epoch 4294967297, ", "\ncame back dirty, 1 in all", "came back with advisory lock 42; taken by "},
		{`"lease":"primary","region":"eu-west","is_primary":true,"epoch":4294967297,`, `"advisory_locks":["42"]`, `"dirty_returns_total":1`},
	} {
		_, body := get(t, url+resources[i])
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%q has no %s:\n%s", resources[i], w, body)
			}
		}
	}
}

// TestHostileLease: no region, which another program may have written to the
// table, gets out of its place on the page or in the text.
func TestHostileLease(t *testing.T) {
	page := func(text string) (string, string) {
		told := baldur.QuorumEvent{State: baldur.LeaseHeld, Lease: baldur.QuorumLease{Region: text, LeaseID: text, ExpiresAt: time.Now().Add(time.Hour)}}
		report := baldur.LeakReport{Leases: []baldur.QuorumStats{{Lease: text, Region: text, IsPrimary: true}, {CheckedAt: time.Now(), Lease: text, Holder: told, LastError: text}},
			DirtyReturns: []baldur.DirtyReturn{{Connection: baldur.ConnectionInfo{QueryInfo: text, Label: text}, AdvisoryLocks: []string{"42"}}}, DirtyTotal: 1}
		pools := []pool{{report: report}}
		pools[0].bound()
		var html, plain bytes.Buffer
		h, p := bufio.NewWriter(&html), bufio.NewWriter(&plain)
		if err := errors.Join(writePage(ctx, h, pools), writeText(ctx, p, pools), h.Flush(), p.Flush()); err != nil {
			t.Fatal(err)
		}
		return structure(t, html.String()), plain.String()
	}
	tags, text := page("benign")
	if !strings.Contains(text, "held by benign") {
		t.Fatalf("%s", text)
	}
	for _, evil := range []string{"a" + markup, "a" + control, control + markup + control, strings.Repeat("語"+markup+control, 1000)} {
		got, text := page(evil)
		if got != tags {
			t.Errorf("the page's tags are\n%.3000s\nwant\n%.3000s", got, tags)
		}
		if err := wellFormed(text, 10_000); err != nil || strings.Contains(text, "\nLEAK? forged") {
			t.Errorf("%v: %.2000q", err, text)
		}
	}
}
