"""Batches: held for, asked about and settled by us, once, also when nobody comes back and across restarts.

A worker writes a batch down before it is made upstream and detaches its hold (creation.py). The process that runs the
jobs takes every open one on: it resumes the same hold, asks upstream, and when the batch has ended

    1. reads its output file and decides the charge 2. records whose its files are 3. checkpoints the decided charge on
    the hold (a crash after this is settled by the reaper, with exactly this charge) 4. marks the batch as settled in
    SQL: from here on its client sees the end 5. charges.

A crash before 4 is taken on again by the next process; after 4 by nobody, since the checkpoint is enough (I3, I4). A
process that was slow may find that another leads and has taken the same on: whoever marks it charges it.

While a batch is being made its hold is kept alive. When nobody has said for some time whether upstream took it,
upstream is asked: its list has a batch that reads our file, or it has none and the hold is released.
"""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

from billing.ledger.accounts import ApiKey, KeyRules
from billing.ledger.ledger import Ledger
from billing.ledger.objects.batches import BatchRow
from billing.ledger.objects.upstream_objects import MadeObject
from billing.money.amounts import Millicredits
from billing.money.usage_record import Outcome
from billing.storage.database import now_ms
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.background.open_work import MOST_OPEN, OpenWork
from proxy.gateway.background.terms import Catalogues
from proxy.gateway.batches.outputs import BatchCost, BatchSettlement, FileGone
from proxy.gateway.batches.record import BatchRecord, decode_batch, making_seconds, recorded_plan
from proxy.gateway.plan import Plan
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import Services
from proxy.gateway.settlement import SettlementDecision

log = logging.getLogger("tollkeeper.batches")

AT_ONCE = 8
"""Batches that are asked about side by side."""
GIVEN_UP = 3
"""Times record.making_seconds after which a worker has certainly given up waiting for upstream to take a batch."""
LONGEST_HOURS = 48
"""A batch ends within 24 hours; later than this it is settled by what is known of it."""
PAGE = 100
CLOCKS_APART = 300
"""Seconds by which upstream's clock may differ from ours."""
GONE: dict[str, Any] = {"status": "gone"}
ENDS: dict[str, Outcome] = {
    "completed": "completed",
    "expired": "upstream_cut",
    "cancelled": "client_gone",
    "failed": "upstream_error",
    "gone": "upstream_error",
}


class _HeldBatch(NamedTuple):
    """A batch that this process holds for."""

    row: BatchRow
    record: BatchRecord
    plan: Plan
    hold: RequestHold

    async def resume(self) -> bool:
        """Hold for it; where it is held already, make that hold live on. Raises StoreUnavailable."""
        key = ApiKey(self.record.key_id, self.row.account_id, "active", KeyRules(), None)
        return await self.hold.resume(self.plan, key, Millicredits(self.record.held), free=self.record.free)


