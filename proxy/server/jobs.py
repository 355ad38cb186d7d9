"""The scheduled jobs of this product, put together from what billing checks and keeps.

The schedule is billing/jobs/schedule.py's.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import date, timedelta
from pathlib import Path

from billing.accounting.daily_finance import (
    CLOSE_AFTER_MS,
    DAY_MS,
    DailyFinance,
    Figures,
    RolledUp,
    below_target,
    day_of,
    span,
)
from billing.accounting.kept_books import check_books, keep_books
from billing.accounting.openai_costs import compare_costs, own_costs
from billing.accounting.reconcile import ReadStore, StoreFigures, check_audit, check_ledger, check_store
from billing.accounting.reconcile_charges import check_sample
from billing.balances.journal_file import read_figures
from billing.balances.redis.store import RedisBalances
from billing.jobs.expiry import Expiry
from billing.jobs.retention import drop_detail
from billing.jobs.schedule import Job, JobResult, Scheduler
from billing.ledger.audit_log import AuditLog, keep_head, read_heads
from billing.ledger.flush import raise_if_cancelled
from billing.money.amounts import display_credits, display_usd
from billing.money.errors import BillingError, NotYet
from billing.money.findings import Finding
from billing.storage.database import Database, now_ms
from billing.storage.partitions import keep_partitions
from config.errors import ConfigError
from config.settings import Settings
from proxy.customer_api.money_in import MoneyIn
from proxy.observability.metrics import Metrics
from proxy.server.openai_costs import cost_places

INBOX_KEEP_DAYS = 30
"""Days for which what a handled event carried is kept, as long as Stripe itself has it; its id stays."""
log = logging.getLogger("tollkeeper.jobs")

DAY_SECONDS = 86_400.0
STATEMENT_SECONDS = 900.0
EXPIRY, EXPIRY_SECONDS = "expiry", 60.0
"""The job that only the service itself can do, and how often it does."""
JOB_CONNECTIONS = 2
RECENT_DAYS = 2
"""Of Stripe's record, at every scheduled reconciliation; the job `stripe`, and one by hand, read 30."""
MOST_COST_DAYS = 31
SHOWN = 20

Part = tuple[list[Finding], list[str]]
"""Findings of a part of the reconciliation, and remarks beside them."""


