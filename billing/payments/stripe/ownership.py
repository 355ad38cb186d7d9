"""Whose an object at Stripe is: one judgement for webhooks, sweeps and reconciliation.

Several installations may share a Stripe account. Each has a mark, made once and kept in SQL, and writes it into the
metadata of what it makes. An object with another mark is another installation's, for good. One without a mark that
names a purchase we do not know (made by an older version, or by hand) waits for a person, who may dismiss it: then it
is none of ours in every check.
"""

import secrets
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from billing.ledger.dismissals import Dismissals
from billing.payments.stripe.objects import MARK, OWN_ID
from billing.storage.database import Database, now_ms
from billing.storage.tables.payments import installation

ONLY = 1


class Ownership:
    """The judgement. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db, self._dismissals, self._mark = database, Dismissals(database), ""

    async def mark(self) -> str:
        """Return this installation's mark, made at the first need."""
        if not self._mark:
            dialect = sqlite if self._db.is_sqlite else postgresql
            row = {"number": ONLY, "id": "inst_" + secrets.token_hex(8), "created_at": now_ms()}
            async with self._db.write() as connection:
                await connection.execute(dialect.insert(installation).values(row).on_conflict_do_nothing())
                self._mark = str((await connection.execute(select(installation.c.id))).scalar_one())
        return self._mark

    async def is_foreign(self, metadata: Mapping[str, str], *ids: str | None) -> bool:
        """Tell whether an object, or what it belongs to, is another installation's or was dismissed by a person."""
        theirs = metadata.get(MARK)
        if theirs and theirs != await self.mark():
            return True
        named = [metadata.get(OWN_ID), *ids]
        return bool(await self._dismissals.objects([found for found in named if found]))
