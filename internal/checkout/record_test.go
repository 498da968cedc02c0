package checkout_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/baldur-go/baldur/internal/checkout"
	"github.com/baldur-go/baldur/internal/clock"
	"github.com/baldur-go/baldur/internal/pgtest"
	"github.com/baldur-go/baldur/internal/pqconn"
	"github.com/baldur-go/baldur/internal/stack"
)

const tick = 10 * time.Millisecond

func idle() bool { return false }

// modelled is a Record beside what it should say.
type modelled struct {
	ledger *checkout.Ledger
	rec    *checkout.Record
	hides  bool

	taken       bool // ever
	out, called bool
	inCall      bool
	closing     uint64
	inTx        bool
	unwrapped   bool
	rows        int
	seq         uint64
	start, used time.Time
	span        checkout.Span
	first, kind checkout.Kind
	query       string
	label       string

	stale   *checkout.Snapshot // of an earlier checkout
	leak    *checkout.Leak     // of this checkout
	leaks   map[*checkout.Leak]time.Duration
	holds   uint64 // counted
	held    time.Duration
	capture checkout.Capture
	site    bool // the checkout has one
	returns []checkout.Return
}

func (m *modelled) flags() (f uint64) {
	for _, b := range []struct {
		is   bool
		flag uint64
	}{{m.out, checkout.Out}, {m.inCall || m.closing != 0, checkout.InCall}, {m.called, checkout.Called}, {m.inTx, checkout.InTx}, {m.rows > 0, checkout.RowsOpen}, {m.unwrapped, checkout.Unwrapped}} {
		if b.is {
			f |= b.flag
		}
	}
	return f | m.closing
}

func (m *modelled) take() {
	now := time.Now()
	m.taken, m.out, m.called, m.inTx, m.unwrapped, m.rows = true, true, false, false, false, 0
	m.seq++
	m.start, m.used, m.label, m.leak = now, now, "", nil
	m.site = m.capture != checkout.CaptureOff
}

func (m *modelled) begin(k checkout.Kind, query string) (first bool) {
	if !m.out {
		m.take()
	}
	if m.hides {
		query = ""
	}
	if first = !m.called && !m.inCall; first {
		m.first = k
	}
	m.kind, m.query, m.inCall, m.used = k, query, true, time.Now()
	return first
}

func (m *modelled) end() {
	m.inCall, m.closing, m.unwrapped, m.called, m.used = false, 0, false, true, time.Now()
}

