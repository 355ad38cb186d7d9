"""Money in, put together: what the side API needs at once, and what speaks to Stripe once somebody asks for it.

Stripe's library is loaded at the first need and in a thread: a worker that never opens a payment page does without it.
"""

import asyncio
import importlib
import logging
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from billing.jobs.low_balance import LowBalance
from billing.jobs.notice_delivery import Poster
from billing.jobs.notices import NoticeDelivery
from billing.ledger.accounts import Accounts
from billing.ledger.flush import Step
from billing.ledger.notices import NoticeQueue
from billing.money.amounts import display_credits, parse_credits
from billing.money.findings import Finding
from billing.payments.claim_store import ClaimStore
from billing.payments.crediting import Crediting
from billing.payments.purchase import Offer, offer
from billing.payments.purchase_store import PurchaseStore
from billing.payments.recharge.rules import Recharges
from billing.payments.stripe.inbox import Inbox
from billing.payments.stripe_customers import StripeCustomers
from billing.storage.database import Database
from config.secrets import Secret, StripeKeys, notices_secret, stripe_keys
from config.settings import Purchases, Settings
from proxy.observability.metrics import Metrics

if TYPE_CHECKING:
    from billing.payments.checkout import Checkout
    from billing.payments.recharge.worker import RechargeWorker
    from billing.payments.refunds import Refunds
    from billing.payments.stripe.gateway import StripeGateway
    from billing.payments.stripe.sweeper import Sweeper, Swept
    from billing.payments.stripe.sync import Sync
    from billing.payments.stripe.worker import StripeWorker

log = logging.getLogger("tollkeeper.stripe")

INBOX_SECONDS = 0.25
WATCH_SECONDS = 1.0
NOTIFY_SECONDS = 1.0
CHECK_DAYS = 30


@dataclass(frozen=True, slots=True)
class StripeParts:
    """Parts that speak to Stripe."""

    gateway: "StripeGateway"
    sync: "Sync"
    worker: "StripeWorker"
    checkout: "Checkout"
    sweeper: "Sweeper"
    recharger: "RechargeWorker"
    refunds: "Refunds"


class MoneyCounter:
    """Counts what money did."""

    def __init__(self, metrics: Metrics) -> None:
        """`metrics` of this process."""
        self._metrics = metrics

    def moved(self, kind: str, millicredits: int) -> None:
        """Count credits; `kind` is purchase, refund or dispute, and an amount is negative when credits came back."""
        series = self._metrics.money_in.purchased if kind == "purchase" else self._metrics.money_in.taken_back
        labels = () if kind == "purchase" else (kind,)
        if millicredits > 0:
            self._metrics.count(series, *labels, by=display_credits(millicredits))
        self._metrics.publish()

    def odd(self, kind: str) -> None:
        """Count an oddity; `kind` is one of event_types.Oddity."""
        self._metrics.count(self._metrics.money_in.oddities, kind)

    def handled(self, waited_ms: int) -> None:
        """Count a handled event of Stripe's, and the time since it was received."""
        self._metrics.count_webhook_handled(waited_ms / 1_000)


