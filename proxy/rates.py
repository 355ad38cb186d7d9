"""The active rate card as a price book, followed while serving: a new card applies to requests that begin after it."""

import asyncio
import logging
from typing import NoReturn

from billing.errors import BillingError, StoreUnavailable
from billing.money import MoneyError
from billing.pricing import PriceBook, load_catalogue
from billing.rates import RateCards
from config.settings import Billing
from proxy.services import Services

log = logging.getLogger("tollkeeper.rates")

FOLLOW_SECONDS = 1.0


class Rates:
    """Makes price books out of the active card."""

    def __init__(self, cards: RateCards, billing: Billing) -> None:
        """`billing` names the markup for cards without prices of their own, and the rounding."""
        self._cards, self._billing = cards, billing
        self.swapping = asyncio.Lock()
        """Held while a book is made and put in place, by whoever does either: the card and the markup change independently."""

    async def current(self) -> PriceBook:
        """The book of the active card. Raises StoreUnavailable, RateCardError."""
        card_id = await self._cards.active_id()
        shipped = load_catalogue()["catalogueId"]
        if card_id is None:
            await self._cards.begin_with_shipped()
            card_id = shipped
        elif card_id != shipped:
            log.info("rate card %s is active; this version ships %s (`tollkeeper rates diff %s`)", card_id, shipped, shipped)
        return await self._book(card_id)

    async def follow(self, services: Services) -> NoReturn:
        """Swap `services.prices` whenever another card becomes active."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                async with self.swapping:
                    card_id = await self._cards.active_id()
                    if card_id is not None and card_id != services.prices.catalogue_id:
                        services.prices = await self._book(card_id)
                        log.info("rate card %s applies now", card_id)
            except StoreUnavailable:
                continue  # the prices we have stay; /readyz reports the store
            except (BillingError, MoneyError) as error:
                log.error("the active rate card cannot be used, the one before stays: %s", error)

    async def under(self, billing: Billing, services: Services) -> PriceBook:
        """The book in use, as `billing` would have it; hold `swapping`. Raises StoreUnavailable, RateCardError, MoneyError."""
        before, self._billing = self._billing, billing
        if (before.markup, before.rounding_mode) == (billing.markup, billing.rounding_mode):
            return services.prices
        try:
            return await self._book(services.prices.catalogue_id)
        except BaseException:
            self._billing = before
            raise

    async def _book(self, card_id: str) -> PriceBook:
        document = await self._cards.get(card_id)
        return await asyncio.to_thread(PriceBook, document, self._billing.markup, self._billing.rounding_mode)
