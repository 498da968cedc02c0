package baldur

import (
	"testing"

	"github.com/baldur-go/baldur/internal/pgsession"
)

// TestPoolerModes: each mode that a probe finds is told as one of its own.
func TestPoolerModes(t *testing.T) {
	for found, want := range map[pgsession.Pooler]PoolerMode{
		pgsession.NoPooler: PoolerNone, pgsession.SessionPooler: PoolerSession, pgsession.TransactionPooler: PoolerTransaction,
		pgsession.StatementPooler: PoolerStatement, pgsession.UnknownPooler: PoolerUnknown,
	} {
		if PoolerMode(found) != want {
			t.Errorf("%q is told as %q", want, found)
		}
	}
}
