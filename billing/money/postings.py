"""Postings of each event: the ledger accounts that it debits and credits. Pure; the table stands in docs/ledger.md.

Every posting is one debit and one credit of the same amount, so the books balance by construction (I5).
"""

from typing import Literal, NamedTuple

from billing.money.errors import InvariantBroken

CASH = "cash"
REVENUE = "revenue"
PROMO = "promo"
PLATFORM_LOSS = "platform_loss"
COGS = "cogs"
PAYABLE = "payable:"
"""Before the name of the upstream that a cost is owed to."""
DEFAULT_UPSTREAM = "openai"
"""Name of the upstream that a record without one means: the only one, before there were several."""
TAX = "payable:tax"
DISPUTES = "disputes"
FEES = "fees"
CUSTOMER = "customer:"


class Posting(NamedTuple):
    """One ledger row to be: `amount` millicredits out of `credit`'s pocket into `debit`'s, seen as books see it.

    `expires_at` (Unix ms): when the credits that it gives do; `reason_shown`: the customer may read the reason.
    """

    debit: str
    credit: str
    amount: int
    kind: str
    reference_type: str
    reference_id: str
    created_at: int
    actor: str = "system"
    reason: str = ""
    expires_at: int | None = None
    reason_shown: bool = False


def customer(account_id: str) -> str:
    """Return the liability account that holds a customer's credits."""
    return CUSTOMER + account_id


def payable(upstream: str) -> str:
    """Return the account of what is owed to an upstream; "" is the default one."""
    return PAYABLE + (upstream or DEFAULT_UPSTREAM)


def charge_postings(
    charge_id: str, account_id: str, charged: int, loss: int, cost: int, created_at: int, upstream: str = ""
) -> list[Posting]:
    """Return a settled request's postings: customer → revenue, its cost, what nobody pays. Zero parts post nothing.

    `upstream`: who is owed the cost, "" the default one.
    """
    rows = [
        Posting(customer(account_id), REVENUE, charged, "usage", "charge", charge_id, created_at),
        Posting(PLATFORM_LOSS, REVENUE, loss, "platform_loss", "charge", charge_id, created_at),
        Posting(COGS, payable(upstream), cost, "usage_cost", "charge", charge_id, created_at),
    ]
    if min(charged, loss, cost) < 0:
        raise InvariantBroken(f"charge {charge_id} has a negative part")
    return [row for row in rows if row.amount]


class GrantTerms(NamedTuple):
    """Terms of credits that are given: when they expire (Unix ms), whether customers read why, and what gave them."""

    expires_at: int | None = None
    reason_shown: bool = False
    source: Literal["grant", "welcome", "promo"] = "grant"


PLAIN = GrantTerms()


def grant_posting(
    account_id: str,
    amount: int,
    reference_id: str,
    created_at: int,
    actor: str,
    reason: str,
    terms: GrantTerms = PLAIN,
) -> Posting:
    """Return the posting of an admin's grant (or, negative, a correction back): promo ↔ customer."""
    debit, credit = PROMO, customer(account_id)
    if amount < 0:
        debit, credit = credit, debit
    what = ("adjustment", terms.source, reference_id, created_at, actor, reason)
    return Posting(debit, credit, abs(amount), *what, terms.expires_at, terms.reason_shown)


def expiry_posting(account_id: str, amount: int, reference_id: str, created_at: int) -> Posting:
    """Return the posting of credits that were given and have expired."""
    return Posting(customer(account_id), PROMO, amount, "expiry", "expiry", reference_id, created_at)


def purchase_postings(
    purchase_id: str,
    account_id: str,
    paid: int,
    bonus: int,
    tax: int,
    created_at: int,
    bonus_expires_at: int | None = None,
) -> list[Posting]:
    """Return the postings of a paid package: price and bonus to the customer; tax is owed on, never credited."""
    given = Posting(PROMO, customer(account_id), bonus, "purchase_bonus", "purchase", purchase_id, created_at)
    rows = [
        Posting(CASH, customer(account_id), paid, "purchase", "purchase", purchase_id, created_at),
        given._replace(expires_at=bonus_expires_at),
        Posting(CASH, TAX, tax, "purchase_tax", "purchase", purchase_id, created_at),
    ]
    if min(paid, bonus, tax) < 0:
        raise InvariantBroken(f"purchase {purchase_id} has a negative part")
    return [row for row in rows if row.amount]


def signed(
    debit: str, credit: str, amount: int, kind: str, reference: tuple[str, str], created_at: int, reason: str = ""
) -> list[Posting]:
    """Debit ↔ credit by the sign of `amount`; nothing for 0. `reference` is (type, id)."""
    if amount < 0:
        debit, credit = credit, debit
    row = Posting(debit, credit, abs(amount), kind, *reference, created_at, "stripe", reason)
    return [row] if amount else []


def effect_on(account: str, posting: Posting) -> int:
    """Return the change of a liability account's balance: credits raise it, debits lower it."""
    return (posting.amount if posting.credit == account else 0) - (posting.amount if posting.debit == account else 0)
