package baldur

import (
	"context"
	"errors"
	"testing"

	"github.com/baldur-go/baldur/internal/lease"
)

// TestElectorValues: each value of the elector's is told as one of its own.
func TestElectorValues(t *testing.T) {
	reasons, states := map[LossReason]bool{}, map[LeaseState]bool{}
	for r := range lease.Reason(lease.ReasonCount) {
		if lossReasons[r] == "" || reasons[lossReasons[r]] || string(lossReasons[r]) != r.String() {
			t.Errorf("%v is told as %q", r, lossReasons[r])
		}
		reasons[lossReasons[r]] = true
	}
	for s := range lease.State(lease.StateCount) {
		if leaseStates[s] == "" || states[leaseStates[s]] {
			t.Errorf("state %d is told as %q", s, leaseStates[s])
		}
		states[leaseStates[s]] = true
	}
	other := errors.New("other")
	for err, want := range map[error]string{
		nil: "", lease.ErrClosed: "baldur: the quorum is closed", lease.ErrGone: "baldur: the quorum is closed: its pool is",
		lease.ErrAttempt: lease.ErrAttempt.Error(), other: "other", context.Canceled: "context canceled",
	} {
		got := quorumError(err)
		if text := ""; got != nil {
			if text = got.Error(); text != want {
				t.Errorf("%v is told as %q, want %q", err, text, want)
			}
		} else if want != "" {
			t.Errorf("%v is not told", err)
		}
		if closed := err == lease.ErrClosed || err == lease.ErrGone; errors.Is(got, ErrQuorumClosed) != closed {
			t.Errorf("%v is told as %v", err, got)
		}
	}
}
