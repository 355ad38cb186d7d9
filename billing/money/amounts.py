"""Money as integers. 1 credit = 1,000 millicredits = $0.001; 1 millicredit = $0.000001.

The one constructor (`millicredits`) and the one rounding function (`round_up`) of the project live
here. `|amount| < 2**53` because Redis Lua compares numbers as doubles, which are exact up to there.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Literal, NewType

Millicredits = NewType("Millicredits", int)
RoundingMode = Literal["exact", "ceil"]

MILLICREDITS_PER_CREDIT = 1_000
MILLICREDITS_PER_USD = 1_000_000
LIMIT = 2**53
AMOUNT = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})")


class MoneyError(ValueError):
    """An amount is not an integer of millicredits below 2**53, or cannot be read as one."""


def millicredits(value: int) -> Millicredits:
    """Make an amount of millicredits. Raises MoneyError for a bool, a float, or |value| >= 2**53."""
    if type(value) is not int:
        raise MoneyError(f"an amount of millicredits is an int, not {type(value).__name__}")
    if not -LIMIT < value < LIMIT:
        raise MoneyError("an amount of millicredits must stay below 2**53")
    return Millicredits(value)


def round_up(numerator: int, denominator: int, mode: RoundingMode = "exact") -> Millicredits:
    """Round the exact rational `numerator / denominator` millicredits up, once per request.

    "exact" rounds up to the millicredit, "ceil" up to the whole credit (docs/architecture.md#units-and-words).
    Raises MoneyError for a negative value or a denominator below 1.
    """
    if numerator < 0 or denominator < 1:
        raise MoneyError("a charge is never negative")
    if mode == "exact":
        amount = -(-numerator // denominator)
    else:
        amount = -(-numerator // (denominator * MILLICREDITS_PER_CREDIT)) * MILLICREDITS_PER_CREDIT
    return Millicredits(amount) if type(amount) is int and amount < LIMIT else millicredits(amount)


def parse_credits(text: str) -> Millicredits:
    """Read credits as a person writes them ("12.5") exactly. Raises MoneyError."""
    return _scaled(text, MILLICREDITS_PER_CREDIT, "credits")


def parse_usd(text: str) -> Millicredits:
    """Read USD ("9.99") exactly. Raises MoneyError when it is finer than a millicredit."""
    return _scaled(text, MILLICREDITS_PER_USD, "USD")


def package_credits(usd: str, bonus_percent: str) -> tuple[Millicredits, Millicredits]:
    """(paid part, bonus part) in millicredits of a package.

    $49.99 + 5 % is 49,990,000 + 2,499,500. Raises MoneyError when the bonus is not a whole millicredit.
    """
    paid = parse_usd(usd)
    bonus = Fraction(paid) * Fraction(Decimal(bonus_percent)) / 100
    if bonus.denominator != 1:
        raise MoneyError(f"a bonus of {bonus_percent} % on ${usd} is not a whole number of millicredits")
    return paid, millicredits(bonus.numerator)


def display_credits(amount: int) -> int | float:
    """Credits as a JSON number for display only; money never comes back from it."""
    return (
        amount // MILLICREDITS_PER_CREDIT if amount % MILLICREDITS_PER_CREDIT == 0 else amount / MILLICREDITS_PER_CREDIT
    )


def written_credits(amount: int) -> str:
    """Millicredits as credits for people, exact, without needless places: "52,489.5"."""
    whole, rest = divmod(abs(amount), MILLICREDITS_PER_CREDIT)
    places = f".{rest:03}".rstrip("0") if rest else ""
    return f"{'-' if amount < 0 else ''}{whole:,}{places}"


def written_usd(amount: int) -> str:
    """Millicredits as dollars for people, exact, with cents and no needless places: "1,234.50", "0.000003"."""
    whole, rest = divmod(abs(amount), MILLICREDITS_PER_USD)
    return f"{'-' if amount < 0 else ''}{whole:,}.{f'{rest:06}'.rstrip('0').ljust(2, '0')}"


def display_usd(amount: int) -> int | float:
    """USD as a JSON number for display only; money never comes back from it."""
    return amount // MILLICREDITS_PER_USD if amount % MILLICREDITS_PER_USD == 0 else amount / MILLICREDITS_PER_USD


def decimal_of(text: str, unit: str) -> Fraction:
    """Read a number as people write amounts: a sign, digits 0 to 9, a dot; no exponent, and no digits of other scripts.

    Raises MoneyError.
    """
    plain = text.strip()
    if not AMOUNT.fullmatch(plain):
        raise MoneyError(f"{text[:40]!r} is not a number of {unit}")
    return Fraction(Decimal(plain))


def _scaled(text: str, factor: int, unit: str) -> Millicredits:
    exact = decimal_of(text, unit) * factor
    if exact.denominator != 1:
        raise MoneyError(f"{text} {unit} is finer than a millicredit")
    return millicredits(exact.numerator)
