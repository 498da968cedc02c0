package shop

import "context"

// NumberInvoices writes an invoice for each paid order that has none. The
// numbers must have no gap, so one process at a time does it: under an advisory
// lock, which belongs to a connection.
//
// The bug: it gives the lock back, and forgets the connection.
func (s *Shop) NumberInvoices(ctx context.Context) error {
	conn, err := s.db.Conn(ctx) // leak: conn
	if err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock(hashtext(current_schema()))`); err != nil {
		conn.Close()
		return err
	}
	_, err = conn.ExecContext(ctx, `INSERT INTO invoices (order_id)
		SELECT id FROM orders WHERE status = 'paid' AND id NOT IN (SELECT order_id FROM invoices) ORDER BY id`)
	if err != nil {
		conn.Close()
		return err
	}
	_, err = conn.ExecContext(ctx, `SELECT pg_advisory_unlock(hashtext(current_schema()))`)
	return err
}
