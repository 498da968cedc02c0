package baldurprom_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurprom"
)

// All pools of the program, those that are opened later too.
func ExampleNewCollector() {
	reg := prometheus.NewRegistry()
	reg.MustRegister(baldurprom.NewCollector())
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))

	db, err := baldur.Open("postgres://app@127.0.0.1/shop?sslmode=disable", baldur.WithPoolName("shop"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "baldur_leak") {
			fmt.Print(line)
		}
	}
	// Output:
	// baldur_leak_threshold_seconds{db_name="shop"} 300
	// baldur_leaks_total{db_name="shop"} 0
}
