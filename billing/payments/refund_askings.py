"""Askings for refunds in SQL: each has an id of its own, committed with its audit row before Stripe hears of it.

    asked ──▶ made       Stripe's refund is known, and every repeat is told of it
      └─────▶ refused    Stripe will not; asked again under the same reference it is asked anew

An asking without an answer stays `asked`. Whoever asks again, by its reference or without one for the same amount,
takes it up instead of beginning another: what the lost answer may have done is looked for at Stripe first.
"""

import secrets
from typing import NamedTuple, TypedDict

from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.money.amounts import written_usd
from billing.money.errors import ReferenceTaken
from billing.payments.claim_store import claims_of
from billing.payments.purchase import MILLICREDITS_PER_CENT, NotRefundable
from billing.payments.purchase_store import Purchase, lock_purchase
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of
from billing.storage.tables.payments import refund_askings


class RefundWish(NamedTuple):
    """A wish: cents (None: all that is left), why, and the caller's name for this asking ("": none)."""

    cents: int | None
    reason: str
    reference: str = ""


class RefundAsking(NamedTuple):
    """A row of refund_askings. Times in Unix milliseconds."""

    id: str
    purchase_id: str
    reference: str
    amount_cents: int
    whole: bool
    attempt: int
    state: str
    refund_id: str
    problem: str

    @property
    def key(self) -> str:
        """The idempotency key of its present attempt."""
        return f"{self.id}:{self.attempt}"


class _AskingChange(TypedDict, total=False):
    attempt: int
    state: str
    refund_id: str
    problem: str


COLUMNS = columns_of(refund_askings, RefundAsking._fields)


