// Package evidence finds out what the goroutines do that hold connections.
package evidence

import (
	"runtime"
	"slices"
	"strings"

	"github.com/baldur-go/baldur/internal/callsite"
	"github.com/baldur-go/baldur/internal/checkout"
	"github.com/baldur-go/baldur/internal/stack"
)

// A Place is where the goroutine is that may give a connection back: the one that took it, or
// the one that used it last, if that is another.
type Place struct {
	Goroutine stack.G
	Doing     stack.Doing
	Reason    string        // what it waits for, as in a stack dump; "" if not known
	In        string        // the function that Frames[At] has called, if it is in a library; else ""
	Frames    []stack.Frame // from the first frame of the application on; nil if not known
	At        int           // the application's frame in Frames
	Waits     bool          // for a connection, in database/sql
	Taker     stack.Fate    // of the call of the function that took the connection, if this goroutine did
	Taking    stack.Fate    // of all the application's calls within which it was taken
}

// A Looker looks at goroutines, and keeps what it has found out about their stacks: many
// holders are in the same place. It is for one report.
type Looker struct {
	skip  callsite.Skip
	view  stack.View
	known map[key]Place
}

type key struct {
	stack [2]uint64
	site  *stack.Site
}

// NewLooker returns a Looker which names frames as the pool's reports do.
func NewLooker(skip callsite.Skip) *Looker { return &Looker{skip: skip, known: map[key]Place{}} }

// Of looks at the goroutine of a checkout.
func (l *Looker) Of(c *checkout.Checkout) Place {
	g, took := c.Last, c.Last == c.Holder
	if !took && g.State() == stack.Exited {
		g, took = c.Holder, true
	}
	return l.at(g, took, c.Site)
}

// Waits tells whether a goroutine waits for a connection of some pool, as far as a look tells.
func (l *Looker) Waits(g stack.G) bool { return l.at(g, false, nil).Waits }

const tries = 4 // looks at a goroutine that moves

func (l *Looker) at(g stack.G, took bool, site *stack.Site) Place {
	for range tries {
		if g.Look(&l.view) != stack.Moved {
			break
		}
	}
	p := Place{Goroutine: g, Doing: l.view.Doing}
	switch p.Doing {
	case stack.Ended:
		if took {
			p.Taker, p.Taking = stack.Returned, stack.Returned
		}
		return p
	case stack.Parked:
	default:
		return p
	}
	k := key{stack: l.view.ID()}
	if took {
		k.site = site
	}
	known, ok := l.known[k]
	if !ok {
		known = l.read(k.site)
		l.known[k] = known
	}
	known.Goroutine, known.Doing, known.Reason = g, p.Doing, l.view.Reason()
	return known
}

// read makes sense of the stack in the view.
func (l *Looker) read(site *stack.Site) (p Place) {
	frames := l.view.Frames()
	own := slices.IndexFunc(frames, func(f stack.Frame) bool { return !strings.HasPrefix(f.Function, "runtime.") })
	if own < 0 {
		return p
	}
	frames = frames[own:]
	p.Waits = frames[0].Function == "database/sql.(*DB).conn"
	info := callsite.Locate(frames, l.skip)
	p.Frames, p.At = info.Frames, info.At
	if p.At < len(p.Frames) {
		if i := slices.Index(frames, p.Frames[p.At]); i > 0 {
			p.In = frames[i-1].Function
		}
	}
	if site != nil {
		inner, outer := callsite.Span(site, l.skip)
		p.Taker, p.Taking = site.Fate(inner, &l.view), site.Fate(outer, &l.view)
	}
	return p
}

// Left tells whether whoever can give back the connection of a checkout has certainly left
// the application's calls within which it was taken: the goroutine that took it, and that
// which used it last.
func (l *Looker) Left(c *checkout.Checkout) bool {
	if c.Last != c.Holder && c.Last.State() != stack.Exited {
		return false
	}
	for range patience {
		p := l.at(c.Holder, true, c.Site)
		if p.Doing != stack.Running && p.Doing != stack.Moved {
			return p.Taking == stack.Returned
		}
		runtime.Gosched()
	}
	return false
}

const patience = 20 // looks at a goroutine that may be on its way out of a call
