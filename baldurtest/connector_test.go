package baldurtest

import (
	"context"
	"database/sql"
	"database/sql/driver"
)

// connector makes connections by an open pool's driver.
type connector struct {
	db  *sql.DB
	dsn string
}

func (c connector) Connect(context.Context) (driver.Conn, error) { return c.db.Driver().Open(c.dsn) }
func (c connector) Driver() driver.Driver                        { return c.db.Driver() }
