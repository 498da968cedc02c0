package compat

import (
	"bytes"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"pgregory.net/rapid"

	own "github.com/baldur-go/baldur/internal/profile"
)

// TestProfile: what internal/profile writes is what pprof's own package reads.
func TestProfile(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		frame := rapid.Custom(func(rt *rapid.T) own.Frame {
			return own.Frame{
				Function:  rapid.SampledFrom([]string{"main.f", "main.g", ""}).Draw(rt, "function"),
				File:      rapid.SampledFrom([]string{"/a.go", "/b.go", ""}).Draw(rt, "file"),
				Line:      rapid.Int64Range(0, 3).Draw(rt, "line"),
				StartLine: rapid.Int64Range(0, 1).Draw(rt, "start"),
			}
		})
		label := rapid.Custom(func(rt *rapid.T) own.Label {
			return own.Label{
				Key: rapid.StringN(1, 5, 20).Draw(rt, "key"),
				Str: rapid.String().Draw(rt, "text"),
				Num: rapid.Int64().Draw(rt, "number"), Unit: "bytes",
			}
		})
		p := &own.Profile{
			SampleTypes: []own.ValueType{{Type: "samples", Unit: "count"}, {Type: "held", Unit: "nanoseconds"}},
			Default:     "held",
			PeriodType:  own.ValueType{Type: "cpu", Unit: "nanoseconds"},
			Period:      rapid.Int64Range(0, 1e9).Draw(rt, "period"),
			Time:        time.Unix(0, rapid.Int64Min(1).Draw(rt, "time")),
			Comments:    rapid.SliceOfN(rapid.String(), 1, 3).Draw(rt, "comments"),
		}
		type sample struct {
			stack  []own.Frame
			values []int64
			labels []own.Label
		}
		var want []sample
		for range rapid.IntRange(0, 5).Draw(rt, "samples") {
			s := sample{
				rapid.SliceOfN(frame, 1, 4).Draw(rt, "stack"),
				rapid.SliceOfN(rapid.Int64(), 2, 2).Draw(rt, "values"),
				rapid.SliceOfNDistinct(label, 0, 4, func(l own.Label) string { return l.Key }).Draw(rt, "labels"),
			}
			want = append(want, s)
			p.Add(s.stack, s.values, s.labels)
		}
		var b bytes.Buffer
		if err := p.Write(&b); err != nil {
			rt.Fatal(err)
		}
		got, err := profile.ParseData(b.Bytes())
		if err != nil {
			rt.Fatal(err)
		}
		if err := got.CheckValid(); err != nil {
			rt.Fatal(err)
		}
		if len(got.Sample) != len(want) || got.DefaultSampleType != "held" || got.PeriodType.Type != "cpu" || got.Period != p.Period ||
			got.TimeNanos != p.Time.UnixNano() || !slices.Equal(got.Comments, p.Comments) || got.SampleType[1].Unit != "nanoseconds" {
			rt.Fatalf("read is %v", got)
		}
		for i, s := range got.Sample {
			var stack []own.Frame
			for _, l := range s.Location {
				f := l.Line[0]
				stack = append(stack, own.Frame{Function: f.Function.Name, File: f.Function.Filename, Line: f.Line, StartLine: f.Function.StartLine})
			}
			if !slices.Equal(stack, want[i].stack) || !slices.Equal(s.Value, want[i].values) {
				rt.Fatalf("sample %d is %v, %v, want %v", i, stack, s.Value, want[i])
			}
			texts, numbers := map[string][]string{}, map[string][]int64{}
			for _, l := range want[i].labels {
				if l.Str != "" {
					texts[l.Key] = []string{l.Str}
				} else {
					numbers[l.Key] = []int64{l.Num}
				}
			}
			if !maps.EqualFunc(s.Label, texts, slices.Equal) || !maps.EqualFunc(s.NumLabel, numbers, slices.Equal) {
				rt.Fatalf("the labels of sample %d are %v, %v, want %v", i, s.Label, s.NumLabel, want[i].labels)
			}
		}
	})
}
