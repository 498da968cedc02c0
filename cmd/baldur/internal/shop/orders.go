package shop

import (
	"context"
	"errors"
)

// ErrSoldOut says that there is none left of a product.
var ErrSoldOut = errors.New("sold out")

// HasUnpaidOrders tells whether a customer owes us money.
//
// The bug: who finds a row returns, and leaves the Rows open. One that was read
// to its end closes itself, so customers who pay do no harm.
func (s *Shop) HasUnpaidOrders(ctx context.Context, customer int) (bool, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT id FROM orders WHERE customer = $1 AND status = 'unpaid'`, customer) // leak: rows
	if err != nil {
		return false, err
	}
	if rows.Next() {
		return true, nil
	}
	return false, rows.Err()
}

// PlaceOrder orders one piece of a product.
//
// The bug: of the ways out, one lacks the rollback.
func (s *Shop) PlaceOrder(ctx context.Context, customer, product int) (id int, err error) {
	tx, err := s.db.BeginTx(ctx, nil) // leak: tx
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, `INSERT INTO orders (customer, product, total, status)
		VALUES ($1, $2, 19.90, 'new') RETURNING id`, customer, product).Scan(&id)
	if err != nil {
		tx.Rollback()
		return 0, err
	}
	res, err := tx.ExecContext(ctx, `UPDATE products SET quantity = quantity - 1 WHERE id = $1 AND quantity > 0`, product)
	if err != nil {
		tx.Rollback()
		return 0, err
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return 0, ErrSoldOut
	}
	return id, tx.Commit()
}

// PayOrder charges the customer's card.
func (s *Shop) PayOrder(ctx context.Context, id int) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var total float64
	if err := tx.QueryRowContext(ctx, `SELECT total FROM orders WHERE id = $1 FOR UPDATE`, id).Scan(&total); err != nil {
		return err
	}
	if err := chargeCard(ctx, total); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE orders SET status = 'paid' WHERE id = $1`, id); err != nil {
		return err
	}
	return tx.Commit()
}

// OrderTotals returns what a customer's orders cost.
func (s *Shop) OrderTotals(ctx context.Context, customer int) ([]float64, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT total FROM orders WHERE customer = $1`, customer)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var totals []float64
	for rows.Next() {
		var total float64
		if err := rows.Scan(&total); err != nil {
			return nil, err
		}
		totals = append(totals, total)
	}
	return totals, rows.Err()
}
