"""Series that Prometheus scrapes. One registry, handed in; label sets are bounded by our own tables.

Model labels come from the price book only, so a client cannot invent a series.

Requests only add to a plain dict; `publish()` moves it into prometheus-client a few times a second, because one
labelled increment there costs 2-4 µs (memory-mapped with several processes) and a request makes ten.
"""

import os
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from billing.money.amounts import display_credits
from billing.money.catalogue.models import family
from billing.money.usage import Usage
from billing.money.usage_record import Outcome, UsageRecord
from proxy.observability.configuration_metrics import ConfigurationMetrics
from proxy.observability.finance_metrics import FinanceMetrics
from proxy.observability.job_metrics import JobMetrics
from proxy.observability.money_in_metrics import MoneyInMetrics
from proxy.observability.store_metrics import StoreMetrics
from proxy.observability.upstream_metrics import UpstreamMetrics
from proxy.observability.zeros import start_at_zero

ADDED_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

OUR_FAILINGS = frozenset(("internal_error", "store_unavailable", "journal_full", "upstream_busy", "too_many_uploads"))
"""Codes of answers that are ours to blame for; what upstream did is not, and a switch that somebody flipped is not."""
UPSTREAM_REASONS = (
    *("connect", "busy", "closed", "malformed", "too_large", "first_byte_timeout", "idle_timeout", "total_timeout"),
    *("coding", "status_3xx", "status_4xx", "status_5xx", "status_200_failed", "status_200_no_answer", "sideband"),
)
CONNECT_CAUSES = ("dns", "refused", "tls", "timeout", "unreachable", "local", "reset", "other")
"""Kinds of a failure to connect; see proxy/gateway/upstream/interruption.py."""
ACCOUNT_REASONS = (
    *("key", "quota", "billing", "deactivated", "organization", "region", "address", "access"),
    *("forbidden", "rate_limit"),
)
"""What the upstream may say about our own account; see proxy/gateway/answers/upstream_errors.py."""
WEBHOOK_SECONDS = 300
WEBHOOK_PATH = "/webhooks/stripe"
PURCHASE_PATHS = ("/api/billing/checkout", WEBHOOK_PATH, "/credits/buy")
USER_ERROR, SERVER_ERROR = 400, 500
NOT_CONFIGURED = 404
"""Not our failing, and not our success either."""


