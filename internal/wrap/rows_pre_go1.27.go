//go:build !go1.27

package wrap

import "database/sql/driver"

// scannerRows: see rows_go1.27.go; there is no driver.RowsColumnScanner yet.
func scannerRows(r *rows) driver.Rows { return r }
