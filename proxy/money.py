"""Money in, put together: what the side API needs at once, and what speaks to Stripe once somebody asks for it.

Stripe's library is loaded at the first need and in a thread: a worker that never opens a payment page does without it.
"""

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from billing.buyers import Buyers
from billing.database import Database
from billing.inbox import Inbox
from billing.money import display_credits
from billing.purchases import Offer, offer
from billing.sales import Sales
from config.keys import StripeKeys, stripe_keys
from config.settings import Settings
from proxy.metrics import Metrics

if TYPE_CHECKING:
    from billing.checkout import Checkout
    from billing.stripe_gateway import StripeGateway
    from billing.stripe_sync import Sync
    from billing.stripe_worker import StripeWorker

INBOX_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class StripeParts:
    """What speaks to Stripe."""

    gateway: "StripeGateway"
    sync: "Sync"
    worker: "StripeWorker"
    checkout: "Checkout"


class MoneyCounter:
    """Counts what money did."""

    def __init__(self, metrics: Metrics) -> None:
        """`metrics` of this process."""
        self._metrics = metrics

    def moved(self, kind: str, millicredits: int) -> None:
        """`kind` is purchase, refund or dispute; a refund's or dispute's amount is negative when credits came back."""
        series = self._metrics.purchased if kind == "purchase" else self._metrics.taken_back
        labels = () if kind == "purchase" else (kind,)
        if millicredits > 0:
            self._metrics.count(series, *labels, by=display_credits(millicredits))
        self._metrics.publish()


class MoneyIn:
    """Purchases of one process. `keys` None: Stripe is not configured, and only the records can be read."""

    def __init__(self, settings: Settings, database: Database, keys: StripeKeys | None, metrics: Metrics) -> None:
        """Nothing is opened yet."""
        self.settings, self.keys, self.metrics = settings, keys, metrics
        self.sales = Sales(database, block_after_lost_disputes=settings.stripe.block_after_lost_disputes)
        self.buyers, self.inbox = Buyers(database), Inbox(database)
        self._parts: StripeParts | None = None
        self._loading = asyncio.Lock()

    async def parts(self) -> StripeParts:
        """What speaks to Stripe, made at the first call. Raises RuntimeError when Stripe is not configured."""
        async with self._loading:
            if self._parts is None:
                await asyncio.to_thread(importlib.import_module, "billing.stripe_gateway")
                self._parts = self._make()
            return self._parts

    async def close(self) -> None:
        """Close connections to Stripe."""
        if self._parts is not None:
            await self._parts.gateway.close()

    def offer(self, code: str) -> Offer | None:
        """The package of that code, as it is sold now."""
        for package in self.settings.packages:
            if package.code == code:
                return offer(package.code, package.usd, package.bonus_percent, self.settings.stripe.currency)
        return None

    async def work(self) -> int:
        """One step of the inbox's worker. Raises StoreUnavailable."""
        return await (await self.parts()).worker.step()

    def steps(self) -> list[tuple[Callable[[], Awaitable[int]], float, str]]:
        """(step, pause in seconds, name) of every job that money in needs."""
        if self.keys is None:
            return []
        return [(self.work, INBOX_SECONDS, "stripe inbox")]

    def _make(self) -> StripeParts:
        from billing.checkout import Checkout, CheckoutTerms
        from billing.stripe_gateway import StripeGateway
        from billing.stripe_sync import Sync
        from billing.stripe_worker import StripeWorker

        if self.keys is None:
            raise RuntimeError("Stripe is not configured")
        conf = self.settings.stripe
        gateway = StripeGateway(self.keys.api_key.reveal(), api_base=conf.api_base, timeout_seconds=conf.timeout_seconds)
        sync = Sync(gateway, self.sales, self.buyers, MoneyCounter(self.metrics))
        terms = CheckoutTerms(
            livemode=conf.livemode,
            success_url=conf.success_url,
            cancel_url=conf.cancel_url,
            automatic_tax=conf.automatic_tax,
            reuse_ms=conf.same_checkout_seconds * 1_000,
            hourly_limit=conf.max_checkouts_per_hour,
        )
        worker = StripeWorker(self.inbox, sync, self.buyers)
        return StripeParts(gateway, sync, worker, Checkout(self.sales, self.buyers, gateway, sync, terms))


def money_in(settings: Settings, database: Database, metrics: Metrics) -> MoneyIn:
    """Money in with the keys of the environment. Raises ConfigError."""
    return MoneyIn(settings, database, stripe_keys(settings), metrics)
