"""Money in, put together: what the side API needs at once, and what speaks to Stripe once somebody asks for it.

Stripe's library is loaded at the first need and in a thread: a worker that never opens a payment page does without it.
"""

import asyncio
import contextlib
import importlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from billing.jobs.balance_shares import BalanceShares
from billing.jobs.change_events import ChangeEvents
from billing.jobs.low_balance import LowBalance
from billing.jobs.money_events import MoneyEvents
from billing.jobs.notice_delivery import Poster
from billing.jobs.notices import NoticeDelivery, Target
from billing.ledger.accounts import Accounts
from billing.ledger.audit_log import Who
from billing.ledger.credits.promos import Promos
from billing.ledger.events.endpoints import EventEndpoints, secrets_of
from billing.ledger.flush import Step
from billing.ledger.notices import FILE, NoticeQueue
from billing.money.amounts import display_credits, parse_credits
from billing.money.errors import StoreUnavailable
from billing.money.findings import Finding
from billing.payments.bank_transfers import BankTransfers
from billing.payments.claim_store import ClaimStore
from billing.payments.command_counts import CommandCounts
from billing.payments.crediting import Crediting
from billing.payments.purchase import Offer, offer
from billing.payments.purchase_store import Purchase, PurchaseStore
from billing.payments.recharge.rules import Recharges
from billing.payments.recharge.terms import RechargeBounds
from billing.payments.stripe.inbox import Inbox
from billing.payments.stripe_customers import StripeCustomers
from billing.storage.database import Database, now_ms
from billing.storage.installation import event_secret
from config.secrets import Secret, StripeKeys, notices_secret, stripe_keys
from config.settings import Purchases, Settings
from proxy.customer_api.credits.promos_api import PromoDesk, WrongCodes
from proxy.observability.metrics import Metrics

if TYPE_CHECKING:
    from billing.payments.checkout import Checkout
    from billing.payments.recharge.worker import RechargeWorker
    from billing.payments.refunds import Refunds
    from billing.payments.stripe.gateway import StripeGateway
    from billing.payments.stripe.ownership import Ownership
    from billing.payments.stripe.sweeper import Sweeper, Swept
    from billing.payments.stripe.sync import Sync
    from billing.payments.stripe.worker import StripeWorker

log = logging.getLogger("tollkeeper.stripe")