class BatchPoller(OpenWork[BatchRow, _HeldBatch]):
    """The one poller of batches."""

    kind = "batch"

    def __init__(self, services: Services, ledger: Ledger, catalogues: Catalogues) -> None:
        """Take the services of this process; nothing is held yet."""
        super().__init__(services, ledger, catalogues, at_once=AT_ONCE)

    @property
    def seconds(self) -> float:
        """Time between two looks: several within the life of a hold that nobody else keeps alive."""
        advanced = self._services.settings.advanced
        return min(advanced.batch_poll_seconds, advanced.hold_lease_seconds / 3)

    async def _open(self) -> Sequence[BatchRow]:
        return await self._objects.batches.open(MOST_OPEN)

    async def _end(self, row: BatchRow) -> bool:
        return await self._objects.batches.end(row.charge_id)

    async def _take_on(self, row: BatchRow) -> _HeldBatch | None:
        record = decode_batch(row.record)
        found = await self._resumable(row, record, lambda prices: recorded_plan(record, prices))
        if found is None:
            return None
        held = _HeldBatch(row, record, *found)
        if not await held.resume():
            return None
        if row.batch_id is None:
            await self._while_made(held)
            return None
        return held

    # -- being made -------------------------------------------------------------------------------

    async def _while_made(self, held: _HeldBatch) -> None:
        """Keep the hold of a batch that its worker is making; find out what became of it when the worker is gone."""
        batches, charge_id = self._objects.batches, held.row.charge_id
        now = await batches.find(charge_id)  # the worker may have come to its end while the hold was resumed
        if now is None or now.settled_at is not None:
            held.hold.forget()
            return
        waited = GIVEN_UP * making_seconds(self._services.settings)
        if now.batch_id is None and await batches.age_ms(now) > waited * 1_000:
            found = await self._made_of(now)
            if found:
                log.warning("batch %s was made while its request died; it is taken on", found)
                await self._objects.record_owner(now.account_id, charge_id, [MadeObject(found, "batch")], now.upstream)
                await batches.made(charge_id, found)
            elif found is not None:
                if await batches.end(charge_id):
                    await held.hold.release()
                    await self._delete(now)
                else:
                    held.hold.forget()
                return
        held.hold.detach()

    async def _made_of(self, row: BatchRow) -> str | None:
        """Id of the batch that reads our file; "" when upstream has none, None when it cannot say now."""
        after = ""
        while True:
            query = {"limit": str(PAGE)} | ({"after": after} if after else {})
            page = await self._ask(row, "/batches", query)
            rows = page.get("data") if page is not None else None
            if page is None or not isinstance(rows, list) or not all(isinstance(one, dict) for one in rows):
                return None
            for one in rows:
                if one.get("input_file_id") == row.sent_file_id:
                    return str(one["id"])
            newest_first = [one.get("created_at") or 0 for one in rows]
            if not page.get("has_more") or not rows or min(newest_first) < row.created_at // 1_000 - CLOCKS_APART:
                return ""
            after = str(rows[-1]["id"])

    # -- running, and its end ---------------------------------------------------------------------

    async def _look_at(self, held: _HeldBatch) -> int:
        batch = await self._ask(held.row, f"/batches/{held.row.batch_id}")
        too_old = now_ms() - held.row.created_at > LONGEST_HOURS * 3_600_000
        if batch is None and not too_old:
            return 0
        batch = batch or GONE
        if batch.get("status") not in ENDS and not too_old:
            return 0
        try:
            cost = await self._cost(held, batch, too_old=too_old)
        except httpx.HTTPError as error:
            log.warning("the output of batch %s cannot be read now (%s)", held.row.batch_id, type(error).__name__)
            return 0
        if cost is None:
            return 0
        await self._settle(held, batch, cost)
        return 1

    async def _cost(self, held: _HeldBatch, batch: dict[str, Any], *, too_old: bool) -> BatchCost | None:
        """Decide what it costs; None while its output is still to come. Raises httpx.HTTPError, StoreUnavailable."""
        row, output = held.row, batch.get("output_file_id")
        settlement = BatchSettlement(self._services, held.hold.terms, held.record, row.account_id)
        counts = batch.get("request_counts")
        done = counts.get("completed") if isinstance(counts, dict) else 0
        if isinstance(output, str) and output:
            try:
                await settlement.read(self._client(row), row.sent_file_id, output)
            except FileGone:
                log.error("the output of batch %s is gone; it is charged by its own total", row.batch_id)  # noqa: TRY400 - said whole
                settlement.add_total(batch)
        elif done and not too_old:
            return None
        elif done or batch is GONE:
            log.error("batch %s has no output; it is charged by its own total", row.batch_id)
            settlement.add_total(batch)
        return settlement.cost(row.batch_id or "")

    async def _settle(self, held: _HeldBatch, batch: dict[str, Any], cost: BatchCost) -> None:
        row, hold = held.row, held.hold
        named = (batch.get("output_file_id"), batch.get("error_file_id"))
        made = [MadeObject(name, "file", None) for name in named if isinstance(name, str) and name]
        if made:
            await self._objects.record_owner(row.account_id, row.charge_id, made, row.upstream)
        decision = None
        if cost.charge is not None:
            outcome = ENDS.get(str(batch.get("status")), "upstream_error")
            decision = SettlementDecision(cost.usage, cost.source, outcome, cost.charge, cost.report)
            if not await held.resume():  # whatever became of the hold meanwhile: a checkpoint needs one
                return
            await hold.checkpoint_decided(decision)
        ends_here = await self._end(row)
        self._held.pop(row.charge_id, None)
        if not ends_here:
            hold.forget()
            return
        if decision is None:
            await hold.release()
        else:
            await hold.charge(decision, [], 0)
        await self._delete(row)

    def _client(self, row: BatchRow) -> httpx.AsyncClient:
        """Return the client of the upstream that runs a batch. Raises httpx.HTTPError when it is gone."""
        return self._services.upstreams.client(row.upstream)

    async def _delete(self, row: BatchRow) -> None:
        """Delete what was sent: nobody reads it any more. Upstream does so by itself where this does not succeed."""
        with contextlib.suppress(httpx.HTTPError):
            answer = await self._client(row).delete(f"/files/{row.sent_file_id}")
            if answer.status_code in (httpx.codes.OK, httpx.codes.NOT_FOUND):
                await self._objects.forget(row.sent_file_id)

    async def _ask(self, row: BatchRow, path: str, query: dict[str, str] | None = None) -> dict[str, Any] | None:
        """Object that upstream answers with; GONE when it has none; None when it cannot say now."""
        try:
            answer = await self._client(row).get(path, params=query)
        except httpx.HTTPError:
            return None
        if answer.status_code == httpx.codes.NOT_FOUND:
            log.error("upstream has no %s any more", path)
            return GONE
        if answer.status_code != httpx.codes.OK:
            return None
        return decode_object(answer.content)
