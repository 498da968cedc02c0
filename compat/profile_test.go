package compat

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"github.com/google/pprof/profile"
	"pgregory.net/rapid"

	own "github.com/baldur-go/baldur/internal/profile"
)

// TestProfile: what internal/profile writes is what pprof's own package reads.
func TestProfile(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		frame := rapid.Custom(func(rt *rapid.T) own.Frame {
			return own.Frame{
				Function: rapid.SampledFrom([]string{"main.f", "main.g", ""}).Draw(rt, "function"),
				File:     rapid.SampledFrom([]string{"/a.go", "/b.go", ""}).Draw(rt, "file"),
				Line:     rapid.IntRange(0, 3).Draw(rt, "line"),
				Start:    rapid.IntRange(0, 1).Draw(rt, "start"),
			}
		})
		label := rapid.Custom(func(rt *rapid.T) own.Label {
			if rapid.Bool().Draw(rt, "is a number") {
				return own.Label{Key: rapid.StringN(1, 5, 20).Draw(rt, "key"), Number: rapid.Int64().Draw(rt, "number"), Unit: "bytes"}
			}
			return own.Label{
				Key:  rapid.StringN(1, 5, 20).Draw(rt, "key"),
				Text: rapid.StringN(1, 5, 20).Draw(rt, "text"),
			}
		})
		p := &own.Profile{
			SampleTypes:       []own.ValueType{{Type: "samples", Unit: "count"}, {Type: "held", Unit: "nanoseconds"}},
			DefaultSampleType: "held",
			TimeNanos:         rapid.Int64Min(1).Draw(rt, "time"),
			Comment:           rapid.StringN(1, 5, 20).Draw(rt, "comment"),
		}
		for range rapid.IntRange(0, 5).Draw(rt, "samples") {
			p.Samples = append(p.Samples, own.Sample{
				Stack:  rapid.SliceOfN(frame, 1, 4).Draw(rt, "stack"),
				Values: rapid.SliceOfN(rapid.Int64(), 2, 2).Draw(rt, "values"),
				Labels: rapid.SliceOfNDistinct(label, 0, 4, func(l own.Label) string { return l.Key }).Draw(rt, "labels"),
			})
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
		if len(got.Sample) != len(p.Samples) || got.DefaultSampleType != "held" ||
			got.TimeNanos != p.TimeNanos || !slices.Equal(got.Comments, []string{p.Comment}) || got.SampleType[1].Unit != "nanoseconds" {
			rt.Fatalf("read is %v", got)
		}
		for i, s := range got.Sample {
			want := p.Samples[i]
			var stack []own.Frame
			for _, l := range s.Location {
				f := l.Line[0]
				stack = append(stack, own.Frame{Function: f.Function.Name, File: f.Function.Filename, Line: int(f.Line), Start: int(f.Function.StartLine)})
			}
			if !slices.Equal(stack, want.Stack) || !slices.Equal(s.Value, want.Values) {
				rt.Fatalf("sample %d is %v, %v, want %v", i, stack, s.Value, want)
			}
			texts, numbers := map[string][]string{}, map[string][]int64{}
			for _, l := range want.Labels {
				if l.Unit == "" {
					texts[l.Key] = []string{l.Text}
				} else {
					numbers[l.Key] = []int64{l.Number}
				}
			}
			if !maps.EqualFunc(s.Label, texts, slices.Equal) || !maps.EqualFunc(s.NumLabel, numbers, slices.Equal) {
				rt.Fatalf("the labels of sample %d are %v, %v, want %v", i, s.Label, s.NumLabel, want.Labels)
			}
		}
	})
}
