package main

import (
	"context"
	"encoding/xml"
	"io"
	"strings"
	"testing"
	"time"
)

// TestCompare runs every variant in every setting, for a moment.
func TestCompare(t *testing.T) {
	f := &figures{machine: "a test", hikari: 900, capture: make([]probeResult, 2), clock: make([]probeResult, 2), report: make([]probeResult, 2)}
	for _, s := range nullSettings {
		s.sites = min(s.sites, 16)
		results, err := compare(t.Context(), variants(), target{Connector: nullConnector{}}, s, nullPool, effort{3, 5 * time.Microsecond}, measureWall)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.perOp <= 0 || r.bytes <= 0 {
				t.Errorf("%s: %s: %v ns, %d B", s, r.variant, r.perOp, r.bytes)
			}
		}
		f.null = append(f.null, table{s, results})
	}
	for _, text := range []string{f.markdown(), f.chart()} {
		if strings.Contains(text, "NaN") || strings.Contains(text, "%!") {
			t.Error(text)
		}
	}
	d := xml.NewDecoder(strings.NewReader(f.chart()))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCompareEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := compare(ctx, variants()[:1], target{Connector: nullConnector{}}, nullSettings[0], 1, effort{1, time.Microsecond}, measureWall); err != context.Canceled {
		t.Fatal(err)
	}
}

func TestCapture(t *testing.T) {
	_, depth, err := captureProbes(effort{1, time.Microsecond})
	if err != nil || depth < 15 {
		t.Fatal(depth, err)
	}
}

func TestMedian(t *testing.T) {
	var values []float64
	for i := range 100 {
		values = append(values, float64(i*37%100))
	}
	// Of 100 values the 41st and the 60th bound the median (the binomial distribution, 95 %).
	if got := median(values); got != (interval{40, 49.5, 59}) {
		t.Error(got)
	}
}

func TestHikariDifference(t *testing.T) {
	if ns, err := hikariDifference("off 1 ns\ndifference 859.5 ns\n"); ns != 859.5 || err != nil {
		t.Error(ns, err)
	}
	if _, err := hikariDifference("no such thing"); err == nil {
		t.Error("no error")
	}
}

func TestSitePaths(t *testing.T) {
	for _, n := range []int{1, 16, 256, 4096} {
		seen := map[string]bool{}
		for _, p := range sitePaths(n) {
			seen[string(p)] = true
		}
		if len(seen) != n {
			t.Errorf("%d paths of %d", len(seen), n)
		}
	}
}
