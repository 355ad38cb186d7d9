"""Purchases in SQL: begun, opened, settled, and claimed back, each in one transaction.

What is applied here was fetched from Stripe a moment before. `revision` keeps a slow worker from applying an older
picture over a newer one: it is read before the fetch, and the transaction refuses when it has moved (Stale: fetch
again).
"""

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.recharge_blocks import stop_for_dispute, use_up_crossing
from billing.ledger.transfers import insert_missing, move
from billing.money.errors import AccountNotFound, BillingError, TooManyCheckouts
from billing.money.postings import CASH, DISPUTES, FEES, Posting, purchase_postings, signed
from billing.payments.claims import Claim, Kind, Parts, Whole, allocate, claim_postings, clearing
from billing.payments.purchase import (
    MILLICREDITS_PER_CENT,
    UNSETTLED,
    NotAcceptable,
    Offer,
    Origin,
    Payment,
    Sold,
    State,
    accepted,
    judge,
    may_become,
)
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import accounts
from billing.storage.tables.payments import claims, purchases

HOUR_MS = 3_600_000
NEVER_HEARD = "Stripe never heard of it"
"""The problem of a purchase that died before Stripe was asked."""
NOT_CREDITED: tuple[State, ...] = ("review", "dismissed")
"""States of a payment that came in and is no credits."""
SYSTEM = Who("stripe", "system")
"""Who the audit log names for what a lost dispute does by itself."""


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
    charge_id: str
    receipt_url: str
    total_cents: int
    tax_cents: int
    fee_booked: bool
    revision: int
    created_at: int
    updated_at: int
    credited_at: int | None

    @property
    def sold(self) -> Sold:
        """What a payment is held against."""
        return Sold(self.state, self.currency, self.price_cents, self.livemode, self.customer_id)


class Receipt(NamedTuple):
    """What else Stripe says of a payment. `fee_id` is the balance transaction of its fee ("" = not known yet).

    `failure` is the code of why it did not work.
    """

    intent_id: str = ""
    charge_id: str = ""
    receipt_url: str = ""
    fee_id: str = ""
    fee_cents: int = 0
    failure: str = ""


class Movement(NamedTuple):
    """A balance transaction of a dispute: cents taken from us (negative: given back), and the fee for it."""

    balance_transaction_id: str
    taken_cents: int
    fee_cents: int


class Standing(NamedTuple):
    """What became of a credited purchase: its total, and what refunds and disputes of it count now, in cents."""

    total_cents: int
    refunded_cents: int
    disputed_cents: int

    @property
    def word(self) -> str:
        """What to call such a purchase, on every page and in every command."""
        if self.disputed_cents:
            return "disputed"
        return "refunded" if self.refunded_cents >= self.total_cents else "partly refunded"


class ClaimNews(NamedTuple):
    """A refund or dispute as Stripe has it now. `counts` None: an unknown status, so what stood stands."""

    claim_id: str
    kind: Kind
    cents: int
    status: str
    counts: bool | None
    lost: bool
    reason: str = ""
    movements: tuple[Movement, ...] = ()


class Applied(NamedTuple):
    """What a transaction did. `credited` millicredits were added (negative: taken back); `blocked`: the account was.

    `taken`: the part of it that refunds and disputes changed, by their kind (negative: taken back).
    """

    changed: bool
    state: State
    credited: int = 0
    problem: str = ""
    blocked: bool = False
    taken: Mapping[str, int] = MappingProxyType({})


