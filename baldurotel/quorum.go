package baldurotel

import (
	"context"
	"errors"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/baldur-go/baldur"
	"github.com/baldur-go/baldur/internal/text"
)

// instruments makes observable ones, and remembers them and what failed.
type instruments struct {
	meter metric.Meter
	all   []metric.Observable
	errs  []error
}

func made[T metric.Observable](i *instruments, inst T, err error) T {
	i.all, i.errs = append(i.all, inst), append(i.errs, err)
	return inst
}

func (i *instruments) counter(name, unit, what string) metric.Int64ObservableCounter {
	inst, err := i.meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(what))
	return made(i, inst, err)
}

func (i *instruments) seconds(name, what string) metric.Float64ObservableGauge {
	inst, err := i.meter.Float64ObservableGauge(name, metric.WithUnit("s"), metric.WithDescription(what))
	return made(i, inst, err)
}

// observeQuorums registers what is read from the quorums on the pool when metrics
// are collected.
func (p *pool) observeQuorums(t *baldur.Tracker, name attribute.KeyValue) (metric.Registration, error) {
	i := &instruments{meter: p.meter}
	primaries, err := p.meter.Int64ObservableUpDownCounter("baldur.quorum.primary", metric.WithUnit("{primary}"),
		metric.WithDescription("1 if this process is the primary, else 0."))
	made(i, primaries, err)
	epoch, err := p.meter.Int64ObservableGauge("baldur.quorum.epoch", metric.WithUnit("{epoch}"),
		metric.WithDescription("The fencing token of this process's hold of the lease."))
	made(i, epoch, err)
	renewTime, err := p.meter.Float64ObservableCounter("baldur.quorum.renew_time", metric.WithUnit("s"),
		metric.WithDescription("The time from the sending of renewals to their confirmation."))
	made(i, renewTime, err)
	remaining := i.seconds("baldur.quorum.belief_remaining", "How much longer this process believes that it is primary without a renewal.")
	takeoverWait := i.seconds("baldur.quorum.takeover_wait", "For how long the lease was watched before the last election that was won.")
	clockGap := i.seconds("baldur.quorum.clock_gap", "For how long the machine was suspended in this hold of the lease.")
	elections := i.counter("baldur.quorum.elections", "{election}", "Elections won by this process.")
	losses := i.counter("baldur.quorum.losses", "{loss}", "Holds of the lease that have ended.")
	renewals := i.counter("baldur.quorum.renewals", "{renewal}", "Renewals of the lease that were confirmed.")
	failures := i.counter("baldur.quorum.request.errors", "{error}", "Requests to the witness that failed.")
	rejections := i.counter("baldur.quorum.guard.rejections", "{rejection}", "Transactions that were refused since this process was not primary, or fenced.")
	if err := errors.Join(i.errs...); err != nil {
		return nil, err
	}
	return p.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		used := map[[2]string]bool{}
		for _, q := range t.Quorums() {
			lease := text.Cut(q.Lease, maxName)
			region := ownRegion(used, lease, text.Cut(q.Region, maxName))
			with := func(more ...attribute.KeyValue) metric.ObserveOption {
				return metric.WithAttributeSet(attribute.NewSet(append(more, name,
					attribute.String("baldur.quorum.lease", lease), attribute.String("baldur.quorum.region", region))...))
			}
			own, primary := with(), int64(0)
			if q.IsPrimary {
				primary = 1
				o.ObserveInt64(epoch, q.Epoch, own)
				o.ObserveFloat64(remaining, q.Remaining.Seconds(), own)
			}
			o.ObserveInt64(primaries, primary, own)
			o.ObserveInt64(elections, q.Elections, own)
			if q.Elections > 0 {
				o.ObserveFloat64(takeoverWait, q.TakeoverWait.Seconds(), own)
			}
			o.ObserveFloat64(clockGap, q.ClockGap.Seconds(), own)
			o.ObserveInt64(renewals, q.Renewals, own)
			o.ObserveFloat64(renewTime, q.RenewTotal.Seconds(), own)
			o.ObserveInt64(rejections, q.GuardRejections, own)
			for reason, n := range q.Losses {
				o.ObserveInt64(losses, n, with(attribute.String("baldur.quorum.loss.reason", string(reason))))
			}
			o.ObserveInt64(failures, q.Unanswered, with(semconv.ErrorTypeKey.String("unanswered")))
			o.ObserveInt64(failures, q.Refused, with(semconv.ErrorTypeKey.String("refused")))
		}
		return nil
	}, i.all...)
}

// ownRegion tells a second candidate of a region from the first.
func ownRegion(used map[[2]string]bool, lease, region string) string {
	own := region
	for i := 2; used[[2]string{lease, own}]; i++ {
		own = region + "#" + strconv.Itoa(i)
	}
	used[[2]string{lease, own}] = true
	return own
}
