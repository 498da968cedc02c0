package baldur_test

import (
	"testing"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/transparency"
)

// What a program sees of its driver, and the driver of the program, is the same
// with baldur between, in each capture mode. (baldurotel between, too: TestTransparent there.)
func TestTransparent(t *testing.T) {
	t.Parallel()
	var modes []transparency.Variant
	for _, m := range captureModes {
		modes = append(modes, transparency.Variant{Name: "capture " + m.name, Option: baldur.WithCapture(m.mode)})
	}
	part := func(name string, play func(*testing.T)) {
		t.Run(name, func(t *testing.T) { t.Parallel(); play(t) })
	}
	part("scripts", func(t *testing.T) { transparency.Scripts(t, modes...) })
	part("arguments", func(t *testing.T) { transparency.Arguments(t, underRace(), modes...) }) // ten times as slow, and nothing for it in the breadth
	part("faults", func(t *testing.T) { transparency.Faults(t, modes...) })
	part("random", func(t *testing.T) { transparency.Random(t, modes...) })
}
