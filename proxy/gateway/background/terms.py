"""Prices that something began under, found again when it ends: by then another rate card may be active."""

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from billing.ledger.plans.price_plans import PricePlans
from billing.ledger.rate_cards import RateCards
from billing.money.pricing import BookOrigin, PriceBook
from proxy.gateway.services import PricingTerms, Services


class Catalogues(NamedTuple):
    """Stores of prices: what things cost, and at what plans sell them."""

    cards: RateCards
    plans: PricePlans


async def recorded_terms(
    services: Services,
    catalogues: Catalogues,
    origin: BookOrigin | None,
    insurance: bool | None,
    known: Iterable[PriceBook],
) -> PricingTerms:
    """Terms of a record; what it does not say is what is in force now. `known`: books that need not be made again.

    Raises StoreUnavailable, RateCardError, PricePlanNotFound.
    """
    if insurance is None:
        insurance = services.settings.metering.zero_completion_insurance
    if origin is None:
        return PricingTerms(services.prices, insurance)
    book = next((book for book in (services.prices, *known) if book.origin == origin), None)
    if book is None:
        card = await catalogues.cards.get(origin.card_id)
        book = await asyncio.to_thread(PriceBook, card, origin.markup, origin.rounding, origin.adjustment)
        if origin.plan:
            book = book.under(await catalogues.plans.version(origin.plan))
    return PricingTerms(book, insurance)