class Sales:
    """Reads and writes purchases and claims. Every method raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database, *, block_after_lost_disputes: int = 0) -> None:
        """`block_after_lost_disputes`: block an account with so many of them; 0 = never."""
        self._db, self._block_after = database, block_after_lost_disputes

    # -- beginning -------------------------------------------------------------------------------------------

    async def begin(
        self, account_id: str, offer: Offer, *, livemode: bool, save_method: bool, reuse_ms: int, hourly_limit: int
    ) -> Purchase:
        """The row of a purchase that starts now, committed before Stripe hears of it.

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
                purchases.c.livemode == livemode,
                purchases.c.state.in_(("created", "open")),
                purchases.c.created_at > now - reuse_ms,
            )
            query = select(purchases).where(*same).order_by(purchases.c.created_at.desc(), purchases.c.id).limit(1)
            found = (await connection.execute(query)).mappings().first()
            if found is not None:
                return _purchase(found)
            recent = select(func.count()).where(
                purchases.c.account_id == account_id, purchases.c.created_at > now - HOUR_MS
            )
            if hourly_limit and (await connection.execute(recent)).scalar_one() >= hourly_limit:
                raise TooManyCheckouts(account_id)
            return await insert_purchase(
                connection, account_id, offer, "checkout", livemode=livemode, save_method=save_method
            )

    async def addressed(self, purchase_id: str, customer_id: str) -> Purchase:
        """Note which Stripe customer is going to be asked, before it is; the first one stays.

        Returns the row as it is then.
        """
        async with self._db.write() as connection:
            row = await _locked(connection, purchases.c.id == purchase_id)
            if row.session_id is None and not row.customer_id:
                await connection.execute(
                    update(purchases).where(purchases.c.id == purchase_id).values(customer_id=customer_id)
                )
            return await _locked(connection, purchases.c.id == purchase_id)

    async def readdressed(self, refused: Purchase, customer_id: str) -> Purchase:
        """Another customer and, in the same step, another key: only from what Stripe refused.

        Returns the row as it is then.
        """
        own, _, number = refused.idempotency_key.rpartition(":")
        values = {"customer_id": customer_id, "idempotency_key": f"{own}:{int(number) + 1}"}
        async with self._db.write() as connection:
            row = await _locked(connection, purchases.c.id == refused.id)
            if row.session_id is None and row.idempotency_key == refused.idempotency_key:
                await connection.execute(update(purchases).where(purchases.c.id == refused.id).values(**values))
            return await _locked(connection, purchases.c.id == refused.id)

    async def opened(self, purchase_id: str, session_id: str, url: str) -> Purchase:
        """Note the Checkout Session of a purchase. Idempotent; the first one stays."""
        async with self._db.write() as connection:
            row = await _locked(connection, purchases.c.id == purchase_id)
            if row.session_id is None:
                values: dict[str, Any] = {"session_id": session_id, "url": url}
                if row.state == "created":
                    values["state"] = "open"
                await _change(connection, row, values)
            return await _locked(connection, purchases.c.id == purchase_id)

    async def intended(self, purchase_id: str, intent_id: str) -> None:
        """Note the PaymentIntent of a purchase. Idempotent."""
        async with self._db.write() as connection:
            row = await _locked(connection, purchases.c.id == purchase_id)
            if row.payment_intent_id is None:
                await _change(connection, row, {"payment_intent_id": intent_id})

    async def ended(self, purchase_id: str, state: State, problem: str) -> bool:
        """Give a purchase up that never became a payment; False when it has moved on meanwhile."""
        async with self._db.write() as connection:
            row = await _locked(connection, purchases.c.id == purchase_id)
            if row.state == "credited" or not may_become(row.state, state):
                return False
            await _change(connection, row, {"state": state, "problem": problem})
            return True

    # -- settling --------------------------------------------------------------------------------------------

    async def settle(self, purchase_id: str, payment: Payment, receipt: Receipt, revision: int) -> Applied:
        """Move a purchase to where its payment is. Paid and right: its transfers, its state and the outbox in one
        transaction.

        Credits once, however often and from wherever it is called. Raises Stale.
        """
        now = now_ms()
        async with self._db.write() as connection:
            row = await _locked(connection, purchases.c.id == purchase_id)
            if row.revision != revision:
                raise Stale(purchase_id)
            facts = _facts(row, receipt)
            if row.state == "credited":
                await insert_missing(connection, _fee(receipt, now))
                if receipt.fee_id and not row.fee_booked:
                    facts["fee_booked"] = True
                if facts:
                    await _change(connection, row, facts)
                return Applied(bool(facts), "credited")
            verdict = judge(row.sold, payment)
            if row.state in NOT_CREDITED or verdict.state in NOT_CREDITED:
                # what Stripe keeps of a payment is gone, whatever becomes of the purchase
                await insert_missing(connection, _fee(receipt, now))
            if not may_become(row.state, verdict.state):
                if facts:
                    await _change(connection, row, facts)
                return Applied(bool(facts), row.state, 0, row.problem)
            why = receipt.failure if verdict.state == "failed" and receipt.failure else verdict.problem
            facts |= {"state": verdict.state, "problem": why}
            if verdict.state in ("credited", "review"):
                facts |= {
                    "total_cents": max(payment.total_cents, payment.tax_cents, 0),
                    "tax_cents": max(payment.tax_cents, 0),
                }
            if verdict.state == "credited":
                facts |= {"credited_at": now, "fee_booked": bool(receipt.fee_id)}
                tax = payment.tax_cents * MILLICREDITS_PER_CENT
                await move(
                    connection,
                    purchase_postings(row.id, row.account_id, row.paid_millicredits, row.bonus_millicredits, tax, now),
                )
                await insert_missing(connection, _fee(receipt, now))
                await _note_movements(connection, row.id, now)
            await _change(connection, row, facts)
            if verdict.state != "credited":
                return Applied(True, verdict.state, 0, verdict.problem)
            taken = await self._rebook(connection, await _locked(connection, purchases.c.id == purchase_id), now)
            return Applied(
                True, "credited", row.paid_millicredits + row.bonus_millicredits + sum(taken.values()), taken=taken
            )

    async def accept(
        self, purchase_id: str, payment: Payment, receipt: Receipt, revision: int, who: Who, reason: str
    ) -> Applied:
        """Credit a payment in review because a person says so: transfers, state, outbox and audit row in one
        transaction.

        Refunds and disputes noted meanwhile take their share at once; what is credited already stays as it is. Raises
        NotAcceptable, Stale.
        """
        now = now_ms()
        async with self._db.write() as connection:
            row = await _locked(connection, purchases.c.id == purchase_id)
            if row.state == "credited":
                return Applied(False, "credited")
            if row.state != "review":
                raise NotAcceptable(f"purchase {purchase_id} is {row.state}, not in review")
            if row.revision != revision:
                raise Stale(purchase_id)
            returned = sum(found["amount_cents"] for found in await _claims_of(connection, row.id) if found["counts"])
            paid, bonus = accepted(row.sold, payment, returned, row.bonus_millicredits)
            facts = _facts(row, receipt) | {"state": "credited", "credited_at": now, "fee_booked": bool(receipt.fee_id)}
            facts |= {"paid_millicredits": paid, "bonus_millicredits": bonus}
            facts |= {"total_cents": payment.total_cents, "tax_cents": payment.tax_cents}
            tax = payment.tax_cents * MILLICREDITS_PER_CENT
            await move(connection, purchase_postings(row.id, row.account_id, paid, bonus, tax, now))
            await insert_missing(connection, _fee(receipt, now))
            await _note_movements(connection, row.id, now)
            await _change(connection, row, facts)
            taken = await self._rebook(connection, await _locked(connection, purchases.c.id == purchase_id), now)
            before = {"state": row.state, "problem": row.problem}
            after = {"state": "credited", "millicredits": str(paid + bonus), "accountId": row.account_id}
            await record_change(connection, who, Change("purchase.accept", purchase_id, before, after, reason))
            return Applied(True, "credited", paid + bonus + sum(taken.values()), taken=taken)

    async def dismiss(self, purchase_id: str, who: Who, reason: str) -> bool:
        """A person has seen to a payment in review, and nothing is credited for it; False when that is so already.

        Raises NotAcceptable.
        """
        async with self._db.write() as connection:
            row = await _locked_or_none(connection, purchase_id)
            if row is not None and row.state == "dismissed":
                return False
            if row is None or row.state != "review":
                raise NotAcceptable(f"purchase {purchase_id} is {row.state if row else 'unknown'}, not in review")
            await _change(connection, row, {"state": "dismissed"})
            before = {"state": row.state, "problem": row.problem, "accountId": row.account_id}
            await record_change(
                connection, who, Change("purchase.dismiss", purchase_id, before, {"state": "dismissed"}, reason)
            )
            return True

    async def looked_at(self, purchase_id: str) -> None:
        """Note that Stripe was asked about an unsettled purchase just now: those that were not come first the next
        time.
        """
        unsettled = (purchases.c.id == purchase_id, purchases.c.state.in_(UNSETTLED))
        async with self._db.write() as connection:
            await connection.execute(update(purchases).where(*unsettled).values(updated_at=now_ms()))

    async def claim(self, purchase_id: str, news: ClaimNews, revision: int) -> Applied:
        """Apply a refund or dispute to its purchase; before the purchase is credited it is only noted. Raises Stale."""
        now = now_ms()
        async with self._db.write() as connection:
            row = await _locked(connection, purchases.c.id == purchase_id)
            if row.revision != revision:
                raise Stale(purchase_id)
            changed, newly_lost = await _remember(connection, row, news, now)
            taken: Mapping[str, int] = {}
            await insert_missing(connection, _fees(news.movements, now))
            if news.kind == "dispute" and changed and news.counts is not False:
                await stop_for_dispute(connection, row.account_id)
            if row.state == "credited":
                await insert_missing(connection, _cash(news.movements, now))
                taken = await self._rebook(connection, row, now)
                if sum(taken.values()) < 0:
                    await use_up_crossing(connection, row.account_id)
            if changed or taken:
                await _change(connection, row, {})
            blocked = newly_lost and await self._block(connection, row.account_id)
            return Applied(changed or bool(taken), row.state, sum(taken.values()), blocked=blocked, taken=taken)

    async def _rebook(self, connection: AsyncConnection, row: Purchase, now: int) -> Mapping[str, int]:
        """Bring every claim's bookings to what it should take.

        How the customer's balance changed, by the kind of claim.
        """
        tax = row.tax_cents * MILLICREDITS_PER_CENT
        whole = Whole(row.total_cents, row.paid_millicredits, row.bonus_millicredits, tax)
        rows = await _claims_of(connection, row.id)
        standing = [_claim(found) for found in rows]
        taken: defaultdict[str, int] = defaultdict(int)
        for found, claim, parts in zip(rows, standing, allocate(whole, standing), strict=True):
            version = found["version"] + 1
            postings = claim_postings(claim, parts, row.account_id, version, now)
            if not postings:
                continue
            await move(connection, postings)
            taken[claim.kind] -= parts.paid + parts.bonus - claim.booked.paid - claim.booked.bonus
            booked = {f"booked_{name}": getattr(parts, name) for name in Parts._fields}
            values = {**booked, "cleared": clearing(claim, parts), "version": version, "updated_at": now}
            await connection.execute(update(claims).where(claims.c.id == claim.claim_id).values(**values))
        return taken

    async def _block(self, connection: AsyncConnection, account_id: str) -> bool:
        if not self._block_after:
            return False
        query = (
            select(func.count())
            .select_from(claims.join(purchases, purchases.c.id == claims.c.purchase_id))
            .where(purchases.c.account_id == account_id, claims.c.lost)
        )
        lost = (await connection.execute(query)).scalar_one()
        if lost < self._block_after:
            return False
        blocked = (
            update(accounts).where(accounts.c.id == account_id, accounts.c.status != "blocked").values(status="blocked")
        )
        if (await connection.execute(blocked)).rowcount == 0:
            return False
        change = Change("account.status", account_id, "active", "blocked", f"{lost} disputes were lost")
        await record_change(connection, SYSTEM, change)
        return True

    # -- reading ---------------------------------------------------------------------------------------------

    async def get(self, purchase_id: str) -> Purchase | None:
        """A purchase by its own id."""
        return await self._one(purchases.c.id == purchase_id)

    async def of_session(self, session_id: str) -> Purchase | None:
        """The purchase of a Checkout Session."""
        return await self._one(purchases.c.session_id == session_id)

    async def of_intent(self, intent_id: str) -> Purchase | None:
        """The purchase of a PaymentIntent."""
        return await self._one(purchases.c.payment_intent_id == intent_id)

    async def of_account(self, account_id: str, limit: int, before: tuple[int, str] | None = None) -> list[Purchase]:
        """An account's purchases, newest first."""
        conditions: list[ColumnElement[bool]] = [purchases.c.account_id == account_id]
        if before is not None:
            at, last = before
            conditions.append(
                (purchases.c.created_at < at) | ((purchases.c.created_at == at) & (purchases.c.id < last))
            )
        query = (
            select(purchases)
            .where(*conditions)
            .order_by(purchases.c.created_at.desc(), purchases.c.id.desc())
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [_purchase(row) for row in (await connection.execute(query)).mappings()]

    async def standing(self, purchase_ids: Sequence[str]) -> dict[str, Standing]:
        """What refunds and disputes have left of these purchases."""
        query = (
            select(purchases.c.id, purchases.c.total_cents, claims.c.kind, func.sum(claims.c.amount_cents))
            .join(claims, claims.c.purchase_id == purchases.c.id)
            .where(purchases.c.id.in_(purchase_ids), claims.c.counts)
            .group_by(purchases.c.id, purchases.c.total_cents, claims.c.kind)
        )
        found: dict[str, Standing] = {}
        async with self._db.read() as connection:
            for purchase_id, total, kind, cents in await connection.execute(query):
                known = found.get(purchase_id, Standing(total, 0, 0))
                found[purchase_id] = known._replace(
                    **{"refunded_cents" if kind == "refund" else "disputed_cents": int(cents)}
                )
        return found

    async def waiting(
        self, states: Sequence[State] = UNSETTLED, *, before_ms: int, after_ms: int = 0, limit: int = 500
    ) -> list[Purchase]:
        """Purchases in these states that nothing has touched since `before_ms`, oldest first."""
        query = (
            select(purchases)
            .where(
                purchases.c.state.in_(states), purchases.c.updated_at <= before_ms, purchases.c.created_at >= after_ms
            )
            .order_by(purchases.c.updated_at, purchases.c.id)
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [_purchase(row) for row in (await connection.execute(query)).mappings()]

    async def in_review(self, limit: int = 500) -> list[Purchase]:
        """Payments that wait for a person, oldest first; what was given back in whole waits for nobody."""
        returned = select(func.coalesce(func.sum(claims.c.amount_cents), 0)).where(
            claims.c.purchase_id == purchases.c.id, claims.c.counts
        )
        undecided = (purchases.c.total_cents == 0) | (purchases.c.total_cents > returned.scalar_subquery())
        query = select(purchases).where(purchases.c.state == "review", undecided)
        async with self._db.read() as connection:
            rows = await connection.execute(query.order_by(purchases.c.created_at, purchases.c.id).limit(limit))
            return [_purchase(row) for row in rows.mappings()]

    async def claims_of(self, purchase_id: str) -> list[dict[str, Any]]:
        """The refunds and disputes of a purchase, in the order we heard of them."""
        async with self._db.read() as connection:
            return await _claims_of(connection, purchase_id)

    async def _one(self, condition: ColumnElement[bool]) -> Purchase | None:
        async with self._db.read() as connection:
            row = (await connection.execute(select(purchases).where(condition))).mappings().first()
        return _purchase(row) if row is not None else None


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
    """A new row; `key` is its idempotency key, made from its id when there is none."""
    purchase_id, now = "pur_" + secrets.token_hex(12), now_ms()
    row = (
        insert(purchases)
        .values(
            id=purchase_id,
            account_id=account_id,
            origin=origin,
            package_code=offer.code,
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
    return _purchase((await connection.execute(row)).mappings().one())


async def _lock_account(connection: AsyncConnection, account_id: str) -> None:
    """One beginner at a time per account; rows that refer to the account may be written meanwhile."""
    query = select(accounts.c.id).where(accounts.c.id == account_id).with_for_update(key_share=True)
    if (await connection.execute(query)).first() is None:
        raise AccountNotFound(account_id)


async def _locked(connection: AsyncConnection, condition: ColumnElement[bool]) -> Purchase:
    return _purchase((await connection.execute(select(purchases).where(condition).with_for_update())).mappings().one())


async def _locked_or_none(connection: AsyncConnection, purchase_id: str) -> Purchase | None:
    row = (
        (await connection.execute(select(purchases).where(purchases.c.id == purchase_id).with_for_update()))
        .mappings()
        .first()
    )
    return _purchase(row) if row is not None else None


async def _change(connection: AsyncConnection, row: Purchase, values: dict[str, Any]) -> None:
    fresh = {**values, "revision": row.revision + 1, "updated_at": now_ms()}
    await connection.execute(update(purchases).where(purchases.c.id == row.id).values(**fresh))


async def _claims_of(connection: AsyncConnection, purchase_id: str) -> list[dict[str, Any]]:
    query = select(claims).where(claims.c.purchase_id == purchase_id).order_by(claims.c.ordinal)
    return [dict(row) for row in (await connection.execute(query)).mappings()]


async def _remember(connection: AsyncConnection, row: Purchase, news: ClaimNews, now: int) -> tuple[bool, bool]:
    """Write down what a claim has become: (anything new, newly lost)."""
    known = await _claims_of(connection, row.id)
    old = next((found for found in known if found["id"] == news.claim_id), None)
    stood = old["counts"] if old is not None else True
    values: dict[str, Any] = {
        "amount_cents": news.cents,
        "status": news.status[:40],
        "counts": stood if news.counts is None else news.counts,
        "lost": news.lost if news.counts is not None or old is None else old["lost"],
        "reason": news.reason[:80],
        "withdrawn": sum(movement.taken_cents for movement in news.movements) * MILLICREDITS_PER_CENT,
        "movements": msgspec.json.encode(news.movements).decode(),
    }
    if old is None:
        fixed = {
            "id": news.claim_id,
            "purchase_id": row.id,
            "kind": news.kind,
            "ordinal": len(known) + 1,
            "created_at": now,
        }
        await connection.execute(insert(claims).values(**fixed, **values, updated_at=now))
        return True, bool(values["lost"])
    if all(old[name] == value for name, value in values.items()):
        return False, False
    await connection.execute(update(claims).where(claims.c.id == news.claim_id).values(**values, updated_at=now))
    return True, bool(values["lost"] and not old["lost"])


def _claim(row: dict[str, Any]) -> Claim:
    booked = Parts(row["booked_paid"], row["booked_bonus"], row["booked_tax"], row["booked_loss"])
    amounts = (booked, row["withdrawn"], row["cleared"])
    return Claim(row["id"], row["kind"], row["amount_cents"], row["counts"], row["lost"], *amounts)


def _facts(row: Purchase, receipt: Receipt) -> dict[str, Any]:
    """What the receipt adds to the row."""
    found: dict[str, Any] = {}
    if receipt.intent_id and row.payment_intent_id is None:
        found["payment_intent_id"] = receipt.intent_id
    if receipt.charge_id and receipt.charge_id != row.charge_id:
        found |= {"charge_id": receipt.charge_id, "receipt_url": receipt.receipt_url}
    return found


def _fee(receipt: Receipt, now: int) -> list[Posting]:
    if not receipt.fee_id:
        return []
    return signed(
        FEES,
        CASH,
        receipt.fee_cents * MILLICREDITS_PER_CENT,
        "stripe_fee",
        ("balance_transaction", receipt.fee_id),
        now,
    )


async def _note_movements(connection: AsyncConnection, purchase_id: str, now: int) -> None:
    """Book what Stripe moved for disputes that came before the purchase was credited."""
    for found in await _claims_of(connection, purchase_id):
        await insert_missing(connection, _cash(msgspec.json.decode(found["movements"], type=tuple[Movement, ...]), now))


def _cash(movements: Sequence[Movement], now: int) -> list[Posting]:
    """Only of credited purchases: the cash of others was never booked, so what of it goes back is not either."""
    found: list[Posting] = []
    for movement in movements:
        reference = ("balance_transaction", movement.balance_transaction_id)
        found += signed(DISPUTES, CASH, movement.taken_cents * MILLICREDITS_PER_CENT, "dispute_cash", reference, now)
    return found


def _fees(movements: Sequence[Movement], now: int) -> list[Posting]:
    """What disputes cost, whatever becomes of the purchase."""
    found: list[Posting] = []
    for movement in movements:
        reference = ("balance_transaction", movement.balance_transaction_id)
        found += signed(FEES, CASH, movement.fee_cents * MILLICREDITS_PER_CENT, "stripe_fee", reference, now)
    return found


def _purchase(row: Any) -> Purchase:
    return Purchase(**row)
