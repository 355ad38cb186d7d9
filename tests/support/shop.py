"""Everything behind the gateway, put together over a test's database, with FakeStripe on the other side."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, cast

from sqlalchemy import text

from billing.accounting.reconcile import reconcile
from billing.accounting.reconcile_stripe import check_purchases, check_stripe
from billing.ledger.audit_log import Who
from billing.ledger.notices import NoticeQueue
from billing.money.holds import Entry
from billing.payments.checkout import Checkout, CheckoutTerms
from billing.payments.claim_store import ClaimStore
from billing.payments.crediting import Crediting
from billing.payments.purchase import Offer, offer
from billing.payments.purchase_store import Purchase, PurchaseStore
from billing.payments.recharge.rules import Recharges
from billing.payments.recharge.worker import RechargeWorker
from billing.payments.refunds import Refunds
from billing.payments.stripe.gateway import StripeGateway
from billing.payments.stripe.inbox import Inbox
from billing.payments.stripe.ownership import Ownership
from billing.payments.stripe.sweeper import Sweeper
from billing.payments.stripe.sync import Sync
from billing.payments.stripe.worker import StripeWorker
from billing.payments.stripe_customers import StripeCustomers
from tests.support.fake_stripe import FakeStripe
from tests.support.stores import Books, record

PLUS = offer("plus", "49.99", "5")
"""52,489.5 credits: not a whole number of them."""


ADA = Who("ada", "finance")


STARTER = offer("starter", "9.99", "0")
PRO = offer("pro", "99.99", "10")
TERMS = CheckoutTerms(False, "https://app.test/ok?s={CHECKOUT_SESSION_ID}", "https://app.test/no", False, 600_000, 0)


@dataclass
class Shop:
    """One Tollkeeper's money in."""

    books: Books
    stripe: FakeStripe
    purchases: PurchaseStore
    crediting: Crediting
    claims: ClaimStore
    customers: StripeCustomers
    inbox: Inbox
    sync: Sync
    worker: StripeWorker
    checkout: Checkout
    sweeper: Sweeper
    recharges: Recharges
    recharger: RechargeWorker
    notices: NoticeQueue
    refunds: Refunds
    delivered: int = 0

    async def buy(self, account: str, what: Offer = PRO, **options: Any) -> Purchase:
        """A payment page, open."""
        return await self.checkout.open(account, "test", what, **options)

    async def paid(self, account: str, what: Offer = PRO, **options: Any) -> Purchase:
        """A purchase, paid and credited."""
        purchase = await self.buy(account, what)
        assert purchase.session_id is not None
        self.stripe.pay(purchase.session_id, **options)
        await self.deliver()
        return await self.get(purchase)

    async def get(self, purchase: Purchase) -> Purchase:
        found = await self.purchases.get(purchase.id)
        assert found is not None
        return found

    async def deliver(self) -> None:
        """Every event not yet delivered into the inbox, and handle it."""
        for event, payload in self.stripe.events_made[self.delivered :]:
            await self.inbox.store(event, payload, "webhook")
        self.delivered = len(self.stripe.events_made)
        await self.work()

    async def work(self) -> None:
        while await self.worker.step():
            pass

    async def balance(self, account: str) -> int:
        return (await self.books.ledger.posted(account)).balance

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        async with self.books.database.read() as connection:
            return [tuple(row) for row in (await connection.execute(text(statement))).all()]

    async def ledger_of(self, name: str) -> int:
        """Credits minus debits of one ledger account, in millicredits."""
        rows = await self.rows("SELECT debit_account, credit_account, amount_millicredits FROM transfers")
        return sum(amount * ((credit == name) - (debit == name)) for debit, credit, amount in rows)

    async def findings(self, days: int = 1) -> list[str]:
        """Every check there is, except what is younger than five minutes at Stripe."""
        found = await reconcile(self.books.database, None)
        found += await check_purchases(self.books.database)
        return [str(finding) for finding in found]

    async def age(self, seconds: int) -> None:
        """Let time pass for SQL and for Stripe."""
        async with self.books.database.write() as connection:
            for table, column in (
                ("purchases", "created_at"),
                ("purchases", "updated_at"),
                ("purchases", "credited_at"),
            ):
                await connection.execute(text(f"UPDATE {table} SET {column} = {column} - {seconds * 1_000}"))
            await connection.execute(
                text(f"UPDATE stripe_inbox SET received_at = received_at - {seconds * 1_000}, next_at = 0")
            )
        self.stripe.age(seconds)

    async def check_stripe(self) -> list[str]:
        return [
            str(finding) for finding in await check_stripe(cast("StripeGateway", self.stripe), self.books.database, 30)
        ]


def open_shop(
    books: Books, stripe: FakeStripe | None = None, *, block_after: int = 0, terms: CheckoutTerms = TERMS
) -> Shop:
    fake = stripe or FakeStripe()
    gateway = cast("StripeGateway", fake)
    purchases, crediting = PurchaseStore(books.database), Crediting(books.database)
    claims = ClaimStore(books.database, block_after_lost_disputes=block_after)
    customers, inbox = StripeCustomers(books.database), Inbox(books.database)
    sync = Sync(gateway, purchases, crediting, claims, customers, Ownership(books.database))
    worker = StripeWorker(inbox, sync, customers)
    checkout = Checkout(purchases, customers, gateway, sync, terms)
    sweeper = Sweeper(books.database, gateway, inbox, purchases, sync)
    notices = NoticeQueue(books.database, wanted=True)
    recharges = Recharges(books.database, notices)
    recharger = RechargeWorker(recharges, purchases, books.accounts, gateway, sync, checkout)
    refunds = Refunds(books.database, gateway, purchases, claims, sync)
    return Shop(
        books,
        fake,
        purchases,
        crediting,
        claims,
        customers,
        inbox,
        sync,
        worker,
        checkout,
        sweeper,
        recharges,
        recharger,
        notices,
        refunds,
    )


async def use(shop: Shop, account: str, amount: int, number: int, cost: int = 3) -> None:
    await shop.books.ledger.post([Entry(str(number), amount, 0, record(f"c{number}", account, cost=cost))])


async def paid_page(shop: Shop, **wrong: object) -> tuple[str, Purchase]:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "", **wrong)
    return account, purchase


def today() -> date:
    return datetime.now(UTC).date()
