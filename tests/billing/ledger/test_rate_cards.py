"""Rate cards in SQL: the latest activation in effect applies, none is edited."""

import asyncio
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from billing.ledger.rate_cards import RateCardError, RateCards
from billing.money.errors import StoreUnavailable
from tests.support.rate_cards import SHIPPED, card
from tests.support.stores import Books


async def test_the_latest_activation_in_effect_applies(sql: Books) -> None:
    cards = RateCards(sql.database)
    await cards.begin_with_shipped()
    await cards.begin_with_shipped()
    assert await cards.active_id() == SHIPPED["catalogueId"]
    for name in ("a", "b", "c"):
        assert await cards.add(card(name), "test")
    now = time.time_ns() // 1_000_000
    await cards.activate("a", now - 1_000, "test")
    await cards.activate("c", now + 60_000, "test")
    assert await cards.active_id() == "a"
    await cards.activate("b", now - 2_000, "test")  # from before `a`: it does not push it out
    assert await cards.active_id() == "a"
    await cards.activate("b", now - 1_000, "test")  # of the same time: the one made last
    assert await cards.active_id() == "b"
    assert [row.card_id for row in await cards.activations()] == [SHIPPED["catalogueId"], "a", "c", "b", "b"]


async def test_workers_that_start_at_once_begin_with_the_shipped_card_together(sql: Books) -> None:
    """As after a `migrate` that was killed before it laid the card, or when two machines meet an empty database."""
    await asyncio.gather(*(RateCards(sql.database).begin_with_shipped() for _ in range(4)))
    assert await RateCards(sql.database).active_id() == SHIPPED["catalogueId"]
    assert len(await RateCards(sql.database).cards()) == 1


async def test_a_card_is_never_edited(sql: Books) -> None:
    cards = RateCards(sql.database)
    assert await cards.add(card("a"), "test")
    assert not await cards.add(card("a"), "test")
    with pytest.raises(RateCardError, match="never edited"):
        await cards.add(card("a", **{"models/gpt-4o/rates/default/short/input": "1"}), "test")
    with pytest.raises(RateCardError, match="no rate card"):
        await cards.activate("missing", 0, "test")
    for statement in ("UPDATE rate_cards SET document = '{}'", "DELETE FROM rate_cards"):
        with pytest.raises((DBAPIError, StoreUnavailable), match="never changed"):
            async with sql.database.write() as connection:
                await connection.execute(text(statement))