// TestRecord: whatever happens to a connection, its record says it.
func TestRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ rapid.TB }{t}, func(t *rapid.T) { // without T.Deadline, which is not of the bubble's time
			clk := clock.New(tick, idle)
			defer clk.Stop()
			m := &modelled{hides: rapid.IntRange(0, 3).Draw(t, "hides") == 0, leaks: map[*checkout.Leak]time.Duration{}}
			type spanKey struct{}
			removed := false
			m.ledger = checkout.NewLedger(clk, checkout.Config{HideText: m.hides,
				Span:     func(ctx context.Context) checkout.Span { s, _ := ctx.Value(spanKey{}).(checkout.Span); return s },
				Returned: func(r checkout.Return) { m.returns = append(m.returns, r) },
				Closed:   func(r *checkout.Record) { removed = r == m.rec; m.ledger.Remove(r) },
			})
			other := m.ledger.Add(nil, 1, nil) // never used
			m.rec = m.ledger.Add(nil, 2, nil)
			idleOnly := func(t *rapid.T) {
				if m.inCall || m.closing != 0 {
					t.Skip("one call at a time")
				}
			}
			queries := rapid.SampledFrom([]string{"SELECT 1", "UPDATE t", "", strings.Repeat("x", 300)})
			kinds := rapid.SampledFrom([]checkout.Kind{checkout.KindQuery, checkout.KindExec, checkout.KindTx, checkout.KindStmt, checkout.KindPing})
			ctx := context.Background()
			t.Repeat(map[string]func(*rapid.T){
				"take": func(t *rapid.T) {
					if idleOnly(t); m.out {
						t.Skip("it has to come back first")
					}
					span := checkout.Span{TraceFlags: rapid.Byte().Draw(t, "flags")}
					m.rec.Take(context.WithValue(ctx, spanKey{}, span))
					m.take()
					m.span = span
				},
				"give": func(t *rapid.T) {
					idleOnly(t)
					m.returns = nil
					if s, _, ok := m.rec.Snapshot(math.MaxInt64); ok {
						m.stale = &s
					}
					m.rec.Give()
					if !m.out {
						if len(m.returns) > 0 {
							t.Errorf("a second return: %v", m.returns)
						}
						return
					}
					held := time.Since(m.start)
					if len(m.returns) != 1 || m.returns[0].ID != m.rec.ID || m.returns[0].Held != held || m.returns[0].Span != m.span || !m.returns[0].Start.Equal(m.start) || (m.returns[0].Site != nil) != m.site {
						t.Errorf("returned %+v, after %v", m.returns, held)
					}
					if m.site && m.capture == checkout.CaptureFull {
						m.holds++
						m.held += max(1, held)
					}
					if m.leak != nil {
						m.leaks[m.leak] = max(1, held)
					}
					m.out, m.called, m.inTx, m.unwrapped, m.rows = false, false, false, false, 0
					if len(m.query) > 256 {
						m.query = ""
					}
				},
				"begin": func(t *rapid.T) { // or within a call, as in that of baldur.Raw
					if m.closing != 0 {
						t.Skip("one call at a time")
					}
					if !m.out {
						m.span = checkout.Span{}
					}
					k, q := kinds.Draw(t, "kind"), queries.Draw(t, "query")
					if got, want := m.rec.Begin(ctx, k, q), m.begin(k, q); got != want {
						t.Errorf("first of the checkout: %v", got)
					}
				},
				"resume": func(t *rapid.T) {
					idleOnly(t)
					if !m.out {
						m.span = checkout.Span{}
					}
					m.rec.Resume(ctx)
					if m.out {
						m.inCall, m.used = true, time.Now()
					} else {
						m.begin(m.kind, m.query)
					}
				},
				"drain": func(t *rapid.T) {
					idleOnly(t)
					if m.out {
						m.rec.ResumeDraining(ctx)
						m.inCall, m.closing, m.used = true, checkout.Draining, time.Now()
					}
				},
				"roll back": func(t *rapid.T) {
					if m.inCall {
						m.rec.BeginClose(checkout.Rollback)
						m.closing, m.used = checkout.Rollback, time.Now()
					}
				},
				"end": func(t *rapid.T) {
					if m.inCall {
						m.rec.End()
						m.end()
					}
				},
				"close": func(t *rapid.T) {
					idleOnly(t)
					m.rec.BeginClose(checkout.Closing)
					m.closing, m.used = checkout.Closing, time.Now()
				},
				"end close": func(t *rapid.T) {
					if m.closing != 0 && !m.inCall {
						m.rec.EndClose()
						m.closing, m.unwrapped, m.used = 0, false, time.Now()
					}
				},
				"row": func(t *rapid.T) {
					idleOnly(t)
					if !m.out {
						t.Skip("rows are of a checkout")
					}
					m.rec.BeginRow()
					m.inCall, m.used = true, time.Now()
					m.check(t)
					m.rec.EndRow()
					m.inCall = false
				},
				"rows": func(t *rapid.T) {
					if !m.inCall {
						return
					}
					if rapid.Bool().Draw(t, "open") {
						m.rec.OpenRows()
						m.rows++
					} else {
						m.rec.CloseRows()
						m.rows = max(0, m.rows-1)
					}
					m.rec.BeginRow() // publishes
					m.used = time.Now()
				},
				"tx": func(t *rapid.T) {
					if m.inCall {
						m.inTx = rapid.Bool().Draw(t, "open")
						m.rec.SetTx(m.inTx)
						m.rec.BeginRow()
						m.used = time.Now()
					}
				},
				"hand out": func(t *rapid.T) {
					if m.closing != 0 {
						t.Skip("one call at a time")
					}
					m.rec.HandOut()
					if !m.taken {
						m.take()
						m.span = checkout.Span{}
					}
					if m.out && !m.inCall {
						m.unwrapped, m.used = true, time.Now()
					}
				},
				"label": func(t *rapid.T) {
					idleOnly(t)
					label := rapid.StringN(0, 5, -1).Draw(t, "label")
					m.rec.SetLabel(label)
					if !m.out {
						m.take()
						m.span = checkout.Span{}
					}
					m.label = label
				},
				"mark": func(t *rapid.T) {
					s, _, ok := m.rec.Snapshot(math.MaxInt64)
					if m.stale != nil && m.stale.Seq != m.seq {
						if l, _ := m.rec.Mark(*m.stale, nil); l != nil {
							t.Errorf("a checkout that is over was marked")
						}
					}
					if !ok {
						return
					}
					l, fresh := m.rec.Mark(s, s.Seq)
					if l == nil || fresh != (m.leak == nil) || !fresh && l != m.leak || l.Info != s.Seq {
						t.Fatalf("marked %+v, new: %v; known: %v", l, fresh, m.leak)
					}
					m.leak, m.leaks[l] = l, 0
				},
				"returned": func(t *rapid.T) {
					for l, held := range m.leaks {
						if got, ok := l.Returned(); ok != (held > 0) || got != held {
							t.Errorf("leak of checkout %v: held %v, over: %v; want %v", l.Info, got, ok, held)
						}
					}
				},
				"capture": func(t *rapid.T) {
					m.capture = checkout.Capture(rapid.IntRange(0, 2).Draw(t, "capture"))
					m.ledger.SetCapture(m.capture)
				},
				"sleep": func(t *rapid.T) {
					time.Sleep(time.Duration(rapid.Int64Range(1, int64(3*time.Minute)).Draw(t, "for")))
					synctest.Wait() // for a tick of this moment
				},
				"": m.check,
			})

			n := m.ledger.Len()
			m.rec.Discard()
			if flags, _ := m.rec.Usage(); flags&checkout.Closing == 0 {
				t.Errorf("being closed, and flags are %b", flags)
			}
			m.rec.Closed()
			m.rec.Closed()
			if m.ledger.Len() != n-1 || !removed || !slices.Equal(m.ledger.Records(), []*checkout.Record{other}) {
				t.Errorf("of %d records %v are left", n, m.ledger.Records())
			}
			if h := m.ledger.Holds(); h.Count() != m.holds || h.Sum() != m.held {
				t.Errorf("%d holds of %v, want %d of %v", h.Count(), h.Sum(), m.holds, m.held)
			}
		})
	})
}

