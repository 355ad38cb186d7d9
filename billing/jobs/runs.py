"""Runs of jobs and their findings in SQL: one row a run, one row a finding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.money.findings import Finding, mismatch
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.operations import findings, job_runs

MOST_FINDINGS = 1_000
"""Of one run that are kept as rows; its report counts them all."""
CLEAN_RUNS_KEPT = 200
"""Of one job; runs that found something or could not be done stay for ever."""
FAILED = "could not be done: "
"""Beginning of the report of a run that did not come to its end: it counts neither as clean nor as having found
something.
"""
PARTLY = "could not be done in whole: "
"""Beginning of the report of a run that could not look at everything: what it found is kept, and it is due as if it
had not run.
"""
DIFFERENCES = "The differences add up to, in millicredits: "
"""The last line of a run's report. The rows of its findings have no units, and of many only the first are kept."""
COMPLETED = or_(job_runs.c.ok, and_(job_runs.c.findings > 0, ~job_runs.c.report.startswith(PARTLY)))
PARTS_LOOKED_AT = 100


class RunRow(NamedTuple):
    """A finished run of a job: the number of its findings, and its report for people. Times in Unix milliseconds."""

    id: int
    job: str
    started_at: int
    finished_at: int
    ok: bool
    findings: int
    report: str


class FindingRow(NamedTuple):
    """A finding of a run; `expected` and `found` in the unit that its check names, else millicredits."""

    id: int
    run_id: int
    check: str
    subject: str
    expected: int
    found: int


RUN_COLUMNS = columns_of(job_runs, RunRow._fields)
FINDING_COLUMNS = columns_of(findings, FindingRow._fields)


class JobStanding(NamedTuple):
    """Summary of what the runs of a job say of now.

    `succeeded_at`: when the last one ended that came to its end, in Unix milliseconds; 0: none has. `findings` and
    `mismatch` (millicredits) are its, or those of a later run that could only look at a part, where these are more.
    `seconds`: how long the newest of these took.
    """

    succeeded_at: int
    findings: int
    mismatch: int
    seconds: float


