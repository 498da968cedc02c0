package baldurotel

import (
	"strconv"
	"strings"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

// How long a string may be, in bytes, before text.Cut cuts it. That also makes it
// valid UTF-8: protobuf refuses a whole batch for one string that is not.
const (
	maxName  = 255
	maxPath  = 1024
	maxText  = 4 << 10
	maxStack = 16 << 10
)

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
	return text.Cut(b.String(), maxStack)
}
