"""Listing of the rate cards, for the admin API, the ops page and the command line."""

from typing import Any

from billing.ledger.rate_cards import RateCards
from proxy.web.times import iso_time


async def list_rate_cards(rates: RateCards) -> dict[str, Any]:
    """Every card, the active one, and the times from which they apply. Raises StoreUnavailable."""
    return {
        "active": await rates.active_id(),
        "cards": [
            {"rateCardId": row.id, "createdAt": iso_time(row.created_at), "actor": row.actor}
            for row in await rates.cards()
        ],
        "activations": [
            {
                "rateCardId": row.card_id,
                "effectiveAt": iso_time(row.effective_at),
                "activatedAt": iso_time(row.created_at),
                "actor": row.actor,
            }
            for row in await rates.activations()
        ],
    }
