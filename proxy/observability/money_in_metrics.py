"""Series of purchases and of Stripe's events."""

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from billing.payments.stripe.event_types import KINDS, Oddity
from proxy.observability.zeros import start_at_zero

OTHER_TYPES = "other"
"""Label of Stripe's events that we do not handle."""


class MoneyInMetrics:
    """Credits bought and taken back, webhook deliveries, the inbox."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the series."""
        self.purchased = Counter("billing_credits_purchased_total", "Credits bought and credited", registry=registry)
        self.taken_back = Counter(
            "billing_credits_taken_back_total",
            "Credits taken back by refunds and disputes",
            ["kind"],
            registry=registry,
        )
        self.webhook_events = Counter(
            "stripe_webhook_events_total", "Webhook deliveries taken", ["type"], registry=registry
        )
        self.webhook_failures = Counter(
            "stripe_webhook_failures_total", "Webhook deliveries not taken", ["reason"], registry=registry
        )
        self.missed_events = Counter(
            "stripe_events_missed_total",
            "Events that Stripe made and that only our asking for them brought here",
            registry=registry,
        )
        self.event_versions = Counter(
            "stripe_event_version_mismatches_total", "Stripe events of another API version than ours", registry=registry
        )
        self.oddities = Counter(
            "stripe_oddities_total",
            "What Stripe told us that was handled and wants a look",
            ["kind"],
            registry=registry,
        )
        self.inbox_waiting = Gauge(
            "stripe_inbox_waiting", "Stripe events not yet handled", registry=registry, multiprocess_mode="livemax"
        )
        self.inbox_lag = Gauge(
            "stripe_inbox_lag_seconds", "Age of the oldest of them", registry=registry, multiprocess_mode="livemax"
        )
        start_at_zero(self.taken_back, ("refund", "dispute"))
        start_at_zero(self.webhook_events, (*KINDS, OTHER_TYPES))
        start_at_zero(
            self.webhook_failures, ("signature", "too_large", "clock", "unreadable", "livemode", "store", "internal")
        )
        start_at_zero(self.oddities, get_args(Oddity))