class Metrics:
    """All series of this process: those of requests here, the others in groups."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register every series."""
        self._registry = registry
        self._pending: defaultdict[tuple[Counter, tuple[str, ...]], int | float] = defaultdict(int)
        self._answers: defaultdict[tuple[str, int, str], int] = defaultdict(int)
        self._charges: defaultdict[tuple[str, str], _Charges] = defaultdict(_Charges)
        self._register_requests(registry)
        self._register_failures(registry)
        self._register_latencies(registry)
        self.stores = StoreMetrics(registry)
        self.upstreams = UpstreamMetrics(registry)
        self.money_in = MoneyInMetrics(registry)
        self.configuration = ConfigurationMetrics(registry)
        self.finance = FinanceMetrics(registry)
        self.jobs = JobMetrics(registry)
        self._start_at_zero()

    def _register_requests(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "tollkeeper_requests_total", "Answered /v1 requests", ["endpoint", "status"], registry=registry
        )
        self.calls = Counter(
            "openai_calls_total", "Requests that OpenAI answered and we metered", ["model"], registry=registry
        )
        self.tokens_in = Counter("openai_tokens_in_total", "Input tokens metered", ["model"], registry=registry)
        self.tokens_out = Counter("openai_tokens_out_total", "Output tokens metered", ["model"], registry=registry)
        self.deducted = Counter("billing_credits_deducted_total", "Credits charged for usage", registry=registry)
        self.held = Counter(
            "tollkeeper_held_credits_total", "Credits held for requests that were then charged", registry=registry
        )
        self.loss = Counter(
            "tollkeeper_platform_loss_credits_total",
            "Credits of usage nobody could be charged, and of money that went back beyond what was sold",
            registry=registry,
        )
        self.usage_source = Counter(
            "tollkeeper_usage_source_total", "Charges by where usage came from", ["source"], registry=registry
        )
        self.outcomes = Counter(
            "tollkeeper_outcomes_total", "How metered requests ended", ["outcome"], registry=registry
        )
        self.objective = Counter(
            "tollkeeper_slo_total",
            "Requests that count for an objective, by whether we did our part",
            ["slo", "result"],
            registry=registry,
        )

    def _register_failures(self, registry: CollectorRegistry) -> None:
        self.insufficient = Counter(
            "billing_402_insufficient_credits_total",
            "Requests refused for lack of credits",
            ["source"],
            registry=registry,
        )
        self.upstream_errors = Counter(
            "tollkeeper_upstream_errors_total",
            "Requests the upstream did not answer as it should",
            ["reason"],
            registry=registry,
        )
        self.connect_failures = Counter(
            "tollkeeper_upstream_connect_failures_total",
            "Connections to the upstream that could not be made",
            ["cause"],
            registry=registry,
        )
        self.upstream_account = Counter(
            "tollkeeper_upstream_account_errors_total",
            "Errors of the upstream's that are about our own account there",
            ["reason"],
            registry=registry,
        )
        self.implausible = Counter(
            "tollkeeper_usage_implausible_total",
            "Answers whose usage could not be believed and was counted",
            registry=registry,
        )
        self.stray_holds = Counter(
            "tollkeeper_stray_holds_total",
            "Holds that outlived their requests and were settled by the watch",
            registry=registry,
        )
        self.store_errors = Counter(
            "tollkeeper_store_errors_total", "Calls a store did not answer", ["store"], registry=registry
        )
        self.refused_unseen = Counter(
            "tollkeeper_too_many_failures_total",
            "Requests refused because their address failed to authenticate too often",
            ["kind"],
            registry=registry,
        )

    def _register_latencies(self, registry: CollectorRegistry) -> None:
        self.first_byte = Histogram(
            "tollkeeper_first_byte_seconds", "Request to first byte of the answer", buckets=SECONDS, registry=registry
        )
        self.added = Histogram(
            "tollkeeper_added_latency_seconds",
            "Request to its being sent upstream: body, checks, hold",
            buckets=ADDED_SECONDS,
            registry=registry,
        )
        self._latencies = {self.first_byte: _Latencies(SECONDS), self.added: _Latencies(ADDED_SECONDS)}

    def _start_at_zero(self) -> None:
        """Show every counter whose labels are known.

        Models are the price book's and statuses upstream's, so what is labelled with these appears with its first
        increase.
        """
        start_at_zero(self.upstream_errors, UPSTREAM_REASONS)
        start_at_zero(self.connect_failures, CONNECT_CAUSES)
        start_at_zero(self.outcomes, (*get_args(Outcome), *sorted(OUR_FAILINGS)))
        start_at_zero(self.upstream_account, ACCOUNT_REASONS)
        start_at_zero(self.insufficient, ("balance", "in_flight", "key_limit", "end_user_limit"))
        start_at_zero(self.usage_source, ("upstream", "counted", "bounded"))
        start_at_zero(self.store_errors, ("sql", "redis", "embedded"))
        start_at_zero(self.refused_unseen, ("key", "admin", "webhook"))
        for slo in ("deduction", "purchase", "webhook"):
            for result in ("good", "bad"):
                self.objective.labels(slo, result)

    def count_answer(self, endpoint: str, status: int, outcome: str) -> None:
        """Count an answer under /v1; status 499: the client left."""
        self._answers[endpoint, status, outcome] += 1

    def count_webhook_handled(self, seconds: int | float) -> None:
        """Count a handled event of Stripe's, so many seconds after it was received."""
        self.count(self.objective, "webhook", "good" if seconds <= WEBHOOK_SECONDS else "bad")

    def count_loss(self, loss: int) -> None:
        """Count millicredits that the ledger has booked as ours to pay. Called once a charge, by whoever books it."""
        self.count(self.loss, by=display_credits(loss))

    def count_abandoned(self, record: UsageRecord, charged: int) -> None:
        """Count a charge whose request never ended: its process died, or broke off, and the ledger has what it owed."""
        usage = Usage(input_tokens=record.input_tokens, output_tokens=record.output_tokens)
        self.count_charge(family(record.model), record.held_millicredits, charged, usage, record.usage_source)

    def count_side_answer(self, path: str, status: int, *, selling: bool) -> None:
        """Count an answer of the side API: buying and crediting have an objective. Not `selling`: somebody switched
        buying off.

        A delivery that was refused counts neither way: Stripe's, under another secret, was not served well; and what
        anybody may post must not look like a failing of ours. WebhookFailures and the `webhook` objective are there for
        it.
        """
        if path == WEBHOOK_PATH and USER_ERROR <= status < SERVER_ERROR:
            return
        if path.startswith(PURCHASE_PATHS) and status != NOT_CONFIGURED and (selling or path == WEBHOOK_PATH):
            self.count(self.objective, "purchase", "bad" if status >= SERVER_ERROR else "good")

    def count_refused_unseen(self, kind: str) -> None:
        """Count a request refused for its address' failures; `kind` is one of auth_failures.Kind."""
        self.count(self.refused_unseen, kind)

    def count(self, series: Counter, *labels: str, by: int | float = 1) -> None:
        """Add to a counter, visible at the next `publish()`."""
        self._pending[series, labels] += by

    def count_charge(self, model: str, held: int, charged: int, usage: Usage, source: str) -> None:
        """Count one charged request; `held` and `charged` in millicredits."""
        sums = self._charges[model, source]
        sums.calls += 1
        sums.tokens_in += usage.input_tokens
        sums.tokens_out += usage.output_tokens
        sums.charged += charged
        sums.held += held

    def observe_first_byte(self, seconds: float) -> None:
        """Record one request's seconds to first byte."""
        self._latencies[self.first_byte].observe(seconds)

    def observe_forwarded(self, seconds: float) -> None:
        """Record one request's seconds until it was sent upstream."""
        self._latencies[self.added].observe(seconds)

    def exposition(self) -> bytes:
        """Write all series of the service, of every process, in Prometheus' format."""
        self.publish()
        source = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            source = CollectorRegistry()
            MultiProcessCollector(source)  # type: ignore[no-untyped-call]
        return generate_latest(source)

    def publish(self) -> None:
        """Move everything counted since the last time into the registry."""
        answers, self._answers = self._answers, defaultdict(int)
        for (endpoint, status, outcome), number in answers.items():
            self.count(self.requests, endpoint, str(status), by=number)
            self.count(self.outcomes, outcome, by=number)
            self.count(self.objective, "deduction", "bad" if outcome in OUR_FAILINGS else "good", by=number)
        charges, self._charges = self._charges, defaultdict(_Charges)
        for (model, source), sums in charges.items():
            self.count(self.calls, model, by=sums.calls)
            self.count(self.tokens_in, model, by=sums.tokens_in)
            self.count(self.tokens_out, model, by=sums.tokens_out)
            self.count(self.deducted, by=display_credits(sums.charged))
            self.count(self.held, by=display_credits(sums.held))
            self.count(self.usage_source, source, by=sums.calls)
        pending, self._pending = self._pending, defaultdict(int)
        for (series, labels), amount in pending.items():
            (series.labels(*labels) if labels else series).inc(amount)
        for histogram, latencies in self._latencies.items():
            latencies.move_to(histogram)


@dataclass(slots=True)
class _Charges:
    """Sums of one model's charges from one source since they were last published; amounts in millicredits."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    charged: int = 0
    held: int = 0


class _Latencies:
    """Observations of one histogram since they were last published."""

    def __init__(self, bounds: tuple[int | float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum: int | float = 0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def move_to(self, histogram: Histogram) -> None:
        for bucket, number in zip(histogram._buckets, self._counts, strict=True):  # noqa: SLF001 - observe() adds one at a time
            if number:
                bucket.inc(number)
        histogram._sum.inc(self._sum)  # noqa: SLF001 - the same
        self._counts, self._sum = [0] * (len(self._bounds) + 1), 0
