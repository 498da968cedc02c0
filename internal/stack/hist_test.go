package stack

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestBuckets makes sure that the buckets are contiguous and that each has its own range.
func TestBuckets(t *testing.T) {
	end := time.Duration(0)
	for i := range buckets - 1 {
		lo, hi := limits(i)
		if lo != end || hi <= lo {
			t.Errorf("bucket %d is [%d, %d) after %d", i, lo, hi, end)
		}
		if Bucket(lo) != i || Bucket(hi-1) != i || Bucket(hi) != i+1 {
			t.Errorf("bucket %d: %d, %d, %d", i, Bucket(lo), Bucket(hi-1), Bucket(hi))
		}
		end = hi
	}
	if end < time.Hour || Bucket(math.MaxInt64) != buckets-1 || Bucket(-1) != 0 || Bucket(math.MinInt64) != 0 {
		t.Errorf("the ends are wrong: %v", end)
	}
}

// TestQuantiles compares with sorted samples of several orders of magnitude.
func TestQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var h Hist
		samples := make([]time.Duration, 1+rng.IntN(2000))
		lo, hi := math.Log(1100), math.Log(float64(time.Hour))
		for i := range samples {
			samples[i] = time.Duration(math.Exp(lo + rng.Float64()*(hi-lo)))
			h.Record(samples[i])
		}
		slices.Sort(samples)
		for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 1} {
			want := samples[int(q*float64(len(samples)-1))]
			got := h.Quantile(q)
			if e := math.Abs(float64(got-want)) / float64(want); e > 0.25 {
				t.Errorf("quantile %v of %d samples: %v, want %v, error %.0f %%", q, len(samples), got, want, 100*e)
			}
		}
		if h.Count() != uint64(len(samples)) {
			t.Errorf("count %d, want %d", h.Count(), len(samples))
		}
	}
}

func TestHistEnds(t *testing.T) {
	var h Hist
	if h.Quantile(0.5) != 0 || h.Count() != 0 {
		t.Error("empty histogram")
	}
	h.Record(-time.Second)
	if q := h.Quantile(1); q < 0 || q > 1024 {
		t.Error(q)
	}
	h.Record(48 * time.Hour)
	if q := h.Quantile(1); q != 1<<maxExp {
		t.Error(q)
	}
}

func TestHistConcurrent(t *testing.T) {
	var h Hist
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				h.Record(time.Duration(i*(g+1)) * time.Microsecond)
			}
			h.Add(Bucket(time.Second), 1000, 1000*time.Second)
		})
	}
	wg.Wait()
	if h.Count() != 16000 || h.Quantile(0.75).Round(time.Second) != time.Second {
		t.Error(h.Count(), h.Quantile(0.75))
	}
	if want := 36*999*500*time.Microsecond + 8000*time.Second; h.Sum() != want {
		t.Error(h.Sum(), want)
	}
}
