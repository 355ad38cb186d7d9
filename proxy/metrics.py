"""What Prometheus sees of us. One registry, handed in; label sets are bounded by our own tables.

Model labels come from the price book only, so a client cannot invent a series.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from billing.money import display_credits
from billing.usage import Usage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """All series of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register every series."""
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
        self.upstream_connections = Gauge(
            "tollkeeper_upstream_connections", "Connections to OpenAI", ["state"], registry=registry, multiprocess_mode="livesum"
        )

    def metered(self, model: str, held: int, charged: int, usage: Usage, source: str) -> None:
        """Count one charged request; `held` and `charged` in millicredits."""
        self.calls.labels(model).inc()
        self.tokens_in.labels(model).inc(usage.input_tokens)
        self.tokens_out.labels(model).inc(usage.output_tokens)
        self.deducted.inc(display_credits(charged))
        self.held.inc(display_credits(held))
        self.usage_source.labels(source).inc()
