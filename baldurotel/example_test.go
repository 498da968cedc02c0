package baldurotel_test

import (
	"database/sql"
	"database/sql/driver"
	"fmt"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/baldurotel" // or with _, where the DSN says it all
)

// The DSN asks for it, and the global providers are used.
func Example() {
	db, err := sql.Open("baldur-pq", "postgres://user:password@db.example/shop?baldur_otel=on")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	fmt.Println(baldur.TrackerOf(db).PoolName())
	// Output: db.example:5432/shop
}

// A tracer provider of the program's own.
func ExampleWith() {
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
