"""The active rate card as a price book, followed while serving: a new card applies to requests that begin after it."""

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

import msgspec

from billing.ledger.flush import repeat
from billing.ledger.rate_cards import RateCards
from billing.money.amounts import MoneyError
from billing.money.errors import BillingError, StoreUnavailable
from billing.money.pricing import PriceBook, load_catalogue
from config.settings import Billing
from proxy.gateway.services import Services

log = logging.getLogger("tollkeeper.rates")

FOLLOW_SECONDS = 1.0


class Rates:
    """Makes price books out of the active card."""

    def __init__(self, cards: RateCards, billing: Billing) -> None:
        """`billing` names the markup for cards without prices of their own, and the rounding."""
        self._cards, self._billing = cards, billing
        self._kept = b""
        """The card of the book in use, as JSON: another markup or rounding is put in force without asking the database.

        """
        self.swapping = asyncio.Lock()
        """Held while a book is made and put in place, by whoever does either, and never while a database is asked."""

    async def current(self) -> PriceBook:
        """Book of the active card. Raises StoreUnavailable, RateCardError."""
        card_id = await self._cards.active_id()
        shipped = load_catalogue()["catalogueId"]
        if card_id is None:
            await self._cards.begin_with_shipped()
            card_id = shipped
        elif card_id != shipped:
            log.info(
                "rate card %s is active; this version ships %s (`tollkeeper rates diff %s`)", card_id, shipped, shipped
            )
        self._kept = msgspec.json.encode(await self._cards.get(card_id))
        return await self._book(self._kept, self._billing)

    async def follow(self, services: Services, tell: Callable[[str], None]) -> NoReturn:
        """Swap `services.prices` whenever another card becomes active.

        `tell` is told why it cannot be, "" when it can.
        """
        told = ""

        async def look() -> int:
            nonlocal told
            problem = ""
            try:
                await self._take_active(services)
            except StoreUnavailable as error:
                log.debug("the rate card stays as it is: %s", error)  # /readyz reports the store
                return 0
            except (BillingError, MoneyError) as error:
                problem = f"the active rate card cannot be used, the one before stays: {error}"
                if problem != told:
                    log.error("%s", problem)  # noqa: TRY400 - the card is wrong, not the code
            told = problem
            tell(problem)
            return 0

        await repeat(look, FOLLOW_SECONDS, "following the rate card", tell)

    async def _take_active(self, services: Services) -> None:
        """Take the active card. Raises StoreUnavailable, BillingError, MoneyError: then the prices we have stay."""
        card_id = await self._cards.active_id()
        if card_id is None or card_id == services.prices.catalogue_id:
            return
        card = msgspec.json.encode(await self._cards.get(card_id))
        async with self.swapping:
            services.put_in_force(services.settings, await self._book(card, self._billing))
            self._kept = card
        log.info("rate card %s applies now", card_id)

    async def under(self, billing: Billing, services: Services) -> PriceBook:
        """Book in use, as `billing` would have it; hold `swapping`.

        Raises MoneyError, and then nothing has changed.
        """
        before = self._billing
        same = (before.markup, before.rounding_mode) == (billing.markup, billing.rounding_mode)
        book = services.prices if same else await self._book(self._kept, billing)
        self._billing = billing
        return book

    @staticmethod
    async def _book(card: bytes, billing: Billing) -> PriceBook:
        return await asyncio.to_thread(PriceBook, msgspec.json.decode(card), billing.markup, billing.rounding_mode)
