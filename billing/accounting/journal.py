"""The books by day: a journal that sums to zero, what is owed, and the margin. Derived from the ledger at every export.

    purchase      Dr cash                  Cr deferred revenue, tax payable
    consumption   Dr deferred revenue      Cr revenue            per lot, at its own cost basis (revenue_recognition.py)
    refund        Dr deferred revenue (what was not consumed), refunds (what was), tax payable      Cr cash
    dispute       the same against `disputes`, which Stripe's movements clear:  Dr disputes         Cr cash
    fees          Dr fees                  Cr cash
    usage cost    Dr cogs                  Cr payable:openai
    free credits  Dr promo (memo)          Cr promo granted (memo)      at face value; they never become revenue (and
                  back when they expire: those that do are spent before all others)
    by hand       the other way, free credits first; of paid ones Dr deferred revenue   Cr adjustments: no usage

The figures of a day follow from all that was booked up to its end, in days of UTC: an export can be repeated, and a
late booking shows on the day on which it was booked. They are read account by account (journal_source.py), from the
books that were kept at the end of a month (kept_books.py) where there are any. Amounts are millicredits = millionths of
a dollar.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import NamedTuple

import msgspec

from billing.accounting.journal_source import (
    BookedDays,
    CustomerMovement,
    accounts_moved,
    kept_before,
    others,
    owners_of_claims,
)
from billing.ledger.summaries.usage_days import since_day
from billing.money.credits.expiring import ExpiringLot, mark_of, spend, total_of
from billing.money.errors import InvariantBroken
from billing.money.postings import CASH, COGS, DISPUTES, FEES, PLATFORM_LOSS, REVENUE, TAX
from billing.money.revenue_recognition import Lot, Position, Span, position, shrink, withdraw_free
from billing.storage.database import Database

FIRST = date(1970, 1, 1)
BEFORE = -1
"""Number of the day that stands for all before the first that is asked for."""
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


State = tuple[list[tuple[str, int, int]], int, list[tuple[int, int]], list[tuple[str, int, int]]]
"""An account's books as they are kept: lots, what was consumed, which parts of it by hand, lots that expire."""


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


@dataclass(slots=True)
class AccountBooks:
    """One customer's lots and consumption so far.

    `expiring` are free credits that expire, spent before all others; `consumed` is what they did not cover.
    """

    lots: list[Lot] = field(default_factory=list)
    consumed: int = 0
    by_hand: list[Span] = field(default_factory=list)
    at: Position = NOWHERE
    expiring: list[ExpiringLot] = field(default_factory=list)

    @classmethod
    def read(cls, state: str | None) -> "AccountBooks":
        """Return what `written` wrote; None: an account that nothing has touched."""
        found = cls()
        if state is not None:
            lots, found.consumed, by_hand, expiring = msgspec.json.decode(state, type=State)
            found.lots, found.by_hand = [Lot(*lot) for lot in lots], [Span(*span) for span in by_hand]
            found.expiring = [ExpiringLot(*lot) for lot in expiring]
            found.move()
        return found

    def written(self) -> str:
        """Return all of it as JSON."""
        return msgspec.json.encode((self.lots, self.consumed, self.by_hand, self.expiring)).decode()

    def follow(self, movements: Iterable[CustomerMovement], owners: dict[str, str]) -> None:
        """Bring it up to date with what touched it."""
        for movement in sorted(movements, key=order_within_days):
            _apply(self, movement, owners)
            self.move()

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


@dataclass(slots=True)
class _Day:
    """A day as far as it was read: journal lines and sides of ledger accounts as debits less credits, what moved
    customers' accounts by its kind, and by how much what is owed and recognised moved.
    """

    lines: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    sides: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    effects: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    moved: Position = NOWHERE
    recognised: int = 0

    def post(self, debit: str, credit: str, amount: int) -> None:
        """Count what touches no customer."""
        _post(self.lines, debit, credit, amount)
        self.sides[debit] += amount
        self.sides[credit] -= amount

    def touch(self, account: AccountBooks, movement: CustomerMovement, owners: dict[str, str]) -> None:
        """Count what touched a customer, and bring the account up to date."""
        _apply(account, movement, owners)
        before = account.move()
        self.recognised += _recognise(self.lines, movement, before, account.at)
        self.moved = plus(self.moved, (new - old for new, old in zip(account.at, before, strict=True)))
        self.effects[movement.kind] += movement.effect

    def figures(self, name: str, owed: Position) -> DayBooks:
        """Return the day's figures; `owed`: the position of all accounts at its end."""
        effects, sides = self.effects, self.sides
        sold = (sum(effects[kind] for kind in PURCHASE_KINDS), -sum(effects[kind] for kind in CLAIM_KINDS))
        money = (sum(effects[kind] for kind in ("purchase", "refund", "dispute")), -sides[TAX])
        earned = (-effects["usage"], self.recognised, self.moved.adjusted)
        costs = (sides[COGS], sides[FEES], sides[PLATFORM_LOSS])
        return DayBooks(name, *sold, *money, *earned, *costs, owed.outstanding, owed.overdrawn, owed.deferred)


class Books:
    """Reads the ledger. Raises StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def journal(self, first: date, last: date) -> list[JournalLine]:
        """Every day's lines, in order; each day sums to zero. Raises InvariantBroken."""
        run = await self._run(first, last)
        found = []
        for number in range(number_of(first), number_of(last) + 1):
            day, amounts = _name(number), run[number].lines
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
        run = await self._run(first, last)
        owed, found = run[BEFORE].moved, []
        for number in range(number_of(first), number_of(last) + 1):
            # a day without any transfer still owes what the day before owed
            owed = plus(owed, run[number].moved)
            found.append(run[number].figures(_name(number), owed))
        return found

    async def _run(self, first: date, last: date) -> defaultdict[int, "_Day"]:
        """Booked day → what it comes to. What was booked before the first is one day, `BEFORE`."""
        found: defaultdict[int, _Day] = defaultdict(_Day)
        async with self._db.snapshot() as connection:
            kept = await kept_before(connection, number_of(first))
            days = BookedDays(kept.day + 1, number_of(last) + 1, await since_day(connection))
            found[BEFORE].moved = kept.at
            owners = await owners_of_claims(connection)
            for number, sides in (await others(connection, days._replace(first=number_of(first)))).items():
                for debit, credit, amount in sides:
                    found[number].post(debit, credit, amount)
            async for batch in accounts_moved(connection, days):
                for _, state, movements in batch:
                    account = AccountBooks.read(state)
                    for movement in sorted(movements, key=order_within_days):
                        day = found[movement.day if movement.day >= number_of(first) else BEFORE]
                        day.touch(account, movement, owners)
        return found


def order_within_days(movement: CustomerMovement) -> tuple[int, int]:
    """Within a day: what came in, then what was used, then what went back; each as booked, for sorting is stable."""
    return movement.day, 0 if movement.effect > 0 else 1 if movement.kind == "usage" else 2


def _apply(account: AccountBooks, movement: CustomerMovement, owners: dict[str, str]) -> None:
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


def _take_back(account: AccountBooks, kind: str, purchase: str, effect: int) -> None:
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


def plus(one: Position, other: Iterable[int]) -> Position:
    """Add figure by figure."""
    return Position(*(left + right for left, right in zip(one, other, strict=True)))


def number_of(day: date) -> int:
    """Return whole days since 1970."""
    return day.toordinal() - FIRST.toordinal()


def _name(number: int) -> str:
    return (FIRST + timedelta(days=number)).isoformat()
