package hook_test

import (
	"context"
	"testing"

	"github.com/baldur-go/baldur/internal/hook"
)

func TestOwn(t *testing.T) {
	own := hook.Own(t.Context())
	below, cancel := context.WithCancel(own)
	defer cancel()
	if hook.IsOwn(t.Context()) || !hook.IsOwn(own) || !hook.IsOwn(below) {
		t.Error("a ctx is told wrong")
	}
	if hook.OTel != nil {
		t.Error("OTel is set, and baldurotel is not here")
	}
}
