"""Vector stores that nobody pays for: removed, upstream and here, when their grace is over."""

import logging
from collections.abc import Awaitable, Callable

from billing.ledger.flush import repeat
from billing.ledger.notices import NoticeQueue
from billing.ledger.objects.vector_stores import KIND, StorageDebt
from proxy.gateway.background.expiry import delete_upstream
from proxy.gateway.services import Services

log = logging.getLogger("tollkeeper.storage")

STEP_SECONDS = 60.0
AT_ONCE = 20
AGAIN_MS = 3_600_000
"""Time until what upstream did not delete is tried again."""


class StorageRemoval:
    """The one that removes what is not paid for; run it where the jobs run."""

    def __init__(self, services: Services, notices: NoticeQueue) -> None:
        """Take the services of this process."""
        self._services, self._notices = services, notices
        self._objects, self._stores = services.tenants.objects, services.tenants.objects.stores

    async def step(self) -> int:
        """Look at the accounts whose grace is over; return how many there were. Raises StoreUnavailable."""
        over = await self._stores.to_remove(AT_ONCE)
        for debt in over:
            await self._look_at(debt)
        return len(over)

    async def _look_at(self, debt: StorageDebt) -> None:
        """Remove all that an account stores, unless it can pay for a day again."""
        account_id = debt.account_id
        read = await self._services.balances.read(account_id)
        due = await self._stores.last_due(account_id)
        ids = await self._stores.stores_of(account_id)
        if not ids or read.balance - read.held >= max(1, due):
            await self._stores.end_grace(account_id)
            return
        # what is about to happen is written down first: whoever dies while it does has said so
        await self._stores.begin_removal(debt, ids, AGAIN_MS, self._notices)
        gone = await delete_upstream(self._objects, self._services.upstreams.client, [(one, KIND) for one in ids])
        log.warning("%d vector stores of %s were removed: their storage was not paid", gone, account_id)
        if gone == len(ids):
            await self._stores.end_grace(account_id)


async def follow_removal(removal: StorageRemoval, leads: Callable[[], Awaitable[bool]]) -> None:
    """Remove for ever, wherever `leads()` says that this process is the one to do so."""

    async def step() -> int:
        if await leads():
            await removal.step()
        return 0

    await repeat(step, STEP_SECONDS, "removing what is not paid for")
