package stack

import (
	"testing"
	"time"
)

func TestHistEach(t *testing.T) {
	var h Hist
	durations := []time.Duration{0, 1023, 1024, time.Millisecond, time.Second, 1<<42 - 1, 1 << 42, 100 * time.Hour}
	for _, d := range durations {
		h.Record(d)
	}
	var lower time.Duration
	var all uint64
	h.Each(func(upper time.Duration, n uint64) {
		var want uint64
		for _, d := range durations {
			if d >= lower && (d < upper || upper == 0) {
				want++
			}
		}
		if n != want {
			t.Errorf("[%v, %v): %d, want %d", lower, upper, n, want)
		}
		if upper != 0 && upper <= lower {
			t.Errorf("a bucket [%v, %v)", lower, upper)
		}
		lower = upper
		all += n
	})
	if lower != 0 || all != uint64(len(durations)) {
		t.Errorf("the last bucket ends at %v; %d in all", lower, all)
	}
}