INBOX_SECONDS = 0.25
WATCH_SECONDS = 1.0
NOTIFY_SECONDS = 1.0
DROP_SECONDS = 3_600.0
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
        self.counted: Counter[str] = Counter()
        """By name, for a command to leave to the service."""

    def take_over(self, counts: Mapping[str, int]) -> None:
        """Count what commands counted before they ended."""
        for name, number in counts.items():
            kind, _, what = name.partition(".")
            if kind == "odd":
                for _ in range(number):
                    self._metrics.count(self._metrics.money_in.oddities, what)
            elif kind == "missed":
                self._metrics.count(self._metrics.money_in.missed_events, by=number)
            else:
                self.moved(what, number)

    def moved(self, kind: str, millicredits: int) -> None:
        """Count credits; `kind` is purchase, refund, dispute or loss; an amount is negative when credits came back."""
        self.counted[f"moved.{kind}"] += millicredits
        series = {"purchase": self._metrics.money_in.purchased, "loss": self._metrics.loss}.get(
            kind, self._metrics.money_in.taken_back
        )
        labels = (kind,) if kind in ("refund", "dispute") else ()
        if millicredits > 0:
            self._metrics.count(series, *labels, by=display_credits(millicredits))
        self._metrics.publish()

    def odd(self, kind: str) -> None:
        """Count an oddity; `kind` is one of event_types.Oddity."""
        self.counted[f"odd.{kind}"] += 1
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
        self.notices = NoticeQueue(database, wanted=notices_key is not None, kinds=settings.notices.kinds)
        self.endpoints, self._notice_delivery = EventEndpoints(database), NoticeDelivery(database)
        self.low_balance = LowBalance(database, self.notices, parse_credits(settings.notices.low_balance_credits))
        self.recharges = Recharges(database, self.notices)
        self.promos = PromoDesk(Promos(database, self.notices), WrongCodes())
        self._shares = BalanceShares(database, self.notices, settings.notices.low_balance_percents)
        self._changes, self._moved = ChangeEvents(database, self.notices), MoneyEvents(database, self.notices)
        self._notices_key, self._poster = notices_key, Poster(settings.notices.url)
        self._endpoint_poster = Poster(guarded=not settings.notices.private_endpoints)
        self._counter, self._counts = MoneyCounter(metrics), CommandCounts(database)
        self._parts: StripeParts | None = None
        self._loading = asyncio.Lock()

    async def parts(self) -> StripeParts:
        """Parts that speak to Stripe, made at the first call. Raises RuntimeError when Stripe is not configured."""
        async with self._loading:
            if self._parts is None:
                await asyncio.to_thread(importlib.import_module, "billing.payments.stripe.gateway")
                from billing.payments.stripe.ownership import Ownership

                ownership = Ownership(self._db)
                self._parts = self._make(ownership, await ownership.mark())
            return self._parts

    async def leave_counts(self) -> None:
        """Leave what this command counted to the service, whose counters people look at."""
        counted = {name: number for name, number in self._counter.counted.items() if number}
        with contextlib.suppress(StoreUnavailable):
            await self._counts.add(counted)

    async def take_counts(self) -> int:
        """Count what commands left. Raises StoreUnavailable."""
        counts = await self._counts.take()
        self._counter.take_over(counts)
        return len(counts)

    async def close(self) -> None:
        """Close connections."""
        await self._notice_delivery.close()
        await self._poster.close()
        await self._endpoint_poster.close()
        if self._parts is not None:
            await self._parts.gateway.close()

    def offer(self, code: str) -> Offer | None:
        """Offer of the package of that code, as it is sold now."""
        return next((one for one in offers_of(self.settings) if one.code == code), None)

    async def work(self) -> int:
        """Do one step of the inbox's worker. Raises StoreUnavailable."""
        return await (await self.parts()).worker.step()

    async def record_transfer(
        self, account_id: str, bought: Offer, reference: str, who: Who, reason: str
    ) -> tuple[Purchase, bool]:
        """Credit a bank transfer once, and count it. Raises AccountNotFound, ReferenceTaken, StoreUnavailable."""
        livemode = self.settings.stripe.livemode
        purchase, is_new = await BankTransfers(self._db).record(
            account_id, bought, reference, who, reason, livemode=livemode
        )
        if is_new:
            self._counter.moved("purchase", purchase.paid_millicredits + purchase.bonus_millicredits)
        return purchase, is_new

    async def sweep(self, days: int | None = None) -> "Swept":
        """Ask Stripe for what never arrived: since the last sweep, or over so many days.

        Raises StoreUnavailable, StripeRefused.
        """
        await self.claims.round_taxes()
        sweeper = (await self.parts()).sweeper
        swept = await sweeper.sweep(days, livemode=self.settings.stripe.livemode)
        self.metrics.count(self.metrics.money_in.missed_events, by=swept.missed_events)
        self._counter.counted["missed.events"] += swept.missed_events
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
        purchases = self.settings.purchases
        bounds = RechargeBounds(most_cents(purchases), purchases.max_auto_recharges_per_hour)
        return await worker.step(self.offer, enabled=enabled, livemode=self.settings.stripe.livemode, bounds=bounds)

    async def notify(self) -> int:
        """Deliver notices that are due, to everyone who listens. Raises StoreUnavailable."""
        targets = []
        if self._notices_key is not None:
            targets.append(Target(FILE, self._poster, [self._notices_key.reveal()]))
        now, post = now_ms(), self._endpoint_poster.post
        for row in await self.endpoints.everyone():
            if row.disabled_at is None:
                signed_with = secrets_of(await event_secret(self._db), row, now)
                targets.append(Target(row.id, partial(post, row.url), signed_with))
        return await self._notice_delivery.deliver(targets)

    def steps(self) -> list[Step]:
        """Every job that money in needs."""
        found: list[Step] = [
            (self.low_balance.watch, WATCH_SECONDS, "low balance"),
            (self._shares.watch, WATCH_SECONDS, "low balance in per cent"),
            (self._changes.step, WATCH_SECONDS, "events of changes"),
            (self._moved.step, WATCH_SECONDS, "events of money"),
            (self.notify, NOTIFY_SECONDS, "notices"),
            (self._notice_delivery.drop_old, DROP_SECONDS, "old notices"),
        ]
        if self.keys is not None:
            found += [
                (self.work, INBOX_SECONDS, "stripe inbox"),
                (self.recharge, WATCH_SECONDS, "automatic recharge"),
                (self.take_counts, WATCH_SECONDS, "counts of commands"),
            ]
        return found

    def _make(self, ownership: "Ownership", mark: str) -> StripeParts:
        from billing.payments.checkout import Checkout, CheckoutTerms
        from billing.payments.recharge.worker import RechargeWorker
        from billing.payments.refunds import Refunds
        from billing.payments.stripe.gateway import PageOptions, StripeGateway
        from billing.payments.stripe.sweeper import Sweeper
        from billing.payments.stripe.sync import Sync
        from billing.payments.stripe.worker import StripeWorker

        if self.keys is None:
            raise RuntimeError("Stripe is not configured")
        conf = self.settings.stripe
        gateway = StripeGateway(self.keys.api_key.reveal(), api_base=conf.api_base, mark=mark)
        counter = self._counter
        sync = Sync(gateway, self.purchases, self.crediting, self.claims, self.customers, ownership, counter)
        terms = CheckoutTerms(
            livemode=conf.livemode,
            success_url=conf.success_url,
            cancel_url=conf.cancel_url,
            automatic_tax=conf.automatic_tax,
            reuse_ms=self.settings.advanced.same_checkout_seconds * 1_000,
            hourly_limit=conf.max_checkouts_per_hour,
            options=PageOptions(conf.invoices, conf.collect_company, conf.collect_address, conf.tax_code),
        )
        worker = StripeWorker(self.inbox, sync, self.customers, counter.handled)
        sweeper = Sweeper(self._db, gateway, self.inbox, self.purchases, sync)
        checkout = Checkout(self.purchases, self.customers, gateway, sync, terms)
        tax_code = conf.tax_code if conf.automatic_tax else None
        accounts = Accounts(self._db)
        recharger = RechargeWorker(self.recharges, self.purchases, accounts, gateway, sync, checkout, tax_code)
        return StripeParts(
            gateway,
            sync,
            worker,
            checkout,
            sweeper,
            recharger,
            Refunds(self._db, gateway, self.purchases, self.claims, sync),
        )


def notice_queue(settings: Settings, database: Database) -> NoticeQueue:
    """Return the queue of events as these settings have it. Raises ConfigError."""
    return NoticeQueue(database, wanted=notices_secret(settings) is not None, kinds=settings.notices.kinds)


def offers_of(settings: Settings) -> list[Offer]:
    """Every package as it is sold now."""
    made = [offer(one.code, one.usd, one.bonus_percent, one.bonus_expires_days) for one in settings.packages]
    return [one._replace(taxed=settings.stripe.automatic_tax) for one in made]


def most_cents(purchases: Purchases) -> int:
    """Cents that one account may be charged by itself in a UTC month at most."""
    return int(Fraction(purchases.auto_recharge_monthly_usd) * 100)


def money_in(settings: Settings, database: Database, metrics: Metrics) -> MoneyIn:
    """Money in with the keys of the environment. Raises ConfigError."""
    return MoneyIn(settings, database, stripe_keys(settings), metrics, notices_secret(settings))
