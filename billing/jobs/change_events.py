"""Events of changes of accounts and keys, by whatever door: told from the audit log, whose rows have no gaps."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import COLUMNS, AuditRow
from billing.ledger.notices import Notice, NoticeQueue
from billing.storage.database import Database
from billing.storage.tables.core import api_keys
from billing.storage.tables.operations import audit_log
from billing.storage.tables.payments import sweep_marks

MARK = "events:audit_log"
BATCH = 200
KINDS = {
    "account.create": "account.created",
    "account.update": "account.updated",
    "account.region": "account.updated",
    "plans.assign": "account.updated",
    "account.close": "account.closed",
    "account.erase": "account.erased",
    "key.create": "key.created",
    "key.update": "key.updated",
    "key.rotate": "key.rotated",
    "key.revoke": "key.revoked",
}
"""Action of the audit log → kind of the event; `account.status` is one of two."""


class ChangeEvents:
    """Follows the audit log. Raises StoreUnavailable."""

    def __init__(self, database: Database, notices: NoticeQueue) -> None:
        """`notices` take what is told."""
        self._db, self._notices = database, notices

    async def step(self) -> int:
        """Tell of what is new; how many rows were looked at. What was there before the first step is not told."""
        async with self._db.read() as connection:
            read = (
                await connection.execute(select(sweep_marks.c.value).where(sweep_marks.c.name == MARK))
            ).scalar_one_or_none()
            query = select(*COLUMNS).where(audit_log.c.id > (read or 0)).order_by(audit_log.c.id).limit(BATCH)
            rows = [AuditRow(*row) for row in await connection.execute(query)] if read is not None else []
        if read is None:
            await self._begin()
            return 0
        if not rows:
            return 0
        async with self._db.write() as connection:
            # the mark and what is told are of one transaction: neither is there without the other
            mine = update(sweep_marks).where(sweep_marks.c.name == MARK, sweep_marks.c.value == read)
            if (await connection.execute(mine.values(value=rows[-1].id))).rowcount:
                await self._notices.write(connection, await _told(connection, rows))
        return len(rows)

    async def _begin(self) -> None:
        async with self._db.write() as connection:
            known = select(sweep_marks.c.value).where(sweep_marks.c.name == MARK)
            if (await connection.execute(known)).first() is None:
                head = (await connection.execute(select(func.max(audit_log.c.id)))).scalar() or 0
                await connection.execute(insert(sweep_marks).values(name=MARK, value=head))


async def _told(connection: AsyncConnection, rows: Sequence[AuditRow]) -> list[Notice]:
    keys = [row.subject for row in rows if row.action.startswith("key.")]
    query = select(api_keys.c.id, api_keys.c.account_id).where(api_keys.c.id.in_(keys))
    owners = {row[0]: row[1] for row in await connection.execute(query)} if keys else {}
    told = []
    for row in rows:
        kind, of_key = _kind(row), row.action.startswith("key.")
        account_id = owners.get(row.subject) if of_key else row.subject
        if kind is None or account_id is None:
            continue
        data = {"actor": row.actor, "reason": row.reason, **({"keyId": row.subject} if of_key else {}), **_more(row)}
        told.append(Notice(f"change:{row.id}", account_id, kind, data, row.created_at))
    return told


def _kind(row: AuditRow) -> str | None:
    if row.action == "account.status":
        return "account.blocked" if msgspec.json.decode(row.after) == "blocked" else "account.unblocked"
    return KINDS.get(row.action)


def _more(row: AuditRow) -> dict[str, Any]:
    """Return what changed, where that is known; never to what: names and addresses are in no event."""
    after = msgspec.json.decode(row.after)
    if row.action == "plans.assign":
        return {"fields": ["plan"]}
    if row.action == "account.region":
        return {"fields": ["region"]}
    return {"fields": after["fields"]} if isinstance(after, dict) and "fields" in after else {}
