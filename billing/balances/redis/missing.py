"""Bringing what a script lacks: the bucket's new token, an account, a limited key, what was spent of its budgets."""

from typing import Any

import msgspec

from billing.balances.redis.epochs import Epochs
from billing.balances.redis.journal import PREFIXES
from billing.balances.redis.script_calls import kept_seconds
from billing.balances.redis.servers.connection import answer_to
from billing.balances.redis.servers.serving import Servers
from billing.ledger.ledger import Ledger
from billing.money.errors import StoreUnavailable
from billing.money.holds import HoldRequest

LOADED_SECONDS = 3_600
"""Life of what was brought in of somebody who comes and goes, until something is held from it."""


class Missing:
    """Brings from SQL what Redis has not seen yet, so that a call can be tried again. Raises StoreUnavailable."""

    def __init__(self, servers: Servers, epochs: Epochs, ledger: Ledger) -> None:
        """Of one process: `epochs` are its tokens."""
        self._of, self._epochs, self._ledger = servers.of, epochs, ledger

    async def make_up_for(
        self, verdict: bytes, bucket: int, account_id: str, request: HoldRequest | None = None
    ) -> None:
        """Do what a script's answer asks for before it can be tried again; `request` where it was about one."""
        if verdict == b"epoch":
            self._epochs.reenter(bucket)
        elif verdict == b"unknown":
            await self.load_account(bucket, account_id)
        elif verdict in (b"unknown_key", b"unknown_budget") and request is not None:
            await self._load_key(bucket, request)
        else:
            raise StoreUnavailable("redis", f"answered {verdict!r}")

    async def load_account(self, bucket: int, account_id: str) -> None:
        """Bring an account's balance."""
        posted = await self._ledger.posted(account_id)
        await self._load(bucket, f"a:{account_id}", 0, ("balance", posted.balance, "held", 0, "seq", posted.sequence))

    async def _load_key(self, bucket: int, request: HoldRequest) -> None:
        """Bring a limited key in, and what was spent of its budgets."""
        limits = request.limits
        kept = LOADED_SECONDS if limits.passing else 0
        await self._load(bucket, f"k:{request.key_id}", kept, ("inflight", 0, "rtat", 0, "ttat", 0))
        for budget in limits.budgets:
            spent = await self._ledger.budget_spent(request, budget)
            about: tuple[Any, ...] = ("key", request.key_id, "models", msgspec.json.encode(budget.models))
            if budget.end_user:
                about += ("account", request.account_id, "user", budget.end_user)
            kept = LOADED_SECONDS if kept_seconds(limits, budget) else 0
            values = ("period", budget.period, "spent", spent, "held", 0, *about)
            await self._load(bucket, f"s:{budget.scope}", kept, values)

    async def _load(self, bucket: int, name: str, kept: int, values: tuple[Any, ...]) -> None:
        keys = (f"{PREFIXES[bucket]}epoch", f"{PREFIXES[bucket]}{name}")
        arguments = (self._epochs.tokens[bucket], kept, *values)
        if (await answer_to(self._of[bucket].run("load", keys, arguments)))[0] == b"epoch":
            self._epochs.reenter(bucket)  # where nobody holds, a read is the first to see that Redis was emptied
