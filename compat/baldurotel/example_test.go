package baldurotel_test

import (
	"database/sql/driver"
	"fmt"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurotel"
)

// What a span of the SDK says.
func Example() {
	exporter := tracetest.NewInMemoryExporter()
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	var connector driver.Connector = exampleDB() // of any driver
	db := baldur.OpenDB(connector, baldurotel.With(
		baldurotel.WithTracerProvider(tracers),
		baldurotel.WithServer("db.example", 5432),
		baldurotel.WithNamespace("shop"),
	))
	defer db.Close()
	if _, err := db.Exec("DELETE FROM orders WHERE id = 4711"); err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range exporter.GetSpans() {
		fmt.Println(s.Name)
		for _, a := range s.Attributes {
			fmt.Printf("  %s = %v\n", a.Key, a.Value.Emit())
		}
	}
	// Output:
	// DELETE orders
	//   db.system.name = postgresql
	//   server.address = db.example
	//   db.namespace = shop
	//   db.query.summary = DELETE orders
	//   db.query.text = DELETE FROM orders WHERE id = ?
}
