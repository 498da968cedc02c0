package baldurotel_test

import (
	"database/sql"
	"fmt"

	"github.com/lib/pq"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

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
	connector, err := pq.NewConnector("postgres://user:password@db.example/shop") // or any driver's
	if err != nil {
		fmt.Println(err)
		return
	}
	var tracers trace.TracerProvider = noop.NewTracerProvider() // the SDK's, in a program
	db := baldur.OpenDB(connector, baldurotel.With(
		baldurotel.WithTracerProvider(tracers),
		baldurotel.WithServer("db.example", 5432),
		baldurotel.WithNamespace("shop"),
	))
	defer db.Close()
	// A span is named after the statement, "DELETE orders". Its attributes:
	//
	//	db.system.name = postgresql
	//	server.address = db.example
	//	db.namespace = shop
	//	db.query.summary = DELETE orders
	//	db.query.text = DELETE FROM orders WHERE id = ?
}
