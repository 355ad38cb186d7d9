"""Events of money that came in and went back, told from the purchases and claims as they are.

A row that has changed within the last hour is looked at again each time, and told once: what happened has a name, and
whoever was told of that name is not told again. An hour is longer than any transaction, so none is overlooked. Up to
when was looked is written down now and then: what a command did while no service ran is told when one does.
"""

from collections import OrderedDict
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.dialects import postgresql, sqlite

from billing.ledger.notices import Notice, NoticeQueue
from billing.storage.database import Database, now_ms
from billing.storage.tables.payments import claims, purchases, sweep_marks

LOOK_BACK_MS, MARK_MS = 3_600_000, 600_000
MARK = "events:money"
BATCH = 500
KNOWN = 20_000
REFUNDS = {name: f"refund.{name}" for name in ("pending", "succeeded", "failed", "canceled")}
DISPUTES = {
    "needs_response": "dispute.opened",
    "warning_needs_response": "dispute.opened",
    "under_review": "dispute.under_review",
    "warning_under_review": "dispute.under_review",
    "won": "dispute.won",
    "warning_closed": "dispute.won",
    "lost": "dispute.lost",
}


class MoneyEvents:
    """Watches purchases and claims. Raises StoreUnavailable."""

    def __init__(self, database: Database, notices: NoticeQueue) -> None:
        """`notices` take what is told."""
        self._db, self._notices = database, notices
        self._written: OrderedDict[str, None] = OrderedDict()
        """Names that this process has written, so that most of them need not be written in vain."""
        self._mark = 0
        """Unix milliseconds, of the last look that was written down."""

    async def step(self) -> int:
        """Tell of what is new; how many were told."""
        now = now_ms()
        since = min(now, await self._looked_at() or now) - LOOK_BACK_MS
        if await self._notices.is_heard("purchase.credited", "refund.updated", *REFUNDS.values(), *DISPUTES.values()):
            await self._tell(since)
        if now - self._mark >= MARK_MS:
            await self._write_look(now)
        return 0  # each look finds all there is

    async def _tell(self, since: int) -> None:
        found = [*await self._credited(since), *await self._claimed(since)]
        told = [notice for notice in found if notice.notice_id not in self._written]
        if told:
            async with self._db.write() as connection:
                await self._notices.write(connection, sorted(told, key=lambda notice: notice.at_ms))
            self._written.update(dict.fromkeys(notice.notice_id for notice in told))
            while len(self._written) > KNOWN:
                self._written.popitem(last=False)

    async def _looked_at(self) -> int:
        """Return when the last look was that is written down; 0 for none."""
        if not self._mark:
            async with self._db.read() as connection:
                query = select(sweep_marks.c.value).where(sweep_marks.c.name == MARK)
                self._mark = (await connection.execute(query)).scalar_one_or_none() or 0
        return self._mark

    async def _write_look(self, now: int) -> None:
        insert = (sqlite if self._db.is_sqlite else postgresql).insert(sweep_marks).values(name=MARK, value=now)
        async with self._db.write() as connection:
            await connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"value": now}))
        self._mark = now

    async def _rows(self, query: Select[Any]) -> list[Row[Any]]:
        """Return all that a query finds, in pages."""
        found: list[Row[Any]] = []
        async with self._db.read() as connection:
            while len(part := (await connection.execute(query.offset(len(found)).limit(BATCH))).all()) == BATCH:
                found += part
        return [*found, *part]

    async def _credited(self, since: int) -> list[Notice]:
        table = purchases.c
        query = select(
            table.id,
            table.account_id,
            table.origin,
            table.package_code,
            table.paid_millicredits,
            table.bonus_millicredits,
            table.total_cents,
            table.tax_cents,
            table.currency,
            table.credited_at,
        ).where(table.state == "credited", table.updated_at >= since, table.credited_at >= since)
        found = []
        for row in await self._rows(query.order_by(table.credited_at, table.id)):
            data = {
                "purchaseId": row.id,
                "origin": row.origin,
                "packageCode": row.package_code,
                "creditedMillicredits": str(row.paid_millicredits + row.bonus_millicredits),
                "bonusMillicredits": str(row.bonus_millicredits),
                "totalCents": row.total_cents,
                "taxCents": row.tax_cents,
                "currency": row.currency,
            }
            name = f"purchase.credited:{row.id}"
            found.append(Notice(name, row.account_id, "purchase.credited", data, row.credited_at))
        return found

    async def _claimed(self, since: int) -> list[Notice]:
        table = claims.c
        query = (
            select(
                table.id,
                table.purchase_id,
                purchases.c.account_id,
                table.kind,
                table.amount_cents,
                table.status,
                table.reason,
                table.booked_paid,
                table.booked_bonus,
                table.updated_at,
                purchases.c.currency,
            )
            .join(purchases, purchases.c.id == table.purchase_id)
            .where(table.updated_at >= since)
        )
        found = []
        for row in await self._rows(query.order_by(table.updated_at, table.id)):
            kinds = REFUNDS if row.kind == "refund" else DISPUTES
            data = {
                "purchaseId": row.purchase_id,
                f"{row.kind}Id": row.id,
                "status": row.status,
                "amountCents": row.amount_cents,
                "currency": row.currency,
                "reason": row.reason,
                "takenMillicredits": str(row.booked_paid + row.booked_bonus),
            }
            kind = kinds.get(row.status, f"{row.kind}.updated")
            name = f"{row.kind}:{row.id[:60]}:{row.status[:20]}"
            found.append(Notice(name, row.account_id, kind, data, row.updated_at))
        return found
