"""Rate cards to change: the shipped one under another name."""

import copy
from typing import Any

from billing.money.pricing import load_catalogue

SHIPPED = load_catalogue()


def card(name: str, **changes: Any) -> dict[str, Any]:
    """The shipped card under another name, with changes at a dotted path."""
    document = copy.deepcopy(SHIPPED)
    document["catalogueId"] = name
    for path, value in changes.items():
        *inside, last = path.split("/")
        place = document
        for step in inside:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return document
