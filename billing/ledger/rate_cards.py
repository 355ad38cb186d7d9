"""Rate cards in SQL: imported once, never edited, made active from a time on."""

import json
from typing import Any, NamedTuple

from sqlalchemy import insert, select

from billing.ledger.audit_log import Change, Who, record_change
from billing.money.errors import BillingError
from billing.money.pricing import load_catalogue
from billing.money.rate_card import read_card
from billing.storage.database import Database, now_ms
from billing.storage.rows import columns_of, insert_if_new
from billing.storage.tables.core import rate_activations, rate_cards


class RateCardError(BillingError):
    """There is no such rate card, or one of that id holds other prices."""


class CardActivation(NamedTuple):
    """A card and the time (Unix milliseconds) from which it applies."""

    card_id: str
    effective_at: int
    created_at: int
    actor: str


class RateCardRow(NamedTuple):
    """An imported card without its document; `created_at` in Unix milliseconds."""

    id: str
    created_at: int
    actor: str


class RateCards:
    """The cards and their activations. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def add(self, document: dict[str, Any], actor: str, who: Who | None = None) -> bool:
        """Keep a checked card; False when it is known already. Raises RateCardError when its id has other prices."""
        card_id, text = document["catalogueId"], _canonical(document)
        async with self._db.write() as connection:
            # whoever else adds it at the same moment (workers that start together) is waited for, not collided with
            values = {"id": card_id, "document": text, "created_at": now_ms(), "actor": actor}
            if not await insert_if_new(connection, rate_cards, values, ("id",)):
                known = (
                    await connection.execute(select(rate_cards.c.document).where(rate_cards.c.id == card_id))
                ).scalar_one()
                if known != text:
                    raise RateCardError(
                        f"a rate card {card_id!r} with other prices exists: a card is never edited, give it another id"
                    )
                return False
            await record_change(
                connection, who, Change("rates.import", card_id, None, {"models": len(document["models"])})
            )
        return True

    async def activate(
        self, card_id: str, effective_at: int, actor: str, who: Who | None = None, reason: str = ""
    ) -> None:
        """Let a card apply from a time (Unix milliseconds) on. Raises RateCardError."""
        await self.get(card_id)
        before = await self.active_id()
        async with self._db.write() as connection:
            await connection.execute(
                insert(rate_activations).values(
                    rate_card_id=card_id, effective_at=effective_at, created_at=now_ms(), actor=actor
                )
            )
            after = {"rateCardId": card_id, "effectiveAt": effective_at}
            await record_change(connection, who, Change("rates.activate", card_id, before, after, reason))

    async def active_id(self) -> str | None:
        """Return the card that applies now: of activations in effect the latest, of equal ones the one made last."""
        query = (
            select(rate_activations.c.rate_card_id)
            .where(rate_activations.c.effective_at <= now_ms())
            .order_by(rate_activations.c.effective_at.desc(), rate_activations.c.id.desc())
            .limit(1)
        )
        async with self._db.read() as connection:
            found: str | None = (await connection.execute(query)).scalar_one_or_none()
            return found

    async def get(self, card_id: str) -> dict[str, Any]:
        """Return a card's document. Raises RateCardError."""
        async with self._db.read() as connection:
            text = (
                await connection.execute(select(rate_cards.c.document).where(rate_cards.c.id == card_id))
            ).scalar_one_or_none()
        if text is None:
            raise RateCardError(f"there is no rate card {card_id!r}: `tollkeeper rates show` lists them")
        return read_card(text, new=False)

    async def cards(self) -> list[RateCardRow]:
        """Return every card, oldest first."""
        query = select(*columns_of(rate_cards, RateCardRow._fields)).order_by(rate_cards.c.created_at, rate_cards.c.id)
        async with self._db.read() as connection:
            return [RateCardRow(*row) for row in await connection.execute(query)]

    async def activations(self) -> list[CardActivation]:
        """Every activation, oldest first."""
        columns = (
            rate_activations.c.rate_card_id,
            rate_activations.c.effective_at,
            rate_activations.c.created_at,
            rate_activations.c.actor,
        )
        async with self._db.read() as connection:
            return [
                CardActivation(*row)
                for row in await connection.execute(select(*columns).order_by(rate_activations.c.id))
            ]

    async def begin_with_shipped(self) -> None:
        """Import and activate the shipped card in a ledger without prices."""
        if await self.activations():
            return
        document = load_catalogue()
        await self.add(document, "system")
        await self.activate(document["catalogueId"], 0, "system")


def _canonical(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))
