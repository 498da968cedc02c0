package baldurotel

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/baldur-go/baldur"
)

// How long a string may be, in bytes, before it is cut.
const (
	maxName  = 255
	maxPath  = 1024
	maxText  = 4 << 10
	maxStack = 16 << 10
)

// clean makes a string fit to be exported: protobuf refuses a whole batch for
// one string that is not valid UTF-8. What is cut ends in "…".
func clean(s string, limit int) string {
	if len(s) > limit {
		cut := limit
		for i := 0; i < utf8.UTFMax && cut > 0 && !utf8.RuneStart(s[cut]); i++ {
			cut--
		}
		s = s[:cut] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// stacktrace writes frames as the Go runtime does.
func stacktrace(frames []baldur.Frame) string {
	var b strings.Builder
	for _, f := range frames {
		if b.Len() > maxStack {
			break
		}
		b.WriteString(f.Function + "\n\t" + f.File)
		if f.Line > 0 {
			b.WriteString(":" + strconv.Itoa(f.Line))
		}
		b.WriteByte('\n')
	}
	return clean(b.String(), maxStack)
}
