package baldurhttp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/stack"
)

// TestPage: what a person sees of a program that leaks, when its pool is empty.
func TestPage(t *testing.T) {
	if !stack.Self().Liveness {
		t.Skip("no liveness in this build: ", stack.Self().Reason)
	}
	db := leakingPool(t)
	ctx, cancel := context.WithCancel(ctx)
	waited := make(chan error)
	go func() { waited <- db.PingContext(ctx) }()
	defer func() { cancel(); <-waited }()
	for baldur.TrackerOf(db).Stats().WaitingRequests != 1 {
		time.Sleep(time.Millisecond)
	}
	before := db.Stats()
	url := serve(t)
	_, page := get(t, url)
	for _, want := range []string{
		`<h1 class="bad">`, "3 suspected leaks (2 of goroutines that have exited); pool shop: exhausted, 4 of 4 in use, 1 waiting</h1>",
		"4 of 4 in use: 3 suspected, 1 long held but used; 1 waiting",
		"<b>2 connections</b>", "baldurhttp.leakRows", "baldurhttp.leakTx", "likely missing: <b>Rows.Close, or Row.Scan</b>", "likely missing: <b>Tx.Commit or Tx.Rollback</b>",
		"SELECT id FROM generate_series(1, 1000) id", "listens for jobs", `<span class="exited">exited</span>`, "All 4 holders", "baldurhttp/main_test.go:",
		"Call sites of the program", `href="profile"`, `href="report.json"`, `href="report.txt"`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	for _, width := range []string{`class="suspected" x="0" width="750"`, `class="long_held" x="750" width="250"`} {
		if !strings.Contains(page, width) {
			t.Errorf("the bar has no %s", width)
		}
	}

	_, text := get(t, url+"report.txt")
	first, rest, _ := strings.Cut(text, "\n")
	if !strings.HasPrefix(first, "3 suspected leaks (2 of") || !strings.Contains(rest, "\nLEAK? 2 connections taken at baldurhttp/main_test.go:") {
		t.Errorf("the text is\n%s", text)
	}

	_, body := get(t, url+"report.json")
	var doc struct {
		Summary string
		Pools   []struct {
			Report struct {
				PoolName       string `json:"pool_name"`
				LeakCount      int    `json:"leak_count"`
				SuspectedLeaks []struct {
					CallSite baldur.Frame `json:"call_site"`
				} `json:"suspected_leaks"`
			}
			Holders []struct {
				BackendPID int `json:"backend_pid"`
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Summary != first || len(doc.Pools) != 1 || doc.Pools[0].Report.PoolName != "shop" || doc.Pools[0].Report.LeakCount != 3 ||
		!strings.HasSuffix(doc.Pools[0].Report.SuspectedLeaks[0].CallSite.Function, "baldurhttp.leakRows") || len(doc.Pools[0].Holders) != 4 || doc.Pools[0].Holders[3].BackendPID == 0 {
		t.Errorf("the JSON is %s", body)
	}

	// None of it took, or asked for, a connection.
	after := db.Stats()
	if after.OpenConnections != before.OpenConnections || after.WaitCount != before.WaitCount || after.InUse != before.InUse {
		t.Errorf("the pool was %+v, and is %+v", before, after)
	}
}

// TestMounts: the page's links lead to what they name, however it is mounted.
func TestMounts(t *testing.T) {
	h := Handler(WithTrackers())
	on := func(patterns ...any) http.Handler {
		mux := http.NewServeMux()
		for i := 0; i < len(patterns); i += 2 {
			mux.Handle(patterns[i].(string), patterns[i+1].(http.Handler))
		}
		return mux
	}
	for _, c := range []struct {
		name    string
		mount   http.Handler
		path    string
		unknown string
	}{
		{"subtree", on("/debug/baldur/", h), "/debug/baldur/", "/debug/baldur/x"},
		{"subtree, unknown folder", on("/debug/baldur/", h), "/debug/baldur/", "/debug/baldur/x/"},
		{"subtree, profile's folder", on("/debug/baldur/", h), "/debug/baldur/", "/debug/baldur/x/profile"},
		{"subtree, asked for without the slash", on("/debug/baldur/", h), "/debug/baldur", ""},
		{"with a method and a host", on("GET 127.0.0.1/debug/baldur/", h), "/debug/baldur/", "/debug/baldur/x"},
		{"root", on("/", h), "/", "/x"},
		{"root, no mux", h, "/", ""},
		{"StripPrefix", on("/debug/baldur/", http.StripPrefix("/debug/baldur", h)), "/debug/baldur/", ""},
		{"StripPrefix with the slash", on("/debug/baldur/", http.StripPrefix("/debug/baldur/", h)), "/debug/baldur/", ""},
		{"StripPrefix in part", on("/debug/", http.StripPrefix("/debug", h)), "/debug/", ""},
		{"a router that leaves the path and no pattern", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Pattern = ""
			h.ServeHTTP(w, r)
		}), "/debug/baldur", ""},
		{"a router that strips all", http.StripPrefix("/debug/baldur", h), "/debug/baldur?q=1", ""},
		{"a nested mux", on("/debug/", http.StripPrefix("/debug", on("/baldur/", h))), "/debug/baldur/", "/debug/baldur/x"},
		{"a wildcard", on("/{tenant}/baldur/", h), "/a/baldur/", ""},
		{"a name with a colon", h, "/a:b", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(c.mount)
			defer s.Close()
			res, page := get(t, s.URL+c.path)
			if res.StatusCode != 200 || !strings.Contains(page, "no pool is open") || !strings.HasSuffix(res.Request.URL.Path, "/") {
				t.Fatalf("%s at %s:\n%.300s", res.Status, res.Request.URL, page)
			}
			if strings.Contains(c.path, "?") && res.Request.URL.RawQuery != "q=1" {
				t.Errorf("the query is lost: %s", res.Request.URL)
			}
			links := regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(page, -1)
			if len(links) < 3 {
				t.Fatalf("links: %v", links)
			}
			for _, link := range links {
				to := must(res.Request.URL.Parse(link[1])).String()
				res, _ := get(t, to)
				if want := resources[link[1]].contentType; res.StatusCode != 200 || want == "" || res.Header.Get("Content-Type") != want {
					t.Errorf("%s is %s, %s", to, res.Status, res.Header.Get("Content-Type"))
				}
			}
			if c.unknown != "" {
				if res, _ := get(t, s.URL+c.unknown); res.StatusCode != 404 {
					t.Errorf("%s is %s", c.unknown, res.Status)
				}
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	url := serve(t, WithTrackers())
	for name, r := range resources {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} {
			res := must(http.DefaultClient.Do(must(http.NewRequest(method, url+name, nil))))
			body := must(io.ReadAll(res.Body))
			res.Body.Close()
			h := res.Header
			if h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none';") {
				t.Errorf("%s %q: %v", method, name, h)
			}
			switch read := method == "GET" || method == "HEAD"; {
			case read && (res.StatusCode != 200 || h.Get("Content-Type") != r.contentType || method == "GET" && len(body) == 0):
				t.Errorf("%s %q: %s, %v", method, name, res.Status, h)
			case !read && (res.StatusCode != 405 || h.Get("Allow") != "GET, HEAD"):
				t.Errorf("%s %q: %s, %v", method, name, res.Status, h)
			case (method == "HEAD") != (len(body) == 0):
				t.Errorf("%s %q: %d bytes", method, name, len(body))
			}
		}
	}
	// The style that the policy allows is the one that the page has, to the letter.
	_, page := get(t, url)
	if !strings.Contains(page, "<style>"+pageStyle+"</style>") {
		t.Error("the page's style is not the one of the policy")
	}
	if regexp.MustCompile(`(?i) style=|<script| on[a-z]+=|https?:`).MatchString(page) {
		t.Errorf("the page needs what its policy forbids:\n%s", page)
	}
}

// TestTrackers: which pools are shown.
func TestTrackers(t *testing.T) {
	open := func(name string) *baldur.Tracker {
		db := baldur.OpenDB(fake{}, baldur.WithPoolName(name))
		t.Cleanup(func() { db.Close() })
		return baldur.TrackerOf(db)
	}
	a, b := open("a"), open("b")
	for _, c := range []struct {
		opts []Option
		want []string
	}{
		{nil, []string{"a", "b"}},
		{[]Option{WithTrackers(b)}, []string{"b"}},
		{[]Option{WithTrackers(b, nil, a, b)}, []string{"b", "a"}},
		{[]Option{WithTrackers(nil)}, nil},
	} {
		_, body := get(t, serve(t, c.opts...)+"report.json")
		var doc struct {
			Pools []struct {
				Report struct {
					PoolName string `json:"pool_name"`
				}
			}
		}
		if err := json.Unmarshal([]byte(body), &doc); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range doc.Pools {
			got = append(got, p.Report.PoolName)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("shown: %v, want %v", got, c.want)
		}
	}
}

// TestVerdict: the page's first line has the colour of the worst pool, which
// comes first.
func TestVerdict(t *testing.T) {
	p := func(name string, h baldur.PoolHealthStatus, leaks int) pool {
		return pool{report: baldur.LeakReport{PoolName: name, Health: h, SuspectedLeaks: make([]baldur.ConnectionInfo, leaks)}}
	}
	for _, c := range []struct {
		pools        []pool
		class, order string
	}{
		{nil, "", ""},
		{[]pool{p("a", baldur.HealthHealthy, 0), p("b", baldur.HealthHealthy, 0)}, "good", "ab"},
		{[]pool{p("a", baldur.HealthHealthy, 0), p("b", baldur.HealthUnknown, 0)}, "warn", "ba"},
		{[]pool{p("a", baldur.HealthWarning, 0), p("b", baldur.HealthExhausted, 0), p("c", baldur.HealthHealthy, 0)}, "bad", "bac"},
		{[]pool{p("a", baldur.HealthLeakSuspected, 1), p("b", baldur.HealthCritical, 0), p("c", baldur.HealthExhausted, 3)}, "bad", "cab"},
	} {
		v := newPage(c.pools, nil, time.Now())
		var order string
		for _, p := range v.Pools {
			order += p.Name
		}
		if v.Class != c.class || order != c.order {
			t.Errorf("%s, %s; want %s, %s", v.Class, order, c.class, c.order)
		}
	}
}

// TestNotRegistered: importing the package has put nothing on the default mux.
func TestNotRegistered(t *testing.T) {
	for _, path := range []string{"/", "/debug/", "/debug/baldur", "/debug/baldur/"} {
		if _, pattern := http.DefaultServeMux.Handler(httptest.NewRequest("GET", path, nil)); pattern != "" {
			t.Errorf("%s is at %s", path, pattern)
		}
	}
}

// TestProfileValues: a profile of given connections, value by value.
func TestProfileValues(t *testing.T) {
	stack := []baldur.Frame{{Function: "a.F", File: "/a.go", Line: 7}, {Function: "a.main", File: "/a.go", Line: 9}}
	at := time.Now()
	leaked := baldur.ConnectionInfo{ConnectionID: 1, AcquiredAt: at, Held: time.Hour, Idle: time.Minute, StackTrace: stack, GoroutineID: 5, BackendPID: 77,
		Kind: baldur.KindTx, State: baldur.StateIdleInTx, Verdict: baldur.VerdictSuspected, Goroutine: baldur.GoroutineUnknown, Span: baldur.SpanContext{TraceID: [16]byte{1}, SpanID: [8]byte{1}}}
	again := leaked // the same connection, given out anew
	again.AcquiredAt, again.Held, again.Verdict, again.StackTrace = at.Add(time.Second), 3, baldur.VerdictInUse, nil
	p := newProfile([]pool{{report: baldur.LeakReport{PoolName: "p", SuspectedLeaks: []baldur.ConnectionInfo{leaked}}, holders: []baldur.ConnectionInfo{leaked, again, leaked}}}, at)
	file := filepath.Join(t.TempDir(), "p")
	f := must(os.Create(file))
	if err := errors.Join(p.Write(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(pprof(t, "-raw", file), "Samples:\n")
	const (
		numbers = "                backend_pid:[77 id] connection:[1 id] goroutine:[5 id] idle:[60000000000 nanoseconds]\n"
		texts   = "                kind:[tx] pool:[p] state:[idle_in_transaction] trace_id:[01000000000000000000000000000000] verdict:"
		first   = "          1 3600000000000: 1 2 \n" + texts + "[suspected]\n" + numbers
		want    = "connections/count held/nanoseconds[dflt]\n" + first +
			"          1          3: 3 \n" + texts + "[in_use]\n" + numbers + first +
			"Locations\n     1: 0x0 M=1 a.F /a.go:7:0 s=0\n     2: 0x0 M=1 a.main /a.go:9:0 s=0\n     3: 0x0 M=1 unknown :0:0 s=0\n" +
			"Mappings\n1: 0x0/0x0/0x0   [FN][FL][LN]\n"
	)
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
