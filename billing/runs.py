"""What jobs did and what they found, in SQL: one row a run, one row a finding."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.database import Database, now_ms
from billing.findings import Finding
from billing.ops_tables import findings, job_runs

MOST_FINDINGS = 1_000
"""Of one run that are kept as rows; its report counts them all."""
CLEAN_RUNS_KEPT = 200
"""Of one job; runs that found something or could not be done stay for ever."""
FAILED = "could not be done: "
"""How the report of a run begins that did not come to its end: it counts neither as clean nor as having found something."""


class Runs:
    """Writes and reads runs. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def keep(self, job: str, started_at: int, found: Sequence[Finding], report: str) -> int:
        """Keep a finished run; its id."""
        async with self._db.write() as connection:
            run_id = await _insert(connection, job, started_at, report, findings=len(found), ok=not found)
            rows = [
                {"run_id": run_id, "check": f.check[:80], "subject": f.subject[:200], "expected": f.expected, "found": f.found}
                for f in found[:MOST_FINDINGS]
            ]
            if rows:
                await connection.execute(insert(findings), rows)
            else:
                await _forget_clean(connection, job)
        return run_id

    async def keep_failure(self, job: str, started_at: int, problem: str) -> None:
        """Note that a run could not be done; the same problem again and again is one row."""
        report = FAILED + problem
        last = select(job_runs.c.id, job_runs.c.report).where(job_runs.c.job == job).order_by(job_runs.c.id.desc()).limit(1)
        async with self._db.write() as connection:
            row = (await connection.execute(last)).first()
            if row is not None and row[1] == report:
                await connection.execute(update(job_runs).where(job_runs.c.id == row[0]).values(finished_at=now_ms()))
            else:
                await _insert(connection, job, started_at, report, findings=0, ok=False)

    async def completed_at(self, job: str) -> int:
        """When the last run began that came to its end, in Unix milliseconds; 0 when there is none."""
        query = (
            select(job_runs.c.started_at)
            .where(job_runs.c.job == job, or_(job_runs.c.ok, job_runs.c.findings > 0))
            .order_by(job_runs.c.id.desc())
            .limit(1)
        )
        async with self._db.read() as connection:
            return int((await connection.execute(query)).scalar_one_or_none() or 0)

    async def latest(self, job: str | None, limit: int) -> list[dict[str, Any]]:
        """The last runs, newest first."""
        query = select(job_runs).order_by(job_runs.c.id.desc()).limit(limit)
        if job is not None:
            query = query.where(job_runs.c.job == job)
        async with self._db.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def notable(self, often: str, limit: int) -> list[dict[str, Any]]:
        """The last runs, newest first, without the clean ones of a job that runs often."""
        query = select(job_runs).where(or_(job_runs.c.job != often, ~job_runs.c.ok)).order_by(job_runs.c.id.desc()).limit(limit)
        async with self._db.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def findings_of(self, run_id: int) -> list[dict[str, Any]]:
        """What a run found, in its order."""
        query = select(findings).where(findings.c.run_id == run_id).order_by(findings.c.id)
        async with self._db.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]


async def _insert(connection: AsyncConnection, job: str, started_at: int, report: str, *, findings: int, ok: bool) -> int:
    row = {"job": job, "started_at": started_at, "finished_at": now_ms(), "ok": ok, "findings": findings, "report": report}
    return int((await connection.execute(insert(job_runs).values(row).returning(job_runs.c.id))).scalar_one())


async def _forget_clean(connection: AsyncConnection, job: str) -> None:
    """Drop the oldest clean runs of a job that runs every few seconds."""
    clean = (job_runs.c.job == job, job_runs.c.ok)
    number = int((await connection.execute(select(func.count()).select_from(job_runs).where(*clean))).scalar_one())
    if number > CLEAN_RUNS_KEPT + CLEAN_RUNS_KEPT // 10:
        newest = select(job_runs.c.id).where(*clean).order_by(job_runs.c.id.desc()).offset(CLEAN_RUNS_KEPT).limit(1)
        limit = (await connection.execute(newest)).scalar_one()
        await connection.execute(delete(job_runs).where(*clean, job_runs.c.id <= limit))
