"""The active rate card as a price book for each upstream, followed while serving: a new card applies to requests that
begin after it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

import msgspec

from billing.ledger.flush import repeat
from billing.ledger.plans.price_plans import PricePlans
from billing.ledger.rate_cards import RateCards
from billing.money.amounts import MoneyError
from billing.money.errors import BillingError, StoreUnavailable
from billing.money.model_rates import Adjustment, regional_uplifts
from billing.money.pricing import BookOrigin, PriceBook, load_catalogue
from config.settings import Settings
from config.upstreams import entries_of
from proxy.gateway.services import Books, Services

log = logging.getLogger("tollkeeper.rates")

FOLLOW_SECONDS = 1.0


class Rates:
    """Makes price books out of the active card, and of those that upstreams name."""

    def __init__(self, cards: RateCards, plans: PricePlans, settings: Settings) -> None:
        """Take `settings`, which name markup and rounding for cards without prices of their own, and the upstreams."""
        self._cards, self._plans, self._settings = cards, plans, settings
        self._kept: dict[str, bytes] = {}
        """Cards in use by their ids, as JSON: another markup is put in force without asking the database."""
        self._active = ""
        self._made: dict[BookOrigin, PriceBook] = {}
        self.swapping = asyncio.Lock()
        """Held while a book is made and put in place, by whoever does either, and never while a database is asked."""

    async def current(self) -> Books:
        """Books of the active card. Raises StoreUnavailable, RateCardError."""
        card_id = await self._cards.active_id()
        shipped: str = load_catalogue()["catalogueId"]
        if card_id is None:
            await self._cards.begin_with_shipped()
            card_id = shipped
        elif card_id != shipped:
            log.info("rate card %s is active; this version ships %s (`tollkeeper rates refresh`)", card_id, shipped)
        await self._keep(card_id)
        await self.prepare(self._settings)
        self._active = card_id
        return await self._books(self._settings)

    async def follow(self, services: Services, tell: Callable[[str], None]) -> NoReturn:
        """Swap the prices in force whenever another card becomes active, and take price plans as they are made.

        `tell` is told why it cannot be, "" when it can.
        """
        told = ""

        async def look() -> int:
            nonlocal told
            problem = ""
            try:
                await self._take_active(services)
                await self._plans.catch_up(services.price_plans)
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
        if card_id is None or card_id == self._active:
            return
        await self._keep(card_id)
        async with self.swapping:
            before, self._active = self._active, card_id
            try:
                services.put_in_force(services.settings, await self._books(self._settings))
            except BaseException:
                self._active = before
                raise
        log.info("rate card %s applies now", card_id)

    async def prepare(self, settings: Settings) -> None:
        """Read the cards that the upstreams of these settings name. Raises StoreUnavailable, RateCardError."""
        for entry in settings.upstreams:
            if entry.rate_card:
                await self._keep(entry.rate_card)

    async def under(self, settings: Settings) -> Books:
        """Books in use, as `settings`, which were prepared for, would have them; hold `swapping`.

        Raises MoneyError, and then nothing has changed.
        """
        books = await self._books(settings)
        self._settings = settings
        return books

    async def _keep(self, card_id: str) -> None:
        if card_id not in self._kept:
            self._kept[card_id] = msgspec.json.encode(await self._cards.get(card_id))

    async def _books(self, settings: Settings) -> Books:
        """Books of every upstream, each made once."""
        made, found = dict[BookOrigin, PriceBook](), dict[str, PriceBook]()
        for entry in entries_of(settings):
            card_id = entry.rate_card or self._active
            region = entry.region if entry.dialect == "openai" else ""
            # a region without an uplift has the prices of none
            adjustment = Adjustment(entry.price_adjustment, region if regional_uplifts(region) else "")
            wanted = BookOrigin(card_id, settings.billing.markup, settings.billing.rounding_mode, adjustment)
            book = made.get(wanted) or self._made.get(wanted)
            if book is None:
                card = msgspec.json.decode(self._kept[card_id])
                book = await asyncio.to_thread(PriceBook, card, *wanted[1:4])
            made[wanted] = found[entry.name] = book
        self._made = made
        return found
