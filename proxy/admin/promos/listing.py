"""Promo codes as rows, and as they are asked for: for the admin API, the ops page and the command line."""

from typing import Any

from billing.ledger.credits.promos import PromoRow, PromoTerms
from billing.money.amounts import MoneyError, display_credits, parse_credits
from proxy.web.rejections import invalid
from proxy.web.times import iso_time


def promo_row(row: PromoRow, now: int) -> dict[str, Any]:
    """Return a code as it is shown."""
    return {
        "code": row.code,
        "state": state_of(row, now),
        "millicredits": str(row.amount_millicredits),
        "credits": display_credits(row.amount_millicredits),
        "uses": row.uses,
        "mostUses": row.most_uses,
        "creditDays": row.credit_days,
        "startsAt": iso_time(row.starts_at),
        "endsAt": iso_time(row.ends_at) if row.ends_at is not None else None,
        "endedAt": iso_time(row.ended_at) if row.ended_at is not None else None,
        "createdAt": iso_time(row.created_at),
        "actor": row.actor,
    }


def state_of(row: PromoRow, now: int) -> str:
    """Return whether a code can be redeemed, in one word."""
    if row.ended_at is not None or (row.ends_at is not None and row.ends_at <= now):
        return "ended"
    if row.most_uses is not None and row.uses >= row.most_uses:
        return "used up"
    return "open" if row.starts_at <= now else "to come"


def promo_terms(
    credits_text: str, uses: int | None, starts_at: int | None, ends_at: int | None, credit_days: int | None
) -> PromoTerms:
    """Read the terms of a code to be. Raises Rejection."""
    try:
        amount = parse_credits(credits_text)
    except MoneyError as error:
        raise invalid(f"`credits` is not an amount: {error}", "credits") from None
    return PromoTerms(amount, uses, starts_at, ends_at, credit_days)