class JobBook:
    """The work of every job. Close it at the end."""

    def __init__(
        self,
        settings: Settings,
        read_store: ReadStore | None,
        money: MoneyIn,
        metrics: Metrics,
        expiry: Expiry | None = None,
    ) -> None:
        """`read_store` None: there is no balance store to compare with; `expiry` None: balances are another process's.

        `money` is whoever's it is. Raises ConfigError.
        """
        database = settings.database
        # connections of its own: whole tables are read, and nobody who serves may wait for that
        self.database = Database(database.url, JOB_CONNECTIONS, database.timeout_seconds, STATEMENT_SECONDS)
        self.finance = DailyFinance(self.database)
        self._settings, self._read_store, self._money, self._metrics = settings, read_store, money, metrics
        self._asks_costs, self._expiry = bool(cost_places(settings)), expiry
        self.schedule = Scheduler(self.database, self._jobs(), self._noted)
        metrics.jobs.start_at_zero(self.schedule.jobs)

    async def close(self) -> None:
        """Close connections."""
        await self.database.close()

    def _jobs(self) -> list[Job]:
        conf, advanced = self._settings.jobs, self._settings.advanced
        found = [
            Job(
                "finance",
                advanced.finance_seconds,
                self._finance,
                "daily figures, margin against its target, liability",
            ),
            Job("reconcile", conf.reconcile_minutes * 60.0, self._reconcile, "everything against everything"),
            Job(EXPIRY, EXPIRY_SECONDS, self._expire, "credits that expire, announced and taken"),
        ]
        if self._money.keys is not None:
            every = advanced.sweep_minutes * 60.0
            found.append(Job("sweep", every, self._sweep, "ask Stripe for what never reached us"))
            found.append(
                Job("stripe", DAY_SECONDS, self._stripe, "30 days of Stripe's record against purchases and the ledger")
            )
        if self._asks_costs:
            found.append(Job("costs", DAY_SECONDS, self._costs, "our cost against OpenAI's, by day and model"))
        if conf.usage_keep_days:
            found.append(
                Job(
                    "retention",
                    DAY_SECONDS,
                    self._retention,
                    f"drop usage detail older than {conf.usage_keep_days} days",
                )
            )
        if not self.database.is_sqlite:
            found.append(
                Job("partitions", DAY_SECONDS, self._partitions, "make the coming months' partitions of usage")
            )
        return found

    # -- finance ----------------------------------------------------------------------------------

    async def _finance(self, since: int) -> JobResult:
        now = now_ms()
        rolled = await self.finance.roll_up(now)
        books = await keep_books(self.database, now)
        # also what an earlier run closed that was killed before it could report
        kept = [day for day in await self.finance.days(MOST_COST_DAYS) if since < _closes_at(day) <= now]
        closed = {day.day: day for day in (*kept, *rolled.closed)}
        found = below_target([closed[day] for day in sorted(closed)], self._settings.jobs.margin_target_percent)
        today = rolled.days[0]
        report = [
            f"{today.day}: margin ${display_usd(today.margin)}, liability {display_credits(today.liability)} credits."
        ]
        report += [f"The books at the end of {day.isoformat()} are kept." for day in books]
        return JobResult(found, "\n".join(report + _shown(found)))

    async def finance_days(self, days: int) -> tuple[JobResult, RolledUp]:
        """So many days computed anew, with the finished ones whose margin was below target."""
        rolled = await self.finance.roll_up(now_ms(), days)
        today = day_of(now_ms()).isoformat()
        finished = [day for day in rolled.days if day.day < today]
        found = below_target(finished, self._settings.jobs.margin_target_percent)
        return JobResult(found, "\n".join([f"{len(rolled.days)} days computed.", *_shown(found)])), rolled

    # -- reconcile --------------------------------------------------------------------------------

    async def _reconcile(self, _since: int) -> JobResult:
        return await self.reconcile(RECENT_DAYS if self.asks_stripe else 0)

    @property
    def asks_stripe(self) -> bool:
        """Tell whether a whole reconciliation asks Stripe for its record."""
        return self._money.keys is not None

    async def reconcile(self, stripe_days: int, missing: Sequence[str] = ()) -> JobResult:
        """Every check, each by itself: one that cannot be made takes nothing away from the others. Raises when none
        could be.

        `stripe_days` of Stripe's record are compared; 0: Stripe is not asked. `missing`: what should be compared and
        cannot be.
        """
        began = time.monotonic()
        parts: list[tuple[str, Callable[[], Awaitable[Part]]]] = [
            ("the ledger", self._of(check_ledger)),
            ("kept books", self._of(check_books)),
        ]
        if self._read_store is not None:
            parts.append(("the balance store", self._of_store))
        parts.append(("purchases", self._of(self._money.check_ledger)))
        if stripe_days:
            parts.append(
                ("Stripe's record", self._of(lambda database: self._money.check_stripe(database, stripe_days)))
            )
        parts += [("the sample of charges", self._of_sample), ("the audit log", self._of_audit)]
        found: list[Finding] = []
        notes: list[str] = []
        failed: dict[str, Exception] = {}
        for name, check in parts:
            try:
                findings, more = await check()
            except Exception as error:
                raise_if_cancelled()
                # also a fault of ours in one check: the others have looked at money, and what they saw must be kept
                if not isinstance(error, BillingError):
                    log.exception("%s could not be checked", name)
                failed[name] = error
                continue
            found += findings
            notes += more
        if len(failed) == len(parts):
            raise next(iter(failed.values()))
        notes.append(f"{time.monotonic() - began:.1f} s.")
        problems = [*missing, *(f"{name}: {_words(error)}" for name, error in failed.items())]
        summary = _summary(found, whole=not problems)
        return JobResult(found, "\n".join([*summary, *notes]), "; ".join(problems))

    def _of(self, check: Callable[[Database], Awaitable[list[Finding]]]) -> Callable[[], Awaitable[Part]]:
        async def part() -> Part:
            return await check(self.database), []

        return part

    async def _of_store(self) -> Part:
        if self._read_store is None:
            return [], []
        compared = await check_store(self.database, self._read_store)
        busy = f"{len(compared.busy)} accounts were too busy to be compared with the balance store."
        return compared.findings, [busy] if compared.busy else []

    async def _of_sample(self) -> Part:
        sampled = await check_sample(self.database)
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(sampled.excluded.items()))
        return sampled.findings, [
            f"{sampled.priced} requests priced again{f', passed over: {reasons}' if reasons else ''}."
        ]

    async def _of_audit(self) -> Part:
        """Compare the chain with the heads that were kept, then keep its head of now: outside of SQL, where a chain
        that is written anew as a whole shows.
        """
        name = self._settings.jobs.audit_head_file
        path, known = Path(name), list[str]()
        if name:
            with contextlib.suppress(FileNotFoundError):  # nothing was kept yet
                known = await asyncio.to_thread(read_heads, path)
        found = await check_audit(self.database, known)
        head = await AuditLog(self.database).head()
        log.info("the audit log's head is %d %s", head.id, head.hash)
        if name and not found and head.id:
            await asyncio.to_thread(keep_head, path, head)
        return found, []

    async def _stripe(self, _since: int) -> JobResult:
        found = await self._money.check(self.database)
        return JobResult(found, "\n".join(_summary(found)))

    async def _sweep(self, _since: int) -> JobResult:
        """Put things right; each is a finding, since somebody was told later than they should have been."""
        swept = await self._money.sweep()
        found = [Finding("had not reached us", line, 0, 1, 0) for line in swept.fixed]
        seen = f"{swept.events} events at Stripe, {swept.missed_events} had not reached us"
        emptied = await self._money.inbox.drop_payloads(now_ms() - INBOX_KEEP_DAYS * DAY_MS)
        report = f"{seen}; {len(swept.fixed)} objects put right."
        report += f" What {emptied} old events carried was dropped." if emptied else ""
        return JobResult(found, "\n".join([report, *_shown(found)]), "; ".join(swept.problems[:SHOWN]))

    # -- costs ------------------------------------------------------------------------------------

    async def _costs(self, since: int) -> JobResult:
        yesterday = day_of(now_ms()) - timedelta(days=1)
        first = min(day_of(since), yesterday) if since else yesterday
        return await self.costs(max(first, yesterday - timedelta(days=MOST_COST_DAYS)), yesterday)

    async def costs(self, first: date, last: date) -> JobResult:
        """Compare finished days. Raises ConfigError, StoreUnavailable."""
        places = cost_places(self._money.settings)
        if not places:
            problem = "is not set, so OpenAI's costs are not asked for"
            raise ConfigError("environment", "OPENAI_ADMIN_KEY", problem, "set it, or jobs.openai_admin_key_file")
        found: list[Finding] = []
        lines = []
        for place in places:
            named = f"{place.name} " if place.name else ""
            for day, billed in (await place.costs.days(first, last)).items():
                ours = await own_costs(self.database, day, place.upstreams)
                differences = compare_costs(day, ours, billed, self._settings.jobs.cost_tolerance_percent)
                found += [one._replace(subject=f"{named}{one.subject}") for one in differences]
                own, theirs = sum(cost.amount for cost in ours.values()), sum(billed.values())
                lines.append(f"{named}{day.isoformat()}: ours ${display_usd(own)}, OpenAI's ${theirs:f}.")
        return JobResult(found, "\n".join(lines + _shown(found)))

    # -- credits that expire ----------------------------------------------------------------------

    async def _expire(self, _since: int) -> JobResult:
        if self._expiry is None:
            raise NotYet("only the service can take credits out of the balances that it holds")
        done = await self._expiry.run(self._money.settings.credits.announce_expiry_days * DAY_MS)
        taken = f"{display_credits(done.millicredits)} credits of {done.expired} expired"
        return JobResult([], f"{done.announced} announced; {taken}.")

    # -- upkeep -----------------------------------------------------------------------------------

    async def _retention(self, _since: int) -> JobResult:
        dropped = await drop_detail(self.database, self._settings.jobs.usage_keep_days, now_ms())
        return JobResult([], f"Dropped {dropped.rows} usage rows from before {day_of(dropped.before_ms).isoformat()}.")

    async def _partitions(self, _since: int) -> JobResult:
        keep = self._settings.jobs.usage_keep_days
        before = (now_ms() // DAY_MS - keep) * DAY_MS if keep else None
        kept = await keep_partitions(self.database, day_of(now_ms()), before)
        lines = [f"Made: {', '.join(kept.made) or 'nothing'}. Dropped: {', '.join(kept.dropped) or 'nothing'}."]
        return JobResult(kept.findings, "\n".join(lines + _shown(kept.findings)))

    def _noted(self, name: str, result: JobResult | None, _seconds: float) -> None:
        failed = result is None or bool(result.problem)
        self._metrics.jobs.count_run(
            name, "failed" if failed else "found" if result is not None and result.findings else "clean"
        )


def store_reader(settings: Settings, store: RedisBalances | None) -> ReadStore:
    """Make the reader of the balance store: Redis, else the file of the embedded one."""
    if store is not None:
        return store.all_figures
    path = Path(settings.embedded.path)

    async def read(only: Collection[str] | None) -> StoreFigures:
        return await asyncio.to_thread(read_figures, path, only)

    return read


def _closes_at(figures: Figures) -> int:
    return span(date.fromisoformat(figures.day))[1] + CLOSE_AFTER_MS


def _summary(found: Sequence[Finding], *, whole: bool = True) -> list[str]:
    if not found:
        return ["Everything agrees." if whole else "Everything else agrees."]
    checks = Counter(finding.check for finding in found)
    return [f"{number} × {check}" for check, number in sorted(checks.items())] + _shown(found)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, BillingError) else f"{type(error).__name__}: {error}"


def _shown(found: Sequence[Finding]) -> list[str]:
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [str(finding) for finding in found[:SHOWN]] + more
