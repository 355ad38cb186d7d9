"""Amounts as people type them into a form."""

import re
from collections.abc import Callable

from billing.money.amounts import MoneyError
from proxy.web.rejections import invalid

GROUPED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")


def read_amount(text: str, read: Callable[[str], int], name: str, field: str) -> int:
    """Read a number from a form; a comma only groups thousands: 1,000 is a thousand, 20,00 is refused.

    `name`: what the form calls it; `field`: its field. Raises Rejection.
    """
    plain = text.strip()
    try:
        return read(plain.replace(",", "") if GROUPED.fullmatch(plain) else plain)
    except MoneyError:
        raise invalid(f"The {name} is not a number we understand.", field) from None