// check compares the record with the model.
func (m *modelled) check(t *rapid.T) {
	s, out, old := m.rec.Snapshot(math.MaxInt64)
	if out != m.out || old != m.out {
		t.Fatalf("out: %v, with a snapshot: %v; want %v", out, old, m.out)
	}
	flags, taken := m.rec.Usage()
	if flags != m.flags() || taken != m.taken || m.rec.IsOut() != m.out {
		t.Fatalf("flags %b, taken %v; want %b, %v", flags, taken, m.flags(), m.taken)
	}
	wantOut, wantClosing, wantNever := 0, 0, 1 // of the other
	switch {
	case m.out:
		wantOut = 1
	case m.closing&checkout.Closing != 0:
		wantClosing = 1
	}
	if !m.taken && m.closing&checkout.Closing == 0 {
		wantNever = 2
	}
	if out, closing := m.ledger.Count(); out != wantOut || closing != wantClosing || m.ledger.NeverOut() != wantNever {
		t.Errorf("%d out, %d closing, %d never out", out, closing, m.ledger.NeverOut())
	}
	if h := m.ledger.Holds(); h.Count() != m.holds || h.Sum() != m.held {
		t.Errorf("%d holds of %v, want %d of %v", h.Count(), h.Sum(), m.holds, m.held)
	}
	if m.rec.Query != m.query {
		t.Errorf("it keeps %q, want %q", m.rec.Query, m.query)
	}
	if !out {
		return
	}
	if s.Rec != m.rec || s.Flags != m.flags() || s.Seq != m.seq || s.Kind != m.kind || (m.called || m.inCall) && s.First != m.first || s.Label != m.label || s.Span != m.span || (s.Site != nil) != m.site {
		t.Errorf("got %+v, want %+v", s, m)
	}
	if g := stack.CurrentG(); s.Holder != g || s.Last != g {
		t.Errorf("holder %v, last %v", s.Holder, s.Last)
	}
	since := func(at time.Duration) time.Duration { return m.used.Sub(m.start) - (at - s.Start) }
	if late := since(s.Used); late < 0 || late > tick+time.Millisecond {
		t.Errorf("used %v after the checkout, want %v", s.Used-s.Start, m.used.Sub(m.start))
	}
	if _, out, old := m.rec.Snapshot(s.Start - 1); !out || old {
		t.Errorf("taken too late: out %v, a snapshot: %v", out, old)
	}
	if _, _, old := m.rec.Snapshot(s.Start); !old {
		t.Error("taken at that moment: no snapshot")
	}
}

func TestHolders(t *testing.T) {
	clk := clock.New(tick, idle)
	defer clk.Stop()
	rec := checkout.NewLedger(clk, checkout.Config{}).Add(nil, 0, nil)
	rec.Take(t.Context())
	holder := stack.CurrentG()
	var user stack.G
	var wg sync.WaitGroup
	wg.Go(func() {
		user = stack.CurrentG()
		rec.Begin(t.Context(), checkout.KindExec, "")
		rec.End()
	})
	wg.Wait()
	if s, _, _ := rec.Snapshot(math.MaxInt64); s.Holder != holder || s.Last != user {
		t.Errorf("holder %v, last %v; want %v, %v", s.Holder, s.Last, holder, user)
	}
}

