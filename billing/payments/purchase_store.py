"""Purchases in SQL: begun, opened, given up, and read. What was paid for is credited by crediting.py, what goes back is
booked by claim_store.py; each step of all three is one transaction on a locked row.

What is written here was fetched from Stripe a moment before. `revision` keeps a slow worker from applying an older
picture over a newer one: it is read before the fetch, and the transaction refuses when it has moved (Stale: fetch
again).
"""

import secrets
from collections.abc import Sequence
from typing import TypedDict

import msgspec
from sqlalchemy import ColumnElement, RowMapping, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.money.errors import AccountNotFound, BillingError, TooManyCheckouts
from billing.payments.purchase import UNSETTLED, Offer, Origin, Sold, State, may_become
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import accounts
from billing.storage.tables.payments import claims, purchases

HOUR_MS = 3_600_000
NEVER_HEARD = "Stripe never heard of it"
"""The problem of a purchase that died before Stripe was asked."""
NOT_CREDITED: tuple[State, ...] = ("review", "dismissed")
"""States of a payment that came in and is no credits."""


class Stale(BillingError):
    """The purchase changed since it was read: fetch from Stripe again."""


class Purchase(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `purchases`. Amounts in millicredits unless they say cents; times in Unix milliseconds."""

    id: str
    account_id: str
    origin: Origin
    package_code: str
    currency: str
    price_cents: int
    paid_millicredits: int
    bonus_millicredits: int
    livemode: bool
    state: State
    problem: str
    idempotency_key: str
    save_method: bool
    customer_id: str
    session_id: str | None
    payment_intent_id: str | None
    payment_method_id: str
    url: str
    stripe_charge_id: str
    receipt_url: str
    total_cents: int
    tax_cents: int
    fee_booked: bool
    revision: int
    created_at: int
    updated_at: int
    credited_at: int | None
    bonus_days: int | None
    bonus_expired: int
    invoice_id: str
    tax_calculation: str
    due_tax_cents: int

    @property
    def sold(self) -> Sold:
        """The part that a payment is held against."""
        return Sold(self.state, self.currency, self.price_cents, self.livemode, self.customer_id)


class PurchaseChange(TypedDict, total=False):
    """Columns of `purchases` that change with its revision."""

    state: State
    problem: str
    session_id: str
    payment_intent_id: str
    url: str
    charge_id: str
    receipt_url: str
    paid_millicredits: int
    bonus_millicredits: int
    total_cents: int
    tax_cents: int
    fee_booked: bool
    credited_at: int
    bonus_expired: int
    invoice_id: str


class PurchaseStore:
    """Reads and writes purchases. Every method raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    # -- a purchase on its way to a payment ------------------------------------------------------------------

    async def begin(
        self, account_id: str, offer: Offer, *, livemode: bool, save_method: bool, reuse_ms: int, hourly_limit: int
    ) -> Purchase:
        """Insert the row of a purchase that starts now, committed before Stripe hears of it.

        A double click gets the same row: an unpaid purchase of the same thing begun within `reuse_ms`.
        Raises AccountNotFound, TooManyCheckouts.
        """
        now = now_ms()
        async with self._db.write() as connection:
            await _lock_account(connection, account_id)
            same = (
                purchases.c.account_id == account_id,
                purchases.c.origin == "checkout",
                purchases.c.package_code == offer.code,
                purchases.c.price_cents == offer.price_cents,
                purchases.c.paid_millicredits + purchases.c.bonus_millicredits == offer.paid + offer.bonus,
                purchases.c.save_method == save_method,
                purchases.c.bonus_days.is_not_distinct_from(offer.bonus_days if offer.bonus else None),
                purchases.c.livemode == livemode,
                purchases.c.state.in_(("created", "open")),
                purchases.c.created_at > now - reuse_ms,
            )
            query = select(purchases).where(*same).order_by(purchases.c.created_at.desc(), purchases.c.id).limit(1)
            found = (await connection.execute(query)).mappings().first()
            if found is not None:
                return purchase_of(found)
            recent = select(func.count()).where(
                purchases.c.account_id == account_id, purchases.c.created_at > now - HOUR_MS
            )
            if hourly_limit and (await connection.execute(recent)).scalar_one() >= hourly_limit:
                raise TooManyCheckouts(account_id)
            return await insert_purchase(
                connection, account_id, offer, "checkout", livemode=livemode, save_method=save_method
            )

    async def assign_customer(self, purchase_id: str, customer_id: str) -> Purchase:
        """Keep which Stripe customer is going to be asked, before it is; the first one stays.

        Returns the row as it is then.
        """
        async with self._db.write() as connection:
            row = await lock_purchase(connection, purchase_id)
            if row.session_id is None and not row.customer_id:
                await connection.execute(
                    update(purchases).where(purchases.c.id == purchase_id).values(customer_id=customer_id)
                )
            return await lock_purchase(connection, purchase_id)

    async def reassign_customer(self, refused: Purchase, customer_id: str) -> Purchase:
        """Put another customer and, in the same step, another key in the row: only in the place of what Stripe refused.

        Returns the row as it is then.
        """
        own, _, number = refused.idempotency_key.rpartition(":")
        values = {"customer_id": customer_id, "idempotency_key": f"{own}:{int(number) + 1}"}
        async with self._db.write() as connection:
            row = await lock_purchase(connection, refused.id)
            if row.session_id is None and row.idempotency_key == refused.idempotency_key:
                await connection.execute(update(purchases).where(purchases.c.id == refused.id).values(**values))
            return await lock_purchase(connection, refused.id)

    async def record_session(self, purchase_id: str, session_id: str, url: str) -> Purchase:
        """Keep the Checkout Session of a purchase. Idempotent; the first one stays."""
        async with self._db.write() as connection:
            row = await lock_purchase(connection, purchase_id)
            if row.session_id is None:
                change: PurchaseChange = {"session_id": session_id, "url": url}
                if row.state == "created":
                    change["state"] = "open"
                await change_purchase(connection, row, change)
            return await lock_purchase(connection, purchase_id)

    async def record_intent(self, purchase_id: str, intent_id: str) -> None:
        """Keep the PaymentIntent of a purchase. Idempotent."""
        async with self._db.write() as connection:
            row = await lock_purchase(connection, purchase_id)
            if row.payment_intent_id is None:
                await change_purchase(connection, row, {"payment_intent_id": intent_id})

    async def give_up(self, purchase_id: str, state: State, problem: str) -> bool:
        """End a purchase that never became a payment; False when it has moved on meanwhile."""
        async with self._db.write() as connection:
            row = await lock_purchase(connection, purchase_id)
            if row.state == "credited" or not may_become(row.state, state):
                return False
            await change_purchase(connection, row, {"state": state, "problem": problem})
            return True

    async def record_tax(self, purchase_id: str, calculation: str, tax_cents: int) -> Purchase:
        """Keep the tax that a payment is going to be asked for with, before it is; the first one stays.

        Returns the row as it is then.
        """
        async with self._db.write() as connection:
            row = await lock_purchase(connection, purchase_id)
            if not row.tax_calculation:
                values = {"tax_calculation": calculation, "due_tax_cents": tax_cents}
                await connection.execute(update(purchases).where(purchases.c.id == purchase_id).values(**values))
                row = await lock_purchase(connection, purchase_id)
            return row

    async def record_look(self, purchase_id: str) -> None:
        """Keep that Stripe was asked about an unsettled purchase just now: the others come first the next time."""
        unsettled = (purchases.c.id == purchase_id, purchases.c.state.in_(UNSETTLED))
        async with self._db.write() as connection:
            await connection.execute(update(purchases).where(*unsettled).values(updated_at=now_ms()))

    # -- reading ---------------------------------------------------------------------------------------------

    async def get(self, purchase_id: str) -> Purchase | None:
        """Return the purchase of that id of ours."""
        return await self._one(purchases.c.id == purchase_id)

    async def of_session(self, session_id: str) -> Purchase | None:
        """Return the purchase of a Checkout Session."""
        return await self._one(purchases.c.session_id == session_id)

    async def of_intent(self, intent_id: str) -> Purchase | None:
        """Return the purchase of a PaymentIntent."""
        return await self._one(purchases.c.payment_intent_id == intent_id)

    async def of_account(self, account_id: str, limit: int, before: tuple[int, str] | None = None) -> list[Purchase]:
        """Return an account's purchases, newest first."""
        conditions: list[ColumnElement[bool]] = [purchases.c.account_id == account_id]
        if before is not None:
            conditions.append(tuple_(purchases.c.created_at, purchases.c.id) < tuple_(*before))
        query = (
            select(purchases)
            .where(*conditions)
            .order_by(purchases.c.created_at.desc(), purchases.c.id.desc())
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [purchase_of(row) for row in (await connection.execute(query)).mappings()]

    async def newest(
        self, limit: int, state: State | None = None, before: tuple[int, str] | None = None
    ) -> list[Purchase]:
        """Return purchases of all accounts, newest first; those in one state where it is named."""
        conditions: list[ColumnElement[bool]] = [] if state is None else [purchases.c.state == state]
        if before is not None:
            conditions.append(tuple_(purchases.c.created_at, purchases.c.id) < tuple_(*before))
        query = select(purchases).where(*conditions)
        query = query.order_by(purchases.c.created_at.desc(), purchases.c.id.desc()).limit(limit)
        async with self._db.read() as connection:
            return [purchase_of(row) for row in (await connection.execute(query)).mappings()]

    async def waiting(
        self, states: Sequence[State] = UNSETTLED, *, before_ms: int, after_ms: int = 0, limit: int = 500
    ) -> list[Purchase]:
        """Return purchases in these states that nothing has touched since `before_ms`, oldest first."""
        query = (
            select(purchases)
            .where(
                purchases.c.state.in_(states), purchases.c.updated_at <= before_ms, purchases.c.created_at >= after_ms
            )
            .order_by(purchases.c.updated_at, purchases.c.id)
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [purchase_of(row) for row in (await connection.execute(query)).mappings()]

    async def in_review(self, limit: int = 500) -> list[Purchase]:
        """Return payments that wait for a person, oldest first; what was given back in whole waits for nobody."""
        returned = select(func.coalesce(func.sum(claims.c.amount_cents), 0)).where(
            claims.c.purchase_id == purchases.c.id, claims.c.counts
        )
        undecided = (purchases.c.total_cents == 0) | (purchases.c.total_cents > returned.scalar_subquery())
        query = select(purchases).where(purchases.c.state == "review", undecided)
        async with self._db.read() as connection:
            rows = await connection.execute(query.order_by(purchases.c.created_at, purchases.c.id).limit(limit))
            return [purchase_of(row) for row in rows.mappings()]

    async def _one(self, condition: ColumnElement[bool]) -> Purchase | None:
        async with self._db.read() as connection:
            row = (await connection.execute(select(purchases).where(condition))).mappings().first()
        return purchase_of(row) if row is not None else None


async def insert_purchase(
    connection: AsyncConnection,
    account_id: str,
    offer: Offer,
    origin: Origin,
    *,
    livemode: bool,
    save_method: bool,
    key: str = "",
    customer_id: str = "",
    payment_method_id: str = "",
) -> Purchase:
    """Insert a new row; `key` is its idempotency key, made from its id when there is none."""
    purchase_id, now = "pur_" + secrets.token_hex(12), now_ms()
    row = (
        insert(purchases)
        .values(
            id=purchase_id,
            account_id=account_id,
            origin=origin,
            package_code=offer.code,
            bonus_days=offer.bonus_days if offer.bonus else None,
            currency=offer.currency,
            price_cents=offer.price_cents,
            paid_millicredits=offer.paid,
            bonus_millicredits=offer.bonus,
            livemode=livemode,
            state="created",
            idempotency_key=key or f"{purchase_id}:1",
            save_method=save_method,
            customer_id=customer_id,
            payment_method_id=payment_method_id,
            created_at=now,
            updated_at=now,
        )
        .returning(purchases)
    )
    return purchase_of((await connection.execute(row)).mappings().one())


async def lock_purchase(connection: AsyncConnection, purchase_id: str) -> Purchase:
    """Lock a purchase's row until the transaction ends, and return it as it is. It must exist."""
    query = select(purchases).where(purchases.c.id == purchase_id).with_for_update()
    return purchase_of((await connection.execute(query)).mappings().one())


async def change_purchase(connection: AsyncConnection, row: Purchase, change: PurchaseChange) -> None:
    """Change a locked row under its next revision: whoever has read the one before fetches from Stripe again."""
    fresh = {**change, "revision": row.revision + 1, "updated_at": now_ms()}
    await connection.execute(update(purchases).where(purchases.c.id == row.id).values(**fresh))


def purchase_of(row: RowMapping) -> Purchase:
    """Return a row of `purchases` as a Purchase. Its column `charge_id` is Stripe's charge, not one of ours."""
    fields = dict(row)
    return Purchase(stripe_charge_id=fields.pop("charge_id"), **fields)


async def _lock_account(connection: AsyncConnection, account_id: str) -> None:
    """Let one purchase begin at a time per account; rows that refer to the account may be written meanwhile."""
    query = select(accounts.c.id).where(accounts.c.id == account_id).with_for_update(key_share=True)
    if (await connection.execute(query)).first() is None:
        raise AccountNotFound(account_id)
