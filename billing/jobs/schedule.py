"""The schedule of the jobs, each run by one process of all machines. It is kept in SQL: it survives every restart.

A job is due when its last completed run began longer ago than its interval, or when somebody asked for it. Whoever runs
it holds its lease in SQL, renewed while it runs. Both go by the database's clock: a machine whose own is an hour ahead
would else leave a run behind after which nobody else runs the job for that hour. The row of a run is written at its
end, whatever that was: killed before it, the job is due again as soon as the lease is over.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from billing.jobs.runs import RunRow, Runs
from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.dismissals import Dismissals
from billing.ledger.flush import Step
from billing.money.errors import BillingError, StoreUnavailable
from billing.money.findings import Finding
from billing.storage.database import Database
from billing.storage.tables.operations import job_leases

log = logging.getLogger("tollkeeper.jobs")

LEASE_MS = 6_000
RENEW_SECONDS = 1.5
LOOK_SECONDS = 1.0
RETRY_SECONDS = 60.0
PARTLY_RETRY_SECONDS = 600.0
"""Of a run that could only look at a part: what it could look at, the whole ledger perhaps, is not read again every
minute.
"""
LONGEST_PROBLEM = 2_000


class JobResult(NamedTuple):
    """Findings of a run, and its report for people. `problem`: why it could not look at everything ("": it did)."""

    findings: list[Finding]
    report: str
    problem: str = ""


Run = Callable[[int], Awaitable[JobResult]]
"""Does a job; told when its last completed run began (Unix ms, 0: never).

Raises BillingError when it cannot be done now.
"""


class Job(NamedTuple):
    """A job: its name, the seconds from one run's beginning to the next one's, what it does, and that in words."""

    name: str
    every_seconds: float
    run: Run
    about: str


class JobStatus(NamedTuple):
    """A job's last run and its next.

    Times in Unix milliseconds; `last` is the row of the last run, whether it came to its end or not.
    """

    job: str
    every_seconds: float
    about: str
    last: RunRow | None
    next_due: int
    running: bool
    requested: bool


class JobIsRunning(BillingError):
    """Another process runs the job now."""


OnRun = Callable[[str, JobResult | None, float], None]
"""Told of every run: the job's name, its result (None: it could not be done), and the seconds it took."""


