"""What jobs did and what they found, in SQL: one row a run, one row a finding."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select

from billing.database import Database, now_ms
from billing.ops_tables import findings, job_runs
from billing.reconcile import Finding

MOST_FINDINGS = 1_000
"""Of one run that are kept as rows; its report counts them all."""


class Runs:
    """Writes and reads runs. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def keep(self, job: str, started_at: int, found: Sequence[Finding], report: str) -> int:
        """Keep a finished run; its id."""
        async with self._db.write() as connection:
            row = {
                "job": job,
                "started_at": started_at,
                "finished_at": now_ms(),
                "ok": not found,
                "findings": len(found),
                "report": report,
            }
            run_id = int((await connection.execute(insert(job_runs).values(row).returning(job_runs.c.id))).scalar_one())
            rows = [
                {"run_id": run_id, "check": f.check[:80], "subject": f.subject[:200], "expected": f.expected, "found": f.found}
                for f in found[:MOST_FINDINGS]
            ]
            if rows:
                await connection.execute(insert(findings), rows)
        return run_id

    async def latest(self, job: str | None, limit: int) -> list[dict[str, Any]]:
        """The last runs, newest first."""
        query = select(job_runs).order_by(job_runs.c.id.desc()).limit(limit)
        if job is not None:
            query = query.where(job_runs.c.job == job)
        async with self._db.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def findings_of(self, run_id: int) -> list[dict[str, Any]]:
        """What a run found, in its order."""
        query = select(findings).where(findings.c.run_id == run_id).order_by(findings.c.id)
        async with self._db.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]