// TestReaders: a snapshot is of one checkout, while the next is under way; each leak that
// is marked meanwhile is told to be over when it is.
func TestReaders(t *testing.T) {
	clk := clock.New(tick, idle)
	defer clk.Stop()
	type seqKey struct{}
	ledger := checkout.NewLedger(clk, checkout.Config{Span: func(ctx context.Context) (s checkout.Span) {
		copy(s.TraceID[:], ctx.Value(seqKey{}).(string))
		return s
	}})
	rec := ledger.Add(nil, 0, nil)
	done := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var leaks []*checkout.Leak
	for range 3 {
		wg.Go(func() {
			var last checkout.Snapshot
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				for _, r := range ledger.Records() {
					s, _, ok := r.Snapshot(math.MaxInt64)
					if !ok {
						continue
					}
					seq := strconv.FormatUint(s.Seq, 10)
					if span := strings.TrimRight(string(s.Span.TraceID[:]), "\x00"); span != seq || s.Label != "" && s.Label != seq {
						t.Errorf("checkout %s has span %s and label %s", seq, span, s.Label)
					}
					if s.Flags&(checkout.InCall|checkout.Called) != 0 && s.Query != seq {
						t.Errorf("checkout %s has query %s", seq, s.Query)
					}
					if s.Used < s.Start || s.Seq < last.Seq || s.Start < last.Start || s.Seq == last.Seq && s.Start != last.Start {
						t.Errorf("checkout %d from %v, used at %v, after %d from %v", s.Seq, s.Start, s.Used, last.Seq, last.Start)
					}
					last = s
					if l, fresh := r.Mark(s, nil); fresh {
						mu.Lock()
						leaks = append(leaks, l)
						mu.Unlock()
					}
				}
				ledger.Holds()
				ledger.Count()
			}
		})
	}
	checkouts := 0
	for marked := 0; checkouts < 20_000 || marked < 20; checkouts++ {
		n := checkouts + 1
		seq := strconv.Itoa(n)
		rec.Take(context.WithValue(t.Context(), seqKey{}, seq))
		rec.Begin(t.Context(), checkout.KindQuery, seq)
		rec.End()
		rec.SetLabel(seq)
		rec.BeginRow()
		rec.EndRow()
		if n%64 == 0 {
			runtime.Gosched()
			mu.Lock()
			marked = len(leaks)
			mu.Unlock()
		}
		rec.Give()
	}
	close(done)
	wg.Wait()
	for _, l := range leaks {
		if held, ok := l.Returned(); !ok || held <= 0 {
			t.Fatalf("a leak is said to be out, after %v", held)
		}
	}
	if n := ledger.Holds().Count(); n != uint64(checkouts) {
		t.Errorf("%d of %d holds are counted", n, checkouts)
	}
}