class Scheduler:
    """Runs jobs when they are due. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database, jobs: Sequence[Job], noted: OnRun | None = None) -> None:
        """`database` must be migrated; `noted` for metrics."""
        self._db, self._runs, self._noted = database, Runs(database), noted
        self._dismissals = Dismissals(database)
        self.jobs = {job.name: job for job in jobs}
        self._owner = secrets.token_hex(8)
        self._not_before: dict[str, float] = {}
        self._due: dict[str, float] = {}
        """Monotonic seconds before which nobody need ask SQL whether a job is due."""
        self._asked, self._looked_at = frozenset[str](), 0.0

    def steps(self) -> list[Step]:
        """One step a job, so that a long one does not hold up the others."""
        return [(self._step_of(job), LOOK_SECONDS, f"job {job.name}") for job in self.jobs.values()]

    def _step_of(self, job: Job) -> Callable[[], Awaitable[int]]:
        async def step() -> int:
            if time.monotonic() >= self._not_before.get(job.name, 0):
                await self._run_if_due(job)
            return 0

        return step

    async def _run_if_due(self, job: Job) -> None:
        if job.name not in await self._asked_for():
            if time.monotonic() < self._due.get(job.name, 0):
                return
            since = await self._now_ms() - await self._runs.completed_at(job.name)
            self._due[job.name] = time.monotonic() + job.every_seconds - since / 1_000
            if time.monotonic() < self._due[job.name]:
                return
        self._not_before[job.name] = time.monotonic() + RETRY_SECONDS  # unless it comes to its end
        try:
            result = await self.run(job.name)
        except JobIsRunning:
            self._not_before[job.name] = time.monotonic() + RENEW_SECONDS
            return
        except BillingError as error:
            log.warning("job %s could not be done: %s", job.name, error)
            return
        del self._not_before[job.name]
        if result.problem:
            log.warning("job %s could not be done in whole: %s", job.name, result.problem)
            self._due[job.name] = time.monotonic() + PARTLY_RETRY_SECONDS

    async def _asked_for(self) -> frozenset[str]:
        """Return the jobs that somebody wants run; looked up once a second for all."""
        if time.monotonic() >= self._looked_at + LOOK_SECONDS / 2:
            query = select(job_leases.c.job).where(job_leases.c.requested_at.is_not(None))
            async with self._db.read() as connection:
                self._asked = frozenset((await connection.execute(query)).scalars())
            self._looked_at = time.monotonic()
        return self._asked

    async def run(self, name: str, instead: Run | None = None, kept_as: str = "") -> JobResult:
        """Run a job now and keep what came of it. Raises JobIsRunning, and what the job raises: BillingError when it
        cannot be done.

        By hand: `instead` of what the job does by itself, `kept_as` another name, so that the schedule does not count
        it.
        """
        run, began = instead or self.jobs[name].run, time.monotonic()
        result = None
        async with self._leased(name) as started:
            try:
                result = await run(await self._runs.completed_at(name))
                result = result._replace(findings=await self._dismissals.standing(result.findings))
                if result.problem:
                    await self._runs.keep_partly(
                        kept_as or name, started, result.findings, result.report, result.problem
                    )
                else:
                    await self._runs.keep(kept_as or name, started, result.findings, result.report)
                if not kept_as:
                    await self._fulfilled(name, started)
            except Exception as error:
                # also a fault of ours: what is in no row is seen by nobody. The step logs it, with its trace
                problem = str(error) if isinstance(error, BillingError) else f"{type(error).__name__}: {error}"
                with contextlib.suppress(StoreUnavailable):
                    await self._runs.keep_failure(kept_as or name, started, problem[:LONGEST_PROBLEM])
                raise
            finally:
                if self._noted is not None:
                    self._noted(name, result, time.monotonic() - began)
        for finding in result.findings:
            log.error("%s: %s", name, finding)
        return result

    async def request(self, name: str, who: Who, reason: str) -> None:
        """Have a job run by the process that runs the jobs, as soon as it looks."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        async with self._db.write() as connection:
            wanted = {"requested_at": await self._db.clock_ms(connection)}
            insert = dialect.insert(job_leases).values(job=name, owner="", until_ms=0, **wanted)
            await connection.execute(insert.on_conflict_do_update(index_elements=["job"], set_=wanted))
            await record_change(connection, who, Change("job.run", name, None, {"requested": True}, reason))

    async def _fulfilled(self, name: str, started: int) -> None:
        """Forget requests from before a run that came to its end; one that came later asks for another."""
        asked = (job_leases.c.job == name, job_leases.c.requested_at <= started)
        async with self._db.write() as connection:
            await connection.execute(update(job_leases).where(*asked).values(requested_at=None))
        self._looked_at = 0.0

    async def status(self) -> list[JobStatus]:
        """Every job, by name."""
        async with self._db.read() as connection:
            clock = await self._db.clock_ms(connection)
            leases = {row["job"]: row for row in (await connection.execute(select(job_leases))).mappings()}
        found = []
        for name, job in sorted(self.jobs.items()):
            rows, lease = await self._runs.latest(name, 1), leases.get(name)
            completed = await self._runs.completed_at(name)
            requested = lease is not None and lease["requested_at"] is not None
            running = lease is not None and lease["until_ms"] > clock
            due = completed + round(job.every_seconds * 1_000) if completed else 0
            found.append(
                JobStatus(name, job.every_seconds, job.about, rows[0] if rows else None, due, running, requested)
            )
        return found

    @contextlib.asynccontextmanager
    async def _leased(self, name: str) -> AsyncIterator[int]:
        """Hold the job's lease for the block, which is told when it was taken; a block that loses it is cancelled.

        Raises JobIsRunning.
        """
        if not (taken := await self._take(name, first=True)):
            raise JobIsRunning(f"the job {name} is running already")
        work = asyncio.current_task()
        lost = False

        async def renew() -> None:
            nonlocal lost
            held_until = time.monotonic() + LEASE_MS / 1_000
            while time.monotonic() < held_until:
                await asyncio.sleep(RENEW_SECONDS)
                with contextlib.suppress(StoreUnavailable):
                    if not await self._take(name, first=False):
                        break
                    held_until = time.monotonic() + LEASE_MS / 1_000
            lost = True
            if work is not None:
                work.cancel()

        renewing = asyncio.create_task(renew(), name=f"lease of {name}")
        try:
            yield taken
        except asyncio.CancelledError:
            if lost and work is not None:
                work.uncancel()
                raise StoreUnavailable("sql", f"the lease of the job {name} could not be renewed") from None
            raise
        finally:
            renewing.cancel()
            with contextlib.suppress(StoreUnavailable):
                await self._release(name)

    async def _take(self, name: str, *, first: bool) -> int:
        """Take the lease, or prolong ours; return when that was (Unix ms), 0 where it is another's."""
        dialect = sqlite if self._db.is_sqlite else postgresql
        async with self._db.write() as connection:
            clock = await self._db.clock_ms(connection)
            values: dict[str, str | int] = {"owner": self._owner, "until_ms": clock + LEASE_MS}
            if not first:
                ours = update(job_leases).where(
                    job_leases.c.job == name, job_leases.c.owner == self._owner, job_leases.c.until_ms > clock
                )
                return clock if (await connection.execute(ours.values(values))).rowcount == 1 else 0
            insert = dialect.insert(job_leases).values(job=name, **values)
            free = insert.on_conflict_do_update(
                index_elements=["job"], set_=values, where=job_leases.c.until_ms <= clock
            )
            taken = (await connection.execute(free.returning(job_leases.c.job))).first() is not None
            return clock if taken else 0

    async def _release(self, name: str) -> None:
        async with self._db.write() as connection:
            await connection.execute(
                update(job_leases).where(job_leases.c.job == name, job_leases.c.owner == self._owner).values(until_ms=0)
            )

    async def _now_ms(self) -> int:
        async with self._db.read() as connection:
            return await self._db.clock_ms(connection)
