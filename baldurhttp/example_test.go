package baldurhttp_test

import (
	"database/sql"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurhttp"
)

// All pools of the program, on a mux that only operators reach.
func ExampleHandler() {
	db, err := sql.Open("baldur-pq", "postgres://app@127.0.0.1/shop?sslmode=disable&baldur_pool_name=shop")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()

	mux := http.NewServeMux()
	mux.Handle("/debug/baldur/", baldurhttp.Handler(baldurhttp.WithTrackers(baldur.TrackerOf(db))))

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/debug/baldur/report.txt", nil))
	summary, _, _ := strings.Cut(w.Body.String(), "\n")
	fmt.Println(summary)
	// Output: no suspected leak; pool shop: healthy, 0 in use, no limit, 0 waiting
}

// A profile in a file, for go tool pprof.
func ExampleWriteProfile() {
	f, err := os.CreateTemp("", "baldur-*.pb.gz")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	if err := baldurhttp.WriteProfile(f); err != nil {
		fmt.Println(err)
	}
	fmt.Println(f.Close())
	// Output: <nil>
}
