"""Findings that a person has looked at, and objects at Stripe that are none of ours: dismissed, with a reason."""

from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.money.findings import Finding
from billing.storage.database import Database, now_ms
from billing.storage.tables.payments import dismissals

OBJECT = ""
"""The check of an object that is none of ours, whatever any check finds of it."""
TEST_MONEY = "test-money"
"""Subject under which a person says that credits of Stripe's test mode on a live ledger were seen to."""
ID_BATCH = 500


class Dismissals:
    """The table. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def dismiss_object(self, subject: str, reason: str, who: Who) -> None:
        """Call an object at Stripe, and what belongs to it, none of ours."""
        await self.dismiss_findings([Finding(OBJECT, subject, 0, 0, 0)], reason, who)

    async def dismiss_findings(self, found: Sequence[Finding], reason: str, who: Who) -> None:
        """Find these no more, as long as their figures stay what they are."""
        async with self._db.write() as connection:
            await dismiss(connection, found, reason, who)

    async def objects(self, subjects: Collection[str]) -> set[str]:
        """Return those of these objects that were dismissed."""
        if not subjects:
            return set()
        query = select(dismissals.c.subject).where(
            dismissals.c.check == OBJECT, dismissals.c.subject.in_(list(subjects)[:ID_BATCH])
        )
        async with self._db.read() as connection:
            return set((await connection.execute(query)).scalars())

    async def standing(self, found: Sequence[Finding]) -> list[Finding]:
        """Return those of these findings that nobody has dismissed."""
        if not found:
            return []
        columns = (dismissals.c.check, dismissals.c.subject, dismissals.c.expected, dismissals.c.found)
        async with self._db.read() as connection:
            known = {tuple(row) for row in await connection.execute(select(*columns))}
        objects = {subject for check, subject, *_ in known if check == OBJECT}
        return [
            one
            for one in found
            if one.subject not in objects and (one.check, one.subject, one.expected, one.found) not in known
        ]


async def dismiss(connection: AsyncConnection, found: Sequence[Finding], reason: str, who: Who) -> None:
    """Dismiss findings inside the caller's transaction, each with its audit row."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    for one in found:
        figures = {"expected": one.expected, "found": one.found}
        fresh = {**figures, "reason": reason, "actor": who.actor[:120], "created_at": now_ms()}
        statement = dialect.insert(dismissals).values(subject=one.subject, check=one.check, **fresh)
        await connection.execute(statement.on_conflict_do_update(index_elements=["subject", "check"], set_=fresh))
        after = {"check": one.check or "an object at Stripe", **figures}
        await record_change(connection, who, Change("finding.dismiss", one.subject, None, after, reason))
