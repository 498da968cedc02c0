package shop

import (
	"context"
	"fmt"
	"io"
)

// CountStock has somebody go from shelf to shelf and count, and keeps all of it
// in one transaction, for minutes.
func (s *Shop) CountStock(ctx context.Context, count func(ctx context.Context, product int) (int, error)) error {
	tx, err := s.db.BeginTx(ctx, nil) // honest: tx
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for shelf := range 10 * products {
		product := 1 + shelf%products
		n, err := count(ctx, product)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO stock_counts VALUES ($1, $2)`, product, n); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// ExportOrders writes all orders to w, which may be as slow as its reader.
func (s *Shop) ExportOrders(ctx context.Context, w io.Writer) error {
	rows, err := s.db.QueryContext(ctx, `SELECT id, customer, total FROM orders ORDER BY id`) // honest: rows
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id, customer int
		var total string
		if err := rows.Scan(&id, &customer, &total); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%d,%d,%s\n", id, customer, total); err != nil {
			return err
		}
	}
	return rows.Err()
}

// YearlySales asks a question whose answer takes the server minutes.
func (s *Shop) YearlySales(ctx context.Context) (total float64, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT sum(total) FROM orders, pg_sleep(300)`).Scan(&total) // honest: query
	return total, err
}
