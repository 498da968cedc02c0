package shop

import "context"

// CustomerName returns a customer's name. The visit is noted by the way.
func (s *Shop) CustomerName(ctx context.Context, customer int, visit bool) (name string, err error) {
	if visit {
		go s.noteVisit(ctx, customer)
	}
	err = s.db.QueryRowContext(ctx, `SELECT name FROM customers WHERE id = $1`, customer).Scan(&name)
	return name, err
}

// noteVisit notes that a customer has been here.
//
// The bug: it should be ExecContext. A Row that nobody scans is never closed;
// the update is made, the goroutine is gone, and so is the connection.
func (s *Shop) noteVisit(ctx context.Context, customer int) {
	s.db.QueryRowContext(ctx, `UPDATE customers SET last_visit = now() WHERE id = $1 RETURNING last_visit`, customer) // leak: queryrow
}
