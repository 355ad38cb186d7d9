"""Claims in SQL: what refunds and disputes take back of a purchase, booked in the transaction that learns of it.

Which states a claim goes through, and why it may be booked again: claims.py.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.credits.lots import change_lot
from billing.ledger.recharge_blocks import WARNED, stop_for_risk, use_up_crossing
from billing.ledger.transfers import insert_missing, move
from billing.money.postings import CASH, DISPUTES, FEES, PLATFORM_LOSS, Posting, effect_on, signed
from billing.payments.claims import Claim, Kind, Parts, Whole, allocate, claim_postings, clearing
from billing.payments.purchase import MILLICREDITS_PER_CENT, State
from billing.payments.purchase_store import Purchase, Stale, change_purchase, lock_purchase
from billing.storage.database import Database, now_ms
from billing.storage.tables.core import accounts
from billing.storage.tables.payments import claims, purchases

SYSTEM = Who("stripe", "system")
"""Actor in the audit log for what a lost dispute does by itself."""


class DisputeMovement(NamedTuple):
    """A balance transaction of a dispute: cents taken from us (negative: given back), and the fee for it."""

    balance_transaction_id: str
    taken_cents: int
    fee_cents: int


class ClaimNews(NamedTuple):
    """A refund or dispute as Stripe has it now. `counts` None: an unknown status, so what stood stands."""

    claim_id: str
    kind: Kind
    cents: int
    status: str
    counts: bool | None
    lost: bool
    reason: str = ""
    movements: tuple[DisputeMovement, ...] = ()


class Applied(NamedTuple):
    """A transaction's effect: `credited` millicredits were added (negative: taken back); `blocked`: the account was.

    `taken`: the part of it that refunds and disputes changed, by their kind (negative: taken back). `lost`:
    millicredits that went back beyond what was sold.
    """

    changed: bool
    state: State
    credited: int = 0
    problem: str = ""
    blocked: bool = False
    taken: Mapping[str, int] = MappingProxyType({})
    lost: int = 0


class Rebooked(NamedTuple):
    """A rebooking's effect in millicredits: on the customer's balance by the kind of claim, and on `platform_loss`."""

    taken: Mapping[str, int]
    lost: int


class ClaimTotals(NamedTuple):
    """A credited purchase's total, and what refunds and disputes of it count now, in cents."""

    total_cents: int
    refunded_cents: int
    disputed_cents: int

    @property
    def word(self) -> str:
        """Name of such a purchase, on every page and in every command."""
        if self.disputed_cents:
            return "disputed"
        return "refunded" if self.refunded_cents >= self.total_cents else "partly refunded"


class ClaimRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `claims`. Amounts in millicredits unless they say cents; times in Unix milliseconds."""

    id: str
    purchase_id: str
    ordinal: int
    kind: Kind
    amount_cents: int
    status: str
    counts: bool
    lost: bool
    reason: str
    version: int
    booked_paid: int
    booked_bonus: int
    booked_tax: int
    booked_loss: int
    withdrawn: int
    cleared: int
    movements: str
    created_at: int
    updated_at: int

    @property
    def claim(self) -> Claim:
        """The claim as the rules of claims.py see it."""
        booked = Parts(self.booked_paid, self.booked_bonus, self.booked_tax, self.booked_loss)
        amounts = (booked, self.withdrawn, self.cleared)
        return Claim(self.id, self.kind, self.amount_cents, self.counts, self.lost, *amounts)


class _Told(NamedTuple):
    """The columns of a claim that Stripe decides."""

    amount_cents: int
    status: str
    counts: bool
    lost: bool
    reason: str
    withdrawn: int
    movements: str


class ClaimStore:
    """Reads and writes claims. Every method raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database, *, block_after_lost_disputes: int = 0) -> None:
        """`block_after_lost_disputes`: block an account with so many of them; 0 = never."""
        self._db, self._block_after = database, block_after_lost_disputes

    async def apply(self, purchase_id: str, news: ClaimNews, revision: int) -> Applied:
        """Apply a refund or dispute to its purchase; before the purchase is credited it is only kept. Raises Stale."""
        now = now_ms()
        async with self._db.write() as connection:
            row = await lock_purchase(connection, purchase_id)
            if row.revision != revision:
                raise Stale(purchase_id)
            changed, newly_lost = await _record(connection, row, news, now)
            taken, lost = Rebooked({}, 0)
            await insert_missing(connection, _fees(news.movements, now))
            if news.kind == "dispute" and changed and news.counts is not False:
                await stop_for_risk(connection, row.account_id)
            if row.state == "credited":
                await insert_missing(connection, _cash(news.movements, now))
                taken, lost = await rebook_claims(connection, row, now)
                if sum(taken.values()) < 0:
                    await use_up_crossing(connection, row.account_id)
            changed = changed or bool(taken) or bool(lost)
            if changed:
                await change_purchase(connection, row, {})
            blocked = newly_lost and await self._block(connection, row.account_id)
            return Applied(changed, row.state, sum(taken.values()), blocked=blocked, taken=taken, lost=lost)

    async def suspect(self, purchase_id: str) -> str:
        """Charge the purchase's account no more by itself: its payment was reported as possible fraud.

        Returns the account.
        """
        async with self._db.write() as connection:
            row = await lock_purchase(connection, purchase_id)
            await stop_for_risk(connection, row.account_id, WARNED)
            return row.account_id

    async def round_taxes(self) -> int:
        """Book anew what an earlier version booked with fractions of a cent of tax; return of how many purchases."""
        query = select(claims.c.purchase_id).where(claims.c.booked_tax % MILLICREDITS_PER_CENT != 0).distinct()
        async with self._db.read() as connection:
            found = list((await connection.execute(query)).scalars())
        for purchase_id in found:
            async with self._db.write() as connection:
                row = await lock_purchase(connection, purchase_id)
                await rebook_claims(connection, row, now_ms())
                await change_purchase(connection, row, {})
        return len(found)

    async def of_purchase(self, purchase_id: str) -> list[ClaimRow]:
        """Return the refunds and disputes of a purchase, in the order we heard of them."""
        async with self._db.read() as connection:
            return await claims_of(connection, purchase_id)

    async def totals(self, purchase_ids: Sequence[str]) -> dict[str, ClaimTotals]:
        """Return what refunds and disputes count of these purchases, by purchase; those without any are left out."""
        query = (
            select(purchases.c.id, purchases.c.total_cents, claims.c.kind, func.sum(claims.c.amount_cents))
            .join(claims, claims.c.purchase_id == purchases.c.id)
            .where(purchases.c.id.in_(purchase_ids), claims.c.counts)
            .group_by(purchases.c.id, purchases.c.total_cents, claims.c.kind)
        )
        found: dict[str, ClaimTotals] = {}
        async with self._db.read() as connection:
            for purchase_id, total, kind, cents in await connection.execute(query):
                known = found.get(purchase_id, ClaimTotals(total, 0, 0))
                found[purchase_id] = known._replace(
                    **{"refunded_cents" if kind == "refund" else "disputed_cents": int(cents)}
                )
        return found

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


