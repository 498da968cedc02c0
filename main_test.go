package baldur_test

import (
	"testing"

	"github.com/baldur-go/baldur/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }
