"""What Prometheus sees of us. One registry, handed in; label sets are bounded by our own tables.

Model labels come from the price book only, so a client cannot invent a series.

Requests only add to a plain dict; `publish()` moves it into prometheus-client a few times a second, because one
labelled increment there costs 2-4 µs (memory-mapped with several processes) and a request makes ten.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from billing.accounting.daily_finance import Figures
from billing.jobs.runs import JobStanding
from billing.money.amounts import display_credits, display_usd
from billing.money.holds import Outstanding
from billing.money.pricing import family
from billing.money.usage import Usage
from billing.money.usage_record import Outcome, UsageRecord
from billing.payments.stripe.event_types import KINDS, Oddity

ADDED_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


OUR_FAILINGS = frozenset(("internal_error", "store_unavailable", "journal_full", "upstream_busy", "too_many_uploads"))
"""Codes of answers that are ours to blame for; what upstream did is not, and a switch that somebody flipped is not."""
UPSTREAM_REASONS = (
    *("connect", "busy", "closed", "malformed", "too_large", "first_byte_timeout", "idle_timeout", "total_timeout"),
    *("status_3xx", "status_4xx", "status_5xx"),
)
OTHER_TYPES = "other"
"""The label of Stripe's events that we do not handle."""
JOB_RESULTS = ("clean", "found", "failed")
WEBHOOK_SECONDS = 300
WEBHOOK_PATH = "/webhooks/stripe"
PURCHASE_PATHS = ("/api/billing/checkout", WEBHOOK_PATH, "/credits/buy")
USER_ERROR, SERVER_ERROR = 400, 500
NOT_CONFIGURED = 404
"""Not our failing, and not our success either."""


