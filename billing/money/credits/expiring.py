"""Lots of credits that expire: first expiring, first spent. Pure.

What an account has is its expiring lots and the rest, which never expires (paid credits always). Whatever is charged is
taken from the lot that expires first; the rest pays what no lot covers. So much is left of the lots as the balance can
still hold: what a refund or a lost dispute took below them is taken from them too, never from what was paid.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from billing.money.errors import InvariantBroken


class ExpiringLot(NamedTuple):
    """Rest of credits that expire, in millicredits; `expires_at` in Unix milliseconds."""

    lot_id: str
    remaining: int
    expires_at: int


def spend(lots: Sequence[ExpiringLot], amount: int) -> tuple[list[ExpiringLot], int]:
    """Return the lots after so many millicredits were spent, and what of these no lot covered.

    The order of the lots stays; of two that expire together the one that stands first is spent first.
    """
    if amount < 0:
        raise InvariantBroken("a negative amount cannot be spent")
    found = list(lots)
    for place in sorted(range(len(found)), key=lambda number: found[number].expires_at):
        taken = min(found[place].remaining, amount)
        found[place] = found[place]._replace(remaining=found[place].remaining - taken)
        amount -= taken
    return found, amount


def within(lots: Sequence[ExpiringLot], balance: int) -> list[ExpiringLot]:
    """Return the lots as far as a balance covers them: what is missing was spent, first of what expires first."""
    return spend(lots, max(0, total_of(lots) - max(0, balance)))[0]


def total_of(lots: Sequence[ExpiringLot]) -> int:
    """Return the millicredits left of lots."""
    return sum(lot.remaining for lot in lots)


def may_expire(lots: Sequence[ExpiringLot], lot_id: str, promised: int) -> int:
    """Return what of a lot may expire, `promised` being held or charged and not booked yet: that is taken first."""
    after, _ = spend(lots, max(0, promised))
    return next((lot.remaining for lot in after if lot.lot_id == lot_id), 0)


def mark_of(lot_id: str) -> str:
    """Return the beginning of the references of a lot's expirations, which its own may be too long for."""
    return f"exp_{hashlib.sha256(lot_id.encode()).hexdigest()[:32]}"