// connect returns a connection, and its socket.
func connect(t *testing.T, dsn string) (driver.Conn, *pqconn.Socket) {
	cfg, _, err := pqconn.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	connector, err := pqconn.NewConnector(cfg, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	inner, sock, err := pqconn.Connect(t.Context(), connector)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	return inner, sock
}

// TestSweep: which call's socket is cut, and when. Sweep is told the time.
func TestSweep(t *testing.T) {
	const grace = 5 * time.Second
	dsn := pgtest.Erring(t)
	for _, c := range []struct {
		name string
		do   func(*checkout.Record, context.Context)
		ends bool // ctx
		busy bool
		cut  bool // after the grace
	}{
		{"nothing", func(r *checkout.Record, ctx context.Context) {}, true, false, false},
		{"a call without limit", func(r *checkout.Record, ctx context.Context) { r.Begin(context.Background(), checkout.KindExec, "") }, false, false, false},
		{"a call", func(r *checkout.Record, ctx context.Context) { r.Begin(ctx, checkout.KindExec, "") }, false, true, false},
		{"a call whose ctx ends", func(r *checkout.Record, ctx context.Context) { r.Begin(ctx, checkout.KindExec, "") }, true, true, true},
		{"a call that has ended", func(r *checkout.Record, ctx context.Context) { r.Begin(ctx, checkout.KindExec, ""); r.End() }, true, false, false},
		{"between two rows", func(r *checkout.Record, ctx context.Context) {
			r.Begin(ctx, checkout.KindQuery, "")
			r.OpenRows()
			r.End()
			r.BeginRow()
			r.EndRow()
		}, true, false, false},
		{"a row", func(r *checkout.Record, ctx context.Context) {
			r.Begin(ctx, checkout.KindQuery, "")
			r.OpenRows()
			r.End()
			r.BeginRow()
		}, true, true, true},
		{"a closing", func(r *checkout.Record, ctx context.Context) { r.BeginClose(checkout.Closing) }, false, true, true},
		{"a closing that has ended", func(r *checkout.Record, ctx context.Context) { r.BeginClose(checkout.Closing); r.EndClose() }, false, false, false},
		{"a rollback", func(r *checkout.Record, ctx context.Context) {
			r.Begin(context.Background(), checkout.KindTx, "")
			r.BeginClose(checkout.Rollback)
		}, false, true, true},
		{"draining", func(r *checkout.Record, ctx context.Context) {
			r.Begin(context.Background(), checkout.KindQuery, "")
			r.End()
			r.ResumeDraining(context.Background())
		}, false, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inner, sock := connect(t, dsn)
			clk := clock.New(tick, idle)
			defer clk.Stop()
			ledger := checkout.NewLedger(clk, checkout.Config{Grace: grace})
			rec := ledger.Add(inner, 0, sock)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			rec.Take(ctx)
			c.do(rec, ctx)
			if c.ends {
				cancel()
			}
			now := clk.Kernel()
			if busy := ledger.Sweep(now); busy != c.busy || rec.WasCut() {
				t.Errorf("busy: %v, cut: %v", busy, rec.WasCut())
			}
			ledger.Sweep(now + grace - time.Second)
			if rec.WasCut() {
				t.Error("cut before the grace was over")
			}
			ledger.Sweep(now + grace)
			if rec.WasCut() != c.cut {
				t.Errorf("after the grace: cut %v", rec.WasCut())
			}
			ledger.Sweep(now + time.Hour)
			if _, err := sock.Write([]byte("X\x00\x00\x00\x04")); rec.WasCut() != c.cut || errors.Is(err, os.ErrDeadlineExceeded) != c.cut {
				t.Errorf("after an hour: cut %v, the socket says %v", rec.WasCut(), err)
			}
		})
	}
}

// TestSweepDraining: what is still being sent is read, for as long as it takes.
func TestSweepDraining(t *testing.T) {
	const grace = 5 * time.Second
	inner, sock := connect(t, pgtest.Erring(t))
	clk := clock.New(tick, idle)
	defer clk.Stop()
	ledger := checkout.NewLedger(clk, checkout.Config{Grace: grace})
	rec := ledger.Add(inner, 0, sock)
	rec.Begin(t.Context(), checkout.KindQuery, "")
	rec.ResumeDraining(t.Context())
	now := clk.Kernel()
	for range 5 {
		if _, err := inner.(driver.ExecerContext).ExecContext(t.Context(), "SELECT 1", nil); err != nil { // is something to read
			t.Fatal(err)
		}
		ledger.Sweep(now)
		now += grace - time.Millisecond
		if ledger.Sweep(now); rec.WasCut() {
			t.Fatal("cut while it was reading")
		}
	}
	if ledger.Sweep(now + grace); !rec.WasCut() {
		t.Error("not cut when nothing came")
	}
}

// TestSweepNextCall: what the call before it has used up is not taken from a call that
// began after the end of its ctx, or that drains.
func TestSweepNextCall(t *testing.T) {
	const grace = 5 * time.Second
	dsn := pgtest.Erring(t)
	for name, begin := range map[string]func(*checkout.Record, context.Context){
		"ctx":      func(r *checkout.Record, ctx context.Context) { r.Begin(ctx, checkout.KindExec, "") },
		"draining": func(r *checkout.Record, _ context.Context) { r.ResumeDraining(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			inner, sock := connect(t, dsn)
			clk := clock.New(tick, idle)
			defer clk.Stop()
			ledger := checkout.NewLedger(clk, checkout.Config{Grace: grace})
			rec := ledger.Add(inner, 0, sock)
			ctx, cancel := context.WithCancel(t.Context())
			rec.Take(ctx)
			begin(rec, ctx)
			cancel()
			before := clk.Kernel()
			ledger.Sweep(before)
			rec.End()
			for clk.Coarse() <= before.Milliseconds() { // the clock ticks
				time.Sleep(tick)
			}
			begin(rec, ctx)
			now := clk.Kernel()
			ledger.Sweep(now)
			if ledger.Sweep(before + grace); rec.WasCut() {
				t.Error("cut for what the call before it had used up")
			}
			if ledger.Sweep(now + grace); !rec.WasCut() {
				t.Error("not cut")
			}
		})
	}
}
