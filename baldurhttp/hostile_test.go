package baldurhttp

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/baldur-go/baldur"
)

const (
	markup  = "'\"><script>alert(1)</script><img src=x onerror=alert(1)> {{.}} --> </style></title></pre>"
	control = "\nLEAK? forged\r\n\npool forged: healthy\x1b[2J\x00\x07\u0085\u2028\u202egnp\u2066\u200b\xff\xfe\xc3"
)

// TestHostile: whatever a name, a label or a query holds, each format stays what
// it is, and of a bounded size.
func TestHostile(t *testing.T) {
	texts := [][2]string{ // the first is benign
		{"benign", "shop"},
		{"markup", "a" + markup},
		{"control", "a" + control},
		{"both", control + markup + control},
		{"long", "a" + strings.Repeat(markup+control, 1<<20/len(markup+control))},
		{"invalid", strings.Repeat("\xff", 1<<20)},
		{"wide", strings.Repeat("語", 1<<19)},
	}
	before := baldur.OpenDB(fake{}) // so that there is a call site from the first page on
	must(before.Query("SELECT 1")).Close()
	before.Close()
	var tags string
	for i, text := range texts {
		name, text := text[0], text[1]
		t.Run(name, func(t *testing.T) {
			db := baldur.OpenDB(fake{}, baldur.WithPoolName(text), baldur.WithLeakThreshold(20*time.Millisecond))
			defer db.Close()
			db.SetMaxOpenConns(4)
			rows := must(db.Query("SELECT 1 /*" + text + "*/"))
			defer rows.Close()
			conn := must(db.Conn(ctx))
			defer conn.Close()
			labelled := must(conn.QueryContext(ctx, text))
			defer labelled.Close()
			if err := baldur.Label(conn, text); err != nil {
				t.Fatal(err)
			}
			untilAccused(t, db, 1, 1)
			url := serve(t, WithTrackers(baldur.TrackerOf(db)))

			_, page := get(t, url)
			switch got := structure(t, page); {
			case i == 0:
				tags = got
			case got != tags:
				t.Errorf("the page's tags are\n%.3000s\nwant\n%.3000s", got, tags)
			}

			_, body := get(t, url+"report.json")
			var doc map[string]any
			if err := json.Unmarshal([]byte(body), &doc); err != nil || wellFormed(body, 200_000) != nil {
				t.Errorf("JSON: %v, %d bytes", err, len(body))
			}

			_, report := get(t, url+"report.txt")
			if err := wellFormed(report, 20_000); err != nil {
				t.Errorf("text: %v", err)
			}
			for line := range strings.Lines(report) {
				if strings.HasPrefix(line, "LEAK? forged") || strings.HasPrefix(line, "pool forged") {
					t.Errorf("the text has the line %q", line)
				}
			}

			_, body = get(t, url+"profile")
			file := filepath.Join(t.TempDir(), "baldur.pb.gz")
			if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
			raw := regexp.MustCompile(`(?s)\AComment: (.*)\nPeriodType: .*\nSamples:\n.*?\n(.*)\nLocations\n`).FindStringSubmatch(pprof(t, "-raw", file))
			if raw == nil || strings.Contains(raw[1], "\n") || len(raw[1]) > 1000 {
				t.Fatalf("profile: comment %.300q", raw)
			}
			lines := strings.Split(raw[2], "\n") // of each sample its values, texts and numbers
			if len(lines) != 2*3 {
				t.Fatalf("profile: %d lines of samples:\n%.3000s", len(lines), raw[2])
			}
			for i := 1; i < len(lines); i += 3 {
				for _, label := range regexp.MustCompile(`\] (?:kind|label|pool|query|state|verdict):\[`).Split(lines[i], -1) {
					if err := wellFormed(strings.TrimSuffix(strings.TrimSpace(label), "]"), 4*120+10); err != nil {
						t.Errorf("profile: %v: %.300q", err, label)
					}
				}
			}
			for _, as := range []string{"-raw", "-tags", "-traces"} {
				out := pprof(t, as, file)
				if err := wellFormed(out, 20_000); err != nil || strings.Contains(out, "\nLEAK? forged") {
					t.Errorf("pprof %s: %v\n%s", as, err, out)
				}
			}
		})
	}
}

// wellFormed tells what is wrong with a text: control characters, invalid UTF-8,
// or more than so many bytes.
func wellFormed(s string, size int) error {
	if len(s) > size {
		return errors.New("too long")
	}
	if !utf8.ValidString(s) {
		return errors.New("invalid UTF-8")
	}
	if i := strings.IndexFunc(s, func(r rune) bool {
		return r < ' ' && r != '\n' && r != '\t' || 0x7f <= r && r < 0xa0 || strings.ContainsRune("\u200b\u2028\u202e\u2066", r)
	}); i >= 0 {
		return errors.New("a control character: " + s[max(0, i-20):i+1])
	}
	return nil
}

// structure is a page's tags with the names of their attributes, which must not
// depend on foreign text; up to the call sites, which are more with each test.
func structure(t *testing.T, page string) string {
	t.Helper()
	if err := wellFormed(page, 100_000); err != nil {
		t.Errorf("page: %v", err)
	}
	_, rest, _ := strings.Cut(page, "</style>")
	rest, _, _ = strings.Cut(rest, "Call sites of the program")
	var b strings.Builder
	for _, tag := range regexp.MustCompile(`<[^>]*>`).FindAllString(rest, -1) {
		b.WriteString(regexp.MustCompile(`"[^"]*"`).ReplaceAllString(tag, `""`))
	}
	if strings.Count(page, "<style>") != 1 || strings.Count(page, "<title>")+strings.Count(page, "</title>") < 2 {
		t.Errorf("the head is broken:\n%.500s", page)
	}
	return b.String()
}
