package callsite

import (
	"strings"
	"testing"

	"github.com/baldur-go/baldur/internal/stack"
)

// TestOwnFrames: a goroutine of baldur's own that uses database/sql is told by the
// function that did so, whatever package of this module it is in, and nobody else's
// package is taken for one of them.
func TestOwnFrames(t *testing.T) {
	frames := func(functions ...string) (all []stack.Frame) {
		for _, f := range functions {
			all = append(all, stack.Frame{Function: f, File: "/nowhere/" + f[:strings.LastIndexByte(f, '/')+1] + "f.go", Line: 1})
		}
		return all
	}
	sql := standardRoot + "database/sql/sql.go"
	for _, c := range []struct {
		pkg string
		own bool
	}{
		{"github.com/baldur-go/baldur", true},
		{"github.com/baldur-go/baldur/internal/wrap", true},
		{"github.com/baldur-go/baldur/internal/leasepg", true},
		{"github.com/baldur-go/baldur/internal/deep/er", true},
		{"github.com/baldur-go/baldur/baldurhttp", false},
		{"github.com/baldur-go/baldurs", false},
		{"github.com/baldur-go/baldurs/internal/wrap", false},
		{"example.com/internal/wrap", false},
	} {
		t.Run(c.pkg, func(t *testing.T) {
			if isOwn(c.pkg) != c.own {
				t.Errorf("isOwn is %v", !c.own)
			}
			all := frames("github.com/baldur-go/baldur/internal/checkout.(*Record).Take", "github.com/baldur-go/baldur/internal/wrap.(*conn).ResetSession")
			all = append(all, stack.Frame{Function: "database/sql.(*DB).QueryContext", File: sql, Line: 1})
			all = append(all, frames(c.pkg+".ask", c.pkg+".loop")...)
			all = append(all, stack.Frame{Function: "runtime.goexit", File: standardRoot + "runtime/asm.s", Line: 1})
			info := of(all, Skip{}, stack.Frame{}, false)
			if info.Kind != "query" || info.At != 0 || len(info.Frames) < 2 || info.Frames[0].Function != c.pkg+".ask" {
				t.Errorf("%+v", info)
			}
			// With an application further out it is the call site, and what is ours is not.
			info = of(append(all[:5:5], frames("example.com/shop.main")...), Skip{}, stack.Frame{}, false)
			want := "example.com/shop.main"
			if !c.own {
				want = c.pkg + ".ask"
			}
			if info.Frames[info.At].Function != want {
				t.Errorf("%+v, want %s", info, want)
			}
		})
	}
}
