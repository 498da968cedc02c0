package baldurprom_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var ctx = context.Background()

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// serve exports collectors over HTTP and returns the address.
func serve(t *testing.T, collectors ...prometheus.Collector) string {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	for _, c := range collectors {
		if err := reg.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	s := httptest.NewServer(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	t.Cleanup(s.Close)
	return s.URL
}

func scrapeText(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body := string(must(io.ReadAll(res.Body)))
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %.2000s", res.Status, body)
	}
	return body
}

type families map[string]*dto.MetricFamily

func scrape(t *testing.T, url string) families {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return must(parser.TextToMetricFamilies(strings.NewReader(scrapeText(t, url))))
}

// of returns the metric of a pool.
func (f families) of(family, pool string) *dto.Metric {
	for _, m := range f[family].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "db_name" && l.GetValue() == pool {
				return m
			}
		}
	}
	return nil
}

// value is a gauge's or a counter's; −1 if there is none.
func (f families) value(family, pool string) float64 {
	switch m := f.of(family, pool); {
	case m.GetGauge() != nil:
		return m.GetGauge().GetValue()
	case m.GetCounter() != nil:
		return m.GetCounter().GetValue()
	}
	return -1
}

const threshold = 100 * time.Millisecond

func open(t *testing.T, opts ...baldur.Option) *sql.DB {
	t.Helper()
	db := must(baldur.Open(pgtest.SocketDSN(t), append([]baldur.Option{baldur.WithPoolName("shop"), baldur.WithLeakThreshold(threshold)}, opts...)...))
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(3)
	return db
}

// until polls, as nothing tells when a leak becomes one.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// fake is a driver for pools without a server.
type fake struct{}
type fakeConn struct{}

func (fake) Driver() driver.Driver                        { return nil }
func (fake) Connect(context.Context) (driver.Conn, error) { return &fakeConn{}, nil }
func (*fakeConn) Prepare(string) (driver.Stmt, error)     { return nil, errors.New("unused") }
func (*fakeConn) Begin() (driver.Tx, error)               { return nil, errors.New("unused") }
func (*fakeConn) Close() error                            { return nil }

func fakePool(t *testing.T, name string) *sql.DB {
	db := baldur.OpenDB(fake{}, baldur.WithPoolName(name))
	t.Cleanup(func() { db.Close() })
	return db
}
