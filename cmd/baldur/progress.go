package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// progress tells on stderr what is being waited for: on a terminal in one line
// that is rewritten, with the seconds once it takes some; elsewhere in a line each.
type progress struct {
	w    io.Writer
	live bool

	mu    sync.Mutex // guards the fields below
	what  string
	since time.Time
	stop  chan struct{} // closed by done; nil: nothing is shown
}

func newProgress(f *os.File) *progress {
	return &progress{w: f, live: isTerminal(f)}
}

// say replaces what is shown.
func (p *progress) say(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.live {
		fmt.Fprintln(p.w, "baldur:", what)
		return
	}
	p.what, p.since = what, time.Now()
	p.drawLocked()
	if p.stop == nil {
		p.stop = make(chan struct{})
		go p.tick(p.stop)
	}
}

// done leaves an empty line to go on in.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stop != nil {
		close(p.stop)
		p.stop = nil
		io.WriteString(p.w, "\r\x1b[K")
	}
}

func (p *progress) tick(stop chan struct{}) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		p.mu.Lock()
		if p.stop == stop {
			p.drawLocked()
		}
		p.mu.Unlock()
	}
}

func (p *progress) drawLocked() {
	const width = 79 // a line that wraps could not be rewritten
	line := []rune(p.what + " …")
	if s := int(time.Since(p.since).Seconds()); s > 1 {
		line = []rune(fmt.Sprintf("%s %d s", string(line), s))
	}
	if len(line) > width {
		line = append(line[:width-1], '…')
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", string(line))
}

// isTerminal tells whether f is a terminal that can be written to freely. The
// null device passes for one, which harms nobody.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}