async def claims_of(connection: AsyncConnection, purchase_id: str) -> list[ClaimRow]:
    """Return a purchase's claims in the order we heard of them."""
    query = select(claims).where(claims.c.purchase_id == purchase_id).order_by(claims.c.ordinal)
    return [ClaimRow(**row) for row in (await connection.execute(query)).mappings()]


def whole_of(row: Purchase) -> Whole:
    """Return a purchase as sold."""
    tax = row.tax_cents * MILLICREDITS_PER_CENT
    return Whole(row.total_cents, row.paid_millicredits, row.bonus_millicredits, tax, row.bonus_expired)


async def rebook_claims(connection: AsyncConnection, row: Purchase, now: int) -> Rebooked:
    """Bring every claim's bookings to what it should take."""
    whole = whole_of(row)
    rows = await claims_of(connection, row.id)
    standing = [found.claim for found in rows]
    taken: defaultdict[str, int] = defaultdict(int)
    lost = 0
    for found, claim, parts in zip(rows, standing, allocate(whole, standing), strict=True):
        version = found.version + 1
        postings = claim_postings(claim, parts, row.account_id, version, now)
        if not postings:
            continue
        await change_lot(connection, "purchase_bonus", row.id, parts.bonus - claim.booked.bonus)
        await move(connection, postings)
        lost -= sum(effect_on(PLATFORM_LOSS, posting) for posting in postings)
        taken[claim.kind] -= parts.paid + parts.bonus - claim.booked.paid - claim.booked.bonus
        booked = {f"booked_{name}": getattr(parts, name) for name in Parts._fields}
        values = {**booked, "cleared": clearing(claim, parts), "version": version, "updated_at": now}
        await connection.execute(update(claims).where(claims.c.id == claim.claim_id).values(**values))
    return Rebooked(taken, lost)


async def book_movements(connection: AsyncConnection, purchase_id: str, now: int) -> None:
    """Book the cash that Stripe moved for disputes that came before the purchase was credited."""
    for found in await claims_of(connection, purchase_id):
        await insert_missing(
            connection, _cash(msgspec.json.decode(found.movements, type=tuple[DisputeMovement, ...]), now)
        )


async def _record(connection: AsyncConnection, row: Purchase, news: ClaimNews, now: int) -> tuple[bool, bool]:
    """Write down what a claim has become: (anything new, newly lost)."""
    known = await claims_of(connection, row.id)
    old = next((found for found in known if found.id == news.claim_id), None)
    stood = old.counts if old is not None else True
    told = _Told(
        amount_cents=news.cents,
        status=news.status[:40],
        counts=stood if news.counts is None else news.counts,
        lost=news.lost if news.counts is not None or old is None else old.lost,
        reason=news.reason[:80],
        withdrawn=sum(movement.taken_cents for movement in news.movements) * MILLICREDITS_PER_CENT,
        movements=msgspec.json.encode(news.movements).decode(),
    )
    values = told._asdict()
    if old is None:
        fixed = {
            "id": news.claim_id,
            "purchase_id": row.id,
            "kind": news.kind,
            "ordinal": len(known) + 1,
            "created_at": now,
        }
        await connection.execute(insert(claims).values(**fixed, **values, updated_at=now))
        return True, told.lost
    if all(getattr(old, name) == value for name, value in values.items()):
        return False, False
    await connection.execute(update(claims).where(claims.c.id == news.claim_id).values(**values, updated_at=now))
    return True, told.lost and not old.lost


def _cash(movements: Sequence[DisputeMovement], now: int) -> list[Posting]:
    """Return the postings of a credited purchase: the cash of others was never booked, so what goes back is not."""
    found: list[Posting] = []
    for movement in movements:
        reference = ("balance_transaction", movement.balance_transaction_id)
        found += signed(DISPUTES, CASH, movement.taken_cents * MILLICREDITS_PER_CENT, "dispute_cash", reference, now)
    return found


def _fees(movements: Sequence[DisputeMovement], now: int) -> list[Posting]:
    """Return the postings of what disputes cost, whatever becomes of the purchase."""
    found: list[Posting] = []
    for movement in movements:
        reference = ("balance_transaction", movement.balance_transaction_id)
        found += signed(FEES, CASH, movement.fee_cents * MILLICREDITS_PER_CENT, "stripe_fee", reference, now)
    return found
