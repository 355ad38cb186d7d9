"""Rows of credits that expire, for their owner and for staff."""

from collections.abc import Sequence
from typing import Any

from billing.ledger.credits.lots import LotRow
from billing.money.amounts import display_credits
from proxy.web.times import iso_time


def source_of(row: LotRow) -> str:
    """Return what gave the credits: "bonus" of a purchase, or "grant"."""
    return "bonus" if row.kind == "purchase_bonus" else "grant"


def expiring_rows(rows: Sequence[LotRow]) -> list[dict[str, Any]]:
    """Return what expires, the next first."""
    return [
        {
            "millicredits": str(row.remaining_millicredits),
            "credits": display_credits(row.remaining_millicredits),
            "expiresAt": iso_time(row.expires_at),
            "source": source_of(row),
            "referenceId": row.reference_id,
        }
        for row in rows
    ]
