package baldur

import (
	"testing"

	"github.com/baldur-go/baldur/internal/checkout"
	"github.com/baldur-go/baldur/internal/stack"
)

// TestValues: what the internal packages call a thing is what reports call it.
func TestValues(t *testing.T) {
	kinds := []Kind{KindUnknown, KindQuery, KindExec, KindTx, KindStmt, KindPing, KindConn}
	for k, want := range kinds {
		if got := Kind(checkout.Kind(k).String()); got != want {
			t.Errorf("kind %d is %q, want %q", k, got, want)
		}
	}
	if checkout.KindConn != checkout.Kind(len(kinds)-1) {
		t.Error("there are other kinds")
	}
	if checkout.Capture(CaptureFull) != checkout.CaptureFull || checkout.Capture(CaptureSites) != checkout.CaptureSites || checkout.Capture(CaptureOff) != checkout.CaptureOff {
		t.Error("Capture has other values")
	}
	for s, want := range map[stack.State]Liveness{stack.Alive: GoroutineAlive, stack.Exited: GoroutineExited, stack.Unknown: GoroutineUnknown} {
		if got := Liveness(s.String()); got != want {
			t.Errorf("%v is %q", s, got)
		}
	}
}