class RefundAskings:
    """The table. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def matching(self, purchase_id: str, wish: RefundWish) -> RefundAsking | None:
        """Return the asking that this wish repeats. Raises ReferenceTaken."""
        async with self._db.read() as connection:
            return await _matching(connection, purchase_id, wish)

    async def unanswered(self, purchase_id: str) -> list[RefundAsking]:
        """Return a purchase's askings that no answer of Stripe's is kept of."""
        waiting = (refund_askings.c.purchase_id == purchase_id, refund_askings.c.state == "asked")
        async with self._db.read() as connection:
            query = select(*COLUMNS).where(*waiting).order_by(refund_askings.c.created_at)
            return [RefundAsking(*row) for row in await connection.execute(query)]

    async def is_abandoned(self, reference: str, cents: int, before_ms: int) -> bool:
        """Tell whether that asking was for another amount, and made nothing: refused, or without an answer since."""
        ended = or_(refund_askings.c.state == "refused", refund_askings.c.updated_at < before_ms)
        other = (refund_askings.c.reference == reference, refund_askings.c.amount_cents != cents)
        query = select(refund_askings.c.id).where(*other, refund_askings.c.state != "made", ended)
        async with self._db.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def begin(self, purchase_id: str, wish: RefundWish, who: Who) -> RefundAsking:
        """Commit an asking and its audit row, or take up the one that this wish repeats.

        The purchase must exist. Raises NotRefundable, ReferenceTaken.
        """
        try:
            async with self._db.write() as connection:
                purchase = await lock_purchase(connection, purchase_id)
                asking = await _matching(connection, purchase_id, wish)
                if asking is None:
                    asking = await _insert(connection, purchase, wish)
                elif asking.state == "made":
                    return asking
                elif asking.state == "refused":
                    again: _AskingChange = {"state": "asked", "problem": "", "attempt": asking.attempt + 1}
                    asking = await _change(connection, asking, again)
                after = {"cents": asking.amount_cents, "accountId": purchase.account_id, "reference": asking.reference}
                await record_change(connection, who, Change("purchase.refund", purchase_id, None, after, wish.reason))
                return asking
        except IntegrityError:
            raise ReferenceTaken(wish.reference) from None  # by another purchase's, in this very moment

    async def next_attempt(self, asking: RefundAsking) -> RefundAsking:
        """Ask by another key from now on: Stripe keeps a failure under the present one. Idempotent."""
        async with self._db.write() as connection:
            now = await _locked(connection, asking.id)
            if now.state != "asked" or now.attempt != asking.attempt:
                return now
            return await _change(connection, now, {"attempt": now.attempt + 1})

    async def made(self, asking: RefundAsking, refund_id: str) -> RefundAsking:
        """Keep which refund answers it. Idempotent."""
        async with self._db.write() as connection:
            return await _change(
                connection, await _locked(connection, asking.id), {"state": "made", "refund_id": refund_id}
            )

    async def refused(self, asking: RefundAsking, problem: str) -> None:
        """Keep that Stripe will not."""
        async with self._db.write() as connection:
            now = await _locked(connection, asking.id)
            if now.state == "asked" and now.attempt == asking.attempt:
                await _change(connection, now, {"state": "refused", "problem": problem})


async def _matching(connection: AsyncConnection, purchase_id: str, wish: RefundWish) -> RefundAsking | None:
    if wish.reference:
        query = select(*COLUMNS).where(refund_askings.c.reference == wish.reference)
        row = (await connection.execute(query)).first()
        if row is None:
            return None
        found = RefundAsking(*row)
        same = found.whole if wish.cents is None else wish.cents == found.amount_cents
        if found.purchase_id != purchase_id or not same:
            raise ReferenceTaken(wish.reference)
        return found
    same_amount = refund_askings.c.whole if wish.cents is None else refund_askings.c.amount_cents == wish.cents
    waiting = (refund_askings.c.purchase_id == purchase_id, refund_askings.c.state == "asked", same_amount)
    query = select(*COLUMNS).where(*waiting).order_by(refund_askings.c.created_at, refund_askings.c.id).limit(1)
    row = (await connection.execute(query)).first()
    return RefundAsking(*row) if row is not None else None


async def _insert(connection: AsyncConnection, purchase: Purchase, wish: RefundWish) -> RefundAsking:
    claims = await claims_of(connection, purchase.id)
    left = purchase.total_cents - sum(claim.amount_cents for claim in claims if claim.counts)
    asking_id, now = "rfd_" + secrets.token_hex(12), now_ms()
    asking = RefundAsking(
        id=asking_id,
        purchase_id=purchase.id,
        reference=wish.reference or asking_id,
        amount_cents=_amount(purchase, left, wish.cents),
        whole=wish.cents is None,
        attempt=1,
        state="asked",
        refund_id="",
        problem="",
    )
    await connection.execute(insert(refund_askings).values(**asking._asdict(), created_at=now, updated_at=now))
    return asking


async def _locked(connection: AsyncConnection, asking_id: str) -> RefundAsking:
    query = select(*COLUMNS).where(refund_askings.c.id == asking_id).with_for_update()
    return RefundAsking(*(await connection.execute(query)).one())


async def _change(connection: AsyncConnection, asking: RefundAsking, change: _AskingChange) -> RefundAsking:
    await connection.execute(
        update(refund_askings).where(refund_askings.c.id == asking.id).values(**change, updated_at=now_ms())
    )
    return asking._replace(**change)


def _amount(purchase: Purchase, left: int, cents: int | None) -> int:
    """Return the cents to ask for. Raises NotRefundable."""
    unpaid = purchase.payment_intent_id is None and purchase.origin != "transfer"
    if unpaid or purchase.state not in ("credited", "review", "dismissed"):
        raise NotRefundable(f"purchase {purchase.id} is {purchase.state}: nothing was paid")
    if left < 1:
        raise NotRefundable(f"all of purchase {purchase.id} was refunded or disputed already")
    amount = left if cents is None else cents
    if not 1 <= amount <= left:
        most, asked = (written_usd(value * MILLICREDITS_PER_CENT) for value in (left, amount))
        raise NotRefundable(f"of purchase {purchase.id} ${most} can be given back, not ${asked}")
    return amount
