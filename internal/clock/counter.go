package clock

import "time"

// The exact time by the CPU's counter costs a third of the kernel's clock. The
// counter is used only where the kernel derives its own clock from it (see
// internal/tsc), and never for longer than a tick. At each tick the clock's
// goroutine reads counter and kernel. Where two intervals in a row agree on the
// counter's rate it makes a segment: the line along which time runs until the
// next look.
//
// So whatever the counter does, a time by a segment lies between its look and a
// tick later:
//
//   - If the counter jumps (a virtual machine has moved) it leaves the segment, and
//     the kernel is asked; or it stays inside, wrong by less than a tick.
//   - If it stops or runs at another rate, it is wrong by less than the time since
//     the look.
//   - The next look notices, and makes no segment until two intervals agree again.
//
// So the start of a checkout and a hold time can be wrong by a tick if they fall
// into the tick in which the counter went wrong. (More if the next look is late
// and the counter stands still; the kernel's clock then stands still too.) Neither
// the verdict on a holder nor the cutting of a silent call depends on them.

// A segment gives the time by the counter from one look to the next.
type segment struct {
	ticks uint64        // the counter at the look
	time  time.Duration // the clock's time at the look
	rate  uint64        // ns for a tick of the counter, times 1<<32
	valid uint64        // ticks of the counter for which the segment holds
}

// at returns the time when the counter was at ticks; false if the segment does
// not hold there.
func (s *segment) at(ticks uint64) (time.Duration, bool) {
	d := ticks - s.ticks // wraps around, to a large one, before the look
	return s.time + time.Duration(d*s.rate>>32), d < s.valid
}

// counterTrack is what is known of the counter's past.
type counterTrack struct {
	ticks uint64 // at the last look
	time  time.Duration
	rate  float64  // since the look before, ns for a tick; 0: there was none
	last  *segment // of the last look; may be nil
}

// rateTolerance is how much the rates of two intervals may differ. The kernel slews its clock by
// at most 500 ppm (man adjtimex).
const rateTolerance = 1. / 2048

// look notes what the counter and the clock were at one moment, and returns the
// segment that starts there and lasts for span at most; nil if the counter is not
// to be believed.
func (t *counterTrack) look(ticks uint64, now, span time.Duration) *segment {
	before := *t
	*t = counterTrack{ticks: ticks, time: now}
	if before.time == 0 {
		return nil
	}
	t.rate = float64(now-before.time) / float64(ticks-before.ticks)
	possible := t.rate > 0.1 && t.rate < 10 // of a CPU
	same := t.rate > before.rate*(1-rateTolerance) && t.rate < before.rate*(1+rateTolerance)
	if !possible || !same {
		return nil
	}
	// Time does not go back from one segment to the next. Their leads do not add
	// up, since each runs at the rate of the interval before it.
	start := now
	if before.last != nil {
		if end, ok := before.last.at(ticks); ok {
			start = max(now, end)
		}
	}
	t.last = &segment{ticks, start, uint64(t.rate * (1 << 32)), uint64(float64(span) / t.rate)}
	return t.last
}
