// Package baldurhttp shows who holds the connections of a program's pools, and
// the leases of the quorums on them, over HTTP: as a page, as JSON and text, and
// as a profile for go tool pprof.
//
//	mux.Handle("/debug/baldur/", baldurhttp.Handler())
//
// gives
//
//	/debug/baldur/             the page
//	/debug/baldur/profile      go tool pprof -http=: http://host/debug/baldur/profile
//	/debug/baldur/report.json
//	/debug/baldur/report.txt
//
// Importing the package registers nothing anywhere. The page shows the text of
// queries and the program's stacks: mount it where only operators get. It
// changes nothing, and it takes no connection, so it answers when a pool is
// empty, which is when it is wanted.
package baldurhttp

import (
	"bufio"
	"context"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/baldur-go/baldur"
)

// An Option sets one thing about a Handler.
type Option func(*handler)

// WithTrackers shows the pools of these trackers. The default is all pools that
// are open in the program at the time of a request: [baldur.Trackers]. A nil
// tracker, as TrackerOf returns for a pool that is not baldur's, is left out.
func WithTrackers(trackers ...*baldur.Tracker) Option {
	return func(h *handler) {
		h.trackers = func() []*baldur.Tracker { return trackers }
	}
}

// Handler returns the handler of the page and of what it links to. Mount it
// below a path that ends in a slash; with http.StripPrefix or without, both work.
// It answers GET and HEAD. Each request makes a report of each pool, which calls
// the functions of OnConnectionReleased as any report does.
//
// The handlers of a program serve 4 requests at once, others wait, and each ends
// with its client or after 30 s. report.json has 8 MB of connections at most; how
// many are left out is in left_out.
func Handler(opts ...Option) http.Handler {
	h := &handler{trackers: baldur.Trackers}
	for _, o := range opts {
		o(h)
	}
	return h
}

type handler struct {
	trackers func() []*baldur.Tracker
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Cache-Control", "no-store")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Content-Security-Policy", policy)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		head.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	name, exact := resource(r)
	if _, ok := resources[name]; !ok && exact {
		http.Error(w, "not found", http.StatusNotFound)
		return
	} else if seen := seenPath(r); (!ok || name == "") && !strings.HasSuffix(seen, "/") {
		// Mounted on a path without a slash, from which the page's links would miss.
		to := "./" + path.Base(seen) + "/"
		if r.URL.RawQuery != "" {
			to += "?" + r.URL.RawQuery
		}
		head.Set("Location", to)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	res := resources[name]
	ctx, cancel := context.WithTimeout(r.Context(), maxTime)
	defer cancel()
	select {
	case busy <- struct{}{}:
		defer func() { <-busy }()
	case <-ctx.Done():
		head.Set("Retry-After", "10")
		http.Error(w, "too many requests at once", http.StatusServiceUnavailable)
		return
	}
	// The server sets its own deadline for the next request, or none.
	deadline, _ := ctx.Deadline()
	_ = http.NewResponseController(w).SetWriteDeadline(deadline)
	head.Set("Content-Type", res.contentType)
	if res.download != "" {
		head.Set("Content-Disposition", `attachment; filename="`+res.download+`"`)
	}
	if r.Method == http.MethodHead {
		return
	}
	b := bufio.NewWriterSize(w, 32<<10)
	err := res.write(ctx, b, look(ctx, h.trackers()))
	if err == nil && ctx.Err() == nil {
		err = b.Flush()
	}
	if err != nil {
		panic(http.ErrAbortHandler) // else what is there would look whole
	}
}

// What the handlers of a program do at most: one client cannot have them build
// without bound, and one that does not read holds its place for maxTime.
const (
	maxAtOnce = 4
	maxTime   = 30 * time.Second
)

var busy = make(chan struct{}, maxAtOnce)

// resources are what the handler serves, by their names below its path.
var resources = map[string]struct {
	contentType string
	download    string
	write       func(context.Context, *bufio.Writer, []pool) error
}{
	"":            {"text/html; charset=utf-8", "", writePage},
	"profile":     {"application/octet-stream", "baldur.pb.gz", writeProfile},
	"report.json": {"application/json", "", writeJSON},
	"report.txt":  {"text/plain; charset=utf-8", "", writeText},
}

// resource returns what is asked for below the handler's path. That path is
// known where a ServeMux has routed the request by a pattern that ends in a
// slash; then the name is exact. Else it is what follows the last slash.
func resource(r *http.Request) (name string, exact bool) {
	if i := strings.IndexByte(r.Pattern, '/'); i >= 0 && strings.HasSuffix(r.Pattern, "/") {
		if rest, ok := strings.CutPrefix(r.URL.Path, r.Pattern[i:]); ok {
			return rest, true
		}
	}
	return r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:], false
}

// seenPath is the path as the client wrote it, before any StripPrefix.
func seenPath(r *http.Request) string {
	if seen, _, _ := strings.Cut(r.RequestURI, "?"); strings.HasPrefix(seen, "/") {
		return seen
	}
	return r.URL.EscapedPath()
}
