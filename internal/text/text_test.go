package text_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/baldur-go/baldur/internal/text"
)

// hostile draws text of characters that do something, of such that do not, and of
// bytes that are none.
func hostile() *rapid.Generator[string] {
	part := rapid.OneOf(
		rapid.SampledFrom([]string{"\x00", "\x1b[2J", "\r", "\n", "\r\n", "\t", "\x7f", "\u0085", "\u009b", "\u00ad", "\u061c", "\u180e", "\u200b", "\u200f",
			"\u2028", "\u202e", "\u2066", "\u2069", "\ufeff", "\ufffb", "\U000e0041", "\xff", "\xe2\x82", "\x80\x80\x80\x80", "\ufffd"}),
		rapid.SampledFrom([]string{" ", "  ", "a", "é", "€", "日本", "😀", `"`, `\`, "<"}),
		rapid.String(),
	)
	return rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(part, 0, 20).Draw(t, "parts"), "") })
}

// does tells, by Unicode's tables, whether a character does something to a line.
func does(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp, unicode.Bidi_Control, unicode.Join_Control) || r == '\ufeff' || r == '\u200b' || r == '\u00ad'
}

// TestClean: by Unicode's tables, for every character of the planes that have any which
// does something.
func TestClean(t *testing.T) {
	for r := range rune(0xe1000) {
		if !utf8.ValidRune(r) || 0x20000 <= r && r < 0xe0000 {
			continue
		}
		s := string(r)
		clean, lines := text.Clean("a"+s+"b"), text.Lines("a"+s+"b")
		if does(r) && clean != "a\ufffdb" {
			t.Errorf("Clean lets %U through: %q", r, clean)
		}
		if does(r) && (lines != "a"+s+"b") != (r != '\n' && r != '\t') {
			t.Errorf("Lines makes %q of %U", lines, r)
		}
		// U+180E had no width before Unicode 6.3, and tags have none.
		if clean != "a"+s+"b" && !unicode.In(r, unicode.C, unicode.Zl, unicode.Zp) && r != utf8.RuneError && !(0xe0000 <= r && r <= 0xe007f) && !(0x2060 <= r && r <= 0x206f) {
			t.Errorf("Clean replaces %U, which is harmless", r)
		}
	}
	for _, c := range []struct{ in, clean, lines string }{
		{"", "", ""},
		{"SELECT 1", "SELECT 1", "SELECT 1"},
		{"a\r\n\tb\r", "a\ufffd\ufffd\ufffdb\ufffd", "a\n\tb\ufffd"},
		{"a\xff\xfeb", "a\ufffdb", "a\ufffdb"},
	} {
		if clean, lines := text.Clean(c.in), text.Lines(c.in); clean != c.clean || lines != c.lines {
			t.Errorf("of %q: Clean makes %q, Lines %q", c.in, clean, lines)
		}
	}
}

// TestAnyText: what the functions promise of any text.
func TestAnyText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, n := hostile().Draw(t, "s"), rapid.IntRange(0, 30).Draw(t, "n")
		for name, got := range map[string]string{"Clean": text.Clean(s), "OneLine": text.OneLine(s, n), "Word": text.Word(s)} {
			if !utf8.ValidString(got) || strings.ContainsFunc(got, does) {
				t.Errorf("%s is not safe: %q", name, got)
			}
			if again := text.Clean(got); again != got {
				t.Errorf("Clean of %s makes %q of %q", name, again, got)
			}
		}
		if got := text.Lines(s); !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return does(r) && r != '\n' && r != '\t' }) {
			t.Errorf("Lines is not safe: %q", got)
		}

		valid := strings.ToValidUTF8(s, "\ufffd")
		head := text.Head(s, n)
		if len(head) > n || !utf8.ValidString(head) || !strings.HasPrefix(valid, head) {
			t.Errorf("Head is %q", head)
		}
		if rest := valid[len(head):]; rest != "" && utf8.ValidString(s) {
			if _, size := utf8.DecodeRuneInString(rest); len(head)+size <= n {
				t.Errorf("Head leaves out more than it has to: %q", head)
			}
		}
		cut := text.Cut(s, n)
		if cut != head && cut != head+text.More {
			t.Errorf("Cut is %q, and Head %q", cut, head)
		}
		if whole := head == valid; (cut == head) != whole && (whole && len(s) <= n || !whole) { // of bytes that are no text it may leave some out
			t.Errorf("Cut is %q", cut)
		}

		line := text.OneLine(s, n+1)
		if strings.TrimSpace(line) != line || strings.Contains(line, "  ") {
			t.Errorf("OneLine has white space: %q", line)
		}
		if chars := utf8.RuneCountInString(line); chars > n+1 && (chars > n+1+len([]rune(text.More)) || !strings.HasSuffix(line, text.More)) {
			t.Errorf("OneLine is longer than %d characters: %q", n+1, line)
		}

		if word := text.Word(s); word == "" || strings.ContainsRune(word, ' ') && word[0] != '"' {
			t.Errorf("Word is not one: %q", word)
		}
	})
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		in, want string
		n        int
	}{
		{"", "", 4}, {"", "", 0}, {"a", " …", 0}, {"abcd", "abcd", 4}, {"abcde", "abcd …", 4}, {"abcé", "abc …", 4}, {"€€", "€ …", 4}, {"😀", "😀", 4}, {"😀", " …", 3},
		{"ab\xff", "ab …", 4}, {"a\xff", "a\ufffd", 4}, {"\xff\xff\xff\xff\xff", "\ufffd …", 4}, {"\x80\x80\x80\x80\x80\x80", "\ufffd …", 4},
		{"a\x00\n", "a\x00\n", 4}, // what is exported may have lines
	} {
		if got := text.Cut(c.in, c.n); got != c.want {
			t.Errorf("%q, %d: got %q, want %q", c.in, c.n, got, c.want)
		}
	}
}

func TestOneLine(t *testing.T) {
	for _, c := range []struct {
		in, want string
		n        int
	}{
		{"", "", 5}, {" a\n\t b ", "a b", 5}, {"abcde", "abcde", 5}, {"abcdef", "abcde …", 5}, {"abcd ef", "abcd …", 5}, {"дождь", "дождь", 5}, {"дождик", "дожди …", 5},
		{"a\x1b[31m", "a\ufffd[31 …", 5},
		{strings.Repeat(" ", 40) + "abc", "…", 5}, // not all of a long text is looked at
		{strings.Repeat(" ", 37) + "abc", "abc", 5},
	} {
		if got := text.OneLine(c.in, c.n); got != c.want {
			t.Errorf("%q, %d: got %q, want %q", c.in, c.n, got, c.want)
		}
	}
}

func TestWord(t *testing.T) {
	for in, want := range map[string]string{
		"": `""`, "orders": "orders", "eu-west/1": "eu-west/1", "a b": `"a b"`, "a\u00a0b": `"a\u00a0b"`, `a"b`: `"a\"b"`, "\x1b[2J": `"\x1b[2J"`, "\u202e": `"\u202e"`, "\xff": `"\xff"`, "日本": "日本",
	} {
		if got := text.Word(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

// FuzzJSON: what was escaped means the same, and no character in it does something.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{"", "a", "\u202e\u2066", "\U000e0041\U000e0000\U000e007f", "é\x7f\u0085", "\u2028<&>", `\u202e`, "\ufffd", "😀"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		plain, err := json.MarshalIndent([]string{s}, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		safe := text.JSON(plain)
		if strings.ContainsFunc(string(safe), func(r rune) bool { return does(r) && r != '\n' && r != '\t' }) {
			t.Errorf("%q becomes %q", plain, safe)
		}
		var got, want []string
		if err := json.Unmarshal(safe, &got); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(plain, &want); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q means %q, and not %q", safe, got, want)
		}
	})
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1500 * time.Nanosecond: "2µs", 999_400 * time.Nanosecond: "999µs", 350*time.Millisecond + 600*time.Microsecond: "351ms", 2340 * time.Millisecond: "2.3s",
		41*time.Second + 600*time.Millisecond: "42s", 6*time.Minute + 12*time.Second: "6m12s", time.Hour: "1h0m0s", 99*time.Minute + 59*time.Second: "1h39m59s",
		100 * time.Minute: "1h40m", 47*time.Hour + 59*time.Minute + 59*time.Second: "47h59m", 48 * time.Hour: "2d0h", 76 * time.Hour: "3d4h",
	} {
		if got := text.Short(d); got != want {
			t.Errorf("%d ns: got %s, want %s", d, got, want)
		}
	}
}

func TestPlural(t *testing.T) {
	for n, want := range map[int]string{0: "0 leaks", 1: "1 leak", 2: "2 leaks"} {
		if got := text.Plural(n, "leak"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
