"""The books by day: a journal that sums to zero, what is owed, and the margin. Derived from the ledger at every export.

    purchase      Dr cash                     Cr deferred revenue, tax payable consumption   Dr deferred revenue
    Cr revenue            per lot, at its own cost basis (recognition.py) refund        Dr deferred revenue (what was
    not consumed), refunds (what was), tax payable     Cr cash dispute       the same against `disputes`, which Stripe's
    movements clear:  Dr disputes  Cr cash fees          Dr fees                     Cr cash usage cost    Dr cogs
    Cr payable:openai free credits  Dr promo (memo)             Cr promo granted (memo)      at face value; they never
    become revenue (and back when they expire: those that do are spent before all others) by hand       the other way,
    free credits first; of paid ones Dr deferred revenue   Cr adjustments, which is no usage

The figures of a day follow from all transfers up to its end, in days of UTC: no state is kept, so an export can be
repeated and a late booking shows on the day on which it was booked. Amounts are millicredits = millionths of a dollar.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, func, or_, select

from billing.money.credits.expiring import ExpiringLot, mark_of, spend, total_of
from billing.money.errors import InvariantBroken
from billing.money.postings import CASH, COGS, CUSTOMER, DISPUTES, FEES, PLATFORM_LOSS, REVENUE, TAX
from billing.money.revenue_recognition import Lot, Position, Span, position, shrink, withdraw_free
from billing.storage.database import Database
from billing.storage.tables.core import transfers
from billing.storage.tables.payments import claims

DAY_MS = 86_400_000
DEFERRED = "deferred revenue"
RECOGNISED = "revenue"
REFUNDS = "refunds"
ADJUSTMENTS = "adjustments"
PROMO_MEMO = "promo (memo)"
PROMO_GRANTED = "promo granted (memo)"

NOWHERE = Position(0, 0, 0, 0, 0)
PURCHASE_KINDS = ("purchase", "purchase_bonus")
CLAIM_KINDS = ("refund", "refund_bonus", "dispute", "dispute_bonus")
FREE_KINDS = ("purchase_bonus", "refund_bonus", "dispute_bonus", "adjustment", "expiry")


class JournalLine(NamedTuple):
    """One journal line: exactly one of debit and credit is not zero."""

    day: str
    account: str
    debit: int
    credit: int


class DayBooks(NamedTuple):
    """The figures of a day in millicredits (of money: millionths of a dollar).

    `liability`, `overdrawn` and `deferred` are at its end, the others what happened in it. `purchased` are credits with
    their bonus, `taken_back` those that refunds and disputes took; `paid` is the money for them, `tax` what came on
    top, both net of what went back. `adjusted` is the money of paid credits that a person took away: no part of
    `recognised`.
    """

    day: str
    purchased: int = 0
    taken_back: int = 0
    paid: int = 0
    tax: int = 0
    deducted: int = 0
    recognised: int = 0
    adjusted: int = 0
    cogs: int = 0
    fees: int = 0
    platform_loss: int = 0
    liability: int = 0
    overdrawn: int = 0
    deferred: int = 0

    @property
    def margin(self) -> int:
        """The runbook's margin: what was deducted less what OpenAI costs."""
        return self.deducted - self.cogs

    @property
    def profit(self) -> int:
        """Recognised revenue less cost of goods and fees; `tollkeeper books` reads it by its name."""
        return self.recognised - self.cogs - self.fees


class CustomerMovement(NamedTuple):
    """Something that touched a customer: a row, or a day's usage in one."""

    day: int
    account_id: str
    kind: str
    reference: str
    effect: int
    expires_at: int | None = None


