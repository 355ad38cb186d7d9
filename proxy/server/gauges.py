"""Shows what is SQL's and the balance store's to say: jobs, finance, the inbox, holds. And when models end.

The jobs process of every machine does this, whether it runs the jobs or not. So all machines say the same, a gauge does
not outlive the process that ran a job, and what was run by hand shows as well.
"""

import asyncio
from collections import defaultdict
from datetime import UTC, date, datetime, time, timedelta

from billing.accounting.daily_finance import Figures, Finance, day_of, span
from billing.jobs.runs import Runs
from billing.ledger.flush import Store, repeat
from billing.ledger.objects.batches import Batches
from billing.money.amounts import display_credits
from billing.money.catalogue.models import family
from billing.payments.stripe.inbox import Inbox
from billing.storage.database import Database, now_ms
from config.settings import Settings
from proxy.gateway.admission import models_ending
from proxy.gateway.services import Services
from proxy.observability.metrics import Metrics
from proxy.server.jobs import JobBook

SQL_SECONDS = 2.0
STORE_SECONDS = 1.0
MOST_MODELS = 50
RECONCILE = "reconcile"
ENDS_SECONDS = 5.0


async def publish_ends(services: Services) -> int:
    """Show when the models on sale end: in each process that serves, as each follows prices and settings."""
    ending = models_ending(services.prices, services.settings.billing, services.today())
    services.metrics.configuration.show_ends({model.name: end_of(last) for model, last in ending})
    return 0


def end_of(day: date) -> int:
    """Return when a day (UTC) is over, in Unix seconds."""
    return int(datetime.combine(day + timedelta(1), time.min, UTC).timestamp())


class Publisher:
    """Sets gauges from what is stored. Nothing here decides anything."""

    def __init__(
        self, settings: Settings, database: Database, store: Store, book: JobBook, metrics: Metrics, started_at: float
    ) -> None:
        """`started_at`: when this machine's service was started (Unix seconds), which outlives its jobs process."""
        self._runs, self._finance, self._inbox = Runs(database), Finance(database), Inbox(database)
        self._batches = Batches(database)
        self._jobs, self._store, self._metrics, self._started_at = book.schedule.jobs, store, metrics, started_at
        self._target = settings.jobs.margin_target_percent / 100
        self._shown_at = -1

    async def follow(self) -> None:
        """Publish for ever."""
        await asyncio.gather(
            repeat(self.from_sql, SQL_SECONDS, "publishing figures of SQL"),
            repeat(self.from_store, STORE_SECONDS, "publishing figures of the balance store"),
        )

    async def from_store(self) -> int:
        """Money held, by living processes and dead ones. Raises StoreUnavailable."""
        self._metrics.stores.show_holds(await self._store.outstanding())
        return 0

    async def from_sql(self) -> int:
        """Jobs, money, what Stripe told us and waits. Raises StoreUnavailable."""
        await self._publish_jobs()
        await self._publish_finance()
        depth = await self._inbox.depth()
        self._metrics.money_in.inbox_waiting.set(depth.waiting)
        self._metrics.money_in.inbox_lag.set(depth.oldest_ms / 1_000)
        self._metrics.stores.oldest_batch.set(await self._batches.oldest_ms() / 1_000)
        return 0

    async def _publish_jobs(self) -> None:
        metrics = self._metrics
        metrics.jobs.jobs_since.set(self._started_at)
        for name, job in self._jobs.items():
            metrics.jobs.job_interval.labels(name).set(job.every_seconds)
            standing = await self._runs.standing(name)
            if standing is not None:
                metrics.jobs.show_standing(name, standing)
                if name == RECONCILE:
                    metrics.jobs.reconciliation_mismatch.set(display_credits(standing.mismatch))

    async def _publish_finance(self) -> None:
        self._metrics.finance.margin_target.set(self._target)
        kept = await self._finance.kept()
        if kept.newest is None:
            return
        today = day_of(now_ms())
        # of a new day nothing is computed yet, and yesterday's figures are not its
        nothing = Figures(today.isoformat(), 0, 0, 0, 0, kept.newest.liability, 0)
        self._metrics.finance.show_today(kept.newest if kept.newest.day == nothing.day else nothing)
        if kept.closed is not None:
            self._metrics.finance.show_closed(kept.closed)
        await self._publish_models(today, kept.updated_at)

    async def _publish_models(self, today: date, updated_at: int) -> None:
        """Add up the day's usage rows: no more often than the job does."""
        if updated_at == self._shown_at:
            return
        models = await self._finance.top_models(span(today)[0], MOST_MODELS)
        costs: defaultdict[str, int] = defaultdict(int)
        for model in models:
            costs[family(model.model)] += model.cost
        self._metrics.finance.show_models(costs)
        self._shown_at = updated_at