class MoneyIn:
    """Purchases of one process. `keys` None: Stripe is not configured, and only the records can be read."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        keys: StripeKeys | None,
        metrics: Metrics,
        notices_key: Secret | None = None,
    ) -> None:
        """Nothing is opened yet. `notices_key` None: nobody is told anything."""
        self.settings, self.keys, self.metrics, self._db = settings, keys, metrics, database
        self.purchases, self.crediting = PurchaseStore(database), Crediting(database)
        self.claims = ClaimStore(database, block_after_lost_disputes=settings.stripe.block_after_lost_disputes)
        self.customers, self.inbox = StripeCustomers(database), Inbox(database)
        self.notices = NoticeQueue(database, wanted=notices_key is not None)
        self._notice_delivery = NoticeDelivery(database)
        self.low_balance = LowBalance(database, self.notices, parse_credits(settings.notices.low_balance_credits))
        self.recharges = Recharges(database, self.notices)
        self._notices_key, self._poster = notices_key, Poster(settings.notices.url)
        self._parts: StripeParts | None = None
        self._loading = asyncio.Lock()

    async def parts(self) -> StripeParts:
        """Parts that speak to Stripe, made at the first call. Raises RuntimeError when Stripe is not configured."""
        async with self._loading:
            if self._parts is None:
                await asyncio.to_thread(importlib.import_module, "billing.payments.stripe.gateway")
                self._parts = self._make()
            return self._parts

    async def close(self) -> None:
        """Close connections."""
        await self._poster.close()
        if self._parts is not None:
            await self._parts.gateway.close()

    def offer(self, code: str) -> Offer | None:
        """Offer of the package of that code, as it is sold now."""
        for package in self.settings.packages:
            if package.code == code:
                return offer(package.code, package.usd, package.bonus_percent)
        return None

    async def work(self) -> int:
        """Do one step of the inbox's worker. Raises StoreUnavailable."""
        return await (await self.parts()).worker.step()

    async def sweep(self, days: int | None = None) -> "Swept":
        """Ask Stripe for what never arrived: since the last sweep, or over so many days.

        Raises StoreUnavailable, StripeRefused.
        """
        sweeper = (await self.parts()).sweeper
        swept = await sweeper.sweep(days, livemode=self.settings.stripe.livemode)
        self.metrics.count(self.metrics.money_in.missed_events, by=swept.missed_events)
        return swept

    async def check(self, database: Database, days: int = CHECK_DAYS) -> list[Finding]:
        """Compare Stripe's record with purchases and the ledger. Raises StoreUnavailable, StripeRefused."""
        found = await self.check_ledger(database)
        return found + await self.check_stripe(database, days)

    async def check_ledger(self, database: Database) -> list[Finding]:
        """Compare purchases and claims with the ledger. Raises StoreUnavailable."""
        from billing.accounting.reconcile_stripe import check_purchases

        return await check_purchases(database)

    async def check_stripe(self, database: Database, days: int) -> list[Finding]:
        """Compare Stripe's record of so many days with ours. Raises StoreUnavailable, StripeRefused."""
        from billing.accounting.reconcile_stripe import check_stripe

        return await check_stripe((await self.parts()).gateway, database, days)

    async def recharge(self) -> int:
        """Do one step of automatic recharges. Raises StoreUnavailable."""
        billing = self.settings.billing
        worker = (await self.parts()).recharger
        enabled = billing.auto_recharge and billing.purchase_enabled
        most = most_cents(self.settings.purchases)
        return await worker.step(self.offer, enabled=enabled, livemode=self.settings.stripe.livemode, most_cents=most)

    async def notify(self) -> int:
        """Deliver notices that are due. Raises StoreUnavailable."""
        if self._notices_key is None:
            return 0
        return await self._notice_delivery.deliver(self._poster, self._notices_key.reveal())

    def steps(self) -> list[Step]:
        """Every job that money in needs."""
        found: list[Step] = []
        if self._notices_key is not None:
            found += [(self.low_balance.watch, WATCH_SECONDS, "low balance"), (self.notify, NOTIFY_SECONDS, "notices")]
        if self.keys is not None:
            found += [
                (self.work, INBOX_SECONDS, "stripe inbox"),
                (self.recharge, WATCH_SECONDS, "automatic recharge"),
            ]
        return found

    def _make(self) -> StripeParts:
        from billing.payments.checkout import Checkout, CheckoutTerms
        from billing.payments.recharge.worker import RechargeWorker
        from billing.payments.refunds import Refunds
        from billing.payments.stripe.gateway import StripeGateway
        from billing.payments.stripe.sweeper import Sweeper
        from billing.payments.stripe.sync import Sync
        from billing.payments.stripe.worker import StripeWorker

        if self.keys is None:
            raise RuntimeError("Stripe is not configured")
        conf = self.settings.stripe
        gateway = StripeGateway(self.keys.api_key.reveal(), api_base=conf.api_base)
        counter = MoneyCounter(self.metrics)
        sync = Sync(gateway, self.purchases, self.crediting, self.claims, self.customers, counter)
        terms = CheckoutTerms(
            livemode=conf.livemode,
            success_url=conf.success_url,
            cancel_url=conf.cancel_url,
            automatic_tax=conf.automatic_tax,
            reuse_ms=self.settings.advanced.same_checkout_seconds * 1_000,
            hourly_limit=conf.max_checkouts_per_hour,
        )
        worker = StripeWorker(self.inbox, sync, self.customers, counter.handled)
        sweeper = Sweeper(self._db, gateway, self.inbox, self.purchases, sync)
        checkout = Checkout(self.purchases, self.customers, gateway, sync, terms)
        recharger = RechargeWorker(self.recharges, self.purchases, Accounts(self._db), gateway, sync, checkout)
        return StripeParts(
            gateway,
            sync,
            worker,
            checkout,
            sweeper,
            recharger,
            Refunds(self._db, gateway, self.purchases, self.claims, sync),
        )


def most_cents(purchases: Purchases) -> int:
    """Cents that one account may be charged by itself in a UTC month at most."""
    return int(Fraction(purchases.auto_recharge_monthly_usd) * 100)


def money_in(settings: Settings, database: Database, metrics: Metrics) -> MoneyIn:
    """Money in with the keys of the environment. Raises ConfigError."""
    return MoneyIn(settings, database, stripe_keys(settings), metrics, notices_secret(settings))