@dataclass(slots=True)
class _Account:
    """One customer's lots and consumption so far.

    `expiring` are free credits that expire, spent before all others; `consumed` is what they did not cover.
    """

    lots: list[Lot] = field(default_factory=list)
    consumed: int = 0
    by_hand: list[Span] = field(default_factory=list)
    at: Position = NOWHERE
    expiring: list[ExpiringLot] = field(default_factory=list)

    def move(self) -> Position:
        """Bring the position up to date; return what it was."""
        before, self.at = self.at, position(self.lots, self.consumed, self.by_hand)
        covered = min(self.at.overdrawn, total_of(self.expiring))
        if covered:  # what was overdrawn is made up for by credits that expire before it is by paid ones
            self.expiring, _ = spend(self.expiring, covered)
            self.consumed -= covered
            self.by_hand = [part._replace(end=min(part.end, self.consumed)) for part in self.by_hand]
            self.at = position(self.lots, self.consumed, self.by_hand)
        self.at = self.at._replace(outstanding=self.at.outstanding + total_of(self.expiring))
        return before

    def use(self, amount: int) -> None:
        """Spend credits on requests."""
        self.expiring, rest = spend(self.expiring, amount)
        self.consumed += rest

    def take_away(self, amount: int) -> None:
        """Take credits by hand: of what expires first, then of what else is free, then of what was paid for."""
        self.expiring, rest = spend(self.expiring, amount)
        self.lots, rest = withdraw_free(self.lots, rest, self.consumed)
        self.by_hand.append(Span(self.consumed, self.consumed + rest))
        self.consumed += rest

    def change_lot(self, lot_id: str, effect: int) -> int:
        """Take from one expiring lot, or give back to it; return what it could not give."""
        rest, found = -effect, list[ExpiringLot]()
        for lot in self.expiring:
            taken = min(rest, lot.remaining) if lot.lot_id == lot_id else 0
            rest -= taken
            found.append(lot._replace(remaining=lot.remaining - taken))
        self.expiring = found
        return rest