class Metrics:
    """All series of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register every series."""
        self._pending: defaultdict[tuple[Counter, tuple[str, ...]], int | float] = defaultdict(int)
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
            "tollkeeper_platform_loss_credits_total", "Credits of usage nobody could be charged", registry=registry
        )
        self.insufficient = Counter(
            "billing_402_insufficient_credits_total",
            "Requests refused for lack of credits",
            ["source"],
            registry=registry,
        )
        self.usage_source = Counter(
            "tollkeeper_usage_source_total", "Charges by where usage came from", ["source"], registry=registry
        )
        self.outcomes = Counter(
            "tollkeeper_outcomes_total", "How metered requests ended", ["outcome"], registry=registry
        )
        self.upstream_errors = Counter(
            "tollkeeper_upstream_errors_total",
            "Requests the upstream did not answer as it should",
            ["reason"],
            registry=registry,
        )
        self.implausible = Counter(
            "tollkeeper_usage_implausible_total",
            "Answers whose usage could not be believed and was counted",
            registry=registry,
        )
        self.store_errors = Counter(
            "tollkeeper_store_errors_total", "Calls a store did not answer", ["store"], registry=registry
        )
        self.first_byte = Histogram(
            "tollkeeper_first_byte_seconds", "Request to first byte of the answer", buckets=SECONDS, registry=registry
        )
        self.added = Histogram(
            "tollkeeper_added_latency_seconds",
            "Request to its being sent upstream: body, checks, hold",
            buckets=ADDED_SECONDS,
            registry=registry,
        )
        self._times = {self.first_byte: _Times(SECONDS), self.added: _Times(ADDED_SECONDS)}
        self.open_holds = Gauge(
            "tollkeeper_holds_outstanding",
            "Holds in the balance store, whoever made them",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.open_hold_credits = Gauge(
            "tollkeeper_holds_outstanding_credits",
            "Credits in those holds",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.oldest_hold = Gauge(
            "tollkeeper_holds_oldest_seconds",
            "Age of the oldest of them",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.rebuilds = Counter(
            "tollkeeper_rebuilds_total", "Buckets of Redis that were rebuilt from the ledger", registry=registry
        )
        self.journal_entries = Gauge(
            "tollkeeper_journal_entries",
            "Settled charges not yet in the ledger",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.journal_lag = Gauge(
            "tollkeeper_journal_lag_seconds",
            "Age of the oldest of them",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.store_up = Gauge(
            "tollkeeper_store_up", "1 while a store answers", ["store"], registry=registry, multiprocess_mode="livemin"
        )
        self._register_money_in(registry)
        self._register_operations(registry)
        self.refused_unseen = Counter(
            "tollkeeper_too_many_failures_total",
            "Requests refused because their address failed to authenticate too often",
            ["kind"],
            registry=registry,
        )
        self._register_objectives(registry)
        self._register_finance(registry)
        self._register_jobs(registry)
        self.upstream_connections = Gauge(
            "tollkeeper_upstream_connections",
            "Connections to OpenAI",
            ["state"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Show every counter whose labels are known: `rate()` does not see the increase that makes a series appear.

        Models are the price book's and statuses upstream's, so what is labelled with these appears with its first
        increase.
        """
        for counter, words in (
            (self.webhook_events, (*KINDS, OTHER_TYPES)),
            (self.webhook_failures, ("signature", "too_large", "unreadable", "livemode", "store", "internal")),
            (self.upstream_errors, UPSTREAM_REASONS),
            (self.outcomes, (*get_args(Outcome), *sorted(OUR_FAILINGS))),
            (self.insufficient, ("balance", "in_flight", "key_limit")),
            (self.usage_source, ("upstream", "counted", "bounded")),
            (self.store_errors, ("sql", "redis", "embedded")),
            (self.config_reloads, ("applied", "refused")),
            (self.taken_back, ("refund", "dispute")),
            (self.oddities, get_args(Oddity)),
            (self.refused_unseen, ("key", "admin", "webhook")),
        ):
            for word in words:
                counter.labels(word)
        for slo in ("deduction", "purchase", "webhook"):
            for result in ("good", "bad"):
                self.objective.labels(slo, result)

    def _register_money_in(self, registry: CollectorRegistry) -> None:
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

    def _register_operations(self, registry: CollectorRegistry) -> None:
        """Configuration. Every process sets the same, so the worst of them is what counts."""
        self.config_reloads = Counter(
            "tollkeeper_config_reloads_total",
            "Edits of the configuration by what became of them",
            ["result"],
            registry=registry,
        )
        self.config_valid = Gauge(
            "tollkeeper_config_valid",
            "1 while file and overrides are in force",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.config_restart_keys = Gauge(
            "tollkeeper_config_restart_keys",
            "Changed keys that wait for a restart",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.config_checked_at = Gauge(
            "tollkeeper_config_checked_timestamp_seconds",
            "When the process that looked longest ago looked at file and overrides",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.flag = Gauge(
            "tollkeeper_flag", "1 while a switch is on", ["flag"], registry=registry, multiprocess_mode="livemin"
        )
        self.flag_overrides = Gauge(
            "tollkeeper_flag_overrides",
            "Flags that are overridden by hand",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.rollout_percent = Gauge(
            "tollkeeper_rollout_percent",
            "Accounts that are metered, in per cent",
            registry=registry,
            multiprocess_mode="livemin",
        )

    def _register_objectives(self, registry: CollectorRegistry) -> None:
        self.objective = Counter(
            "tollkeeper_slo_total",
            "Requests that count for an objective, by whether we did our part",
            ["slo", "result"],
            registry=registry,
        )

    def _register_finance(self, registry: CollectorRegistry) -> None:
        """The running UTC day's money in USD, as the job `finance` computed it last. Floats, for display only.

        Every machine shows them as they are in SQL, whichever ran the job. `mostrecent`: a process that is started
        again shows what the one before it last showed, until it has read them itself.
        """

        def today(name: str, text: str) -> Gauge:
            return Gauge(
                f"finance_{name}_daily_usd", f"{text}, today (UTC)", registry=registry, multiprocess_mode="mostrecent"
            )

        self.purchased_daily = today("purchased", "Credits bought, with their bonus")
        self.deducted_daily = today("deducted", "Credits deducted for usage")
        self.cost_daily = today("cost", "What that usage cost us")
        self.loss_daily = today("loss", "Usage that nobody could be charged for")
        self.margin_daily = today("margin", "Deducted less cost")
        self.liability = Gauge(
            "finance_liability_credits_usd",
            "What customers hold in credits",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.margin_target = Gauge(
            "finance_margin_target_ratio",
            "The margin wanted, as a part of what is deducted",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.closed_margin = Gauge(
            "finance_closed_margin_daily_usd",
            "Deducted less cost, of the last day that is closed",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.closed_deducted = Gauge(
            "finance_closed_deducted_daily_usd",
            "Credits deducted for usage, of the last day that is closed",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        # live: of a process that was started again, the models of its yesterday are forgotten
        self.model_cost = Gauge(
            "finance_model_cost_daily_usd",
            "What a model's usage cost us, today (UTC)",
            ["model"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )

        self._models_shown: set[str] = set()

    def _register_jobs(self, registry: CollectorRegistry) -> None:
        """Labelled `task`: Prometheus calls what it scrapes `job`. All but the counter are shown as SQL has them."""
        self.reconciliation_mismatch = Gauge(
            "tollkeeper_reconciliation_mismatch_credits",
            "Sum of the differences that the last reconciliation found",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_runs = Counter(
            "tollkeeper_job_runs_total", "Runs of scheduled jobs", ["task", "result"], registry=registry
        )
        self.jobs_since = Gauge(
            "tollkeeper_jobs_started_timestamp_seconds",
            "When this machine's service was started, as its jobs process says",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_interval = Gauge(
            "tollkeeper_job_interval_seconds",
            "How often a job runs",
            ["task"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_findings = Gauge(
            "tollkeeper_job_findings",
            "Findings of a job's last run",
            ["task"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_duration = Gauge(
            "tollkeeper_job_duration_seconds",
            "Length of a job's last run",
            ["task"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.job_success = Gauge(
            "tollkeeper_job_last_success_timestamp_seconds",
            "When a job last ran to its end, whatever it found",
            ["task"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )

    def finance_today(self, figures: Figures) -> None:
        """Show the running day's figures."""
        self.purchased_daily.set(display_usd(figures.purchased))
        self.deducted_daily.set(display_usd(figures.deducted))
        self.cost_daily.set(display_usd(figures.cost))
        self.loss_daily.set(display_usd(figures.loss))
        self.margin_daily.set(display_usd(figures.margin))
        self.liability.set(display_usd(figures.liability))

    def finance_closed(self, figures: Figures) -> None:
        """Show what the last closed day came to."""
        self.closed_margin.set(display_usd(figures.margin))
        self.closed_deducted.set(display_usd(figures.deducted))

    def models_today(self, costs: Mapping[str, int]) -> None:
        """Show what each model cost today, in millicredits. Only models of our own usage rows get here."""
        self._models_shown |= costs.keys()
        for model in self._models_shown:  # a series cannot be taken back where several processes write them
            self.model_cost.labels(model).set(display_usd(costs.get(model, 0)))

    def jobs_known(self, jobs: Iterable[str]) -> None:
        """Show the runs of these jobs, of which there were none yet."""
        for job in jobs:
            for result in JOB_RESULTS:
                self.job_runs.labels(job, result)

    def job_ran(self, job: str, result: str) -> None:
        """Note a run of this process: one of JOB_RESULTS."""
        self.job_runs.labels(job, result).inc()

    def job_stands(self, job: str, standing: JobStanding) -> None:
        """Show what a job's runs, of whichever process, came to."""
        self.job_findings.labels(job).set(standing.findings)
        self.job_duration.labels(job).set(standing.seconds)
        if standing.succeeded_at:
            self.job_success.labels(job).set(standing.succeeded_at / 1_000)

    def holds(self, outstanding: Outstanding) -> None:
        """Show what is held."""
        self.open_holds.set(outstanding.holds)
        self.open_hold_credits.set(display_credits(outstanding.amount))
        self.oldest_hold.set(outstanding.oldest_ms / 1_000)

    def answered(self, endpoint: str, status: int, outcome: str) -> None:
        """Note an answer under /v1; status 499: the client left."""
        self.count(self.requests, endpoint, str(status))
        self.count(self.outcomes, outcome)
        self.count(self.objective, "deduction", "bad" if outcome in OUR_FAILINGS else "good")

    def webhook_handled(self, seconds: int | float) -> None:
        """Note that an event of Stripe's was handled, so long after it was received."""
        self.count(self.objective, "webhook", "good" if seconds <= WEBHOOK_SECONDS else "bad")

    def lost(self, loss: int) -> None:
        """Count millicredits that the ledger has booked as ours to pay. Called once a charge, by whoever books it."""
        self.count(self.loss, by=display_credits(loss))

    def orphan(self, record: UsageRecord, charged: int) -> None:
        """Count a charge whose request never ended: its process died, or broke off, and the ledger has what it owed."""
        usage = Usage(input_tokens=record.input_tokens, output_tokens=record.output_tokens)
        self.metered(family(record.model), record.held_millicredits, charged, usage, record.usage_source)

    def side_answer(self, path: str, status: int, *, selling: bool) -> None:
        """Note an answer of the side API: buying and crediting have an objective. Not `selling`: somebody switched
        buying off.

        A delivery that was refused counts neither way: Stripe's, under another secret, was not served well; and what
        anybody may post must not look like a failing of ours. WebhookFailures and the `webhook` objective are there for
        it.
        """
        if path == WEBHOOK_PATH and USER_ERROR <= status < SERVER_ERROR:
            return
        if path.startswith(PURCHASE_PATHS) and status != NOT_CONFIGURED and (selling or path == WEBHOOK_PATH):
            self.count(self.objective, "purchase", "bad" if status >= SERVER_ERROR else "good")

    def failed_too_often(self, kind: str) -> None:
        """Note a request that was refused for its address' failures; `kind` is one of failures.Kind."""
        self.count(self.refused_unseen, kind)

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
        self._times[self.first_byte].note(seconds)

    def forwarded_after(self, seconds: float) -> None:
        """Note one request's time until it was sent upstream."""
        self._times[self.added].note(seconds)

    def publish(self) -> None:
        """Move everything counted since the last time into the registry."""
        pending, self._pending = self._pending, defaultdict(int)
        for (series, labels), amount in pending.items():
            (series.labels(*labels) if labels else series).inc(amount)
        for histogram, times in self._times.items():
            times.move_to(histogram)


class _Times:
    """Observations of one histogram since they were last published."""

    def __init__(self, bounds: tuple[int | float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum: int | float = 0

    def note(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def move_to(self, histogram: Histogram) -> None:
        for bucket, number in zip(histogram._buckets, self._counts, strict=True):
            if number:
                bucket.inc(number)  # observe() takes one at a time; this is what it does
        histogram._sum.inc(self._sum)
        self._counts, self._sum = [0] * (len(self._bounds) + 1), 0
