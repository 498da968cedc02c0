// Package hook is what the root package and baldurotel know of each other: the
// first must not import the second, nor OpenTelemetry.
package hook

import "context"

// OTel makes the Option that baldur_otel=on stands for: a func() baldur.Option.
// It is nil where the program does not import baldurotel, whose init sets it.
var OTel any

type ownKey struct{}

// Own marks the ctx of a query of baldur's own making, which is nobody's to see
// in a trace.
func Own(ctx context.Context) context.Context { return context.WithValue(ctx, ownKey{}, true) }

// IsOwn tells whether ctx is so marked.
func IsOwn(ctx context.Context) bool { return ctx.Value(ownKey{}) != nil }