class Runs:
    """Writes and reads runs. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def keep(self, job: str, started_at: int, found: Sequence[Finding], report: str) -> int:
        """Keep a finished run; its id."""
        async with self._db.write() as connection:
            run_id = await _insert(
                connection, job, started_at, _with_mismatch(report, found), findings=len(found), ok=not found
            )
            await _insert_findings(connection, run_id, found)
            if not found:
                await _forget_clean(connection, job)
        return run_id

    async def keep_partly(self, job: str, started_at: int, found: Sequence[Finding], report: str, problem: str) -> None:
        """Keep what a run found that could not look at everything; the same again and again is one row."""
        begins = f"{PARTLY}{problem}\n"
        report = begins + _with_mismatch(report, found)
        async with self._db.write() as connection:
            row = await _first(connection, _newest(job))
            if (
                row is not None
                and row.report.startswith(begins)
                and await _found_by(connection, row.id) == _kept(found)
            ):
                values = {"finished_at": now_ms(), "report": report}
                await connection.execute(update(job_runs).where(job_runs.c.id == row.id).values(values))
                return
            run_id = await _insert(connection, job, started_at, report, findings=len(found), ok=False)
            await _insert_findings(connection, run_id, found)

    async def keep_failure(self, job: str, started_at: int, problem: str) -> None:
        """Note that a run could not be done; the same problem again and again is one row."""
        report = FAILED + problem
        async with self._db.write() as connection:
            row = await _first(connection, _newest(job))
            if row is not None and row.report == report:
                await connection.execute(update(job_runs).where(job_runs.c.id == row.id).values(finished_at=now_ms()))
            else:
                await _insert(connection, job, started_at, report, findings=0, ok=False)

    async def completed_at(self, job: str) -> int:
        """Return when the last run began that came to its end, in Unix milliseconds; 0 when there is none."""
        async with self._db.read() as connection:
            row = await _first(connection, _newest(job).where(COMPLETED))
        return row.started_at if row is not None else 0

    async def standing(self, job: str) -> JobStanding | None:
        """Return what its runs say of now; None when none says anything."""
        async with self._db.read() as connection:
            rows = await _telling(connection, job)
        if not rows:
            return None
        last = rows[-1]
        return JobStanding(
            last.finished_at if came_to_its_end(last) else 0,
            max(row.findings for row in rows),
            max(_mismatch_of(row.report) for row in rows),
            (rows[0].finished_at - rows[0].started_at) / 1_000,
        )

    async def standing_findings(self, job: str) -> list[FindingRow]:
        """Return the findings of the runs that `standing` counts, newest first, each as its latest run has it."""
        async with self._db.read() as connection:
            run_ids = [row.id for row in await _telling(connection, job)]
            query = select(*FINDING_COLUMNS).where(findings.c.run_id.in_(run_ids))
            ordered = query.order_by(findings.c.run_id.desc(), findings.c.id).limit(MOST_FINDINGS)
            rows = [FindingRow(*row) for row in await connection.execute(ordered)]
        by: dict[tuple[str, str], int] = {}
        for row in rows:
            by.setdefault((row.check, row.subject), row.run_id)
        return [row for row in rows if by[row.check, row.subject] == row.run_id]

    async def latest(self, job: str | None, limit: int) -> list[RunRow]:
        """Return the last runs, newest first."""
        query = select(*RUN_COLUMNS).order_by(job_runs.c.id.desc()).limit(limit)
        if job is not None:
            query = query.where(job_runs.c.job == job)
        async with self._db.read() as connection:
            return [RunRow(*row) for row in await connection.execute(query)]

    async def notable(self, often: str, limit: int) -> list[RunRow]:
        """Return the last runs, newest first, without the clean ones of a job that runs often."""
        query = (
            select(*RUN_COLUMNS)
            .where(or_(job_runs.c.job != often, ~job_runs.c.ok))
            .order_by(job_runs.c.id.desc())
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [RunRow(*row) for row in await connection.execute(query)]


def came_to_its_end(run: RunRow) -> bool:
    """Tell whether a run looked at everything there is, whatever it found: COMPLETED, in Python."""
    return bool(run.ok) or (run.findings > 0 and not run.report.startswith(PARTLY))


async def _telling(connection: AsyncConnection, job: str) -> list[RunRow]:
    """Return the runs that say something of now, newest first: the last whole one and later ones that saw a part."""
    last = await _first(connection, _newest(job).where(COMPLETED))
    since = last.id if last is not None else 0
    query = _newest(job).where(job_runs.c.id > since, job_runs.c.report.startswith(PARTLY)).limit(PARTS_LOOKED_AT)
    parts = [RunRow(*row) for row in await connection.execute(query)]
    return [*parts, last] if last is not None else parts


def _newest(job: str) -> Select[Any]:
    return select(*RUN_COLUMNS).where(job_runs.c.job == job).order_by(job_runs.c.id.desc()).limit(1)


async def _first(connection: AsyncConnection, query: Select[Any]) -> RunRow | None:
    row = (await connection.execute(query)).first()
    return None if row is None else RunRow(*row)


def _with_mismatch(report: str, found: Sequence[Finding]) -> str:
    return f"{report}\n{DIFFERENCES}{mismatch(found)}" if found else report


def _mismatch_of(report: str) -> int:
    _, _, number = report.rpartition(f"\n{DIFFERENCES}")
    return int(number) if number.isdecimal() else 0


def _kept(found: Sequence[Finding]) -> list[tuple[str, str, int, int]]:
    return [(f.check[:80], f.subject[:200], f.expected, f.found) for f in found[:MOST_FINDINGS]]


async def _found_by(connection: AsyncConnection, run_id: int) -> list[tuple[str, str, int, int]]:
    columns = (findings.c.check, findings.c.subject, findings.c.expected, findings.c.found)
    query = select(*columns).where(findings.c.run_id == run_id).order_by(findings.c.id)
    return [(row[0], row[1], row[2], row[3]) for row in await connection.execute(query)]


async def _insert_findings(connection: AsyncConnection, run_id: int, found: Sequence[Finding]) -> None:
    names = ("run_id", "check", "subject", "expected", "found")
    rows = [dict(zip(names, (run_id, *values), strict=True)) for values in _kept(found)]
    if rows:
        await connection.execute(insert(findings), rows)


async def _insert(
    connection: AsyncConnection, job: str, started_at: int, report: str, *, findings: int, ok: bool
) -> int:
    row = {
        "job": job,
        "started_at": started_at,
        "finished_at": now_ms(),
        "ok": ok,
        "findings": findings,
        "report": report,
    }
    return int((await connection.execute(insert(job_runs).values(row).returning(job_runs.c.id))).scalar_one())


async def _forget_clean(connection: AsyncConnection, job: str) -> None:
    """Drop the oldest clean runs of a job that runs every few seconds."""
    clean = (job_runs.c.job == job, job_runs.c.ok)
    number = int((await connection.execute(select(func.count()).select_from(job_runs).where(*clean))).scalar_one())
    if number > CLEAN_RUNS_KEPT + CLEAN_RUNS_KEPT // 10:
        newest = select(job_runs.c.id).where(*clean).order_by(job_runs.c.id.desc()).offset(CLEAN_RUNS_KEPT).limit(1)
        limit = (await connection.execute(newest)).scalar_one()
        await connection.execute(delete(job_runs).where(*clean, job_runs.c.id <= limit))
