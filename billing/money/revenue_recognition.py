"""Revenue by purchase lot, first in, first out, each at its own cost basis. Pure.

A lot is what one purchase (or grant) put on an account: `granted` millicredits of credits for `paid` millicredits of
money. Consuming n of them recognises round(paid * n / granted), so bonus credits dilute the lot instead of earning
revenue nobody paid, and an exhausted lot has recognised exactly what was paid. Credits that a person took away by hand,
beyond what was free, leave the lots in the same way, but what was paid for them is no revenue of usage: it is
`adjusted`. Everything here is a function of the lots and of how much was consumed in all: no state that could drift
from the ledger.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from billing.money.errors import InvariantBroken


class Lot(NamedTuple):
    """Credits of one origin, in millicredits; after refunds, what is left of them."""

    lot_id: str
    granted: int
    paid: int


class Span(NamedTuple):
    """A part of all that an account consumed, in millicredits since its first: from `start` up to `end`."""

    start: int
    end: int


class Position(NamedTuple):
    """An account's books in millicredits: money recognised and still owed, credits left, overdrawn; money of what was
    taken by hand.

    recognised + deferred + adjusted is what was paid and not given back.
    """

    recognised: int
    deferred: int
    outstanding: int
    overdrawn: int
    adjusted: int


def recognised_of(lot: Lot, consumed: int) -> int:
    """Return the revenue of `consumed` credits of a lot, by cumulative rounding."""
    if not 0 <= consumed <= lot.granted or lot.paid < 0:
        raise InvariantBroken(f"lot {lot.lot_id}: {consumed} consumed of {lot.granted}")
    return (2 * lot.paid * consumed + lot.granted) // (2 * lot.granted) if lot.granted else 0


def position(lots: Iterable[Lot], consumed: int, by_hand: Sequence[Span] = ()) -> Position:
    """Return the books after consuming so much in all, oldest lot first. What no lot covers is overdrawn.

    `by_hand`: which parts of it a person took away.
    """
    recognised = deferred = outstanding = adjusted = start = 0
    for lot in lots:
        mine = min(lot.granted, consumed - start)
        revenue, taken = recognised_of(lot, mine), _taken_of(lot, Span(start, start + mine), by_hand)
        start += mine
        recognised += revenue - taken
        adjusted += taken
        deferred += lot.paid - revenue
        outstanding += lot.granted - mine
    return Position(recognised, deferred, outstanding, consumed - start, adjusted)


def _taken_of(lot: Lot, mine: Span, by_hand: Sequence[Span]) -> int:
    """Return what was paid for credits of a lot taken by hand; `mine`: the part of all consumption that fell on it."""
    overlaps = [
        Span(max(part.start, mine.start) - mine.start, min(part.end, mine.end) - mine.start) for part in by_hand
    ]
    return sum(
        recognised_of(lot, part.end) - recognised_of(lot, part.start) for part in overlaps if part.start < part.end
    )


def shrink(lots: Sequence[Lot], lot_id: str, granted: int, paid: int) -> list[Lot]:
    """Return the lots after so much of one was taken back (negative: given again)."""
    return [
        lot._replace(granted=lot.granted - granted, paid=lot.paid - paid) if lot.lot_id == lot_id else lot
        for lot in lots
    ]


def withdraw_free(lots: Sequence[Lot], amount: int, consumed: int = 0) -> tuple[list[Lot], int]:
    """Take an admin's correction out of what is left of unpaid lots, newest first; the rest that they do not cover is
    returned.

    `consumed` in all, oldest lot first. What was used stays used: a correction moves no usage onto other lots.
    """
    found, before = list(lots), sum(lot.granted for lot in lots)
    for index in range(len(found) - 1, -1, -1):
        lot = found[index]
        before -= lot.granted
        if lot.paid == 0 and amount:
            taken = min(lot.granted - min(max(consumed - before, 0), lot.granted), amount)
            found[index] = lot._replace(granted=lot.granted - taken)
            amount -= taken
    return found, amount
