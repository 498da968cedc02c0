package baldurotel

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

// Event names; the first is a span's name too.
const (
	leakEvent     = "baldur.connection.leak"
	returnedEvent = "baldur.connection.leak.returned"
)

// leaks tells the news of Tracker.Watch.
func (p *pool) leaks(news baldur.LeakReport) {
	for _, c := range slices.Concat(news.Proven, news.SuspectedLeaks) {
		attrs := append(p.leakAttributes(c), attribute.String("baldur.connection.state", string(c.State)),
			attribute.String("baldur.connection.verdict", string(c.Verdict)))
		looks := "looks leaked"
		if c.Verdict.Accuses() {
			looks = "is leaked (" + c.Evidence + ")"
		}
		body := fmt.Sprintf("connection %d of pool %s is held for %s and %s: %s; taken by %v",
			c.ConnectionID, p.name.Load().attr.Value.AsString(), text.Short(c.Held), looks, c.Doing(), c.CallSite())
		p.emit(leakEvent, log.SeverityWarn, body, news.ReportTime, c, attrs)
		if c.Span.IsValid() {
			_, s := p.tracer.Start(context.Background(), leakEvent, trace.WithAttributes(attrs...),
				trace.WithLinks(trace.Link{SpanContext: otelSpanContext(c.Span)}))
			s.End()
		}
	}
	for _, c := range news.Returned {
		body := fmt.Sprintf("connection %d of pool %s, which looked leaked, is back after %s; taken by %v",
			c.ConnectionID, p.name.Load().attr.Value.AsString(), text.Short(c.Held), c.CallSite())
		p.emit(returnedEvent, log.SeverityInfo, body, news.ReportTime, c, p.leakAttributes(c))
	}
}

func (p *pool) emit(event string, severity log.Severity, body string, at time.Time, c baldur.ConnectionInfo, attrs []attribute.KeyValue) {
	ctx := context.Background()
	if c.Span.IsValid() {
		ctx = inTrace(c.Span)
	}
	if !p.logger.Enabled(ctx, log.EnabledParameters{Severity: severity, EventName: event}) {
		return
	}
	var r log.Record
	r.SetEventName(event)
	r.SetTimestamp(at)
	r.SetSeverity(severity)
	r.SetSeverityText(severity.String())
	r.SetBody(attribute.StringValue(text.Cut(text.Clean(body), maxText)))
	r.AddAttributes(attrs...)
	p.logger.Emit(ctx, r)
}

// leakAttributes says what is known of a holder.
func (p *pool) leakAttributes(c baldur.ConnectionInfo) []attribute.KeyValue {
	attrs := []attribute.KeyValue{
		p.name.Load().attr,
		attribute.Int64("baldur.connection.id", c.ConnectionID),
		attribute.Float64("baldur.connection.held_seconds", c.Held.Seconds()),
	}
	if c.Kind != baldur.KindUnknown {
		attrs = append(attrs, attribute.String("baldur.connection.kind", string(c.Kind)))
	}
	if c.BackendPID != 0 {
		attrs = append(attrs, attribute.Int("baldur.connection.backend_pid", c.BackendPID))
	}
	if c.QueryInfo != "" && p.queryText {
		if _, query := describe(c.QueryInfo); query != "" {
			attrs = append(attrs, semconv.DBQueryText(query))
		}
	}
	return append(attrs, codeAttributes(c.CallSite(), c.StackTrace)...)
}

// codeAttributes says where a connection was taken, if that was noted.
func codeAttributes(top baldur.Frame, frames []baldur.Frame) []attribute.KeyValue {
	if len(frames) == 0 {
		return nil
	}
	attrs := []attribute.KeyValue{semconv.CodeFunctionName(text.Cut(top.Function, maxPath)), semconv.CodeStacktrace(stacktrace(frames))}
	if top.File != "" {
		attrs = append(attrs, semconv.CodeFilePath(text.Cut(top.File, maxPath)))
	}
	if top.Line > 0 {
		attrs = append(attrs, semconv.CodeLineNumber(top.Line))
	}
	return attrs
}
