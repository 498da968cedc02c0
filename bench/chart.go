package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// chart is a bar for each variant: the time it adds to an Exec of the null
// driver, on a logarithmic scale from 10 ns.
func (f *figures) chart() string {
	const (
		left, right, top = 300, 80, 62
		width, step      = 820, 24
		decades          = 3 // and a part of the next
	)
	type bar struct {
		name string
		ns   float64
		ours bool
	}
	var bars []bar
	for i, r := range f.null[0].results {
		if i > control {
			bars = append(bars, bar{strings.NewReplacer("*", "", "`", "").Replace(r.variant), r.added.mid, strings.Contains(r.variant, "baldur")})
		}
	}
	if f.hikari > 0 {
		bars = append(bars, bar{"HikariCP (Java), leak detection", f.hikari, false})
	}
	scale := (width - left - right) / (decades + 0.4)
	x := func(ns float64) float64 { return left + scale*math.Log10(max(ns, 10)/10) }
	height := top + step*len(bars) + 14

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" role="img" aria-label="Time added to db.Exec">
<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 14px }
.small { font-size: 11px; fill: #57606a }
line { stroke: #d0d7de }
rect { fill: #8c959f }
.ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.small { fill: #9198a1 }
line { stroke: #3d444d }
rect { fill: #656c76 }
.ours { fill: #4493f8 }
}
</style>
<text class="title" x="8" y="20">Time added to db.Exec on a driver that does nothing (which takes %s)</text>
`, width, height, width, duration(f.null[0].results[0].perOp))
	for i := range decades + 1 {
		ns := math.Pow10(i + 1)
		fmt.Fprintf(&b, `<line x1="%.0f" x2="%.0f" y1="%d" y2="%d"/><text class="small" x="%.0f" y="%d" text-anchor="middle">%s</text>`+"\n",
			x(ns), x(ns), top-8, height-8, x(ns), top-14, strings.Replace(duration(ns), ".0 ", " ", 1))
	}
	for i, v := range bars {
		y, class := top+i*step, ""
		if v.ours {
			class = ` class="ours"`
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect%s x="%d" y="%d" width="%.1f" height="%d" rx="2"/><text x="%.1f" y="%d">%s</text>`+"\n",
			left-8, y+12, html.EscapeString(v.name), class, left, y, max(1, x(v.ns)-left), step-8, max(left+1, x(v.ns))+6, y+12, duration(v.ns))
	}
	b.WriteString("</svg>\n")
	return b.String()
}
