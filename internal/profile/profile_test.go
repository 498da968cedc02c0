package profile

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestWrite: go tool pprof reads what was written, strange texts and numbers included.
func TestWrite(t *testing.T) {
	inner, outer := Frame{"a.F", "a.go", 3, 7}, Frame{"main.main", "main.go", 1, 9}
	p := Profile{
		SampleTypes: []ValueType{{"connections", "count"}, {"held", "nanoseconds"}}, DefaultSampleType: "held", TimeNanos: 1e9, Comment: "Größe",
		Samples: []Sample{
			{Stack: []Frame{inner, outer}, Values: []int64{1, 1 << 62}, Labels: []Label{{Key: "text", Text: "a b"}, {Key: "number", Number: -5, Unit: "id"}}},
			{Stack: []Frame{{"a.F", "a.go", 3, 8}, outer}, Values: []int64{0, 300}},
			{Stack: []Frame{inner}, Values: []int64{2, 0}},
		},
	}
	file := filepath.Join(t.TempDir(), "p")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Write(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "tool", "pprof", "-raw", file)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir(), "TZ=UTC")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	const want = `Comment: Größe
PeriodType:
Period: 0
Time: 1970-01-01 00:00:01 +0000 UTC
Samples:
connections/count held/nanoseconds[dflt]
1 4611686018427387904: 1 2
text:[a b]
number:[-5 id]
0 300: 3 2
2 0: 1
Locations
1: 0x0 M=1 a.F a.go:7:0 s=3
2: 0x0 M=1 main.main main.go:9:0 s=1
3: 0x0 M=1 a.F a.go:8:0 s=3
Mappings
1: 0x0/0x0/0x0 [FN][FL][LN]`
	var got []string
	for line := range strings.Lines(string(out)) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	if got := strings.TrimSpace(strings.Join(got, "\n")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
