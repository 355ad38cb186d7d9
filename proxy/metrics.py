"""What Prometheus sees of us. One registry, handed in; label sets are bounded by our own tables.

Model labels come from the price book only, so a client cannot invent a series.

Requests only add to a plain dict; `publish()` moves it into prometheus-client a few times a second, because one
labelled increment there costs 2-4 µs (memory-mapped with several processes) and a request makes ten.
"""

from bisect import bisect_left
from collections import defaultdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from billing.money import display_credits
from billing.usage import Usage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


PURCHASE_PATHS = ("/api/billing/checkout", "/webhooks/stripe", "/credits/buy")
SERVER_ERROR = 500
NOT_CONFIGURED = 404
"""Not our failing, and not our success either."""


class Metrics:
    """All series of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register every series."""
        self._pending: defaultdict[tuple[Counter, tuple[str, ...]], int | float] = defaultdict(int)
        self._first_bytes = [0] * (len(SECONDS) + 1)
        self._first_byte_sum: int | float = 0
        self.requests = Counter("tollkeeper_requests_total", "Answered /v1 requests", ["endpoint", "status"], registry=registry)
        self.calls = Counter("openai_calls_total", "Requests that OpenAI answered and we metered", ["model"], registry=registry)
        self.tokens_in = Counter("openai_tokens_in_total", "Input tokens metered", ["model"], registry=registry)
        self.tokens_out = Counter("openai_tokens_out_total", "Output tokens metered", ["model"], registry=registry)
        self.deducted = Counter("billing_credits_deducted_total", "Credits charged for usage", registry=registry)
        self.held = Counter("tollkeeper_held_credits_total", "Credits held for requests that were then charged", registry=registry)
        self.loss = Counter("tollkeeper_platform_loss_credits_total", "Credits of usage nobody could be charged", registry=registry)
        self.insufficient = Counter(
            "billing_402_insufficient_credits_total", "Requests refused for lack of credits", ["source"], registry=registry
        )
        self.usage_source = Counter("tollkeeper_usage_source_total", "Charges by where usage came from", ["source"], registry=registry)
        self.outcomes = Counter("tollkeeper_outcomes_total", "How metered requests ended", ["outcome"], registry=registry)
        self.upstream_errors = Counter(
            "tollkeeper_upstream_errors_total", "Requests the upstream did not answer as it should", ["reason"], registry=registry
        )
        self.implausible = Counter(
            "tollkeeper_usage_implausible_total", "Answers whose usage could not be believed and was counted", registry=registry
        )
        self.store_errors = Counter("tollkeeper_store_errors_total", "Calls a store did not answer", ["store"], registry=registry)
        self.purchased = Counter("billing_credits_purchased_total", "Credits bought and credited", registry=registry)
        self.taken_back = Counter(
            "billing_credits_taken_back_total", "Credits taken back by refunds and disputes", ["kind"], registry=registry
        )
        self.webhook_events = Counter("stripe_webhook_events_total", "Webhook deliveries taken", ["type"], registry=registry)
        self.webhook_failures = Counter("stripe_webhook_failures_total", "Webhook deliveries not taken", ["reason"], registry=registry)
        self.event_versions = Counter(
            "stripe_event_version_mismatches_total", "Stripe events of another API version than ours", registry=registry
        )
        self.first_byte = Histogram(
            "tollkeeper_first_byte_seconds", "Request to first byte of the answer", buckets=SECONDS, registry=registry
        )
        self.open_holds = Gauge(
            "tollkeeper_holds_outstanding", "Holds this process lives by", registry=registry, multiprocess_mode="livesum"
        )
        self.open_hold_credits = Gauge(
            "tollkeeper_holds_outstanding_credits", "Credits in those holds", registry=registry, multiprocess_mode="livesum"
        )
        self.journal_entries = Gauge(
            "tollkeeper_journal_entries", "Settled charges not yet in the ledger", registry=registry, multiprocess_mode="livemax"
        )
        self.journal_lag = Gauge(
            "tollkeeper_journal_lag_seconds", "Age of the oldest of them", registry=registry, multiprocess_mode="livemax"
        )
        self.inbox_waiting = Gauge("stripe_inbox_waiting", "Stripe events not yet handled", registry=registry, multiprocess_mode="livemax")
        self.inbox_lag = Gauge("stripe_inbox_lag_seconds", "Age of the oldest of them", registry=registry, multiprocess_mode="livemax")
        self._register_operations(registry)
        self._register_objectives(registry)
        self.upstream_connections = Gauge(
            "tollkeeper_upstream_connections", "Connections to OpenAI", ["state"], registry=registry, multiprocess_mode="livesum"
        )

    def _register_operations(self, registry: CollectorRegistry) -> None:
        """Configuration. Every process sets the same, so the worst of them is what counts."""
        self.config_reloads = Counter(
            "tollkeeper_config_reloads_total", "Edits of the configuration by what became of them", ["result"], registry=registry
        )
        self.config_valid = Gauge(
            "tollkeeper_config_valid",
            "1 while file and overrides are in force",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.config_restart_keys = Gauge(
            "tollkeeper_config_restart_keys", "Changed keys that wait for a restart", registry=registry, multiprocess_mode="livemax"
        )
        self.config_checked_at = Gauge(
            "tollkeeper_config_checked_timestamp_seconds",
            "When the process that looked longest ago looked at file and overrides",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.flag = Gauge("tollkeeper_flag", "1 while a switch is on", ["flag"], registry=registry, multiprocess_mode="livemin")
        self.flag_overrides = Gauge(
            "tollkeeper_flag_overrides", "Flags that are overridden by hand", registry=registry, multiprocess_mode="livemax"
        )
        self.rollout_percent = Gauge(
            "tollkeeper_rollout_percent", "Accounts that are metered, in per cent", registry=registry, multiprocess_mode="livemin"
        )

    def _register_objectives(self, registry: CollectorRegistry) -> None:
        self.objective = Counter(
            "tollkeeper_slo_total", "Requests that count for an objective, by whether we did our part", ["slo", "result"], registry=registry
        )
        for slo in ("deduction", "purchase"):
            for result in ("good", "bad"):
                self.objective.labels(slo, result)  # there from the start, so that a rate over them is never empty

    def side_answer(self, path: str, status: int) -> None:
        """Note an answer of the side API: buying and crediting have an objective."""
        if path.startswith(PURCHASE_PATHS) and status != NOT_CONFIGURED:
            self.count(self.objective, "purchase", "bad" if status >= SERVER_ERROR else "good")

    def count(self, series: Counter, *labels: str, by: int | float = 1) -> None:
        """Add to a counter, visible at the next `publish()`."""
        self._pending[series, labels] += by

    def metered(self, model: str, held: int, charged: int, usage: Usage, source: str) -> None:
        """Count one charged request; `held` and `charged` in millicredits."""
        pending = self._pending
        pending[self.calls, (model,)] += 1
        pending[self.tokens_in, (model,)] += usage.input_tokens
        pending[self.tokens_out, (model,)] += usage.output_tokens
        pending[self.deducted, ()] += display_credits(charged)
        pending[self.held, ()] += display_credits(held)
        pending[self.usage_source, (source,)] += 1

    def first_byte_after(self, seconds: float) -> None:
        """Note one request's time to first byte."""
        self._first_bytes[bisect_left(SECONDS, seconds)] += 1
        self._first_byte_sum += seconds

    def publish(self) -> None:
        """Move everything counted since the last time into the registry."""
        pending, self._pending = self._pending, defaultdict(int)
        for (series, labels), amount in pending.items():
            (series.labels(*labels) if labels else series).inc(amount)
        for bucket, number in zip(self.first_byte._buckets, self._first_bytes, strict=True):
            if number:
                bucket.inc(number)  # observe() takes one at a time; this is what it does
        self.first_byte._sum.inc(self._first_byte_sum)
        self._first_bytes, self._first_byte_sum = [0] * (len(SECONDS) + 1), 0
