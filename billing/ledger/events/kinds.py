"""Kinds of events: the one list. Pure."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

BY_CHOICE = "usage.charged"
"""Told only to who names it: there is one for every few requests."""
KINDS: Mapping[str, str] = {
    "account.created": "An account was made.",
    "account.updated": "What is said of it, its region or its price plan was changed.",
    "account.blocked": "It was blocked; its requests are refused.",
    "account.unblocked": "It was unblocked.",
    "account.closed": "It was closed for good.",
    "account.erased": "Its personal data were replaced.",
    "auto_recharge.action_needed": "The buyer must do something first: confirm a payment, or name a card.",
    "auto_recharge.ceiling": "Automatic recharge waits: the monthly ceiling is reached.",
    "auto_recharge.stopped": "Automatic recharge is off; its message says why.",
    "auto_recharge.waiting": "A payment failed, and is tried again later.",
    "balance.low": "The balance fell below a threshold, in credits or in per cent.",
    "credits.expiring": "Credits are about to expire.",
    "credits.expired": "What was left of credits expired.",
    "dispute.opened": "A payment was disputed.",
    "dispute.under_review": "The evidence is being looked at.",
    "dispute.won": "A dispute was won.",
    "dispute.lost": "A dispute was lost.",
    "dispute.updated": "A dispute has another state.",
    "key.created": "An API key was made.",
    "key.updated": "A key's name, tags or limits were changed.",
    "key.rotated": "A key has another secret.",
    "key.revoked": "A key was revoked.",
    "limit.reached": "A key has used 50, 80 or 100 % of one of its budgets.",
    "promo.redeemed": "A promo code was redeemed.",
    "purchase.credited": "A purchase was paid for, and its credits are booked.",
    "refund.pending": "A refund is on its way.",
    "refund.succeeded": "A refund was made.",
    "refund.failed": "A refund failed; its credits are back.",
    "refund.canceled": "A refund was called off; its credits are back.",
    "refund.updated": "A refund has another state.",
    "storage.unpaid": "A day of storage could not be paid in whole.",
    "storage.removed": "Vector stores were deleted, as their storage was not paid for.",
    BY_CHOICE: "Requests were charged; only for who asks for it by name.",
}


def is_kind(pattern: str) -> bool:
    """Tell whether a pattern names a kind that there is: `*`, `key.*`, `balance.low`."""
    return any(fnmatchcase(kind, pattern) for kind in KINDS)


def wants(patterns: Iterable[str], kind: str) -> bool:
    """Tell whether one of the patterns names this kind."""
    if kind == BY_CHOICE:
        return kind in patterns
    return any(fnmatchcase(kind, pattern) for pattern in patterns)