class Books:
    """Reads the ledger. Raises StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def journal(self, first: date, last: date) -> list[JournalLine]:
        """Every day's lines, in order; each day sums to zero. Raises InvariantBroken."""
        entries, _ = await self._run(last)
        found = []
        for day in _days(first, last):
            amounts = entries.get(day, {})
            if sum(amounts.values()):
                raise InvariantBroken(f"the journal of {day} does not sum to zero")
            found += [
                JournalLine(day, name, max(amount, 0), max(-amount, 0))
                for name, amount in sorted(amounts.items())
                if amount
            ]
        return found

    async def days(self, first: date, last: date) -> list[DayBooks]:
        """Liability and margin by day."""
        _, figures = await self._run(last)
        found, now = [], DayBooks("")
        for day in sorted({*figures, *_days(first, last)}):
            # a day without any transfer still owes what the day before owed
            now = figures.get(
                day, DayBooks(day, liability=now.liability, overdrawn=now.overdrawn, deferred=now.deferred)
            )
            if day >= first.isoformat():
                found.append(now)
        return found

    async def _run(self, last: date) -> tuple[dict[str, dict[str, int]], dict[str, DayBooks]]:
        """(day → account → debits less credits, day → figures), for the days on which anything was booked."""
        until = int(datetime(last.year, last.month, last.day, tzinfo=UTC).timestamp()) * 1_000 + DAY_MS
        movements: defaultdict[int, list[CustomerMovement]] = defaultdict(list)
        for movement in await self._customers(until):
            movements[movement.day].append(movement)
        others, owners = await self._others(until), await self._owners()
        accounts: defaultdict[str, _Account] = defaultdict(_Account)
        entries: dict[str, dict[str, int]] = {}
        figures: dict[str, DayBooks] = {}
        owed = NOWHERE
        for number in sorted({*movements, *others}):
            lines: defaultdict[str, int] = defaultdict(int)
            sides: defaultdict[str, int] = defaultdict(int)
            for debit, credit, amount in others.get(number, ()):
                _post(lines, debit, credit, amount)
                sides[debit] += amount
                sides[credit] -= amount
            recognised, began = 0, owed
            for movement in sorted(movements[number], key=_order):
                account = accounts[movement.account_id]
                _apply(account, movement, owners)
                before = account.move()
                recognised += _recognise(lines, movement, before, account.at)
                owed = Position(*(total + new - old for total, new, old in zip(owed, account.at, before, strict=True)))
            name = _name(number)
            entries[name] = dict(lines)
            sold = (_moved(movements[number], PURCHASE_KINDS), -_moved(movements[number], CLAIM_KINDS))
            money = (_moved(movements[number], ("purchase", "refund", "dispute")), -sides[TAX])
            earned = (-_moved(movements[number], ("usage",)), recognised, owed.adjusted - began.adjusted)
            costs = (sides[COGS], sides[FEES], sides[PLATFORM_LOSS])
            figures[name] = DayBooks(
                name, *sold, *money, *earned, *costs, owed.outstanding, owed.overdrawn, owed.deferred
            )
        return entries, figures

    async def _customers(self, until: int) -> list[CustomerMovement]:
        """Return what touched customers: usage summed by day and account, everything else row by row."""
        day = _day_number(transfers.c.created_at)
        total = func.sum(transfers.c.amount_millicredits)
        usage = select(day, transfers.c.debit_account, total).where(
            transfers.c.kind == "usage", transfers.c.created_at < until
        )
        touched = or_(transfers.c.debit_account.startswith(CUSTOMER), transfers.c.credit_account.startswith(CUSTOMER))
        rest = (
            select(
                transfers.c.created_at,
                transfers.c.debit_account,
                transfers.c.credit_account,
                transfers.c.kind,
                transfers.c.reference_id,
                transfers.c.amount_millicredits,
                transfers.c.expires_at,
            )
            .where(touched, transfers.c.kind != "usage", transfers.c.created_at < until)
            .order_by(transfers.c.id)
        )
        async with self._db.read() as connection:
            sums = (await connection.execute(usage.group_by(day, transfers.c.debit_account))).all()
            rows = (await connection.execute(rest)).all()
        found = [
            CustomerMovement(int(row[0]), row[1].removeprefix(CUSTOMER), "usage", "", -int(row[2])) for row in sums
        ]
        for at, debit, credit, kind, reference, amount, ends in rows:
            credited = credit.startswith(CUSTOMER)
            account = (credit if credited else debit).removeprefix(CUSTOMER)
            effect = amount if credited else -amount
            found.append(CustomerMovement(at // DAY_MS, account, kind, reference, effect, ends))
        return found

    async def _others(self, until: int) -> dict[int, list[tuple[str, str, int]]]:
        """DayBooks → (debit, credit, millicredits) of what touches no customer."""
        day = _day_number(transfers.c.created_at)
        amount = func.sum(transfers.c.amount_millicredits)
        alone = and_(~transfers.c.debit_account.startswith(CUSTOMER), ~transfers.c.credit_account.startswith(CUSTOMER))
        query = select(day, transfers.c.debit_account, transfers.c.credit_account, amount).where(
            alone, transfers.c.created_at < until
        )
        async with self._db.read() as connection:
            rows = (
                await connection.execute(query.group_by(day, transfers.c.debit_account, transfers.c.credit_account))
            ).all()
        found: defaultdict[int, list[tuple[str, str, int]]] = defaultdict(list)
        for row in rows:
            found[int(row[0])].append((row[1], row[2], int(row[3])))
        return found

    async def _owners(self) -> dict[str, str]:
        """Claim → the purchase whose lot it takes from."""
        async with self._db.read() as connection:
            return {row[0]: row[1] for row in await connection.execute(select(claims.c.id, claims.c.purchase_id))}


def _day_number(column: ColumnElement[int]) -> ColumnElement[int]:
    """Whole days since 1970; integer division, which both databases do for integers."""
    return (column - column % DAY_MS) // DAY_MS


def _moved(movements: Iterable[CustomerMovement], kinds: Collection[str]) -> int:
    """Sum what movements of these kinds put on customers' accounts, in millicredits."""
    return sum(movement.effect for movement in movements if movement.kind in kinds)


def _order(movement: CustomerMovement) -> int:
    """Within a day: what came in, then what was used, then what went back; each as booked, for sorting is stable."""
    return 0 if movement.effect > 0 else 1 if movement.kind == "usage" else 2


def _apply(account: _Account, movement: CustomerMovement, owners: dict[str, str]) -> None:
    kind, effect = movement.kind, movement.effect
    if kind == "usage":
        account.use(-effect)
    elif movement.expires_at is not None:
        account.expiring.append(ExpiringLot(f"{kind}:{movement.reference}", effect, movement.expires_at))
    elif kind == "expiry":
        mark = movement.reference.rpartition(":")[0]
        lot = next((one.lot_id for one in account.expiring if mark_of(one.lot_id) == mark), "")
        account.take_away(account.change_lot(lot, effect))
    elif kind in PURCHASE_KINDS:
        paid = effect if kind == "purchase" else 0
        if any(lot.lot_id == movement.reference for lot in account.lots):
            account.lots = shrink(account.lots, movement.reference, -effect, -paid)
        else:
            account.lots.append(Lot(movement.reference, effect, paid))
    elif kind in CLAIM_KINDS:
        _take_back(account, kind, owners[movement.reference.rpartition(":")[0]], effect)
    elif effect > 0:
        account.lots.append(Lot(movement.reference, effect, 0))
    else:
        account.take_away(-effect)


def _take_back(account: _Account, kind: str, purchase: str, effect: int) -> None:
    """Apply a refund or dispute to what its purchase gave; of a bonus that expires to that."""
    bonus = f"purchase_bonus:{purchase}"
    if kind.endswith("_bonus") and any(lot.lot_id == bonus for lot in account.expiring):
        account.consumed += account.change_lot(bonus, effect)  # what was spent of it falls on other lots
    else:
        account.lots = shrink(account.lots, purchase, -effect, 0 if kind.endswith("_bonus") else -effect)


def _recognise(lines: defaultdict[str, int], movement: CustomerMovement, before: Position, after: Position) -> int:
    """Add the journal lines of one movement; return the revenue that it recognised."""
    revenue, deferred = after.recognised - before.recognised, after.deferred - before.deferred
    adjusted = after.adjusted - before.adjusted
    free = movement.effect if movement.kind in FREE_KINDS else 0
    _post(
        lines, PROMO_MEMO, PROMO_GRANTED, free + adjusted
    )  # what was taken by hand and turns out to be paid for was not free
    if movement.kind in ("refund", "dispute"):
        # what was consumed comes out of revenue by way of its contra account, the rest was still owed
        other = CASH if movement.kind == "refund" else DISPUTES
        _post(lines, DEFERRED, other, -deferred)
        _post(lines, REFUNDS, other, -revenue)
        _post(lines, ADJUSTMENTS, other, -adjusted)
        return revenue
    if movement.kind == "purchase":
        _post(lines, CASH, DEFERRED, movement.effect)
    _post(lines, DEFERRED, RECOGNISED, revenue)  # of a purchase: what an overdrawn account had used before it paid
    _post(lines, DEFERRED, ADJUSTMENTS, adjusted)
    return revenue


def _post(lines: defaultdict[str, int], debit: str, credit: str, amount: int) -> None:
    """Debits are positive; a negative amount goes the other way.

    Ledger accounts without a meaning here are left out.
    """
    if REVENUE in (debit, credit) and PLATFORM_LOSS in (debit, credit):
        return  # usage that nobody paid is no revenue; what it cost is in cogs
    lines[debit] += amount
    lines[credit] -= amount


def _days(first: date, last: date) -> Iterator[str]:
    day = first
    while day <= last:
        yield day.isoformat()
        day += timedelta(days=1)


def _name(number: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=number)).isoformat()
