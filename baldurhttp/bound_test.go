package baldurhttp

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
)

// TestJSONBudget: however many connections are out and however long their
// statements are, report.json is JSON, of a bounded size, and says what it lacks.
func TestJSONBudget(t *testing.T) {
	const n = 4000
	db := baldur.OpenDB(fake{}, baldur.WithLeakThreshold(time.Nanosecond))
	defer db.Close()
	long := strings.Repeat("x", 10_000)
	for i := range n {
		rows := must(db.Query("SELECT " + strconv.Itoa(i) + long))
		defer rows.Close()
	}
	w := httptest.NewRecorder()
	Handler(WithTrackers(baldur.TrackerOf(db))).ServeHTTP(w, httptest.NewRequest("GET", "/report.json", nil))
	var doc struct {
		Pools []struct {
			Report struct {
				LeakCount      int   `json:"leak_count"`
				SuspectedLeaks []any `json:"suspected_leaks"`
				LongHeld       []any `json:"long_held"`
			}
			Holders []any
			LeftOut map[string]int `json:"left_out"`
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if size := w.Body.Len(); size > maxJSON+1<<20 || size < maxJSON/2 {
		t.Errorf("%d bytes", size)
	}
	p := doc.Pools[0]
	listed := len(p.Report.SuspectedLeaks) + len(p.Report.LongHeld)
	if listed+p.LeftOut["suspected_leaks"]+p.LeftOut["long_held"] != n || len(p.Holders)+p.LeftOut["holders"] != n || p.LeftOut["holders"] == 0 {
		t.Errorf("%d listed, %d holders, left out %v, of %d", listed, len(p.Holders), p.LeftOut, n)
	}
}

// TestTextBudget: the text, the page and the profile do not grow with the length of
// the statements, nor without bound with the connections that are out.
func TestTextBudget(t *testing.T) {
	const n, bound = 4000, 1 << 20
	db := baldur.OpenDB(fake{}, baldur.WithLeakThreshold(time.Nanosecond))
	defer db.Close()
	long := strings.Repeat("x", 10_000)
	for i := range n {
		rows := must(db.Query("SELECT " + strconv.Itoa(i) + long))
		defer rows.Close()
	}
	for _, name := range []string{"report.txt", "", "profile"} {
		w := httptest.NewRecorder()
		Handler(WithTrackers(baldur.TrackerOf(db))).ServeHTTP(w, httptest.NewRequest("GET", "/"+name, nil))
		if size := w.Body.Len(); w.Code != http.StatusOK || size == 0 || size > bound {
			t.Errorf("/%s: status %d, %d bytes", name, w.Code, size)
		}
		t.Logf("/%s: %d bytes", name, w.Body.Len())
	}
}

// TestAtOnce: so many requests are served at once, and a waiting one ends with its
// client.
func TestAtOnce(t *testing.T) {
	h := Handler(WithTrackers())
	get := func(ctx context.Context) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/report.json", nil).WithContext(ctx))
		return w.Code
	}
	for range maxAtOnce {
		busy <- struct{}{}
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if code := get(gone); code != http.StatusServiceUnavailable {
		t.Errorf("too many: %d", code)
	}
	for range maxAtOnce {
		<-busy
	}
	if code := get(context.Background()); code != http.StatusOK {
		t.Errorf("then: %d", code)
	}
}

// TestWriteDeadline: a client that does not read is not written to for ever.
func TestWriteDeadline(t *testing.T) {
	w := &deadlines{ResponseWriter: httptest.NewRecorder()}
	start := time.Now()
	Handler(WithTrackers()).ServeHTTP(w, httptest.NewRequest("GET", "/report.txt", nil))
	if d := w.set.Sub(start); d < maxTime || d > maxTime+10*time.Second {
		t.Errorf("the write deadline is in %v", d)
	}
}

type deadlines struct {
	http.ResponseWriter
	set time.Time
}

func (d *deadlines) SetWriteDeadline(t time.Time) error { d.set = t; return nil }
